"""Training data that are arrays in memory: CIFAR-10 and ``.npz`` files."""

from __future__ import annotations

import zipfile
import zlib
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
from adr_tvm.errors import DataError

_PARTS = ("x_train", "y_train", "x_test", "y_test")
_PAIRS = (("x", "y"), ("images", "labels"))


@dataclass(frozen=True)
class ArraySamples:
    """Images [n, H, W, C] with labels int32 [n]."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.images.shape[1:]  # type: ignore[return-value]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images of ``indices``."""
        return self.images[indices]


def open_cifar10(path: Path) -> TrainingData:
    """CIFAR-10 with the normalisation of `adr_tvm.models.cifarnet`.

    Raises:
        DataError: it is incomplete or damaged; names the file.
    """
    from adr_tvm.models.cifar10 import load_cifar10
    from adr_tvm.models.cifarnet import MEAN, STD

    try:
        data = load_cifar10(path)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(str(error)) from error
    train = ArraySamples(data.x_train, checked_labels(data.y_train, len(data.x_train), f"{path}: training set"))
    test = ArraySamples(data.x_test, checked_labels(data.y_test, len(data.x_test), f"{path}: test set"))
    return TrainingData(str(path), train, test, tuple(map(str, range(10))), MEAN, STD)


def open_arrays(path: Path) -> TrainingData:
    """An ``.npz`` file: images uint8 [n, H, W, C], or float32 [n, C, H, W] prepared as the network takes them.

    Raises:
        DataError: arrays are missing, or are no images with labels.
    """
    arrays = _read(path)
    if all(name in arrays for name in _PARTS):
        train = _samples(arrays["x_train"], arrays["y_train"], f"{path}: x_train")
        test = _samples(arrays["x_test"], arrays["y_test"], f"{path}: x_test")
        if train.shape != test.shape or train.images.dtype != test.images.dtype:
            raise DataError(
                f"{path}: x_train has images {_text(train)}, x_test {_text(test)}: images of mixed size or type"
            )
    else:
        pair = next((pair for pair in _PAIRS if all(name in arrays for name in pair)), None)
        if pair is None:
            raise DataError(
                f"{path} has the arrays {', '.join(arrays) or 'none'}: expected {', '.join(_PARTS)}, or x and y"
            )
        both = _samples(arrays[pair[0]], arrays[pair[1]], f"{path}: {pair[0]}")
        parts = held_out(len(both.labels))
        if not len(parts[1]):
            raise DataError(f"{path}: {len(both.labels)} images are too few to hold some out for testing")
        train, test = (ArraySamples(both.images[part], both.labels[part]) for part in parts)
    highest = max(int(train.labels.max()), int(test.labels.max()))
    mean, std = channel_statistics(train) if train.images.dtype == np.uint8 else (None, None)
    return TrainingData(str(path), train, test, tuple(map(str, range(highest + 1))), mean, std)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            known = {*_PARTS, *(name for pair in _PAIRS for name in pair)}
            return {name: archive[name] for name in archive.files if name in known}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise DataError(f"{path} is not a readable .npz of plain arrays ({error}); {HOW_TO_GET}") from error


def _samples(images: np.ndarray, labels: np.ndarray, where: str) -> ArraySamples:
    if images.dtype == np.uint8 and images.ndim == 3:  # grey, as Fashion-MNIST's
        images = images[..., None]
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise DataError(
            f"{where} is {images.dtype} {list(images.shape)}: expected images uint8 [n, H, W, C], or float32 "
            "[n, C, H, W] as the network takes them"
        )
    if images.dtype == np.float32:
        bad = ~np.isfinite(images).all(axis=(1, 2, 3))
        if bad.any():
            raise DataError(f"{where}: image {int(np.argmax(bad))} holds NaN or Inf")
        images = images.transpose(0, 2, 3, 1)
    return ArraySamples(images, checked_labels(labels, len(images), where))


def _text(samples: ArraySamples) -> str:
    return f"{samples.images.dtype} {'x'.join(map(str, samples.shape))}"
