"""Parameters to start from, out of a checkpoint in openpi's layout.

A step's folder holds `params/`, which Orbax wrote, with the nested dict of parameters below the key "params". openpi's
own training leaves a level "value" below every leaf, its released checkpoints and ours do not; both are read.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from preflight.errors import DataError
from preflight.models.fit import Fit, extra_report, fit_of

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """Parameters out of a checkpoint."""

    params: dict[str, Any]  # nested as the model's, numpy arrays of the model's dtypes; without the missing ones
    missing: tuple[str, ...]  # adapters that the checkpoint lacks
    extra: tuple[str, ...]  # the checkpoint's leaves that the model has no place for


def load_weights(path: Path, params: Mapping[str, Any]) -> Loaded:
    """Reads the parameters of a model from a checkpoint; what the model has no place for is not read, but warned of.

    Args:
        path: A checkpoint's step folder, or its params folder.
        params: Shapes and dtypes of the model's parameters, as a nested dict.

    Raises:
        DataError: There is no checkpoint, it is damaged, or it does not fit; names the leaves and the likely setting.
    """
    folder = _params_folder(path)
    leaves, level = _metadata(folder)
    fit = fit_of(leaves, _flatten(params))
    if fit.problems:
        more = f"; and {len(fit.problems) - 3} more" if len(fit.problems) > 3 else ""
        raise DataError(
            f"{path} does not fit the model: {'; '.join(fit.problems[:3])}{more}",
            fit.hint or "choose the checkpoint of a model like this one",
        )
    if fit.extra:
        logger.warning("%s: %s", path, extra_report(fit))
    wanted = _flatten(params)
    arrays = _read(folder, {name: np.dtype(wanted[name].dtype) for name in fit.fitting}, level)
    return Loaded(params=_nest(arrays), missing=fit.missing, extra=fit.extra)


def compare_weights(path: Path, params: Mapping[str, Any]) -> Fit:
    """Compares a checkpoint's shapes with a model's; reads no array.

    Args:
        path: A checkpoint's step folder, or its params folder.
        params: Shapes of the model's parameters, as a nested dict.

    Raises:
        DataError: There is no checkpoint, or its metadata are damaged.
    """
    folder = _params_folder(path)
    return fit_of(_metadata(folder)[0], _flatten(params))


def _params_folder(path: Path) -> Path:
    for folder in (path / "params", path):
        if (folder / "_METADATA").is_file():
            return folder.absolute()
    if not path.exists():
        raise DataError(f"weights: {path} does not exist", "name a checkpoint's step folder, or its params folder")
    steps = sorted(int(p.name) for p in path.iterdir() if p.name.isdecimal()) if path.is_dir() else []
    if steps:
        raise DataError(
            f"weights: {path} holds several checkpoints: {', '.join(map(str, steps[-5:]))}",
            f"name one of them: --set weights={path / str(steps[-1])}",
        )
    raise DataError(
        f"weights: {path} is no checkpoint: it has no params/_METADATA",
        "name a checkpoint's step folder, or its params folder, as Orbax and openpi write them",
    )


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    # Orbax warns that an API is deprecated to which its old versions have no alternative; what it raises is reported.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _metadata(folder: Path) -> tuple[dict[str, Any], str]:
    """The leaves' shapes and dtypes by path, and what their paths on disk end with beyond that: "/value" or nothing."""
    try:
        metadata = _checkpointer().metadata(folder)
        # Orbax has wrapped the tree in one object after another since 0.11.
        metadata = getattr(metadata, "item_metadata", metadata)
        tree = getattr(metadata, "tree", metadata)
        if tree is None:
            raise ValueError("Orbax finds nothing in its _METADATA")
        leaves = _flatten(tree["params"])
    except Exception as error:
        raise _damaged(folder, error) from error
    if not leaves or any(not hasattr(leaf, "shape") for leaf in leaves.values()):
        raise _damaged(folder, ValueError("it names no arrays"))
    if all(name.endswith("/value") for name in leaves):
        return {name.removesuffix("/value"): leaf for name, leaf in leaves.items()}, "/value"
    return leaves, ""


def _read(folder: Path, dtypes: dict[str, np.dtype], level: str) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    item = {"params": _nest({name + level: 0 for name in dtypes})}
    args = {name + level: ocp.ArrayRestoreArgs(restore_type=np.ndarray, dtype=dtype) for name, dtype in dtypes.items()}
    try:
        restored = _checkpointer().restore(
            folder,
            # With transforms, even with none, Orbax reads the leaves of `item` and no others.
            args=ocp.args.PyTreeRestore(item, restore_args={"params": _nest(args)}, transforms={}),
        )
    except Exception as error:
        raise _damaged(folder, error) from error
    arrays = _flatten(restored["params"])
    return {name: arrays[name + level] for name in dtypes}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, node in tree.items():
        flat |= _flatten(node, f"{prefix}{name}/") if isinstance(node, Mapping) else {f"{prefix}{name}": node}
    return flat


def _nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _damaged(folder: Path, error: Exception) -> DataError:
    why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
    return DataError(f"weights: {folder} cannot be read: {why}", "it is damaged or incomplete: fetch or save it again")
