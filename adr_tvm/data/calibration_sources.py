"""Calibration samples in files: members of an .npz file and .npy files, read in slices.

A source knows its number of samples and yields them in order, as often as asked, in blocks of bounded size.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from numbers import Integral
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from adr_tvm.errors import DataError

Block = dict[str, np.ndarray]
_DAMAGED = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OSError)


class InputSpec(Protocol):
    """An input of the model."""

    @property
    def name(self) -> str:
        """Its name in the ONNX graph."""

    @property
    def shape(self) -> Sequence[Any]:
        """Batch first; a dimension that is no positive number is dynamic."""

    @property
    def dtype(self) -> Any:
        """What ``numpy.dtype`` understands."""


class Source(Protocol):
    """Samples in a fixed order.

    Attributes:
        count: number of samples.
        labels: as found, unchecked, or None.
    """

    count: int
    labels: np.ndarray | None

    def blocks(self, size: int) -> Iterator[Block]:
        """All samples in order, in blocks [at most size, ...] by input name."""

    def where(self, index: int) -> str:
        """Words for sample ``index`` in a message."""


class Expected:
    """What arrays for one input must look like; the first one fixes the dimensions the model leaves open."""

    def __init__(self, spec: InputSpec) -> None:
        self.name = spec.name
        if len(spec.shape) == 0:
            raise DataError(f"input {spec.name!r} of the model has no batch dimension: it cannot be calibrated")
        try:
            self.dtype = np.dtype(spec.dtype)
        except TypeError as error:
            raise DataError(f"input {spec.name!r} of the model is {spec.dtype}, which NumPy does not have") from error
        self._dims = tuple(int(d) if isinstance(d, Integral) and int(d) > 0 else None for d in spec.shape[1:])

    def __str__(self) -> str:
        dims = ", ".join(["N", *("?" if dim is None else str(dim) for dim in self._dims)])
        return f"{self.name} {self.dtype} [{dims}]"

    def check(self, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
        """Refuse an array [n, ...] that does not fit.

        Raises:
            DataError: naming every dimension that differs, or the type.
        """
        label = f"{where}: input {self.name!r}"
        if dtype.hasobject:
            raise DataError(f"{label} holds pickled Python objects: save plain numeric arrays")
        if dtype != self.dtype:
            raise DataError(
                f"{label} is {dtype}, the model takes {self.dtype}: convert type and scaling as in training; "
                "values are never scaled silently"
            )
        if len(shape) != len(self._dims) + 1:
            raise DataError(f"{label} has {len(shape)} dimensions {list(shape)}, expected {self}")
        wrong = [
            f"dimension {axis} is {found}, expected {dim}"
            for axis, (found, dim) in enumerate(zip(shape[1:], self._dims, strict=True), start=1)
            if dim not in (None, found)
        ]
        if wrong:
            raise DataError(f"{label} has shape {list(shape)}: {'; '.join(wrong)}")
        self._dims = shape[1:]

    def batched(self, array: np.ndarray) -> np.ndarray:
        """A single sample gets its batch dimension; samples [n, ...] stay."""
        return array[np.newaxis] if array.ndim == len(self._dims) else array


class NpzSource:
    """Members of an .npz file, decompressed slice by slice: ``np.load`` would hold a whole member."""

    def __init__(self, path: Path, expected: list[Expected], labels_name: str | None) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
                self._members = {item.name: self._member_for(item, expected, names, labels_name) for item in expected}
                counts = {name: self._open_input(archive, name, expected) for name in self._members}
                self.labels = None if labels_name is None else self._read_labels(archive, names, labels_name)
        except _DAMAGED as error:
            raise DataError(f"{path} is damaged or not an .npz file: {error}") from error
        if len(set(counts.values())) > 1:
            sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"{path}: the inputs differ in their number of samples ({sizes})")
        self.count = next(iter(counts.values()))

    def blocks(self, size: int) -> Iterator[Block]:
        try:
            with ExitStack() as stack:
                archive = stack.enter_context(zipfile.ZipFile(self._path))
                members = {
                    name: stack.enter_context(_Member(archive, member)) for name, member in self._members.items()
                }
                for start in range(0, self.count, size):
                    count = min(size, self.count - start)
                    yield {name: member.read(count) for name, member in members.items()}
        except _DAMAGED as error:
            raise DataError(f"{self._path} is damaged: {error}") from error

    def where(self, index: int) -> str:
        return str(index)

    def _member_for(self, item: Expected, expected: list[Expected], names: list[str], labels_name: str | None) -> str:
        others = [name for name in names if name != labels_name]
        if item.name in others:
            return item.name
        if len(expected) == 1 and len(others) == 1:
            return others[0]
        has = ", ".join(names) or "no arrays"
        wants = ", ".join(str(each) for each in expected)
        raise DataError(f"{self._path} has no array {item.name!r}: it has {has}; the model takes {wants}")

    def _open_input(self, archive: zipfile.ZipFile, name: str, expected: list[Expected]) -> int:
        with _Member(archive, self._members[name]) as member:
            next(item for item in expected if item.name == name).check(member.shape, member.dtype, str(self._path))
            member.check_length()
            return member.shape[0]

    def _read_labels(self, archive: zipfile.ZipFile, names: list[str], labels_name: str) -> np.ndarray:
        if labels_name not in names:
            raise DataError(f"{self._path} has no labels {labels_name!r}: it has {', '.join(names)}")
        with _Member(archive, labels_name) as member:
            if member.dtype.hasobject or len(member.shape) != 1:
                raise DataError(f"{self._path}: the labels {labels_name!r} are not one whole number for each sample")
            member.check_length()
            return member.read(member.shape[0])


class _Member:
    """One array of an .npz file, read forwards."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.name = name
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"array {name!r} uses a compression that NumPy does not write")
        self._stream: IO[bytes] = archive.open(entry)
        version = np.lib.format.read_magic(self._stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = read_header(self._stream)
        if fortran and len(self.shape) > 1:
            raise ValueError(f"array {name!r} is in Fortran order: save numpy.ascontiguousarray of it")
        self._stored = entry.file_size - self._stream.tell()

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def check_length(self) -> None:
        """The header must not promise more than there is."""
        if self._stored != int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize:
            raise ValueError(f"array {self.name!r} says shape {list(self.shape)} but has {self._stored} bytes of data")

    def read(self, count: int) -> np.ndarray:
        """The next ``count`` samples, [count, ...]."""
        shape = (count, *self.shape[1:])
        wanted = int(np.prod(shape)) * self.dtype.itemsize
        data = self._stream.read(wanted)
        if len(data) < wanted:
            raise EOFError(f"array {self.name!r} ends early")
        return np.frombuffer(data, self.dtype).reshape(shape)


class NpySource:
    """.npy files of a model with one input, mapped into memory one at a time."""

    def __init__(self, files: list[Path], expected: list[Expected], labels_name: str | None) -> None:
        place = files[0].parent if files else Path()
        if len(expected) != 1:
            wants = ", ".join(str(item) for item in expected)
            raise DataError(f"{place}: .npy files give one input, the model takes {wants}: use an .npz file")
        self._files, self._input, self._starts = files, expected[0], [0]
        self.labels = None
        if labels_name is not None:
            label_file = place / f"{labels_name}.npy"
            self._files = [file for file in files if file != label_file]
            self.labels = np.array(_mapped(label_file))
        for file in self._files:
            samples = self._input.batched(_mapped(file))
            self._input.check(samples.shape, samples.dtype, str(file))
            self._starts.append(self._starts[-1] + len(samples))
        self.count = self._starts[-1]

    @classmethod
    def folder(cls, path: Path, expected: list[Expected], labels_name: str | None) -> NpySource:
        """All ``.npy`` files of a folder, by name."""
        files = sorted(path.glob("*.npy"))
        if not files:
            raise DataError(f"folder {path} has no .npy files")
        return cls(files, expected, labels_name)

    def blocks(self, size: int) -> Iterator[Block]:
        for file in self._files:
            samples = self._input.batched(_mapped(file))
            for start in range(0, len(samples), size):
                yield {self._input.name: samples[start : start + size]}

    def where(self, index: int) -> str:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{index} (file {self._files[file].name})"


def _mapped(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{file} is not a plain .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file} is not a plain .npy array")
    return array
