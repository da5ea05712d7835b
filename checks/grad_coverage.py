"""`grad.coverage`: which parts of the model are trained, and whether that is what a LoRA run or a full one means."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from checks import units
from checks.context import CheckContext, with_settings
from checks.trace import abstract_state, paths, tree_bytes
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned

# The parts of pi0 and pi0.5 by their paths, in openpi's naming; the first that matches has a leaf. What none matches
# goes by the first part of its own path.
_ADAPTERS, _IMAGES, _LANGUAGE, _ACTIONS = "LoRA adapters", "image tower", "language model", "action expert"
_MODULES = (
    (_ADAPTERS, re.compile(r".*lora.*")),
    (_IMAGES, re.compile(r"(.*/)?img/.*")),
    (_ACTIONS, re.compile(r"(.*/)?llm/.*_1(/.*)?")),
    (_LANGUAGE, re.compile(r"(.*/)?llm/.*")),
    ("state and action projections", re.compile(r"(state_proj|action_\w+|time_mlp_\w+)/.*")),
)
_VARIANTS = {_LANGUAGE: "model.paligemma_variant", _ACTIONS: "model.action_expert_variant"}


@dataclasses.dataclass(frozen=True)
class Module:
    """A part of the model."""

    name: str
    trained: int  # parameters
    frozen: int

    @property
    def all_frozen(self) -> bool:
        """Whether nothing in it learns."""
        return self.trained == 0 and self.frozen > 0


def modules(leaves: dict[str, Any], trained: set[str]) -> dict[str, Module]:
    """The parts of a model by name, in the order of their first leaves.

    Args:
        leaves: All parameters by path.
        trained: The paths of those that are trained.
    """
    found: dict[str, Module] = {}
    for path, leaf in leaves.items():
        name = next((name for name, pattern in _MODULES if pattern.fullmatch(path)), path.split("/")[0])
        module = found.get(name, Module(name, 0, 0))
        size = int(leaf.size)
        found[name] = dataclasses.replace(
            module,
            trained=module.trained + (size if path in trained else 0),
            frozen=module.frozen + (0 if path in trained else size),
        )
    return found


def _coverage(context: CheckContext) -> Outcome:
    from preflight.training.state import trainable

    state = abstract_state(context)
    leaves, trained = paths(state.params), paths(trainable(context.run, state.params))
    table = modules(leaves, set(trained))
    adapters = table.get(_ADAPTERS, Module(_ADAPTERS, 0, 0))
    num_trained, num_all = (sum(leaf.size for leaf in part.values()) for part in (trained, leaves))
    measured: dict[str, Any] = {
        "trained_parameters": num_trained,
        "frozen_parameters": num_all - num_trained,
        "lora_parameters": adapters.trained + adapters.frozen,
    }
    rows = tuple(f"{m.name:30}{m.trained:>16,} trained {m.frozen:>16,} frozen" for m in table.values())
    fault = _lora_fault(context, table, leaves)
    if fault is not None:
        return dataclasses.replace(fault, measured=measured, evidence=(*fault.evidence, *rows))
    said = ", ".join(f"{m.name} {_share(m)}" for m in table.values())
    summary = f"{num_trained:,} of {num_all:,} parameters are trained: {said}"
    images = table.get(_IMAGES)
    if adapters.trained and images is not None and images.trained:
        # Gradients as large as the parameters, and the optimizer's moments.
        spared = tree_bytes({p: leaf for p, leaf in trained.items() if _MODULES[1][1].fullmatch(p)})
        spared += round(tree_bytes(state.opt_state) * images.trained / num_trained)
        measured["image_tower_training_bytes"] = spared
        also = f"freeze={[*context.run.facts.freeze, '.*/img/.*']}"
        in_file = context.run.facts.in_file_only
        summary += (
            f"; LoRA adapts the Gemma experts only: the image tower is trained in full, as in openpi, and takes "
            f"{units.size(spared)} of gradients and optimizer state, which "
            + ("a filter that matches .*/img/.* as well" if in_file else also)
            + " would spare"
        )
        rows = rows if in_file else (*rows, *with_settings(context, also))
    return passed(summary, measured=measured, evidence=rows)


def _share(module: Module) -> str:
    if module.frozen == 0:
        return f"{module.trained:,}"
    return "frozen" if module.all_frozen else f"{module.trained:,} of {module.trained + module.frozen:,}"


def _lora_fault(context: CheckContext, table: dict[str, Module], leaves: dict[str, Any]) -> Outcome | None:
    filters = (*context.run.facts.freeze, str(context.run.facts.settings.get("freeze_filter", "")))
    adapters = table.get(_ADAPTERS)
    if adapters is not None and adapters.frozen:
        return failed(
            f"{adapters.frozen:,} of {adapters.trained + adapters.frozen:,} LoRA parameters are frozen themselves: "
            "these adapters learn nothing",
            expected={"frozen LoRA parameters": 0},
            hint=_filter_hint(context, "leave the filter to the LoRA variant: it freezes what is no adapter"),
        )
    experts = [table[name] for name in (_LANGUAGE, _ACTIONS) if name in table]
    adapted = {_adapter_of(path) for path in leaves}
    if idle := [module for module in experts if module.all_frozen and module.name not in adapted]:
        return _frozen_without_adapters(context, idle, meant_lora=any("lora" in p.lower() for p in filters))
    if whole := [module for module in experts if module.name in adapted and module.trained > module.frozen]:
        beneath = sum(module.trained for module in whole)
        return warned(
            f"{_names(whole)} adapters and trained parameters beneath them ({beneath:,}): a full fine-tune with "
            "adapters on top, which spares no memory",
            expected={"trained beneath adapters": 0},
            hint=_filter_hint(context, "without `freeze`, the LoRA variant freezes what is no adapter"),
        )
    return None


def _filter_hint(context: CheckContext, text: str, *others: list[str]) -> Hint:
    """What mends the filter: commands where a command can, else what to write into the config's file."""
    if context.run.facts.in_file_only:
        variants = ", ".join(
            f"{name}={context.run.facts.settings.get(f'model.{name}')!r}"
            for name in ("paligemma_variant", "action_expert_variant")
        )
        return Hint(
            text="in the config's file, give freeze_filter and model the same variants: a LoRA model with the filter "
            f"of its own get_freeze_filter(), or no filter at all; the model has {variants}"
        )
    assignments = [*others, ["freeze=none"]]
    return Hint(text=text, commands=tuple(line for given in assignments for line in with_settings(context, *given)))


