"""The settings of the model that parameters belong to, read off their shapes."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from preflight.config.schema import IMAGE_SIZE
from preflight.models.variants import GEMMA_SIZES, SIGLIP_SIZES

Shapes = Mapping[str, tuple[int, ...]]  # by path, joined by "/"

_LLM, _IMG = "PaliGemma/llm/", "PaliGemma/img/"


def settings_of(shapes: Shapes) -> dict[str, Any]:
    """The fields of `ModelConfig` that give parameters of these shapes.

    Args:
        shapes: Of a model's parameters, or of a checkpoint's, which may lack some.

    Returns:
        What can be told, by the fields' names; a variant is None where none of ours has these sizes. Variants are
        named without adapters, since those may be missing in what is otherwise the same model.
    """
    found: dict[str, Any] = {}
    for field, path in (("action_dim", "action_in_proj/kernel"), ("vocab_size", f"{_LLM}embedder/input_embedding")):
        if len(shapes.get(path, ())) == 2:
            found[field] = shapes[path][0]
    if "time_mlp_in/kernel" in shapes or "state_proj/kernel" in shapes:
        found["pi05"] = "time_mlp_in/kernel" in shapes
    for field, suffix in (("paligemma_variant", ""), ("action_expert_variant", "_1")):
        if (query := f"{_LLM}layers/attn/q_einsum{suffix}/w") in shapes:
            gate, key = f"{_LLM}layers/mlp{suffix}/gating_einsum", f"{_LLM}layers/attn/kv_einsum{suffix}/w"
            found[field] = _gemma(shapes[query], shapes.get(gate, ()), shapes.get(key, ()))
    if f"{_IMG}pos_embedding" in shapes:
        found["siglip_variant"] = _siglip(shapes)
    return found


def settings_behind(path: str) -> tuple[str, ...]:
    """The fields of `ModelConfig` that decide whether a parameter exists, and its shape; the likeliest first."""
    if path.startswith(f"{_IMG}head/"):
        return "siglip_variant", "paligemma_variant"
    if path.startswith(_IMG):
        return ("siglip_variant",)
    if path.endswith("input_embedding"):
        return "vocab_size", "paligemma_variant"
    if path.startswith(_LLM):
        expert = "action_expert_variant" if re.search(r"_1(/|$)", path) else "paligemma_variant"
        return ("pi05", expert) if "norm" in path else (expert,)
    if path.startswith(("action_in_proj/", "action_out_proj/")):
        return "action_dim", "action_expert_variant"
    return "pi05", "action_dim", "action_expert_variant"


def is_adapter(path: str) -> bool:
    """Whether a parameter is one of LoRA's matrices."""
    return "lora" in path.rpartition("/")[2]


def _gemma(query: tuple[int, ...], gate: tuple[int, ...], key: tuple[int, ...]) -> str | None:
    for name, size in GEMMA_SIZES.items():
        if (
            not size.lora_rank
            and query == (size.depth, size.num_heads, size.width, size.head_dim)
            and gate == (size.depth, 2, size.width, size.mlp_dim)
            and key == (size.depth, 2, size.num_kv_heads, size.width, size.head_dim)
        ):
            return name
    return None


def _siglip(shapes: Shapes) -> str | None:
    hidden = shapes.get(f"{_IMG}Transformer/encoderblock/MlpBlock_0/Dense_0/kernel")
    patches = [patch for patch in range(1, IMAGE_SIZE + 1) if IMAGE_SIZE % patch == 0]
    for (name, size), patch in itertools.product(SIGLIP_SIZES.items(), patches):
        positions = (1, dataclasses.replace(size, patch=patch).num_tokens, size.width)
        if shapes[f"{_IMG}pos_embedding"] == positions and hidden == (size.depth, size.width, size.mlp_dim):
            return f"{name}/{patch}"
    return None
