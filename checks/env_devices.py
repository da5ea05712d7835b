"""`env.devices`: the GPUs compute, and with each other, before a run stands still at its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from checks.context import CheckContext, visible_gpus
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned
from preflight.runs import command_line

if TYPE_CHECKING:
    from preflight.training.device_trial import Trial

_PEER_TO_PEER = "NCCL_P2P_DISABLE"
# What is said where libraries, driver and GPU do not go together (openpi#419).
_MIXED = ("ptx", "cudnn", "cublas", "cuda_error", "no kernel image", "libdevice", "driver version", "nccl.so")


def _devices(context: CheckContext) -> Outcome:
    visible = len(visible_gpus(context))
    if not visible:
        return skipped("no accelerator: no GPU is visible to try")
    trial = context.probes.trial({})
    measured = {"devices": list(trial.devices), "backend": trial.backend, "seconds": dict(trial.seconds)}
    if trial.backend == "cpu":
        return skipped("jax sees only the CPU, so that no GPU was tried: env.accelerator says why")
    if trial.stage is None and len(trial.devices) < visible:
        return warned(
            f"jax finds {len(trial.devices)} of {visible} visible GPUs, and the others were not tried; {_well(trial)}",
            measured=measured,
            expected={"devices": visible},
            hint=Hint(text="see what nvidia-smi says of the others", commands=("nvidia-smi",)),
        )
    if trial.stage is None:
        return passed(_well(trial), measured=measured)
    if trial.stage == "exchange":
        return _no_exchange(context, trial, measured)
    if trial.hung:
        what = "jax did not find the devices" if trial.stage == "start" else "a matrix product did not come back"
        return failed(
            f"{what} in time: a GPU or its driver hangs, and so would the run",
            measured=measured,
            evidence=trial.output,
            hint=Hint(
                text="see what else is on the GPUs, and the kernel's log for NVIDIA's Xid errors; a GPU that fell off "
                "the bus needs a reset or a restart",
                commands=("nvidia-smi", "dmesg | grep -i xid"),
            ),
        )
    mixed = any(mark in f"{trial.error} {' '.join(trial.output)}".lower() for mark in _MIXED)
    return failed(
        f"the devices do not {'compute' if trial.stage == 'compute' else 'start'}: {trial.error}",
        measured=measured,
        evidence=trial.output,
        hint=Hint(
            text="jax brings its own CUDA libraries: let no others be found before them, and have a driver that is new "
            "enough for them and a jax that is new enough for the GPU",
            commands=("unset LD_LIBRARY_PATH", "nvidia-smi"),
            url="https://github.com/Physical-Intelligence/openpi/issues/419",
        )
        if mixed
        else Hint(text="see what else is on the GPUs", commands=("nvidia-smi",)),
    )


def _well(trial: Trial) -> str:
    count = len(trial.devices)
    computes = f"{count} x {trial.devices[0]}: matrix product and convolution are right"
    if count == 1:
        return f"{computes} ({trial.seconds['compute']:.1f} s)"
    return f"{computes} on each, and so is a sum over all of them ({sum(trial.seconds.values()):.1f} s)"


def _no_exchange(context: CheckContext, trial: Trial, measured: dict[str, Any]) -> Outcome:
    count = len(trial.devices)
    what = (
        f"a sum over {count} GPUs did not come back in time: the run would stand still at its first step"
        if trial.hung
        else f"a sum over {count} GPUs fails: {trial.error}"
    )
    text = "name GPUs that work together in CUDA_VISIBLE_DEVICES; NCCL_DEBUG=INFO says more"
    commands: tuple[str, ...] = (
        f"NCCL_DEBUG=INFO {command_line(context.run.facts, 'check', '--only', 'env.devices')}",
    )
    if context.probes.environ.get(_PEER_TO_PEER) != "1":
        # Known to help where the way from GPU to GPU is broken, as by an IOMMU: tried, and not guessed.
        again = context.probes.trial({_PEER_TO_PEER: "1"})
        measured |= {"without_peer_to_peer": again.stage is None}
        if again.stage is None:
            text = f"without NCCL's peer-to-peer transfers it takes {again.seconds['exchange']:.1f} s: set this"
            commands = (f"export {_PEER_TO_PEER}=1",)
        else:
            text = f"{_PEER_TO_PEER}=1 does not help, either; {text}"
    return failed(
        what,
        measured=measured,
        evidence=trial.output,
        hint=Hint(text=text, commands=commands, url="https://github.com/Physical-Intelligence/openpi/issues/483"),
    )


CHECK = Check(
    id="env.devices",
    title="The GPUs compute, and with each other",
    level="standard",
    severity="fail",
    failures=("F43", "F45"),
    timeout_s=240,
    run=_devices,
    doc="A process of its own multiplies matrices and convolves on every GPU that is visible, and sums 32 MiB of each "
    "over all of them, as a step does with its gradients; every result is compared. Visible GPUs that jax does not "
    "find are warned of. GPUs that cannot reach each other let a run stand still at its first step, without an error "
    "(openpi#480, #483): here the process is ended after 90 s, and tried again without NCCL's "
    "peer-to-peer transfers, to see whether that helps. A new GPU under an old jax, an old driver or CUDA libraries of "
    "another version say so here, and not after the dataset was read (openpi#419).",
)
