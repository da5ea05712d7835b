"""What a device that has no memory left says, in a sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import jax

from preflight.errors import PreflightError
from preflight.runs.protocol import Facts, command_line


@contextlib.contextmanager
def device_errors(facts: Facts) -> Iterator[None]:
    """Tells what to do where an array or the step does not fit into the device's memory.

    Args:
        facts: The run's.

    Raises:
        PreflightError: In place of XLA's own error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = re.search(r"allocat\w* (?:of )?(\d+(?:\.\d+)?\s?[KMGT]?i?B|\d+ bytes)", str(error))
        check = command_line(facts, "check", "--only", "memory.*")
        raise PreflightError(
            f"{jax.devices()[0].device_kind} has no memory left{f', asked for {asked[1]}' if asked else ''}",
            f"see what the step takes, and what would make it fit: {check}",
        ) from error
