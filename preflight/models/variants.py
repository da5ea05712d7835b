"""Sizes of the networks that pi0 is put together from, by the names that configs use; importable without jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from preflight.config.schema import IMAGE_SIZE, ModelConfig
from preflight.errors import UsageError
from preflight.suggest import nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipSize:
    """The image tower: a vision transformer without pooling."""

    width: int  # features of a patch token
    depth: int  # layers
    mlp_dim: int  # hidden features of the feed-forward block
    num_heads: int
    patch: int = 16  # side of a square patch, pixels

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.width // self.num_heads

    @property
    def num_tokens(self) -> int:
        """Tokens that one square image of IMAGE_SIZE pixels becomes."""
        return (IMAGE_SIZE // self.patch) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaSize:
    """One expert of the language model."""

    width: int  # features of a token
    depth: int  # layers
    mlp_dim: int  # hidden features of the gated feed-forward block
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads
    head_dim: int  # features of one head
    lora_rank: int = 0  # features between an adapter's two matrices; 0: no adapters
    lora_alpha: float = 0.0  # attention's adapters count alpha / rank

    @property
    def lora_scale(self) -> float:
        """The factor of attention's adapters (Hu et al., LoRA, arXiv:2106.09685, section 4.1)."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0


SIGLIP_SIZES = {
    # A toy for tests and demonstrations: big_vision, models/vit.py, variant "mu".
    "mu": SiglipSize(width=32, depth=1, mlp_dim=128, num_heads=2),
    # Steiner et al., How to train your ViT?, arXiv:2106.10270, Table 2.
    "Ti": SiglipSize(width=192, depth=12, mlp_dim=768, num_heads=3),
    "S": SiglipSize(width=384, depth=12, mlp_dim=1536, num_heads=6),
    # Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv:2010.11929, Table 1.
    "B": SiglipSize(width=768, depth=12, mlp_dim=3072, num_heads=12),
    "L": SiglipSize(width=1024, depth=24, mlp_dim=4096, num_heads=16),
    # Alabdulmohsin et al., Getting ViT in Shape, arXiv:2305.13035; heads: config of google/siglip-so400m-patch14-224.
    "So400m": SiglipSize(width=1152, depth=27, mlp_dim=4304, num_heads=16),
}

GEMMA_SIZES = {
    # A toy for tests and demonstrations: openpi, models/gemma.py, variant "dummy".
    "dummy": GemmaSize(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
    # Black et al., pi0, arXiv:2410.24164, Appendix B: Gemma 2B with width and mlp_dim reduced.
    "gemma_300m": GemmaSize(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256),
    # Gemma Team, arXiv:2403.08295, Table 1; its 32768 feed-forward features count gate and value together.
    "gemma_2b": GemmaSize(width=2048, depth=18, mlp_dim=16_384, num_heads=8, num_kv_heads=1, head_dim=256),
}
# The variants with adapters. The toy's scale is not 1, so that tests see whether it is applied.
GEMMA_SIZES |= {
    "dummy_lora": dataclasses.replace(GEMMA_SIZES["dummy"], lora_rank=4, lora_alpha=8.0),
    # openpi, models/gemma.py: the same names, ranks and alphas.
    "gemma_300m_lora": dataclasses.replace(GEMMA_SIZES["gemma_300m"], lora_rank=32, lora_alpha=32.0),
    "gemma_2b_lora": dataclasses.replace(GEMMA_SIZES["gemma_2b"], lora_rank=16, lora_alpha=16.0),
}


def siglip_size(variant: str) -> SiglipSize:
    """The image tower named by `variant`, e.g. "So400m/14" (size, then patch side in pixels).

    Raises:
        UsageError: The size is unknown, or the patch does not divide an image's side.
    """
    name, _, patch = variant.partition("/")
    if name not in SIGLIP_SIZES:
        raise _unknown("image tower (siglip_variant)", name, SIGLIP_SIZES)
    if not patch.isdecimal() or int(patch) == 0 or IMAGE_SIZE % int(patch):
        raise UsageError(
            f"{variant!r} is no image tower (siglip_variant): the patch must divide the image's {IMAGE_SIZE} pixels.",
            f'Write the size and the patch side in pixels, as in "{name}/14" or "{name}/16".',
        )
    return dataclasses.replace(SIGLIP_SIZES[name], patch=int(patch))


def gemma_size(variant: str) -> GemmaSize:
    """The expert named by `variant`, e.g. "gemma_2b".

    Raises:
        UsageError: There is no such variant.
    """
    if variant not in GEMMA_SIZES:
        raise _unknown("Gemma variant", variant, GEMMA_SIZES)
    return GEMMA_SIZES[variant]


def expert_sizes(config: ModelConfig) -> tuple[GemmaSize, GemmaSize]:
    """Sizes of the language model and of the action expert, checked to fit each other.

    Raises:
        UsageError: A variant is unknown, or the two cannot attend to each other layer by layer.
    """
    language, action = gemma_size(config.paligemma_variant), gemma_size(config.action_expert_variant)
    for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
        ours, theirs = getattr(language, name), getattr(action, name)
        if ours != theirs:
            raise UsageError(
                f"paligemma_variant {config.paligemma_variant!r} and action_expert_variant "
                f"{config.action_expert_variant!r} cannot share attention: {name} {ours} and {theirs}.",
                "Pair gemma_2b or gemma_300m with gemma_300m, or dummy with dummy; each with or without _lora.",
            )
    return language, action


def _unknown(what: str, name: str, valid: Iterable[str]) -> UsageError:
    names = sorted(valid)
    near = nearest(name, names)
    suggestion = f" Did you mean {near!r}?" if near else ""
    return UsageError(f"Unknown {what} {name!r}.", f"Valid names: {', '.join(names)}.{suggestion}")
