"""Calibration data: samples that are streamed, checked once up front, and read as often as needed.

No more than a batch of a file is in memory at any time. Nothing is scaled or converted silently: data of
another type or shape than the model's is an error that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from adr_tvm.data.calibration_items import ItemSource, SpooledSource
from adr_tvm.data.calibration_sources import Expected, InputSpec, NpySource, NpzSource, Source
from adr_tvm.errors import DataError, UsageError

Sample: TypeAlias = np.ndarray | Mapping[str, np.ndarray]
Batch: TypeAlias = tuple[dict[str, np.ndarray], np.ndarray | None]


def open_calibration(
    source: str | Path | Sample | Iterable[Sample],
    inputs: Sequence[InputSpec],
    labels_name: str | None,
    batch_size: int,
    whole_batches: bool = False,
    halves: bool = True,
) -> CalibrationSet:
    """Open and check calibration data.

    Args:
        source: one of

            - an ``.npz`` file whose arrays [n, ...] are named like the model's inputs (for a model with one
              input, the only array besides the labels may have any name);
            - a folder of ``.npy`` files, or one such file, for a model with one input: each holds one sample
              without the batch dimension, or samples [n, ...]; read in the order of their names;
            - an array [n, ...], a dict of such arrays by input name, or an iterable of these or of single
              samples; what is not a list or tuple is read once, into a temporary file.
        inputs: the model's inputs; dimension 0 is the batch, others that are no number fit any size.
        labels_name: name of the labels [n], whole numbers from 0 (in a folder: of the file ``<name>.npy``);
            None: there are none.
        batch_size: samples in a batch; the last batch may be smaller.
        whole_batches: leave out the samples that do not fill a batch, for models whose batch is fixed.
        halves: whether there must be enough to ``split``.

    Raises:
        DataError: the data are missing, damaged, empty, or do not fit the model.
        UsageError: the batch size is not positive.
    """
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}, expected at least 1")
    expected = [Expected(spec) for spec in inputs]
    opened = _open(source, expected, labels_name)
    needed = (2 if halves else 1) * (batch_size if whole_batches else 1)
    if opened.count < needed:
        found = {0: "no sample", 1: "one sample"}.get(opened.count, f"{opened.count} samples")
        use = ", half to plan with, half to check" if halves else ""
        raise DataError(f"the calibration data hold {found}: give at least {needed}{use}")
    try:
        _check_finite(opened, batch_size)
        labels = None if opened.labels is None else _checked_labels(opened.labels, opened.count)
    except DataError as error:
        raise DataError(f"{source}: {error}" if isinstance(source, str | Path) else str(error)) from None
    return CalibrationSet(opened, labels, batch_size, np.arange(opened.count), whole_batches)


class CalibrationSet:
    """Samples that can be iterated any number of times, always in the same order.

    Iteration yields ``(inputs, labels)``: ``inputs`` by name, [b, ...] each, b at most ``batch_size``, the
    caller's to change; ``labels`` int64 [b], or None without labels.

    Attributes:
        batch_size: samples in a batch.
        labels: of all samples of this set, int64 [n], or None.
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray | None,
        batch_size: int,
        chosen: np.ndarray,
        whole_batches: bool = False,
    ) -> None:
        if whole_batches:
            chosen = chosen[: len(chosen) // batch_size * batch_size]
        self._source = source
        self._all_labels = labels
        self._chosen = chosen
        self._whole_batches = whole_batches
        self.batch_size = batch_size
        self.labels = None if labels is None else labels[chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Batch]:
        held: list[dict[str, np.ndarray]] = []
        count = start = done = 0
        for block in self._source.blocks(self.batch_size):
            size = len(next(iter(block.values())))
            first, last = np.searchsorted(self._chosen, [start, start + size])
            take = self._chosen[first:last] - start
            start += size
            while len(take):
                part, take = take[: self.batch_size - count], take[self.batch_size - count :]
                held.append({name: array[part] for name, array in block.items()})
                count += len(part)
                if count == self.batch_size:
                    yield self._batch(held, done, count)
                    held, done, count = [], done + count, 0
            if done + count == len(self):
                break
        if count:
            yield self._batch(held, done, count)

    def _batch(self, parts: list[dict[str, np.ndarray]], done: int, count: int) -> Batch:
        inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return inputs, None if self.labels is None else self.labels[done : done + count]

    def split(self, seed: int) -> tuple[CalibrationSet, CalibrationSet]:
        """A planning half and a held-back half, disjoint.

        Of each two neighbours a seeded coin says which goes where, so that both halves cover sorted data.
        With an odd number the planning half has one more.

        Raises:
            DataError: the set holds fewer than 2 samples.
        """
        if len(self) < 2:
            raise DataError("a single sample cannot be split: give more calibration data")
        coins = np.random.default_rng(seed).integers(0, 2, size=len(self) // 2)
        held_back = 2 * np.arange(len(coins)) + coins
        planning = np.setdiff1d(np.arange(len(self)), held_back)
        return self._subset(planning), self._subset(held_back)

    def _subset(self, positions: np.ndarray) -> CalibrationSet:
        chosen = self._chosen[positions]
        return CalibrationSet(self._source, self._all_labels, self.batch_size, chosen, self._whole_batches)


def _open(source: str | Path | Sample | Iterable[Sample], expected: list[Expected], labels_name: str | None) -> Source:
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            return NpySource.folder(path, expected, labels_name)
        if not path.is_file():
            raise DataError(f"calibration data {path} do not exist")
        if path.suffix == ".npz":
            return NpzSource(path, expected, labels_name)
        if path.suffix == ".npy":
            return NpySource([path], expected, labels_name)
        raise DataError(f"calibration data {path}: expected an .npz file, an .npy file or a folder of .npy files")
    if isinstance(source, (np.ndarray, Mapping)):
        source = [source]
    if isinstance(source, (list, tuple)):
        return ItemSource(source, expected, labels_name)
    if not isinstance(source, Iterable):
        raise DataError(f"calibration data are a {type(source).__name__}: expected a path or an iterable of arrays")
    return SpooledSource(source, expected, labels_name)


def _check_finite(source: Source, batch_size: int) -> None:
    start = 0
    for block in source.blocks(batch_size):
        size = len(next(iter(block.values())))
        for name, array in block.items():
            if not np.issubdtype(array.dtype, np.inexact):
                continue
            good = np.isfinite(array).reshape(size, -1).all(axis=1)
            if not good.all():
                index = start + int(np.argmin(good))
                raise DataError(f"input {name!r}: sample {source.where(index)} holds NaN or Inf")
        start += size


def _checked_labels(labels: np.ndarray, count: int) -> np.ndarray:
    if labels.shape != (count,):
        raise DataError(f"the labels have shape {list(labels.shape)}, expected [{count}]: one for each sample")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"the labels are {labels.dtype}, expected whole numbers (class indices)")
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise DataError(f"the label of sample {int(np.argmax(labels < 0))} is negative: labels count from 0")
    return labels
