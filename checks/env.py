"""`env.*`: the machine and what is installed on it."""

from __future__ import annotations

from checks import devices_config, env_devices
from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped


def _accelerator(context: CheckContext) -> Outcome:
    gpus = context.probes.gpus()
    if not gpus:
        return skipped("no accelerator: no NVIDIA driver answers; the run would train on the CPU")
    import jax

    names = ", ".join(f"{gpu.name} ({gpu.total_bytes / 2**30:.0f} GiB)" for gpu in gpus)
    measured = {"gpus": [gpu.name for gpu in gpus], "driver": gpus[0].driver, "jax_backend": jax.default_backend()}
    if jax.default_backend() == "cpu":
        return failed(
            f"{names} present, but jax {jax.__version__} sees only the CPU: the run would crawl",
            measured=measured,
            expected={"jax_backend": "gpu"},
            hint=Hint(
                text="install jax's CUDA plugin; if it is installed, look at CUDA_VISIBLE_DEVICES and JAX_PLATFORMS",
                commands=('pip install "robot-preflight[cuda12]"',),
            ),
        )
    return passed(f"jax {jax.__version__} uses {jax.device_count()} of {names}", measured=measured)


CHECKS = (
    Check(
        id="env.accelerator",
        title="jax uses the GPUs that are here",
        level="standard",
        severity="fail",
        failures=("F45",),
        timeout_s=120,
        run=_accelerator,
        doc="Asks the driver (NVML) for GPUs and jax for its backend. A GPU that jax does not see, usually "
        "because the CUDA plugin is missing, would not stop a run: it would train on the CPU.",
    ),
    env_devices.CHECK,
    devices_config.HOSTS,
)
