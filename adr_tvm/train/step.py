"""One compiled training step: forward, loss, backward and update of a batch, in one call.

The step is compiled for a batch size, an optimizer and a stage, which says for each layer whether and how it reuses.
Planes, thresholds and the number of hash bits in use are inputs: fewer bits than were compiled are a matter of
thresholds at +inf (``docs/algorithm.md``, clause 2), so only another granularity or length of vectors needs another
step. Centroids that persist over batches lie in the state, in tables that the step changes in place.

In mixed precision forward and backward run in 16 bits (``passes/lower_precision.py``; on a processor in fp32 that is
rounded likewise, ``passes/emulate_precision.py``), and parameters, sums, loss and updates stay fp32. With fp16 the loss
is scaled (``adr_tvm.train.loss_scaling``), and a step whose gradients are not finite changes nothing but the count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from adr_tvm._tvm import device_of, is_cuda
from adr_tvm.build import build_module
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import register_all
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.passes import pipeline
from adr_tvm.passes.append_loss import SCALE
from adr_tvm.passes.append_updates import CONTROL_NAME, STEP, Tracking, Update
from adr_tvm.passes.emulate_precision import EmulatePrecision
from adr_tvm.passes.reuse_in_training import NOW, hash_shapes, table_name
from adr_tvm.passes.seed_dropout import SEED
from adr_tvm.precision import Precision
from adr_tvm.schedules import finite_check
from adr_tvm.schedules.cuda import finite_check as cuda_finite_check
from adr_tvm.schedules.optimizer_update import GO_ON
from adr_tvm.schedules.running_statistics import running_statistics
from adr_tvm.settings import ReuseSetting
from adr_tvm.stream_table import StreamTable
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import Optimizer
from adr_tvm.train.stage import LayerReuse, Stage
from adr_tvm.train.state import TrainingState, tensor_of

RUNNING = "running"  # names of the variables of running statistics, by number


@dataclass(frozen=True)
class StepResult:
    """What a step found out.

    Attributes:
        loss: mean cross entropy of the batch before the update.
        correct: images whose largest logit is that of their label.
        clusters: for each reusing layer, clusters found and neuron vectors, of all segments and units.
        streamed: of these clusters those whose centroid is that of an earlier batch, where clusters persist.
        scale: of the loss, where it is scaled.
        skipped: whether a gradient overflowed under that scale, so that the step changed nothing; the loss may be NaN
            or Inf then.
    """

    loss: float
    correct: int
    clusters: dict[str, tuple[int, int]]
    streamed: dict[str, int] = field(default_factory=dict)
    scale: float | None = None
    skipped: bool = False


def step_module(
    network: TrainingNetwork,
    stage: Stage,
    optimizer: Optimizer,
    batch: int,
    label_smoothing: float = 0.0,
    precision: Precision | None = None,
) -> tvm.IRModule:
    """The function ``step`` before it is lowered; its kernels are for the network's target, which may be CUDA.

    Args:
        precision: data type that it will run in; on a processor rounding is put in. None: fp32.

    Raises:
        ModelError: the file fixes another batch.
    """
    register_all()
    variables, gpu, scaled = network.variables(), is_cuda(network.target), is_scaled(precision)
    make_check = (cuda_finite_check if gpu else finite_check).finite_check
    updates = []
    for name, shape in network.parameters.items():
        size = math.prod(shape)
        check = make_check(size) if scaled else None
        updates.append(Update(variables[name].name, optimizer.kernel(size, gpu), tuple(optimizer.slots), check))
    names = [v.name for v in variables.values()]
    tracked = list(_tracked(network, batch, gpu))
    passes = pipeline.train(stage, label_smoothing, names, updates, tracked, precision, scaled)
    if precision is not None and not gpu:
        passes.append(EmulatePrecision(precision))
    return pipeline.run(passes, network.with_batch(batch), network.target)


def is_scaled(precision: Precision | None) -> bool:
    """Whether the loss is scaled: fp16 has too few exponents for gradients as they are, bf16 those of fp32."""
    return precision is not None and precision.name == "fp16"


def _tracked(network: TrainingNetwork, batch: int, gpu: bool) -> Iterator[Tracking]:
    """Updates of running means and variances, in turn."""
    for index, layer in enumerate(network.normalisations):
        n = batch * layer.pixels
        for part, factor in enumerate((1.0, n / max(1, n - 1))):
            kernel = running_statistics(layer.channels, layer.momentum, factor, gpu)
            yield Tracking(f"{RUNNING}{2 * index + part}", layer.channels, kernel)


class TrainingStep:
    """See the module.

    Args:
        network: what is trained.
        stage: the layers that reuse, with the largest number of bits they will use.
        optimizer: how parameters are updated.
        batch: images of a step.
        label_smoothing: share of the target that is spread over all classes.
        seed: of the dropouts; every step draws anew.
        precision: data type that forward and backward run in; None: fp32.
        stream: of a GPU, as TVM hands it out, that kernels run on; None: that of all copies.
        launched: called in each step when its kernels wait for the GPU and no copy for this step is left to make.

    Raises:
        ModelError: the file fixes another batch.
    """

    def __init__(
        self,
        network: TrainingNetwork,
        stage: Stage,
        optimizer: Optimizer,
        batch: int,
        label_smoothing: float = 0.0,
        seed: int = 0,
        precision: Precision | None = None,
        stream: Any = None,
        launched: Callable[[], None] = lambda: None,
    ) -> None:
        self.network, self.batch, self.seed = network, batch, seed
        self._stream, self._launched = stream, launched
        self.stage: dict[str, LayerReuse] = {
            layer: reuse for layer in network.candidates if (reuse := stage.get(layer)) is not None
        }
        self._tables = {
            layer: StreamTable.of(network.candidates[layer], reuse.setting, reuse.slots)
            for layer, reuse in self.stage.items()
            if reuse.stream
        }
        variables = network.variables()
        mod = step_module(network, self.stage, optimizer, batch, label_smoothing, precision)
        self._names = [var.name for var in mod[STEP].params]
        self._device = device_of(network.target)
        library = build_module(mod, network.target, precision=precision if is_cuda(network.target) else None)
        self._machine = relax.VirtualMachine(library, self._device)
        self._inputs: dict[str, tvm.runtime.Tensor] = {}
        self._slots = tuple(optimizer.slots)
        self._variables = {name: var.name for name, var in variables.items()}

    def run(
        self, state: TrainingState, x: np.ndarray | tvm.runtime.Tensor, labels: np.ndarray, rate: float
    ) -> StepResult:
        """Take a step; what it found out is waited for.

        Args:
            state: is changed; its tensors are on the device.
            x: float32, a batch of the network's input: an array, or a tensor that is on the device already.
            labels: int32 [batch].
            rate: learning rate.
        """
        scaling = state.scaling
        scale, skipped = (1.0, 0) if scaling is None else (scaling.scale, scaling.skipped)
        values = {self._names[0]: x if isinstance(x, tvm.runtime.Tensor) else self._input("x", x)}
        values["labels"] = self._input("labels", labels.astype(np.int32))
        # The optimizer counts updates, and not the steps that made none.
        control = np.array([rate, state.count + 1 - skipped, 1 / scale, 1], np.float32)
        values[CONTROL_NAME] = self._input(CONTROL_NAME, control)
        if SCALE in self._names:
            values[SCALE] = self._input(SCALE, np.array(scale, np.float32))
        if SEED in self._names:
            seed = (self.seed & 0x7FFFFFFF) << 32 | state.count & 0xFFFFFFFF
            values[SEED] = self._input(SEED, np.array([seed], np.int64))
        for name, variable in self._variables.items():
            values[variable] = state.parameters[name]
            values |= {f"{variable}_{slot}": state.slots[name][slot] for slot in self._slots}
        statistics = [part for both in state.statistics.values() for part in both]
        values |= {f"{RUNNING}{index}": tensor for index, tensor in enumerate(statistics)}
        for index, (layer, reuse) in enumerate(self.stage.items()):
            tables = hash_tables(state, layer, self.network.candidates[layer], reuse.setting)
            for name, table in zip((f"planes{index}", f"thresholds{index}"), tables, strict=True):
                values[name] = self._input(name, table)
            if reuse.stream:
                stream = self._table(state, layer)
                values |= {table_name(part, index): tensor for part, tensor in stream.items()}
        if NOW in self._names:
            values[NOW] = self._input(NOW, np.array([state.count + 1], np.int32))
        loss, logits, *more = self._called([values[name] for name in self._names])
        state.count += 1
        finite = scaling is None or bool(values[CONTROL_NAME].numpy()[GO_ON])
        if scaling is not None:
            scaling.observe(finite)
        found = more[len(statistics) :]
        clusters = self._clusters(found[: len(self.stage)])
        streamed = self._streamed(found[len(self.stage) :])
        correct = int((logits.numpy().argmax(axis=1) == labels).sum())
        return StepResult(
            float(loss.numpy()), correct, clusters, streamed, None if scaling is None else scale, not finite
        )

    def _input(self, name: str, array: np.ndarray) -> tvm.runtime.Tensor:
        """A copy on the device, in memory that each step uses again."""
        kept = self._inputs.get(name)
        if kept is None or tuple(kept.shape) != array.shape:
            kept = self._inputs[name] = tensor_of(array, self._device)
        else:
            kept.copyfrom(np.asarray(array, order="C"))
        return kept

    def _called(self, arguments: list[tvm.runtime.Tensor]) -> list[tvm.runtime.Tensor]:
        """The results of ``step``, finished."""
        if self._stream is None:
            found = self._machine[STEP](*arguments)
            self._launched()
            return list(found)
        with tvm_ffi.use_raw_stream(self._device, self._stream):
            found = self._machine[STEP](*arguments)
        self._launched()
        self._device.sync(self._stream)  # later copies are on another stream
        return list(found)

    def _clusters(self, stats: list[tvm.runtime.Tensor]) -> dict[str, tuple[int, int]]:
        found = {}
        for (layer, reuse), counted in zip(self.stage.items(), stats, strict=True):
            vectors = self.network.candidates[layer].vectors(reuse.setting) * self.batch
            found[layer] = int(counted.numpy()[:, 0].sum()), vectors
        return found

    def _table(self, state: TrainingState, layer: str) -> dict[str, tvm.runtime.Tensor]:
        """The layer's table in the state; an empty one where there is none."""
        if layer not in state.streams:
            parts = self._tables[layer].parts
            state.streams[layer] = {part: tensor_of(np.zeros(*each), self._device) for part, each in parts.items()}
        return state.streams[layer]

    def _streamed(self, found: list[tvm.runtime.Tensor]) -> dict[str, int]:
        """Clusters taken over, from what the step returns for each layer: their number by segment, then its table."""
        return {layer: int(found[4 * index].numpy().sum()) for index, layer in enumerate(self._tables)}


def hash_tables(
    state: TrainingState, layer: str, geometry: ConvGeometry, setting: ReuseSetting
) -> tuple[np.ndarray, np.ndarray]:
    """Planes [S, L, H] and thresholds [S, H] for a layer compiled with ``setting``; ``exact`` does not read them."""
    if setting.hash == "exact":
        planes, thresholds = hash_shapes(geometry, setting)
        return np.zeros(planes, np.float32), np.zeros(thresholds, np.float32)
    return padded(state.planes[layer], setting.H)


def padded(planes: HashPlanes, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Planes [S, L, bits] and thresholds [S, bits] of which those beyond the given ones are off.

    Raises:
        ValueError: there are more planes than bits.
    """
    more = bits - planes.planes.shape[2]
    if more < 0:
        raise ValueError(f"{planes.planes.shape[2]} planes for a step compiled for {bits}")
    return (
        np.pad(planes.planes, ((0, 0), (0, 0), (0, more))),
        np.pad(planes.thresholds, ((0, 0), (0, more)), constant_values=np.inf),
    )
