"""Samples of a batch, read from any map-style dataset: what fails is named, and left out where that is the policy."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from preflight.data.collate import Leaf, pack
from preflight.errors import DataError, PreflightError

OnBadSample = Literal["raise", "skip"]


@dataclasses.dataclass(frozen=True)
class SampleFailure:
    """Why a batch could not be read; goes to the parent in the batch's place."""

    message: str  # names the sample
    hint: str | None
    details: str  # the traceback where it happened


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A sample that could not be read, and was left out."""

    index: int
    replacement: int  # read in its place
    message: str


@dataclasses.dataclass(frozen=True)
class ReadBatch:
    """A batch as `preflight.data.collate.pack` lays it out."""

    leaves: tuple[Leaf, ...]
    block: np.ndarray
    skipped: tuple[Skipped, ...] = ()


@dataclasses.dataclass(frozen=True)
class ReadingRules:
    """How a batch is read."""

    on_bad_sample: OnBadSample = "raise"  # "skip": a sample that raises DataError gives way to the next good one
    max_skipped: int = 100  # samples in a row that may be bad
    singly: bool = False  # sample by sample, even where the dataset has `__getitems__`


_RAISE = ReadingRules()


def read_batch(
    dataset: Any,
    indices: Iterable[int],
    allocate: Callable[[int], np.ndarray],
    *,
    rules: ReadingRules = _RAISE,
    begin: Callable[[int | None], None] = lambda index: None,
) -> ReadBatch | SampleFailure:
    """Reads samples into one batch.

    A dataset with `__getitems__(indices)`, torch's convention, is asked for all of them at once. If that raises,
    whatever it is, they are read one by one, which shows the one at fault.

    Args:
        dataset: Any map-style dataset.
        indices: The samples.
        allocate: Makes uint8[n] of n bytes.
        rules: What to do with a bad sample.
        begin: Called with each index before it is read, and with None before they are read together.

    Returns:
        The batch, or what failed.
    """
    index: int | None = None
    wanted = [int(i) for i in indices]
    try:
        samples = None if rules.singly else _together(dataset, wanted, begin)
        skipped: list[Skipped] = []
        if samples is None:
            samples = []
            for place, index in enumerate(wanted):
                if rules.on_bad_sample == "raise":
                    begin(index)
                    samples.append(dataset[index])
                else:
                    samples.append(_read_or_next(dataset, index, rules.max_skipped, begin, skipped))
                    wanted[place] = skipped[-1].replacement if skipped and skipped[-1].index == index else index
            index = None
        return ReadBatch(*pack(wanted, samples, allocate), tuple(skipped))
    except Exception as error:  # noqa: BLE001 - a user's dataset may raise anything
        return _failure(error, index)


def _together(dataset: Any, wanted: list[int], begin: Callable[[int | None], None]) -> list[Any] | None:
    read = getattr(dataset, "__getitems__", None)
    if not callable(read):
        return None
    begin(None)
    try:
        samples = list(read(wanted))
    except Exception:  # noqa: BLE001 - whatever it is, reading one by one meets it again and names the sample
        return None
    if len(samples) != len(wanted):
        raise DataError(f"__getitems__ gave {len(samples)} samples for {len(wanted)} indices")
    return samples


def _read_or_next(
    dataset: Any, index: int, most: int, begin: Callable[[int | None], None], skipped: list[Skipped]
) -> Any:
    """A sample or, where it is bad, the first good one after it; the bad ones are added to `skipped`."""
    bad: list[tuple[int, DataError]] = []
    while True:
        at = (index + len(bad)) % len(dataset)
        begin(at)
        try:
            sample = dataset[at]
        except DataError as error:
            bad.append((at, error))
            if len(bad) > most or len(bad) == len(dataset):
                raise DataError(
                    f"{error.message}; it is one of {len(bad)} bad samples in a row, from {index} on", error.hint
                ) from error
            continue
        # The sample that was asked for comes last, where the caller looks for it.
        skipped += [Skipped(number, at, error.message) for number, error in reversed(bad)]
        return sample


def _failure(error: Exception, index: int | None) -> SampleFailure:
    message, hint = str(error), None
    if isinstance(error, PreflightError):
        message, hint = error.message, error.hint
    else:
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {message} ({os.path.basename(place.filename)}, line {place.lineno})"
    if index is not None:
        message = f"sample {index} cannot be loaded: {message}"
    return SampleFailure(message, hint, "".join(traceback.format_exception(error)))
