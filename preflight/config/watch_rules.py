"""The rules that watch a run: what each looks at, its limits and its advice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

Severity = Literal["note", "warn", "stop"]


@dataclasses.dataclass(frozen=True)
class Limit:
    """A number of a rule that a project may change."""

    value: float
    meaning: str
    least: float = 0.0  # what it must be above
    most: float = math.inf  # what it must not exceed; 1 for shares

    def __str__(self) -> str:
        return f"{100 * self.value:g} %" if self.most == 1 else f"{self.value:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """When the watch speaks, and how gravely."""

    id: str  # stable, dotted
    title: str  # what it speaks of
    severity: Severity  # note: worth knowing; warn: somebody should look; stop: the run ends, exit code 5
    when: str  # the condition, with {limits} by name
    advice: str
    limits: Mapping[str, Limit] = dataclasses.field(default_factory=dict)

    def __getitem__(self, limit: str) -> float:
        return float(self.limits[limit].value)

    @property
    def condition(self) -> str:
        """`when`, with the limits as they are."""
        return self.when.format(**self.limits)


def _window(steps: int = 100) -> Limit:
    return Limit(steps, "the last steps that are looked at", least=1)


def _share(value: float) -> Limit:
    return Limit(value, "of the window's steps, how many make it speak", most=1.0)


# The thresholds of the checklist that this project began with: an openpi fine-tune of pi0 on one GPU. The first steps
# have gradients far beyond them, and a single spike is clipped and harmless: hence `after` and `share`.
_RULES = (
    Rule(
        id="loss.finite",
        title="the loss is no finite number",
        severity="stop",
        when="at one step; every parameter is lost with it",
        advice="Go on from the last good checkpoint with a lower learning rate, or in float32; a sample whose values "
        "are not finite does the same: see the checks data.values and data.norm-stats.",
    ),
    Rule(
        id="grad.finite",
        title="a gradient is no finite number",
        severity="stop",
        when="at one step; the step's update makes every parameter NaN",
        advice="Go on from the last good checkpoint with a lower learning rate, or in float32; the check grad.finite "
        "tells which parameters overflow.",
    ),
    Rule(
        id="grad.max",
        title="gradients explode",
        severity="warn",
        when="grad_max > {high} at {share} of the last {window} steps, from step {after} on",
        advice="The learning rate is probably too high: stop, lower lr_schedule.peak_lr or lengthen its warm-up, and "
        "start again from the last checkpoint before it.",
        limits={
            "high": Limit(100.0, "the largest absolute gradient"),
            "window": _window(),
            "share": _share(0.05),
            "after": Limit(20, "the first step that counts", least=-1),
        },
    ),
    Rule(
        id="grad.norm",
        title="the gradient's norm is out of its range",
        severity="warn",
        when="grad_norm outside {low} … {high} at {share} of the last {window} steps, from step {after} on",
        advice="Above: lower lr_schedule.peak_lr or lengthen its warm-up. Below: the model hardly learns; see whether "
        "the loss still falls, and what the check grad.coverage says is trained.",
        limits={
            "low": Limit(0.1, "the least norm, before clipping", least=-1),
            "high": Limit(10.0, "the largest norm, before clipping"),
            "window": _window(),
            "share": _share(0.5),
            "after": Limit(20, "the first step that counts", least=-1),
        },
    ),
    Rule(
        id="update.ratio",
        title="updates are large against the parameters",
        severity="warn",
        when="update_ratio > {high} at {share} of the updates in the last {window} steps, from step {after} on",
        advice="More than a hundredth of the weights' norm in one step unlearns what they held: lower "
        "lr_schedule.peak_lr.",
        limits={
            "high": Limit(0.01, "the update's norm by the parameters'"),
            "window": _window(),
            "share": _share(0.5),
            "after": Limit(20, "the first step that counts", least=-1),
        },
    ),
    Rule(
        id="loss.range",
        title="early losses are unusual for a fine-tune",
        severity="note",
        when="loss outside {low} … {high} at {share} of the first {steps} steps",
        advice="Usual for a fine-tune of pi0 from its own weights, by z-scores. Otherwise see whether weights were "
        "loaded (weights), and whether the normalisation fits (the check data.norm-stats).",
        limits={
            "low": Limit(0.001, "the least loss", least=-1),
            "high": Limit(0.1, "the largest loss"),
            "steps": Limit(100, "the first steps of the run, those that are looked at", least=1),
            "share": _share(0.5),
        },
    ),
    Rule(
        id="loss.trend",
        title="the loss does not fall",
        severity="warn",
        when="no falling trend (Mann and Kendall, one-sided level of 5 %) in the losses logged from step 0 to step "
        "{after}",
        advice="See whether actions and cameras are the right ones (preflight contact-sheet), what is trained (the "
        "check grad.coverage), and whether the learning rate is far too low or too high.",
        limits={"after": Limit(1000, "the step at which it is asked", least=7)},
    ),
    Rule(
        id="loss.rising",
        title="the loss has risen again",
        severity="warn",
        when="the median loss of {steps} steps is more than {factor} times the lowest of any {steps} steps before",
        advice="The run diverges: go on from the checkpoint before it with a lower learning rate.",
        limits={
            "steps": Limit(1000, "the length of the stretches that are compared", least=7),
            "factor": Limit(1.5, "times the lowest median", least=1.0),
        },
    ),
    Rule(
        id="slow.data",
        title="steps wait for the loader",
        severity="warn",
        when="steps wait more than {share} of the time, over at least {window} steps and {seconds} s; or a GPU is "
        "below {busy} % of use, or the pace below what slow.pace allows, and waiting is at least half of what is lost",
        advice="Use more workers where CPU cores are free (preflight bench-loader tells how many help), a faster disk, "
        "or smaller pictures.",
        limits={
            "share": Limit(0.2, "of the time", most=1.0),
            "busy": Limit(90.0, "per cent of the time that a GPU should run a kernel", least=-1, most=100.0),
            "window": _window(),
            "seconds": Limit(60.0, "the least time that is looked at"),
        },
    ),
    Rule(
        id="slow.host",
        title="the GPU waits for the host",
        severity="warn",
        when="the device waits for the host's own work more than {share} of the time, over at least {window} steps and "
        "{seconds} s; or that is at least half of what is lost; or a GPU is below {busy} % of use for no other reason",
        advice="The Python process is the bottleneck: give it CPU cores that nothing else uses, fewer workers if they "
        "fill all cores, and a longer log_interval.",
        limits={
            "share": Limit(0.2, "of the time", most=1.0),
            "busy": Limit(90.0, "per cent of the time that a GPU should run a kernel", least=-1, most=100.0),
            "window": _window(),
            "seconds": Limit(60.0, "the least time that is looked at"),
        },
    ),
    Rule(
        id="slow.throttled",
        title="a GPU lowers its clocks",
        severity="warn",
        when="NVML gives heat, a power brake or a hardware slowdown as the reason in more than {share} of the samples "
        "of at least {window} steps and {seconds} s; a power cap in software alone is normal under load",
        advice="See nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER: cooling, the power supply, or a neighbour's heat.",
        limits={
            "share": Limit(0.2, "of the samples", most=1.0),
            "window": _window(),
            "seconds": Limit(60.0, "the least time that is looked at"),
        },
    ),
    Rule(
        id="slow.pace",
        title="steps take longer than foretold, or than before",
        severity="warn",
        when="the pace is more than {share} below the checklist's forecast, or more than {drop} below the run's own "
        "best, over at least {window} steps and {seconds} s, and none of the reasons above holds",
        advice="See what else runs on the machine (nvidia-smi, top), and whether the step was foretold for this GPU "
        "(the check step.roofline).",
        limits={
            "share": Limit(0.1, "below the forecast", most=1.0),
            "drop": Limit(0.3, "below the run's own best", most=1.0),
            "window": _window(),
            "seconds": Limit(60.0, "the least time that is looked at"),
        },
    ),
    Rule(
        id="memory.workers",
        title="the loader's workers grow towards the limit of RAM",
        severity="warn",
        when="their PSS, watched for at least {seconds} s, grows for certain (95 %), in each quarter of that time, "
        "and would meet the limit within {hours} h and before the run ends",
        advice="What holds the memory is usually a list that grows in the dataset or a cache without a bound. Fewer "
        "workers last longer; --resume starts with fresh ones.",
        limits={
            "seconds": Limit(300.0, "the least time that is looked at", least=15.0),
            "hours": Limit(12.0, "until the limit"),
        },
    ),
    Rule(
        id="disk.space",
        title="the disk has no room for the next checkpoint",
        severity="warn",
        when="for {seconds} s (a save passes by), less is free than {saves} checkpoint(s) take, or than {gib} GiB "
        "where their size is not known",
        advice="Free some space now: a save that finds none fails, and the run goes on without it. A larger "
        "save_interval or keep_period keeps fewer.",
        limits={
            "saves": Limit(1.0, "checkpoints"),
            "gib": Limit(1.0, "GiB"),
            "seconds": Limit(300.0, "for how long"),
        },
    ),
    Rule(
        id="disk.filling",
        title="the disk fills",
        severity="warn",
        when="what is free, watched for at least {seconds} s, falls for certain (95 %), in each quarter of that "
        "time, and would be gone within {hours} h and before the run ends",
        advice="See what writes there (du -xh --max-depth=1): checkpoints, caches, or somebody else's job.",
        limits={
            "seconds": Limit(600.0, "the least time that is looked at", least=15.0),
            "hours": Limit(2.0, "until it is full"),
        },
    ),
    Rule(
        id="hang",
        title="the run stands still",
        severity="warn",
        when="no step ends within {factor} times the longest pause between two steps so far, and at least {seconds} s; "
        "within {start} s for the first steps and for a save",
        advice="The stacks tell where it stands. On several GPUs try NCCL_P2P_DISABLE=1; on a network disk see whether "
        "it answers. With severity stop the process ends, and --resume goes on from the last checkpoint.",
        limits={
            "factor": Limit(10.0, "times the longest pause so far", least=1.0),
            "seconds": Limit(300.0, "the least time-out"),
            "start": Limit(1800.0, "the time-out of the first steps (they compile) and of a save"),
        },
    ),
)  # fmt: skip

RULES: Mapping[str, Rule] = {rule.id: rule for rule in _RULES}
