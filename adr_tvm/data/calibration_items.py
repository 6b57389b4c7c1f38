"""Calibration samples from Python: lists, used in place, and iterators, spooled to temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO

import numpy as np

from adr_tvm.data.calibration_sources import Block, Expected
from adr_tvm.errors import DataError


class ItemSource:
    """A list of arrays, or of dicts of arrays by input name, each one sample or samples [n, ...]."""

    def __init__(self, items: Sequence[object], expected: list[Expected], labels_name: str | None) -> None:
        self._items, self._expected, self._labels_name = items, expected, labels_name
        self.count = 0
        labels = []
        for block, block_labels in _checked_items(items, expected, labels_name):
            self.count += _size(block)
            labels.append(block_labels)
        self.labels = _joined(labels)

    def blocks(self, size: int) -> Iterator[Block]:
        for block, _ in _checked_items(self._items, self._expected, self._labels_name):
            for start in range(0, _size(block), size):
                yield {name: array[start : start + size] for name, array in block.items()}

    def where(self, index: int) -> str:
        return str(index)


class SpooledSource:
    """What an iterator gave, kept in temporary files that vanish with this object."""

    def __init__(self, items: Iterable[object], expected: list[Expected], labels_name: str | None) -> None:
        self.count = 0
        self._arrays: Block = {}
        labels: list[np.ndarray | None] = []
        shapes = {}
        with ExitStack() as stack:
            files = {item.name: stack.enter_context(tempfile.TemporaryFile()) for item in expected}
            for block, block_labels in _checked_items(items, expected, labels_name):
                self.count += _size(block)
                labels.append(block_labels)
                for name, array in block.items():
                    shapes[name] = array.shape[1:]
                    _append(files[name], array)
            if self.count:
                for item in expected:
                    shape = (self.count, *shapes[item.name])
                    self._arrays[item.name] = np.memmap(files[item.name], item.dtype, "r", shape=shape)
        self.labels = _joined(labels)

    def blocks(self, size: int) -> Iterator[Block]:
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self._arrays.items()}

    def where(self, index: int) -> str:
        return str(index)


def _joined(labels: list[np.ndarray | None]) -> np.ndarray | None:
    found = [each for each in labels if each is not None]
    return np.concatenate(found) if found else None


def _append(file: IO[bytes], array: np.ndarray) -> None:
    try:
        np.ascontiguousarray(array).tofile(file)
    except OSError as error:
        raise DataError(
            f"cannot keep the calibration samples in {tempfile.gettempdir()}: {error.strerror or error}; "
            "set TMPDIR to a folder with more room"
        ) from error


def _size(block: Block) -> int:
    return len(next(iter(block.values())))


def _checked_items(
    items: Iterable[object], expected: list[Expected], labels_name: str | None
) -> Iterator[tuple[Block, np.ndarray | None]]:
    """Items as blocks [n, ...] by input name, with their labels [n].

    Raises:
        DataError: an item does not fit the model.
    """
    for index, item in enumerate(items):
        where = f"calibration item {index}"
        if isinstance(item, np.ndarray) and len(expected) == 1:
            item = {expected[0].name: item}
        names = [each.name for each in expected] + ([] if labels_name is None else [labels_name])
        if not isinstance(item, Mapping):
            raise DataError(f"{where} is a {type(item).__name__}: expected a dict of arrays {', '.join(names)}")
        missing = [name for name in names if name not in item]
        if missing:
            raise DataError(f"{where} has no {missing[0]!r}: it has {', '.join(map(str, item)) or 'nothing'}")
        block = {}
        for each in expected:
            found = item[each.name]
            if not isinstance(found, (np.ndarray, np.generic)):
                raise DataError(f"{where}: {each.name!r} is a {type(found).__name__}, expected a NumPy array")
            block[each.name] = each.batched(np.asarray(found))
            each.check(block[each.name].shape, block[each.name].dtype, where)
        labels = None if labels_name is None else np.atleast_1d(item[labels_name])
        if labels is not None and labels.ndim != 1:
            raise DataError(f"{where}: the labels have shape {list(labels.shape)}, expected one for each sample")
        sizes = {name: len(array) for name, array in block.items()} | (
            {} if labels is None else {names[-1]: len(labels)}
        )
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise DataError(f"{where}: the arrays differ in their number of samples ({listed})")
        yield block, labels
