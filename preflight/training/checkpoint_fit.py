"""Whether a checkpoint is one of this config's, by the shapes of its leaves; and which setting would make it so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from preflight.models.fit import fit_of

_OTHER = "resume it with the config and the --set options that it was trained with"


def misfit(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first leaf that a checkpoint and a config have differently.

    Args:
        found: By item, the checkpoint's tree, of anything with a shape.
        wanted: By item, the tree of the config's state.

    Returns:
        What differs, and what to do about it; None where nothing does.
    """
    for item, tree in wanted.items():
        theirs, ours = _leaves(found[item]), _leaves(tree)
        for path in sorted(ours.keys() | theirs.keys()):
            if path not in theirs:
                what = f"{item} lacks {path} {_shape(ours[path])}"
            elif path not in ours:
                what = f"{item} has {path} {_shape(theirs[path])}, the config does not"
            elif tuple(theirs[path].shape) != tuple(ours[path].shape):
                what = f"{path} is {_shape(theirs[path])} in the checkpoint, {_shape(ours[path])} in the config"
            else:
                continue
            return what, _hint(item, path, theirs, ours)
    return None


def _hint(item: str, path: str, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    if item == "params":
        below = lambda leaves: {name.removeprefix("params/"): leaf for name, leaf in leaves.items()}  # noqa: E731
        known = fit_of(below(theirs), below(ours)).hint
        return f"the checkpoint belongs to another config: {known or _OTHER}"
    if path.startswith("params/"):
        setting = (
            "has no moving average: --set ema_decay=none" if path in ours else "has a moving average: set ema_decay"
        )
        return f"the checkpoint {setting}"
    if _accumulates(theirs) != _accumulates(ours):
        setting = "more than 1, as it was" if _accumulates(theirs) else "1"
        return f"the checkpoint belongs to another config: set gradient_accumulation_steps to {setting}"
    return f"the checkpoint belongs to another config, which trains other parameters (freeze, LoRA variants): {_OTHER}"


def _accumulates(leaves: dict[str, Any]) -> bool:
    return any("acc_grads" in path for path in leaves)


def _leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _shape(leaf: Any) -> str:
    return str(list(leaf.shape))
