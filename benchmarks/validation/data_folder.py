"""The data that validation reads: public models and images, in a folder that is no part of this repository.

| path in the folder | content |
|---|---|
| ``models/NAME.onnx`` | the networks; ``models/trec_cifarnet_cifar10_hash_vectors.npz``: planes of TREC's conv2 |
| ``cifar10/test.webp``, ``labels.npz`` | the CIFAR-10 test set: 100 x 100 tiles of 32 x 32; labels under ``test`` |
| ``mlperf_tiny_eval/kws01.npz`` | keyword clips: int8 ``x`` [n, 1, 49, 10], labels ``y`` |
| ``imagenet_photos/*.jpg`` | photographs 299 x 299 |
| ``text_page_896.png`` | a rendered page of text, 896 x 896 |
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adr_tvm.errors import DataError, MissingDependencyError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
KWS_ZERO, KWS_SCALE = 83, 0.5847029  # of the int8 features


class DataFolder:
    """The folder; every array it hands out is prepared as the network in question takes it.

    Raises:
        DataError: the folder does not exist. Methods: a file is missing.
        MissingDependencyError: methods that read images: pillow is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root} is not a folder: give one that holds models/, cifar10/, ... (see the module)")

    def file(self, path: str) -> Path:
        """A file of the folder."""
        found = self.root / path
        if not found.is_file():
            raise DataError(f"{found} is missing")
        return found

    def model(self, name: str) -> Path:
        """The ONNX file of a network."""
        return self.file(f"models/{name}.onnx")

    def cifar10(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Test images [first, last): uint8 [n, 32, 32, 3] and labels int64 [n]."""
        sheet = self._pixels(self.file("cifar10/test.webp"))
        tiles = sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
        with np.load(self.file("cifar10/labels.npz"), allow_pickle=False) as labels:
            return tiles[first:last], labels["test"][first:last].astype(np.int64)

    def trec_planes(self) -> np.ndarray:
        """The hash planes that TREC's authors trained with conv2: float32 [L, H] = [10, 10]."""
        path = self.file("models/trec_cifarnet_cifar10_hash_vectors.npz")
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["conv2.random_vectors"].astype(np.float32)

    def keywords(self) -> tuple[np.ndarray, np.ndarray]:
        """Keyword clips: float32 [n, 1, 49, 10], labels int64 [n]."""
        with np.load(self.file("mlperf_tiny_eval/kws01.npz"), allow_pickle=False) as clips:
            x = (clips["x"].astype(np.float32) - KWS_ZERO) * np.float32(KWS_SCALE)
            return x, clips["y"].astype(np.int64)

    def photos(self, size: tuple[int, int]) -> np.ndarray:
        """All photographs, scaled: uint8 [n, height, width, 3]."""
        paths = sorted((self.root / "imagenet_photos").glob("*.jpg"))
        if not paths:
            raise DataError(f"{self.root / 'imagenet_photos'} holds no photographs")
        return np.stack([self._pixels(path, size) for path in paths])

    def text_page(self) -> np.ndarray:
        """The page: uint8 [1, 896, 896, 3]."""
        return self._pixels(self.file("text_page_896.png"))[None]

    def _pixels(self, path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        try:
            from PIL import Image
        except ImportError:
            raise MissingDependencyError("reading images needs pillow: pip install pillow") from None
        with Image.open(path) as image:
            colour = image.convert("RGB")
            return np.array(colour if size is None else colour.resize(size[::-1]))


def for_trec(images: np.ndarray) -> np.ndarray:
    """rgb / 127.5 - 1, float32 NCHW."""
    return _channels_first(images.astype(np.float32) / 127.5 - 1)


def for_resnet20(images: np.ndarray) -> np.ndarray:
    """(rgb / 255 - mean) / std with ImageNet's mean and std, float32 NCHW."""
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return _channels_first((images.astype(np.float32) / 255 - mean) / std)


def for_squeezenet(images: np.ndarray) -> np.ndarray:
    """BGR less Caffe's mean, float32 NCHW."""
    return _channels_first(images[..., ::-1].astype(np.float32) - np.array(CAFFE_MEAN_BGR, np.float32))


def for_style_transfer(images: np.ndarray) -> np.ndarray:
    """RGB 0..255, float32 NCHW."""
    return _channels_first(images.astype(np.float32))


def for_waifu2x(images: np.ndarray) -> np.ndarray:
    """RGB 0..1, edges repeated by 7 pixels, float32 NCHW."""
    padded = np.pad(images, ((0, 0), (7, 7), (7, 7), (0, 0)), mode="edge")
    return _channels_first(padded.astype(np.float32) / 255)


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
