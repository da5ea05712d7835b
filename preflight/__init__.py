"""preflight: know whether a robot-policy training run will work before it spends GPU-hours."""

__version__ = "0.1.0"
