"""`config.fsdp` and `env.hosts`: which devices and processes share a run, and who decides it."""

from __future__ import annotations

from checks.context import CheckContext, visible_gpus, with_settings
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned

_KEY = "fsdp_devices"
_ONE_PROCESS = "start one process, on one machine; it uses all the GPUs that it sees"


def _fsdp(context: CheckContext) -> Outcome:
    shards = context.run.facts.fsdp_devices
    target = context.target
    gpus = target.count if target is not None else len(visible_gpus(context))
    whose = f"{gpus} x {target.spec.title}" if target is not None else f"{gpus} visible GPU{'s' * (gpus != 1)}"
    if not gpus:
        meaning = ": every GPU would hold the whole state" if shards == 1 else ""
        return skipped(f"{_KEY} is {shards}{meaning}; no GPU is here and --target names none")
    measured = {_KEY: shards, "gpus": gpus}
    if gpus % shards:
        divisors = [n for n in range(1, gpus + 1) if gpus % n == 0]
        near = max((n for n in divisors if n <= shards), default=1)
        return failed(
            f"{_KEY} {shards} does not divide {whose}: it does not choose GPUs, all that are visible are used",
            measured=measured,
            expected={_KEY: divisors},
            hint=Hint(
                text="a number that divides them; which GPUs are used is chosen by CUDA_VISIBLE_DEVICES",
                commands=(*with_settings(context, f"{_KEY}={near}"), *_on_as_many(context, shards, gpus)),
            ),
        )
    if gpus == 1:
        return passed(f"{whose} holds the whole state ({_KEY} 1)", measured=measured)
    if shards == 1:
        return passed(f"all {whose} share each batch and each holds the whole state ({_KEY} 1)", measured=measured)
    groups = gpus // shards
    copies = "one copy" if groups == 1 else f"{groups} copies"
    return passed(
        f"all {whose} share each batch and hold {copies} of the state, each sharded over {shards} ({_KEY} {shards})",
        measured=measured,
    )


def _on_as_many(context: CheckContext, shards: int, gpus: int) -> tuple[str, ...]:
    """The same run on exactly the GPUs that it shards over, where they are here."""
    if context.target is not None or shards > gpus:
        return ()
    named = context.probes.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [word.strip() for word in named.split(",")] if named else [str(gpu.index) for gpu in visible_gpus(context)]
    return (f"CUDA_VISIBLE_DEVICES={','.join(ids[:shards])} {with_settings(context)[0]}",)


def _hosts(context: CheckContext) -> Outcome:
    environ = context.probes.environ
    launchers = []
    tasks = _number(environ.get("SLURM_NTASKS"))
    # srun sets these for what it starts; a batch script, which runs once, sees the number of tasks alone.
    in_step = "SLURM_STEP_NODELIST" in environ or "SLURM_STEP_NUM_TASKS" in environ
    started = _number(environ.get("SLURM_STEP_NUM_TASKS")) or tasks
    if in_step and started > 1:
        launchers.append(f"srun started {started} tasks")
    if (ranks := _number(environ.get("OMPI_COMM_WORLD_SIZE"))) > 1:
        launchers.append(f"OMPI_COMM_WORLD_SIZE={ranks}")
    if address := environ.get("JAX_COORDINATOR_ADDRESS"):
        launchers.append(f"JAX_COORDINATOR_ADDRESS={address}")
    measured = {"launchers": launchers, "slurm_tasks": tasks or None}
    if launchers:
        return failed(
            f"this would be one of several processes ({', '.join(launchers)}), and the training is made for one: each "
            "would train alone, on the same batches, and fight for the same folder",
            measured=measured,
            expected={"processes": 1},
            hint=Hint(
                text=f"{_ONE_PROCESS}. openpi's script never joins processes either, and its loader refuses them "
                "('Data loading with multiple processes is not supported.')",
                url="https://github.com/Physical-Intelligence/openpi/issues/314",
            ),
        )
    if tasks > 1:
        return warned(
            f"the Slurm job has {tasks} tasks and the training is one: srun would start it {tasks} times",
            measured=measured,
            expected={"slurm_tasks": 1},
            hint=Hint(text=f"{_ONE_PROCESS}: ask for one task with all of its GPUs and cores (--ntasks=1)"),
        )
    return passed("one process: neither Slurm, Open MPI nor JAX_COORDINATOR_ADDRESS speaks of several")


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.strip().isdecimal() else 0


FSDP = Check(
    id="config.fsdp",
    title="The GPUs divide into shards of the state",
    level="quick",
    severity="fail",
    failures=("F46",),
    run=_fsdp,
    doc="fsdp_devices says over how many GPUs one copy of the state is sharded. It does not say how many GPUs are "
    "used: 'By default, the training loop will utilize all of your GPUs' (openpi#327), and it must divide their "
    "number, else the training raises. Which GPUs there are is CUDA_VISIBLE_DEVICES' to say. Sharding makes a run fit, "
    "not fast (openpi#600). Each batch is divided over all of the GPUs whatever fsdp_devices says, so that the batch "
    "size is config.batch's to judge; what a GPU then holds is memory.device's. Skipped where no GPU is to be counted.",
)

HOSTS = Check(
    id="env.hosts",
    title="The run is one process",
    level="quick",
    severity="fail",
    failures=("F48",),
    run=_hosts,
    doc="Several processes would have to be joined by jax.distributed and load a share of each batch each. preflight's "
    "loop does neither yet, and openpi's loader refuses ('Data loading with multiple processes is not supported.'; "
    "openpi#314, #731): started by srun or mpirun, every process would train the whole run for itself. Looked at are "
    "what srun sets for a step (SLURM_STEP_NUM_TASKS, SLURM_STEP_NODELIST with SLURM_NTASKS), OMPI_COMM_WORLD_SIZE and "
    "JAX_COORDINATOR_ADDRESS. A Slurm job of several tasks in which this is the only process is warned of.",
)
