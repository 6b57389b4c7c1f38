"""From stored images to what the network takes: crop, flip, normalise. The same sample is the same bytes in any run.

What is random about a sample follows from (seed, epoch, index) alone, by a hash (SplitMix64), not from a stream of
random numbers: so training goes on at any step as if it had not stopped.

    x[c, i, j] = (image[i + dy, (j or W - 1 - j) + dx, c] / 255 - mean_c) / std_c,    0 outside the image

Images larger than the network's input are cropped, at random in training and in the middle in testing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adr_tvm.errors import DataError

_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Preparation:
    """How samples are prepared.

    Attributes:
        height, width: of the network's input.
        mean, std: per channel in units of value / 255; None: images are float and used as they are.
        augment: random crop and flip.
        padding: zeros on each side that a random crop may take in; where images are larger than the input, none.
    """

    height: int
    width: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    augment: bool = False
    padding: int = 4

    def check(self, shape: tuple[int, int, int], channels: int, source: str) -> None:
        """Images of ``shape`` (H, W, C) must fill the network's input.

        Raises:
            DataError: they do not.
        """
        height, width, found = shape
        if found != channels:
            raise DataError(f"{source}: images have {found} channels, the network takes {channels}")
        if height < self.height or width < self.width:
            raise DataError(
                f"{source}: images are {width}x{height}, smaller than the network's input of {self.width}x{self.height}"
            )

    def training(self, images: np.ndarray, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
        """Samples of a training step.

        Args:
            images: [B, H, W, C] uint8, or float32 where ``mean`` is None.
            indices: [B] of the images in the data set.

        Returns:
            float32 [B, C, height, width].
        """
        H, W = images.shape[1:3]
        if not self.augment:
            return self.testing(images)
        pad_y, pad_x = (self.padding if size == to else 0 for size, to in ((H, self.height), (W, self.width)))
        rows = hashed(seed, epoch, indices, 0) % np.uint64(H + 2 * pad_y - self.height + 1)
        columns = hashed(seed, epoch, indices, 1) % np.uint64(W + 2 * pad_x - self.width + 1)
        flips = hashed(seed, epoch, indices, 2) >> np.uint64(63)
        return self._crop(images, rows.astype(np.int64) - pad_y, columns.astype(np.int64) - pad_x, flips == 1)

    def testing(self, images: np.ndarray) -> np.ndarray:
        """Samples of an evaluation, or of a training step without augmentation: the middle of each image."""
        B, H, W = images.shape[:3]
        none = np.zeros(B, bool)
        return self._crop(images, np.full(B, (H - self.height) // 2), np.full(B, (W - self.width) // 2), none)

    def _crop(self, images: np.ndarray, rows: np.ndarray, columns: np.ndarray, flips: np.ndarray) -> np.ndarray:
        B, H, W, C = images.shape
        cropped = np.zeros((B, self.height, self.width, C), images.dtype)
        inside = []
        for each in range(B):
            y, x = int(rows[each]), int(columns[each])
            top, bottom = max(0, y), min(H, y + self.height)
            left, right = max(0, x), min(W, x + self.width)
            window = (slice(top - y, bottom - y), slice(left - x, right - x))
            if flips[each]:
                window = (window[0], slice(self.width - right + x, self.width - left + x))
                cropped[each][window] = images[each, top:bottom, left:right][:, ::-1]
            else:
                cropped[each][window] = images[each, top:bottom, left:right]
            inside.append(window)
        planes = cropped.transpose(0, 3, 1, 2)
        if self.mean is None or self.std is None:
            return np.ascontiguousarray(planes)
        std, mean = (np.broadcast_to(np.asarray(v, np.float64), C) for v in (self.std, self.mean))
        out = np.empty(planes.shape, np.float32)
        np.multiply(planes, (1 / (255 * std)).astype(np.float32)[:, None, None], out=out)
        out += (-mean / std).astype(np.float32)[:, None, None]
        for each, (vertical, horizontal) in enumerate(inside):
            _clear_outside(out[each], vertical, horizontal)
        return out


def _clear_outside(image: np.ndarray, rows: slice, columns: slice) -> None:
    """Set [C, H, W] to 0 but for a window."""
    image[:, : rows.start] = 0
    image[:, rows.stop :] = 0
    image[:, :, : columns.start] = 0
    image[:, :, columns.stop :] = 0


def hashed(seed: int, epoch: int, indices: np.ndarray, purpose: int) -> np.ndarray:
    """Independent uniform uint64 [B] for (seed, epoch, index, purpose): SplitMix64 in a chain."""
    state = np.full(len(indices), seed, np.uint64)
    for word in (np.uint64(epoch), np.asarray(indices).astype(np.uint64), np.uint64(purpose)):
        state = _mixed(state ^ _mixed(word + np.zeros(len(indices), np.uint64)))
    return state


def _mixed(words: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = words + np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
