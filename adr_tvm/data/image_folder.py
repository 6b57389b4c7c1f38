"""Training data that are image files: a folder for each class, or images with a file of labels. Read when needed.

DATA/cat/1.jpg, DATA/dog/2.png               classes are the folders, by name
DATA/train/cat/.., DATA/test/cat/..          the same with parts of its own (``val`` serves as test)
DATA/1.jpg, DATA/labels.csv                  a line "1.jpg,3" or "1.jpg<tab>3" for each image; more columns and a
                                             heading are allowed
"""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adr_tvm.data.training_data import (
    HOW_TO_GET,
    TrainingData,
    channel_statistics,
    checked_labels,
    held_out,
)
from adr_tvm.errors import DataError, MissingDependencyError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_FILES = ("labels.csv", "labels.tsv", "labels.txt")
READERS = 2  # threads that decode


@dataclass(frozen=True)
class FileSamples:
    """Image files of one size with labels int32 [n]."""

    files: tuple[Path, ...]
    labels: np.ndarray
    shape: tuple[int, int, int]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images of ``indices``, uint8 [n, H, W, 3].

        Raises:
            DataError: a file cannot be decoded, or is no longer of the size it had.
        """
        with ThreadPoolExecutor(READERS) as pool:
            images = list(pool.map(self._decode, (self.files[i] for i in indices)))
        return np.stack(images) if images else np.empty((0, *self.shape), np.uint8)

    def _decode(self, file: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: not a readable image ({error})") from error
        if pixels.shape != self.shape:
            raise DataError(f"{file} is {_size(pixels.shape)}, the others {_size(self.shape)}: images of mixed size")
        return pixels


def open_image_folder(path: Path) -> TrainingData:
    """A folder in one of the three forms above.

    Raises:
        DataError: there are no images, images of mixed size, or labels that make no sense; names the file.
        MissingDependencyError: pillow is not installed.
    """
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{path}: images need pillow: pip install 'adr-tvm[train]'") from error
    parts = [path / "train", next((path / name for name in ("test", "val") if (path / name).is_dir()), path / "test")]
    if all(part.is_dir() for part in parts):
        classes = _class_names(parts[0])
        listings = [_by_class(part, classes) for part in parts]
        for part, (files, _) in zip(parts, listings, strict=True):
            if not files:
                raise DataError(f"{part} has no images in the folders of its classes; {HOW_TO_GET}")
    else:
        label_file = next((path / name for name in LABEL_FILES if (path / name).is_file()), None)
        classes = _class_names(path)
        if label_file is not None:
            files, numbers = _by_label_file(path, label_file)
            classes = [str(number) for number in range(max(numbers) + 1)]
        else:
            files, numbers = _by_class(path, classes)
        if not files:
            raise DataError(f"{path} has no images in folders of classes and no {LABEL_FILES[0]}; {HOW_TO_GET}")
        train, test = held_out(len(files))
        if not len(test):
            raise DataError(f"{path}: {len(files)} images are too few to hold some out for testing")
        listings = [([files[i] for i in part], [numbers[i] for i in part]) for part in (train, test)]
    shape = _common_shape([file for files, _ in listings for file in files])
    train_part, test_part = (
        FileSamples(tuple(files), checked_labels(np.array(numbers), len(files), str(path)), shape)
        for files, numbers in listings
    )
    mean, std = channel_statistics(train_part)
    return TrainingData(str(path), train_part, test_part, tuple(classes), mean, std)


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _by_class(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    found = [(file, number) for number, name in enumerate(classes) for file in _images(folder / name)]
    unknown = [name for name in _class_names(folder) if name not in classes]
    if unknown:
        raise DataError(f"{folder / unknown[0]}: no such class in the training part, which has {', '.join(classes)}")
    return [file for file, _ in found], [number for _, number in found]


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _by_label_file(folder: Path, label_file: Path) -> tuple[list[Path], list[int]]:
    try:
        lines = label_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {label_file}: {error}") from error
    tab = any("\t" in line for line in lines[:1])
    files: list[Path] = []
    numbers: list[int] = []
    for index, row in enumerate(csv.reader(lines, delimiter="\t" if tab else ",")):
        if not row or not row[0].strip():
            continue
        where = f"{label_file} line {index + 1}"
        if len(row) < 2:
            raise DataError(f"{where}: expected an image file and its label")
        if not row[1].strip().lstrip("-").isdigit():
            if not files and index == 0:
                continue  # a heading
            raise DataError(f"{where}: label {row[1]!r} is not a whole number")
        name, number = row[0].strip(), int(row[1])
        if number < 0:
            raise DataError(f"{where}: label {number} is out of range, expected 0 or more")
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise DataError(f"{where}: there is no image {name} in {folder}")
        files.append(file)
        numbers.append(number)
    if not files:
        raise DataError(f"{label_file} lists no images")
    return files, numbers


def _common_shape(files: list[Path]) -> tuple[int, int, int]:
    """The size of all images, told from their headers."""
    from PIL import Image

    first: tuple[int, int, int] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
                shape = (image.height, image.width, 3)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: not a readable image ({error})") from error
        if first is None:
            first = shape
        elif shape != first:
            raise DataError(f"{file} is {_size(shape)}, {files[0]} {_size(first)}: images of mixed size")
    assert first is not None
    return first


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
