"""Which parameters a LoRA variant leaves as they are."""

from __future__ import annotations

import dataclasses

from preflight.config.schema import GemmaVariant, ModelConfig, TrainConfig

_ADAPTED: dict[GemmaVariant, GemmaVariant] = {
    "dummy": "dummy_lora",
    "gemma_300m": "gemma_300m_lora",
    "gemma_2b": "gemma_2b_lora",
}
_PLAIN: dict[GemmaVariant, GemmaVariant] = {adapted: plain for plain, adapted in _ADAPTED.items()}


def is_lora(variant: str) -> bool:
    """Whether a Gemma variant has adapters."""
    return variant.endswith("_lora")


def freeze_patterns(config: TrainConfig) -> tuple[str, ...]:
    """The config's `freeze`, or what its LoRA variants imply where it says nothing."""
    return lora_freeze_patterns(config.model) if config.freeze is None else config.freeze


def lora_freeze_patterns(model: ModelConfig) -> tuple[str, ...]:
    """Everything but the adapters in the experts that have them, nothing without a LoRA variant.

    The same parameters as openpi's `Pi0Config.get_freeze_filter()`: the image tower stays trainable.
    """
    language, action = is_lora(model.paligemma_variant), is_lora(model.action_expert_variant)
    if language and action:
        return (r"(?!.*lora).*llm.*",)
    if language:
        return (r"(?!.*lora)(?!.*llm.*_1.*).*llm.*",)
    return (r"(?!.*lora).*llm.*_1.*",) if action else ()


def with_lora(model: ModelConfig) -> ModelConfig:
    """The model with adapters in both experts."""
    return _swapped(model, _ADAPTED)


def without_lora(model: ModelConfig) -> ModelConfig:
    """The model without adapters."""
    return _swapped(model, _PLAIN)


def _swapped(model: ModelConfig, names: dict[GemmaVariant, GemmaVariant]) -> ModelConfig:
    language, action = model.paligemma_variant, model.action_expert_variant
    return dataclasses.replace(
        model,
        paligemma_variant=names.get(language, language),
        action_expert_variant=names.get(action, action),
    )
