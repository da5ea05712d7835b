"""`storage.write`: a save rehearsed where the checkpoints will lie, with Orbax and a state of limited size."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from checks import units
from checks.context import CheckContext, with_settings
from checks.trace import abstract_state, state_bytes
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.errors import PreflightError

_MOST_BYTES = 2**30
# Of what is free: the rehearsal, which takes three times its bytes of RAM, must not be what fills either.
_SHARE_OF_DISK, _SHARE_OF_RAM = 0.5, 0.1
_TIMEOUT_S = 120.0
# With fewer bytes than this, what Orbax takes for itself is more than what it takes for them.
_TELLING_BYTES = 256 * 2**20

_ELSEWHERE = Hint(text="choose another place: --set checkpoint_base_dir=DIR")

# By part of the state, the shape and the dtype's name of each leaf.
_Shapes = dict[str, list[tuple[list[int], str]]]


def _write(context: CheckContext) -> Outcome:
    base, full = context.run.facts.checkpoint_base_dir.absolute(), state_bytes(context).checkpoint
    place = next(path for path in (base, *base.parents) if path.exists())
    limit = min(
        _MOST_BYTES,
        context.probes.disk_free(place) * _SHARE_OF_DISK,
        context.probes.memory().available_bytes * _SHARE_OF_RAM,
    )
    shapes = _shapes(context, limit / full)
    wanted = _bytes_of(shapes)
    answer = _rehearse(place, shapes)
    measured: dict[str, Any] = {"folder": str(place), "rehearsed_mib": round(wanted / 2**20, 1)}
    if "error" in answer:
        return failed(f"a rehearsed save in {place} failed: {answer['error']}", measured=measured, hint=_ELSEWHERE)
    if "too_slow_s" in answer:
        rate = wanted / answer["too_slow_s"]
        return warned(
            f"{units.size(wanted)} were not saved in {place} within {answer['too_slow_s']:.0f} s: a whole checkpoint "
            f"of {units.size(full)} takes more than {_duration(full / rate)}",
            measured=measured,
            hint=_ELSEWHERE,
        )
    rate = answer["bytes"] / answer["seconds"]
    whole_s = full / rate
    measured |= {
        "mb_per_s": round(rate / 1e6, 1),
        "seconds": round(answer["seconds"], 2),
        "blocking_s": round(answer["blocking_s"], 2),
        "stored_share": round(answer["stored"] / answer["bytes"], 3),
        "peak_mib": round(answer["peak"] / 2**20, 1),
        "whole_checkpoint_s": round(whole_s, 1),
    }
    if answer["bytes"] >= _TELLING_BYTES:
        measured["peak_factor"] = round(answer["peak"] / answer["bytes"], 2)
    summary = (
        f"{units.size(answer['bytes'])} saved in {place} at {rate / 1e6:,.0f} MB/s, at its peak with "
        f"{units.size(answer['peak'])} of RAM; a whole checkpoint of {units.size(full)} takes {_duration(whole_s)}"
    )
    return _against_interval(context, summary, measured, whole_s)


def _against_interval(context: CheckContext, summary: str, measured: dict[str, Any], whole_s: float) -> Outcome:
    step = _step_s(context)
    if step is None:
        return passed(f"{summary} (how long a step takes is not known)", measured=measured)
    facts = context.run.facts
    fast, slow = (facts.save_interval * seconds for seconds in step)
    measured["save_interval_s"] = [round(fast, 1), round(slow, 1)]
    between = f"the {facts.save_interval:,} steps between two saves {_duration(fast)} to {_duration(slow)}"
    if whole_s <= fast:
        return passed(f"{summary}, {between}", measured=measured)
    return warned(
        f"{summary}, {between}: a save that is not finished when the next is due makes the training wait",
        measured=measured,
        expected={"whole_checkpoint_s": f"less than {fast:.0f}"},
        hint=Hint(
            text="save less often, or on a faster disk (local NVMe)",
            commands=with_settings(context, f"save_interval={math.ceil(2 * facts.save_interval * whole_s / fast)}"),
        ),
    )


def _step_s(context: CheckContext) -> tuple[float, float] | None:
    """Seconds of a step, at the least and at a usual share of the GPU's peak; None where they are not known."""
    from checks.device import step_roofline
    from preflight.training.roofline import LOW_UTILISATION

    try:
        bounds = step_roofline(context)
    except PreflightError:
        return None  # memory.device says why
    if bounds is None or not bounds.tells:
        return None
    return bounds.floor_s, bounds.floor_s / LOW_UTILISATION


def _shapes(context: CheckContext, share: float) -> _Shapes:
    """The run's state, the longest axis of each leaf cut to a share of its length; as many leaves as before."""
    import jax

    state = abstract_state(context)

    def cut(leaf: Any) -> tuple[list[int], str]:
        shape = list(leaf.shape)
        if shape and share < 1:
            longest = shape.index(max(shape))
            shape[longest] = max(1, int(shape[longest] * share))
        return shape, str(leaf.dtype)

    parts = {"params": state.params, "opt_state": state.opt_state, "ema_params": state.ema_params}
    return {part: [cut(leaf) for leaf in jax.tree.leaves(tree)] for part, tree in parts.items()}


def _bytes_of(shapes: _Shapes) -> int:
    import jax.numpy as jnp

    return sum(math.prod(shape) * jnp.dtype(dtype).itemsize for leaves in shapes.values() for shape, dtype in leaves)


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def _rehearse(place: Path, shapes: _Shapes) -> dict[str, Any]:
    """Has `rehearsed_save` write; its folder is gone when this returns, or soon after this process has ended."""
    keeper = subprocess.Popen(
        # -P: nothing that lies in the working directory is imported by mistake.
        [sys.executable, "-P", str(Path(__file__).with_name("rehearsed_save.py")), "keep", str(place), str(_TIMEOUT_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is not for the keeper; it learns of our end by the end of its stdin
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    with keeper:
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(json.dumps(shapes) + "\n")
            keeper.stdin.flush()
        said = keeper.stdout.read()
    try:
        return dict(json.loads(said))
    except ValueError:
        raise RuntimeError(f"the rehearsal's keeper ended with exit code {keeper.returncode}") from None


CHECK = Check(
    id="storage.write",
    title="A save works and keeps pace",
    level="full",
    severity="fail",
    requires=("config.model", "storage.checkpoint-dir", "storage.space"),
    exclusive=True,
    failures=("F41", "F01"),
    timeout_s=180,
    run=_write,
    doc="Saves a state of the run's own leaves, cut to 1 GiB in all (and to a tenth of the free RAM and half of the "
    "free disk), with preflight's own save and Orbax, into a temporary folder where the checkpoints will lie. The "
    "values are noise, which hardly compresses. Measured are the MB/s until everything is on the disk (fsync), and the "
    "writing process's memory (PSS) every 50 ms: its peak above what it held at the start. The time of a whole "
    "checkpoint follows from the rate. It is compared with the time between two saves where the least time of a step "
    "is known (a known GPU here or in --target): a save that is not finished when the next is due makes the training "
    "wait (openpi#441, #624). A save that fails is reported with its reason. The folder is deleted by a process of its "
    "own, also when the check is interrupted, given up on or killed.",
)
