"""openpi's transformed samples as our loader takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from preflight.blame import one_line, user_line
from preflight.errors import DataError, PreflightError

# What a model reads of a sample; transforms may leave more in it.
KEYS = (
    "image",
    "image_mask",
    "state",
    "tokenized_prompt",
    "tokenized_prompt_mask",
    "token_ar_mask",
    "token_loss_mask",
    "actions",
)
# What jax makes of numpy's dtypes when a batch goes to the device.
_ON_DEVICE = {np.dtype(np.int64): np.dtype(np.int32), np.dtype(np.float64): np.dtype(np.float32)}

# LeRobot decodes with torchcodec wherever it is installed, else with PyAV, which brings an FFmpeg of its own.
_DECODER = (
    "torchcodec needs the libraries of FFmpeg 4 to 7 on the machine: `apt install ffmpeg`; or do without it, `uv pip "
    "uninstall torchcodec`: LeRobot then decodes with PyAV"
)


class OpenpiSamples:
    """openpi's transformed dataset as nested dicts of numpy arrays, of the dtypes that they will have on the device.

    Args:
        dataset: What `transform_dataset` gives.
        root: The dataset's folder, None for made-up samples.
        raw: What `dataset` transforms.
        transformed: What `transform_dataset` gives for a `HandedOver`: gives the transformed of a raw item.
    """

    def __init__(self, dataset: Any, root: Path | None, *, raw: Any = None, transformed: Any = None) -> None:
        self._dataset = dataset
        self._raw = raw
        self._transformed = transformed
        self.root = root

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: `image`, `image_mask`, `state`, `actions`, and the prompt's tokens and masks.

        Raises:
            IndexError: There is no such sample.
            DataError: It cannot be made; names the user's line.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a dataset with {len(self)} samples")
        try:
            sample = self._dataset[index]
        except PreflightError:
            raise
        except Exception as error:
            raise users_error(f"sample {index} cannot be made", error) from error
        return _of_the_model(sample)

    def sample_stages(self) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
        """What LeRobot's reader does, and the transforms (`preflight.runs.protocol.StagedDataset`)."""
        if self._raw is None or self._transformed is None:
            return (("sample", self.__getitem__),)
        return (
            ("decode", self._raw.__getitem__),
            ("transform", lambda item: _of_the_model(self._transformed[item])),
        )


class HandedOver:
    """A dataset whose item is what it is asked with, so that `transform_dataset` of it is the transforms alone."""

    def __getitem__(self, item: Any) -> Any:
        return item


def users_error(what: str, error: Exception) -> DataError:
    """An error of the user's own transforms or config, with their line."""
    if "libtorchcodec" in str(error):  # whose own message is a page long, and nobody's line
        return DataError(f"{what}: torchcodec is installed and cannot be loaded", _DECODER)
    where = user_line(error, or_ours=False)
    return DataError(f"{what}: {one_line(error)}" + (f" (at {where})" if where else ""))


def _of_the_model(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(sample[key]) for key in KEYS if sample.get(key) is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    array = np.asarray(value)
    return array.astype(_ON_DEVICE.get(array.dtype, array.dtype), copy=False)
