"""Metrics of a network's outputs against labels or against the dense network, with bounds for a budget.

Each metric streams over batches and keeps one or two numbers per image, never outputs. A budget is a drop:

| metric | value | budget | bound (one-sided, 90 %) |
|---|---|---|---|
| top1 | accuracy with reuse | largest loss of accuracy | Tango's score bound on the paired loss |
| agreement | images with the dense network's top-1 | largest disagreement | Clopper-Pearson |
| nmse | sum ||y - r||^2 / sum ||r - mean over channel of r||^2 | largest value | Student's on image errors |
| psnr | 10 log10(range^2 / mean squared error), dB | smallest value (a floor) | Student's, likewise |

with y the outputs with reuse and r the dense ones. Where r itself is NaN or Inf there is nothing to compare:
the element is left out if y is not finite either, and is an infinite error if y is. NaN in y where r is
finite is an infinite error; a classifier's row with NaN predicts nothing (class -1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from adr_tvm.metrics.confidence import (
    mean_upper,
    normal_quantile,
    paired_drop_upper,
    proportion_upper,
    smallest_count,
)

CONFIDENCE = 0.9


class Metric(ABC):
    """A streaming metric; the first axis of all arrays is the image."""

    name: str

    @abstractmethod
    def update(self, dense: np.ndarray, out: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Take in the outputs of some images: dense network, network with reuse, class labels [N].

        Raises:
            ValueError: the shapes do not fit each other or the metric.
        """

    @property
    @abstractmethod
    def images(self) -> int:
        """Images seen."""

    @abstractmethod
    def value(self) -> float:
        """The metric itself; NaN before the first image."""

    @abstractmethod
    def drop(self) -> float:
        """What a budget limits: see the module's table."""

    @abstractmethod
    def bound(self) -> float:
        """One-sided 90 % bound on ``drop``, on the side of caution."""

    def within(self, budget: float) -> bool:
        """Whether the bound keeps the budget."""
        return self.bound() <= budget

    @abstractmethod
    def images_needed(self, budget: float) -> int | None:
        """About how many images would show the budget kept at the observed rate; None: no number would."""


def class_scores(outputs: np.ndarray) -> np.ndarray | None:
    """Outputs as [N, classes], trailing axes of length 1 dropped; None if there are fewer than two."""
    outputs = np.asarray(outputs)
    if outputs.ndim < 2 or outputs.shape[1] < 2 or math.prod(outputs.shape[2:]) != 1:
        return None
    return outputs.reshape(outputs.shape[:2])


def _predictions(outputs: np.ndarray) -> np.ndarray:
    scores = class_scores(outputs)
    if scores is None:
        raise ValueError(f"outputs are {np.shape(outputs)}, expected [N, classes] with two classes or more")
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def _same_shape(dense: np.ndarray, out: np.ndarray) -> None:
    if np.shape(dense) != np.shape(out):
        raise ValueError(f"outputs are {np.shape(out)}, those of the dense network {np.shape(dense)}")


class Top1(Metric):
    """Accuracy against labels; the drop is paired, image by image, with the dense network's."""

    name = "top1"

    def __init__(self) -> None:
        self.dense_right = np.zeros(0, bool)
        self.right = np.zeros(0, bool)

    def update(self, dense: np.ndarray, out: np.ndarray, labels: np.ndarray | None = None) -> None:
        _same_shape(dense, out)
        before, after = _predictions(dense), _predictions(out)
        if labels is None or np.shape(labels) != before.shape:
            found = None if labels is None else np.shape(labels)
            raise ValueError(f"labels are {found}, expected [{len(before)}]")
        labels = np.asarray(labels)
        self.dense_right = np.concatenate((self.dense_right, before == labels))
        self.right = np.concatenate((self.right, after == labels))

    @property
    def images(self) -> int:
        return len(self.right)

    def value(self) -> float:
        return float(self.right.mean()) if self.images else math.nan

    def drop(self) -> float:
        return float(self.dense_right.mean() - self.right.mean()) if self.images else math.nan

    def _discordant(self) -> tuple[int, int]:
        lost = np.count_nonzero(self.dense_right & ~self.right)
        won = np.count_nonzero(~self.dense_right & self.right)
        return int(lost), int(won)

    def bound(self) -> float:
        return paired_drop_upper(*self._discordant(), self.images, CONFIDENCE)

    def images_needed(self, budget: float) -> int | None:
        lost, won = (count / max(1, self.images) for count in self._discordant())
        if budget <= lost - won or budget <= 0:
            return None
        return smallest_count(lambda n: paired_drop_upper(lost * n, won * n, n, CONFIDENCE) <= budget)


