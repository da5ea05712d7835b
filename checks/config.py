"""`config.*`: what the numbers of the config mean for the run."""

from __future__ import annotations

import math
import re

from checks import devices_config, model, weights
from checks.context import CheckContext, visible_gpus, with_settings
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned
from preflight.data.metadata import read_info
from preflight.runs import command_line
from preflight.suggest import unknown
from preflight.training.folder import kept_steps, save_steps


def _expectations(context: CheckContext) -> Outcome:
    if not context.expect:
        return skipped("the project file states no expectations")
    settings = context.run.facts.settings
    wrong, measured = [], {}
    for key, wanted in context.expect.items():
        if key not in settings:
            wrong.append("{}; {}".format(*unknown("key", key, settings)))
            continue
        found = list(settings[key]) if isinstance(settings[key], tuple) else settings[key]
        measured[key] = found
        if not _meets(found, wanted):
            wrong.append(f"{key} is {found!r}, expected {wanted!r}")
    if wrong:
        return failed(
            f"{len(wrong)} of {len(context.expect)} expectations are not met",
            measured=measured,
            expected=dict(context.expect),
            evidence=tuple(wrong),
            hint=Hint(text="change the config, or the expectation under [tool.preflight.expect]"),
        )
    return passed(f"{len(measured)} expectations met: {', '.join(f'{k} = {v}' for k, v in measured.items())}")


def _meets(found: object, wanted: object) -> bool:
    if wanted == "none" and found is None:
        return True  # TOML has no word for it
    # Python takes True for 1.
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


def _freeze(context: CheckContext) -> Outcome:
    from checks.trace import abstract_state, paths
    from preflight.training.state import trainable

    patterns = context.run.facts.freeze
    state = abstract_state(context)
    params, trained = paths(state.params), paths(trainable(context.run, state.params))
    frozen = {p: [path for path in params if re.fullmatch(p, path)] for p in patterns}
    measured = {
        "patterns": {p: len(found) for p, found in frozen.items()},
        "leaves": len(params),
        "trained_leaves": len(trained),
    }
    if not trained:
        return failed(
            "freeze matches every parameter: nothing would be trained",
            measured=measured,
            hint=Hint(text="a pattern is matched with the whole path; name fewer modules, as in '.*/img/.*'"),
        )
    if context.run.facts.frozen and len(trained) == len(params):
        what = f"freeze pattern {patterns[0]!r}" if patterns else "the freeze filter"
        return warned(
            f"{what} matches no parameter: all {len(params)} leaves are trained",
            measured=measured,
            evidence=tuple(sorted(params)[:8]),
            hint=Hint(text="a pattern must match a parameter's whole path; the lines above show some"),
        )
    if idle := [p for p, found in frozen.items() if not found]:
        return warned(
            f"freeze pattern {idle[0]!r} matches no parameter",
            measured=measured,
            evidence=tuple(sorted(params)[:8]),
            hint=Hint(text="a pattern must match a parameter's whole path; the lines above show some"),
        )
    total = sum(leaf.size for leaf in trained.values())
    return passed(f"{len(trained)} of {len(params)} leaves are trained, {total:,} parameters", measured=measured)


def _batch(context: CheckContext) -> Outcome:
    batch_size = context.run.facts.batch_size
    frames = _num_samples(context)
    gpus = max(1, len(visible_gpus(context)))
    measured = {"batch_size": batch_size, "frames": frames, "devices": gpus}
    if frames < batch_size:
        return failed(
            f"the dataset has {frames} frames, fewer than one batch of {batch_size}",
            measured=measured,
            hint=Hint(text="a smaller batch", commands=with_settings(context, f"batch_size={frames}")),
        )
    if batch_size % gpus:
        near = max(gpus, round(batch_size / gpus) * gpus)
        return failed(
            f"batch_size {batch_size} does not divide over {gpus} GPUs",
            measured=measured,
            hint=Hint(text="the nearest size that does", commands=with_settings(context, f"batch_size={near}")),
        )
    return passed(f"batches of {batch_size} from {frames:,} frames, {batch_size // gpus} per device", measured=measured)


def _num_samples(context: CheckContext) -> int:
    root = context.run.source()
    return len(context.run.dataset()) if root is None else read_info(root).total_frames


