"""A network that only pretends: softmax regression in NumPy whose layers "reuse" by rounding, for tests of the loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from adr_tvm.data.training_arrays import ArraySamples
from adr_tvm.data.training_data import TrainingData
from adr_tvm.errors import DataError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.train.augmentation import Preparation
from adr_tvm.train.controller import LayerTimes
from adr_tvm.train.stage import Stage, reuse_text

SIZE, CLASSES = 8, 4
WIDE = ConvGeometry(16, 16, 64, 5, 5, 64, padding=(2, 2, 2, 2))


def data(count: int = 96, seed: int = 0) -> TrainingData:
    """Images whose class is the quadrant that is bright."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, SIZE, SIZE, 3), np.uint8)
    labels = rng.integers(0, CLASSES, count)
    half = SIZE // 2
    for image, label in zip(images, labels, strict=True):
        y, x = half * (label // 2), half * (label % 2)
        image[y : y + half, x : x + half] += np.uint8(100)
    images_of = np.split(images, [2 * count // 3])
    labels_of = np.split(labels.astype(np.int32), [2 * count // 3])
    parts = [ArraySamples(*pair) for pair in zip(images_of, labels_of, strict=True)]
    return TrainingData("quadrants", *parts, tuple("abcd"), (0.3,) * 3, (0.2,) * 3)


def preparation(augment: bool = True) -> Preparation:
    return Preparation(SIZE, SIZE, (0.3,) * 3, (0.2,) * 3, augment, padding=1)


def decay(total: int, per_epoch: int):
    """A learning rate that falls to 0."""
    return lambda step: 0.002 * (1 - step / total)


class State:
    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.weight = (rng.standard_normal((3 * SIZE * SIZE, CLASSES)) * 0.01).astype(np.float32)
        self.velocity = np.zeros_like(self.weight)
        self.planes: dict[str, np.ndarray] = {}

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"parameters/weight": self.weight.copy(), "slots/momentum/weight": self.velocity.copy()}
        return found | {f"planes/{layer}": planes.copy() for layer, planes in self.planes.items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        if "parameters/weight" not in arrays:
            raise DataError("parameters/weight: nothing")
        self.weight = arrays["parameters/weight"].copy()
        self.velocity = arrays["slots/momentum/weight"].copy()
        self.planes = {path[7:]: value.copy() for path, value in arrays.items() if path.startswith("planes/")}


@dataclass(frozen=True)
class Result:
    loss: float
    correct: int
    clusters: dict[str, tuple[int, int]]
    streamed: dict[str, int] = field(default_factory=dict)
    scale: float | None = None
    skipped: bool = False


def softmax(state: State, x: np.ndarray) -> np.ndarray:
    logits = x.reshape(len(x), -1) @ state.weight
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


class Step:
    """A step that depends on the stage, its planes and the state, as a real one does."""

    def __init__(self, stage: Stage, engine: Engine) -> None:
        self._stage, self._engine = stage, engine

    def run(self, state: State, x: np.ndarray, labels: np.ndarray, rate: float) -> Result:
        engine = self._engine
        engine.steps += 1
        probabilities = softmax(state, x)
        loss = float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-9).mean())
        gradient = x.reshape(len(x), -1).T @ (probabilities - np.eye(CLASSES)[labels]) / len(labels)
        for layer, reuse in self._stage.items():
            if reuse is not None:
                gradient += 1e-3 * state.planes[layer].mean()
        state.velocity = (0.9 * state.velocity + gradient).astype(np.float32)
        state.weight = (state.weight - rate * state.velocity).astype(np.float32)
        if engine.fail_at == engine.steps:
            state.weight[0, 0] = np.nan
            loss = float("nan")
        engine.after_step(engine.steps)
        clusters = {layer: (3, 12) for layer, reuse in self._stage.items() if reuse is not None}
        return Result(loss, int((probabilities.argmax(axis=1) == labels).sum()), clusters)


class Evaluator:
    def run(self, state: State, x: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        probabilities = softmax(state, x)
        losses = -np.log(probabilities[np.arange(len(labels)), labels] + 1e-9)
        return float(losses.sum()), int((probabilities.argmax(axis=1) == labels).sum())


@dataclass
class Engine:
    """``slow`` names layers that measure slower with reuse; ``fail_at`` is the step whose loss is NaN."""

    candidates: dict[str, ConvGeometry] = field(default_factory=lambda: {"conv1": WIDE, "conv2": WIDE})
    slow: tuple[str, ...] = ()
    fail_at: int = 0
    name: str = "fake"
    sha256: str = "f" * 64
    input_shape: tuple[int, int, int] = (3, SIZE, SIZE)
    classes: int = CLASSES
    steps: int = 0
    compiled: list[str] = field(default_factory=list)
    measured: int = 0

    def after_step(self, step: int) -> None:
        """For tests that interrupt."""

    def initial_state(self) -> State:
        return State()

    def compile(self, stage: Stage) -> Step:
        self.compiled.append("; ".join(reuse_text(reuse) for reuse in stage.values()))
        time.sleep(0.01)
        return Step(stage, self)

    def feed(self, batches):
        return nullcontext(batches)

    def make_planes(self, state: State, stage: Stage, x: np.ndarray, seed: int) -> None:
        for layer, reuse in stage.items():
            if reuse is not None:
                state.planes[layer] = np.full((2, reuse.setting.H), x.mean() + state.weight.sum(), np.float32)

    def measure(self, state: State, stage: Stage, layers: list[str], x: np.ndarray) -> dict[str, LayerTimes]:
        self.measured += 1
        return {layer: LayerTimes(1.0, 2.0 if layer in self.slow else 0.3) for layer in layers}

    def evaluator(self, batch: int) -> Evaluator:
        return Evaluator()

    def first_nonfinite(self, state: State, x: np.ndarray) -> str | None:
        return "conv2" if np.abs(state.weight).max() > 1e3 else None

    def export(self, state: State) -> None:
        raise NotImplementedError