def _names(experts: list[Module]) -> str:
    return " and ".join(f"the {module.name}" for module in experts) + (" have" if len(experts) > 1 else " has")


def _adapter_of(path: str) -> str | None:
    """Which expert a leaf adapts; None for a leaf that is no adapter."""
    if not _MODULES[0][1].fullmatch(path):
        return None
    return _ACTIONS if re.search(r"_1(/|_lora)", path) else _LANGUAGE


def _frozen_without_adapters(context: CheckContext, experts: list[Module], *, meant_lora: bool) -> Outcome:
    settings = context.run.facts.settings
    keys = [_VARIANTS[module.name] for module in experts]
    lora = [f"{key}={settings[key]}_lora" for key in keys if key in settings]
    cause = "the freeze filter is LoRA's, and the model has no adapters there" if meant_lora else "nothing in it learns"
    frozen = sum(module.frozen for module in experts)
    return (failed if meant_lora else warned)(
        f"{_names(experts)} only frozen parameters ({frozen:,}) and no adapters: {cause}",
        expected={"what is frozen whole": "has adapters"},
        hint=_filter_hint(
            context,
            "give it adapters (first command) or train it in full (last); if it is meant to stay as it is, ignore "
            "this check with that reason",
            [*lora, "freeze=none"],
        ),
    )


CHECK = Check(
    id="grad.coverage",
    title="What is trained is what was meant",
    level="standard",
    severity="fail",
    requires=("config.freeze",),
    timeout_s=180,
    failures=("F11", "F12"),
    run=_coverage,
    doc="Counts trained and frozen parameters in each part of the model (image tower, language model, action expert, "
    "projections, LoRA adapters) from the traced tree. Speaks when a LoRA freeze filter meets a model without "
    "adapters, when adapters are frozen, or when the parameters beneath them are trained too. openpi's LoRA leaves the "
    "image tower trainable: a pass says so, with the bytes and the filter that spares them. A moving average beside "
    "LoRA is config.ema's to report.",
)