def _workers(context: CheckContext) -> Outcome:
    workers, cpus = context.run.facts.num_workers, context.probes.cpus()
    measured = {"num_workers": workers, "cpus": cpus.count, "cpus_source": cpus.source}
    if workers > cpus.count:
        return warned(
            f"{workers} workers share {cpus.count:g} CPU cores ({cpus.source})",
            measured=measured,
            hint=Hint(
                text="more workers than cores cost RAM and start-up and bring no speed; measure it",
                commands=(command_line(context.run.facts, "bench-loader", "--workers", _sweep(cpus.count)),),
            ),
        )
    if workers == 0:
        return warned(
            "num_workers is 0: the training process decodes every batch itself while the device waits",
            measured=measured,
            hint=Hint(text="one worker is enough to overlap the two", commands=with_settings(context, "num_workers=2")),
        )
    return passed(f"{workers} workers on {cpus.count:g} CPU cores", measured=measured)


def _sweep(cpus: float) -> str:
    return ",".join(str(n) for n in sorted({1, max(1, int(cpus) // 2), max(1, int(cpus))}))


def _milestones(context: CheckContext) -> Outcome:
    facts = context.run.facts
    last = facts.num_train_steps - 1
    if not facts.milestones:
        return passed(f"camera views at step 0, at each save and at the last step, {last}")
    beyond = [step for step in facts.milestones if not 0 <= step <= last]
    measured = {"milestones": list(facts.milestones), "last_step": last}
    if beyond:
        return warned(
            f"{', '.join(f'step {s}' for s in beyond)} never {'comes' if len(beyond) == 1 else 'come'}: "
            f"{facts.num_train_steps} steps are 0 … {last}",
            measured=measured,
            hint=Hint(text=f"the last step is always pictured; drop the milestone or name {last}"),
        )
    return passed(f"{len(facts.milestones)} milestones, all within steps 0 … {last}", measured=measured)


def _checkpoints(context: CheckContext) -> Outcome:
    facts = context.run.facts
    keep, saves, kept = facts.keep_period, save_steps(facts), kept_steps(facts)
    measured = {"saves": saves[:20], "num_saves": len(saves), "kept": kept[:20]}
    if keep is not None and keep < facts.num_train_steps and not any(s % keep == 0 for s in saves[:-1] or saves):
        return warned(
            f"keep_period {keep} and save_interval {facts.save_interval} never meet: only the last checkpoint is kept",
            measured=measured,
            hint=Hint(
                text="keep_period should be a multiple of save_interval",
                commands=with_settings(context, f"keep_period={facts.save_interval}"),
            ),
        )
    shown = ", ".join(str(s) for s in (kept if len(kept) <= 6 else [*kept[:5], "…", kept[-1]]))
    return passed(f"{len(saves)} saves, kept at the end: {shown}", measured=measured)


def _schedule(context: CheckContext) -> Outcome:
    facts = context.run.facts
    steps = facts.num_train_steps
    if facts.warmup_steps is None or facts.decay_steps is None:
        return skipped("the schedule is none of warm-up and decay over a number of steps")
    measured = {"num_train_steps": steps, "warmup_steps": facts.warmup_steps, "decay_steps": facts.decay_steps}
    mend = Hint(
        text="fit the schedule to the run's length",
        commands=with_settings(
            context,
            f"lr_schedule.decay_steps={steps}",
            f"lr_schedule.warmup_steps={min(facts.warmup_steps, steps // 20)}",
        ),
    )
    if facts.warmup_steps >= steps:
        return warned(
            f"the warm-up takes {facts.warmup_steps:,} steps, the run {steps:,}: the learning rate never "
            "reaches its peak",
            measured=measured,
            hint=mend,
        )
    if facts.decay_steps > steps * 1.05:
        done = (steps - facts.warmup_steps) / (facts.decay_steps - facts.warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * done))
        return warned(
            f"the decay is laid out for {facts.decay_steps:,} steps, the run ends at {steps:,}: "
            f"{left:.0%} of the way from the floor to the peak is left",
            measured=measured,
            hint=mend,
        )
    if facts.decay_steps < steps * 0.95:
        return warned(
            f"the learning rate sits at its floor for the last {steps - facts.decay_steps:,} of {steps:,} steps",
            measured=measured,
            hint=mend,
        )
    return passed(f"warm-up over {facts.warmup_steps:,} steps, decay to the run's end at {steps:,}", measured=measured)


def _epochs(context: CheckContext) -> Outcome:
    facts = context.run.facts
    frames = _num_samples(context)
    epochs = facts.num_train_steps * facts.batch_size / frames
    measured = {"epochs": round(epochs, 2), "frames": frames, "samples": facts.num_train_steps * facts.batch_size}
    passes = f"{epochs:,.0f}" if epochs >= 100 else f"{epochs:.3g}"
    if epochs < 1 or epochs > 100:
        low, high = (max(1, round(n * frames / facts.batch_size)) for n in (5, 10))
        return warned(
            f"{facts.num_train_steps:,} steps of {facts.batch_size} are {passes} passes over {frames:,} frames",
            measured=measured,
            expected={"epochs": "1 to 100"},
            hint=Hint(
                text=f"5 to 10 passes, a usual fine-tune, are {low:,} to {high:,} steps",
                commands=with_settings(context, f"num_train_steps={high}"),
            ),
        )
    return passed(f"{passes} passes over {frames:,} frames", measured=measured)


def _ema(context: CheckContext) -> Outcome:
    facts = context.run.facts
    if facts.ema_decay is None:
        return passed("no moving average of the parameters is kept; ema_distance is not logged")
    horizon = 1 / (1 - facts.ema_decay)
    measured = {"ema_decay": facts.ema_decay, "horizon_steps": round(horizon, 1)}
    if facts.frozen:
        lora = "in a LoRA run: " if facts.lora else "while parameters are frozen: "
        return warned(
            f"ema_decay is set {lora}the average keeps a second copy of the frozen parameters too",
            measured=measured,
            hint=Hint(text="openpi's LoRA configs switch it off", commands=with_settings(context, "ema_decay=none")),
        )
    if horizon > facts.num_train_steps / 2:
        return warned(
            f"the moving average looks back {horizon:,.0f} steps, the run has {facts.num_train_steps:,}: "
            "it would still hold the initial parameters at the end",
            measured=measured,
            hint=Hint(
                text="a shorter average",
                commands=with_settings(context, f"ema_decay={1 - 10 / max(20, facts.num_train_steps):.6g}"),
            ),
        )
    return passed(f"moving average over about {horizon:,.0f} steps", measured=measured)


CHECKS = (
    Check(
        id="config.expectations",
        title="The config is what the project expects",
        level="quick",
        severity="fail",
        run=_expectations,
        doc="Compares the config with [tool.preflight.expect] of the project file: `num_workers = 8` there "
        "means that a run with any other value is not cleared. For the values that a team decided once and "
        "forgets twice.",
    ),
    Check(
        id="config.batch",
        title="Batches can be made and divided",
        level="quick",
        severity="fail",
        requires=("data.metadata",),
        failures=("F47",),
        run=_batch,
        doc="The batch size must divide over the GPUs, and the dataset must hold at least one batch.",
    ),
    devices_config.FSDP,
    Check(
        id="config.workers",
        title="Loader workers suit the CPU cores",
        level="quick",
        severity="warn",
        failures=("F03",),
        run=_workers,
        doc="Compares num_workers with the cores that this process may use (affinity and cgroup quota). How "
        "many workers are best is measured by `preflight bench-loader`.",
    ),
    Check(
        id="config.milestones",
        title="Every milestone is reached",
        level="quick",
        severity="warn",
        run=_milestones,
        doc="A run of N steps makes the steps 0 … N-1. Camera views asked for at step N would silently never come.",
    ),
    Check(
        id="config.checkpoints",
        title="Checkpoints are saved and kept as meant",
        level="quick",
        severity="warn",
        failures=("F40",),
        run=_checkpoints,
        doc="Lists the steps that are saved and those that are still there at the end: multiples of "
        "keep_period and the last one. A keep_period that meets no save keeps nothing.",
    ),
    Check(
        id="config.schedule",
        title="The learning rate fits the run's length",
        level="quick",
        severity="warn",
        failures=("F37",),
        run=_schedule,
        doc="openpi's cosine schedule decays over 30 000 steps whatever the run's length: a shorter run never "
        "reaches the floor, a run shorter than the warm-up never the peak, and a longer one sits at the floor.",
    ),
    Check(
        id="config.epochs",
        title="Passes over the data are in proportion",
        level="quick",
        severity="warn",
        requires=("data.metadata",),
        failures=("F38",),
        run=_epochs,
        doc="Runs are counted in steps; this says what that means in passes over the frames. Less than one "
        "pass leaves data unseen, hundreds of passes over a small dataset overfit.",
    ),
    model.CHECK,
    weights.CHECK,
    Check(
        id="config.freeze",
        title="The freeze patterns find what they name",
        level="standard",
        severity="fail",
        requires=("config.model",),
        timeout_s=180,
        run=_freeze,
        doc="Matches the config's freeze patterns with the paths of the model's parameters, traced and not allocated. "
        "A pattern that matches nothing freezes nothing, without a word; one that matches everything trains nothing.",
    ),
    Check(
        id="config.ema",
        title="The moving average makes sense",
        level="quick",
        severity="warn",
        failures=("F10",),
        run=_ema,
        doc="An average that looks back further than the run, or that is kept beside frozen parameters, costs "
        "memory (one more copy of the parameters) and serves worse weights.",
    ),
)