class Agreement(Metric):
    """Top-1 agreement with the dense network, without labels."""

    name = "agreement"

    def __init__(self) -> None:
        self.same = np.zeros(0, bool)

    def update(self, dense: np.ndarray, out: np.ndarray, labels: np.ndarray | None = None) -> None:
        _same_shape(dense, out)
        self.same = np.concatenate((self.same, _predictions(dense) == _predictions(out)))

    @property
    def images(self) -> int:
        return len(self.same)

    def value(self) -> float:
        return float(self.same.mean()) if self.images else math.nan

    def drop(self) -> float:
        return 1 - self.value()

    def bound(self) -> float:
        return proportion_upper(int(np.count_nonzero(~self.same)), self.images, CONFIDENCE)

    def images_needed(self, budget: float) -> int | None:
        rate = np.count_nonzero(~self.same) / max(1, self.images)
        if budget <= rate:
            return None
        return smallest_count(lambda n: proportion_upper(round(rate * n), n, CONFIDENCE) <= budget)


class _SquaredError(Metric):
    """Squared error of each image, and how many of its elements were compared."""

    def __init__(self) -> None:
        self.errors = np.zeros(0)
        self.sizes = np.zeros(0)

    def update(self, dense: np.ndarray, out: np.ndarray, labels: np.ndarray | None = None) -> None:
        _same_shape(dense, out)
        dense, out = np.asarray(dense, np.float64), np.asarray(out, np.float64)
        if not dense.ndim:
            raise ValueError("outputs are scalars, expected the image as the first axis")
        known = np.isfinite(dense)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.where(known, (out - dense) ** 2, np.where(np.isfinite(out), np.inf, 0.0))
        squares[np.isnan(squares)] = np.inf
        axes = tuple(range(1, dense.ndim))
        self.errors = np.concatenate((self.errors, squares.sum(axis=axes)))
        self.sizes = np.concatenate((self.sizes, known.sum(axis=axes)))
        self._observe(dense, known)

    @abstractmethod
    def _observe(self, dense: np.ndarray, known: np.ndarray) -> None:
        """Take in what the scale of the error needs from the dense outputs and where they are finite."""

    @property
    def images(self) -> int:
        return len(self.errors)


def _images_for_mean(values: np.ndarray, limit: float) -> int | None:
    """Images at which mean + z s / sqrt(n) comes to the limit; None if the mean is above it."""
    mean = float(np.mean(values)) if len(values) else math.inf
    if not mean < limit:
        return None
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return max(2, math.ceil((normal_quantile(CONFIDENCE) * spread / (limit - mean)) ** 2))


