"""The openpi stack: the user's own openpi checkout or fork, imported where preflight is installed beside it."""
