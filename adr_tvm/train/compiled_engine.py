"""The engine that trains: a network compiled by this package, as the training loop sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tvm

from adr_tvm import ops
from adr_tvm._tvm import constant, device_of
from adr_tvm.errors import ModelError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.precision import Precision
from adr_tvm.train.batches import Batch
from adr_tvm.train.controller import LayerTimes
from adr_tvm.train.evaluation import Evaluator
from adr_tvm.train.layer_times import time_layer
from adr_tvm.train.loss_scaling import LossScaling
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import Optimizer
from adr_tvm.train.output_gradients import OutputGradients
from adr_tvm.train.plane_fitting import PlaneFitter
from adr_tvm.train.prefetch import Prefetch
from adr_tvm.train.stage import LayerReuse, Stage
from adr_tvm.train.state import TrainingState
from adr_tvm.train.step import TrainingStep, is_scaled

if TYPE_CHECKING:
    import onnx


class CompiledEngine:
    """See the module and ``adr_tvm.train.engine.Engine``.

    Args:
        model_path: the ONNX file.
        optimizer: how parameters are updated.
        batch: images of a step.
        target: TVM's target.
        label_smoothing: of the loss.
        name: for reports; None: that of the file.
        seed: of the dropouts.
        skip_zeros: gradients of convolutions skip what is zero in the output's.
        precision: data type of forward and backward in mixed precision; None: fp32. Evaluation is always fp32.
        pinned: on a GPU, batches are copied from page-locked memory while steps run.

    Raises:
        ModelError: the network cannot be trained, or does not take images.
    """

    def __init__(
        self,
        model_path: str | Path,
        optimizer: Optimizer,
        batch: int,
        target: tvm.target.Target,
        label_smoothing: float = 0.0,
        name: str | None = None,
        seed: int = 0,
        skip_zeros: bool = False,
        precision: Precision | None = None,
        pinned: bool = False,
    ) -> None:
        self.network = TrainingNetwork(model_path, target)
        self.optimizer, self.batch, self.label_smoothing, self.seed = optimizer, batch, label_smoothing, seed
        self.skip_zeros = skip_zeros
        self.name = name or Path(model_path).stem
        self.sha256 = self.network.checked.sha256
        shape = self.network.checked.inputs[0].shape
        if len(shape) != 4 or not all(isinstance(dim, int) for dim in shape[1:]):
            raise ModelError(
                f"{model_path}: its input is {list(shape)}; images [batch, channels, height, width] are expected"
            )
        self.input_shape: tuple[int, int, int] = (int(shape[1]), int(shape[2]), int(shape[3]))
        self.classes = self.network.classes
        self.candidates: Mapping[str, ConvGeometry] = self.network.candidates
        self.precision = precision
        self._fitter: PlaneFitter | None = None
        self._gradients: OutputGradients | None = None
        self._device = device_of(target)
        self._stream = (self._device.create_raw_stream() or 0) if pinned else None
        self._prefetch: Prefetch | None = None

    def initial_state(self) -> TrainingState:
        """The state before the first step, on the device."""
        return TrainingState(
            self.network.initial_parameters(),
            self.optimizer.slots,
            self.network.statistics(),
            self._device,
            LossScaling.begin() if is_scaled(self.precision) else None,
        )

    def compile(self, stage: Stage) -> TrainingStep:
        """A step for a stage, for as many bits as it names."""
        return TrainingStep(
            self.network,
            stage,
            self.optimizer,
            self.batch,
            self.label_smoothing,
            self.seed,
            self.skip_zeros,
            self.precision,
            self._stream,
            self._launched,
        )

    @contextmanager
    def feed(self, batches: Iterable[Batch]) -> Iterator[Iterable[Batch]]:
        """Batches that are copied ahead from page-locked memory, or as they are: each step copies its own then."""
        if self._stream is None:
            yield batches
            return
        with Prefetch(batches, self._device) as self._prefetch:
            yield self._prefetch
        self._prefetch = None

    def _launched(self) -> None:
        if self._prefetch is not None:
            self._prefetch.launched()

    def make_planes(self, state: TrainingState, stage: Stage, x: np.ndarray, seed: int) -> None:
        """Fit the planes of the reusing layers of a stage to a batch x float32 [batch, C, H, W]."""
        self._observer().fit(state, x, _reusing(stage), seed)

    def measure(
        self, state: TrainingState, stage: Stage, layers: list[str], x: np.ndarray, labels: np.ndarray
    ) -> dict[str, LayerTimes]:
        """Time a training step of each layer alone, dense and as in ``stage``, on what it sees on a batch."""
        reusing = {layer: reuse for layer, reuse in _reusing(stage).items() if layer in layers}
        inputs, gradients = self._observer().inputs(state, x), self.output_gradients(state, x, labels)
        calls = {ops.layer_name(call): call for call in self.layer_calls()}
        first = next(iter(calls))
        found = {}
        for layer, reuse in reusing.items():
            planes, call = state.planes[layer], calls[layer]
            exact = replace(reuse, setting=replace(reuse.setting, H=planes.planes.shape[2]))
            tables = planes.planes, planes.thresholds
            found[layer] = time_layer(
                call,
                exact,
                (inputs[layer], *self.layer_weights(state, call), gradients[layer]),
                tables,
                self.network.target,
                layer != first,
                self.skip_zeros,
            )
        return found

    def evaluator(self, batch: int) -> Evaluator:
        """The network as it infers."""
        return Evaluator(self.network, batch)

    def first_nonfinite(self, state: TrainingState, x: np.ndarray) -> str | None:
        """The first layer that may reuse whose input holds NaN or Inf on a batch; None where all are finite."""
        found = self._observer().inputs(state, x)
        return next((layer for layer, value in found.items() if not np.isfinite(value).all()), None)

    def export(self, state: TrainingState) -> onnx.ModelProto:
        """The network with trained weights."""
        parameters = {name: tensor.numpy() for name, tensor in state.parameters.items()}
        statistics = {name: (mean.numpy(), var.numpy()) for name, (mean, var) in state.statistics.items()}
        return self.network.to_onnx(parameters, statistics)

    def layer_inputs(self, state: TrainingState, x: np.ndarray) -> dict[str, np.ndarray]:
        """What each layer that may reuse sees of a batch x float32 [batch, C, H, W]: float32 [batch, H, W, C]."""
        return self._observer().inputs(state, x)

    def output_gradients(self, state: TrainingState, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The gradient of the loss by the output of each convolution and dense layer: float32 of the output's shape."""
        if self._gradients is None:
            self._gradients = OutputGradients(self.network, self.batch)
        return self._gradients(state, x, labels)

    def layer_weights(self, state: TrainingState, call: tvm.relax.Call) -> tuple[np.ndarray, np.ndarray]:
        """Weights and bias of a dense call of the network, float32 of their shapes."""
        names = {var.name: name for name, var in self.network.variables().items()}

        def value(arg: tvm.relax.Expr) -> np.ndarray:
            found = constant(arg)
            return state.parameters[names[arg.name]].numpy() if found is None else found

        return value(call.args[1]), value(call.args[2])

    def _observer(self) -> PlaneFitter:
        if self._fitter is None:
            self._fitter = PlaneFitter(self.network, list(self.candidates), self.batch)
        return self._fitter

    def layer_calls(self) -> list[tvm.relax.Call]:
        """The dense calls of all convolutions and dense layers, in network order."""
        func = self.network.mod["main"]
        bound = (b.value for block in func.body.blocks for b in block.bindings)
        return [v for v in bound if getattr(getattr(v, "op", None), "name", None) in (ops.CONV2D, ops.DENSE)]


def _reusing(stage: Stage) -> dict[str, LayerReuse]:
    return {layer: reuse for layer, reuse in stage.items() if reuse is not None}