class Nmse(_SquaredError):
    """Squared error over the variance of the dense output, each channel around its mean over all images.

    The channel axis is 1 for outputs of four and more axes (NCHW), else the last: the column of [N, features]
    and [N, tokens, features]; outputs [N] are one channel. The variance comes from all images and is taken as
    known in the bound, which is Student's over the errors of the images.
    """

    name = "nmse"

    def __init__(self) -> None:
        super().__init__()
        self._count: np.ndarray | float = 0.0
        self._mean: np.ndarray | float = 0.0
        self._scatter: np.ndarray | float = 0.0

    def _observe(self, dense: np.ndarray, known: np.ndarray) -> None:
        if dense.ndim > 1:
            axis = 1 if dense.ndim >= 4 else dense.ndim - 1
            dense, known = (np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in (dense, known))
        dense = np.where(known, dense, 0.0)
        count = known.sum(axis=0)
        mean = dense.sum(axis=0) / np.maximum(count, 1)
        scatter = np.where(known, (dense - mean) ** 2, 0.0).sum(axis=0)
        total = self._count + count
        shift = mean - self._mean
        # Merged as in Chan, Golub, LeVeque, COMPSTAT 1982.
        self._scatter = self._scatter + scatter + shift**2 * self._count * count / np.maximum(total, 1)
        self._mean = self._mean + shift * count / np.maximum(total, 1)
        self._count = total

    def _relative(self) -> np.ndarray:
        """Errors of the images as shares of the mean variance of an image, so that their mean is the NMSE."""
        variance = float(np.sum(self._scatter)) / max(1, self.images)
        if variance == 0:
            return np.where(self.errors == 0, 0.0, np.inf)
        return self.errors / variance

    def value(self) -> float:
        return float(self._relative().mean()) if self.images else math.nan

    def drop(self) -> float:
        return self.value()

    def bound(self) -> float:
        return mean_upper(self._relative(), CONFIDENCE)

    def images_needed(self, budget: float) -> int | None:
        return _images_for_mean(self._relative(), budget)


class Psnr(_SquaredError):
    """Peak signal-to-noise ratio against the dense output, in dB; larger is better, infinite without error.

    The mean squared error is that of an image, averaged over the images. The peak is the range of the dense
    outputs seen, largest - smallest, unless ``data_range`` gives it (255 for 8-bit images).
    """

    name = "psnr"

    def __init__(self, data_range: float | None = None) -> None:
        super().__init__()
        if data_range is not None and not data_range > 0:
            raise ValueError(f"data_range is {data_range}, expected more than 0")
        self._given = data_range
        self._low, self._high = math.inf, -math.inf

    def _observe(self, dense: np.ndarray, known: np.ndarray) -> None:
        if known.any():
            self._low = min(self._low, float(dense[known].min()))
            self._high = max(self._high, float(dense[known].max()))

    @property
    def data_range(self) -> float:
        """The peak: as given, or the range seen so far."""
        return self._given if self._given is not None else max(0.0, self._high - self._low)

    def _means(self) -> np.ndarray:
        return self.errors / np.maximum(self.sizes, 1)

    def _decibel(self, squared: float) -> float:
        if squared == 0:
            return math.inf
        peak = self.data_range
        return 10 * math.log10(peak**2 / squared) if peak > 0 and math.isfinite(squared) else -math.inf

    def value(self) -> float:
        return self._decibel(float(self._means().mean())) if self.images else math.nan

    def drop(self) -> float:
        return self.value()

    def bound(self) -> float:
        return self._decibel(mean_upper(self._means(), CONFIDENCE))

    def within(self, budget: float) -> bool:
        return self.bound() >= budget

    def images_needed(self, budget: float) -> int | None:
        return _images_for_mean(self._means(), self.data_range**2 / 10 ** (budget / 10))


METRICS: dict[str, Callable[[], Metric]] = {"top1": Top1, "agreement": Agreement, "nmse": Nmse, "psnr": Psnr}


def choose_metric(name: str, labels_given: bool, outputs: np.ndarray) -> Metric:
    """A new metric by name; ``auto`` is top1 if labels are given, else agreement for classifiers, else nmse.

    Args:
        outputs: some outputs of the dense network; a classifier's are [N, classes] with two classes or more.

    Raises:
        ValueError: the name is unknown, or top1 or agreement does not fit the outputs, or top1 lacks labels.
    """
    classifier = class_scores(outputs) is not None
    if name == "auto":
        name = "top1" if labels_given else "agreement" if classifier else "nmse"
    if name not in METRICS:
        raise ValueError(f"metric is {name!r}, expected auto, {', '.join(METRICS)}")
    if name in ("top1", "agreement") and not classifier:
        shape = np.shape(outputs)
        raise ValueError(f"metric {name} needs outputs [N, classes], found {shape}: use nmse or psnr")
    if name == "top1" and not labels_given:
        raise ValueError("metric top1 needs labels: give them or use agreement")
    return METRICS[name]()
