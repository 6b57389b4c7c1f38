"""What the training loop needs of a compiled network; the loop knows nothing else of it.

`adr_tvm.train.compiled_engine` is the one that trains; tests have one that only pretends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.train.batches import Batch
from adr_tvm.train.controller import LayerTimes
from adr_tvm.train.stage import LayerReuse, Stage

if TYPE_CHECKING:
    import onnx


class State(Protocol):
    """Everything that a step changes."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of everything, by path: ``parameters/NAME``, ``slots/SLOT/NAME`` ..."""
        ...

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what ``arrays`` gave.

        Raises:
            DataError: it is the state of another network or optimizer.
        """
        ...


class StepResult(Protocol):
    """What a step found out: mean loss before the update, right answers, {layer: (clusters, vectors)}, and of these
    clusters those taken over from earlier batches, where clusters persist; the scale of the loss, where it is scaled,
    and whether the step was skipped for an overflow under that scale: then the loss may not be finite."""

    @property
    def loss(self) -> float: ...
    @property
    def correct(self) -> int: ...
    @property
    def clusters(self) -> Mapping[str, tuple[int, int]]: ...
    @property
    def streamed(self) -> Mapping[str, int]: ...
    @property
    def scale(self) -> float | None: ...
    @property
    def skipped(self) -> bool: ...


class Step(Protocol):
    """One compiled variant: batch, optimizer and stage are fixed, but for the number of bits in use."""

    def run(self, state: Any, x: Any, labels: np.ndarray, rate: float) -> StepResult:
        """Take a step; ``state`` is changed. x float32 [B, C, H, W], as ``Engine.feed`` gives it, labels int32 [B]."""
        ...


class Evaluator(Protocol):
    """The network as it infers."""

    def run(self, state: Any, x: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Sum of the cross entropies, and right answers, of a batch or less."""
        ...


class Engine(Protocol):
    """A network that can be trained.

    Attributes:
        name: of the network, for reports.
        sha256: of its ONNX file.
        candidates: shapes of the layers that may reuse, in network order.
        input_shape: (C, H, W).
        classes: outputs.
    """

    name: str
    sha256: str
    candidates: Mapping[str, ConvGeometry]
    input_shape: tuple[int, int, int]
    classes: int

    def initial_state(self) -> State:
        """The state before the first step."""
        ...

    def compile(self, stage: Stage) -> Step:
        """A step for a stage, with as many bits as it names; takes a while. May be called from another thread."""
        ...

    def feed(self, batches: Iterable[Batch]) -> AbstractContextManager[Iterable[Batch]]:
        """Batches on their way to where steps run, within a block."""
        ...

    def make_planes(self, state: Any, stage: Stage, x: np.ndarray, seed: int) -> None:
        """Fit the hash planes of a stage's reusing layers to what they see on a batch, into ``state``."""
        ...

    def measure(self, state: Any, stage: Stage, layers: list[str], x: np.ndarray) -> dict[str, LayerTimes]:
        """Time a training step of each of ``layers`` alone, dense and as in ``stage``, on what it sees on a batch."""
        ...

    def evaluator(self, batch: int) -> Evaluator:
        """The network as it infers, for batches of up to ``batch``."""
        ...

    def first_nonfinite(self, state: Any, x: np.ndarray) -> str | None:
        """The first layer, in network order, whose input holds NaN or Inf on a batch; None where all are finite."""
        ...

    def export(self, state: Any) -> onnx.ModelProto:
        """The network with trained weights."""
        ...


class PlannedEngine(Engine, Protocol):
    """A network that is trained under a reuse plan; ``evaluator`` is the network with the plan.

    Attributes:
        stage: what every layer does.
    """

    stage: dict[str, LayerReuse | None]

    def dense_evaluator(self, batch: int) -> Evaluator:
        """The network as it infers without reuse."""
        ...
