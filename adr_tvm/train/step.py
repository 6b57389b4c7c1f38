"""One compiled training step: forward, loss, backward and update of a batch, in one call.

The step is compiled for a batch size, an optimizer and a stage, which says for each layer whether and how it reuses.
Planes, thresholds and the number of hash bits in use are inputs: fewer bits than were compiled are a matter of
thresholds at +inf (``docs/algorithm.md``, clause 2), so only another granularity or length of vectors needs another
step. Centroids that persist over batches lie in the state, in tables that the step changes in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax

from adr_tvm._tvm import is_cuda
from adr_tvm.build import build_module
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import register_all
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.passes import pipeline
from adr_tvm.passes.append_updates import STEP, Update
from adr_tvm.passes.reuse_in_training import NOW, hash_shapes, table_name
from adr_tvm.passes.seed_dropout import SEED
from adr_tvm.settings import ReuseSetting
from adr_tvm.stream_table import StreamTable
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import Optimizer
from adr_tvm.train.stage import LayerReuse, Stage
from adr_tvm.train.state import TrainingState, tensor_of


@dataclass(frozen=True)
class StepResult:
    """What a step found out.

    Attributes:
        loss: mean cross entropy of the batch before the update.
        correct: images whose largest logit is that of their label.
        clusters: for each reusing layer, clusters found and neuron vectors, of all segments and units.
        streamed: of these clusters those whose centroid is that of an earlier batch, where clusters persist.
    """

    loss: float
    correct: int
    clusters: dict[str, tuple[int, int]]
    streamed: dict[str, int] = field(default_factory=dict)


def step_module(
    network: TrainingNetwork,
    stage: Stage,
    optimizer: Optimizer,
    batch: int,
    label_smoothing: float = 0.0,
    skip_zeros: bool = False,
) -> tvm.IRModule:
    """The function ``step`` before it is lowered; its kernels are for the network's target, which may be CUDA.

    Raises:
        ModelError: the file fixes another batch.
    """
    register_all()
    variables, gpu = network.variables(), is_cuda(network.target)
    updates = [
        Update(variables[name].name, optimizer.kernel(math.prod(shape), gpu), tuple(optimizer.slots))
        for name, shape in network.parameters.items()
    ]
    passes = pipeline.train(stage, label_smoothing, [v.name for v in variables.values()], updates, skip_zeros)
    return pipeline.run(passes, network.with_batch(batch), network.target)


class TrainingStep:
    """See the module.

    Args:
        network: what is trained.
        stage: the layers that reuse, with the largest number of bits they will use.
        optimizer: how parameters are updated.
        batch: images of a step.
        label_smoothing: share of the target that is spread over all classes.
        seed: of the dropouts; every step draws anew.
        skip_zeros: gradients of convolutions skip what is zero in the output's (``passes/skip_zeros.py``).

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
        skip_zeros: bool = False,
    ) -> None:
        self.network, self.batch, self.seed = network, batch, seed
        self.stage: dict[str, LayerReuse] = {
            layer: reuse for layer in network.candidates if (reuse := stage.get(layer)) is not None
        }
        self._tables = {
            layer: StreamTable.of(network.candidates[layer], reuse.setting, reuse.slots)
            for layer, reuse in self.stage.items()
            if reuse.stream
        }
        variables = network.variables()
        mod = step_module(network, self.stage, optimizer, batch, label_smoothing, skip_zeros)
        self._names = [var.name for var in mod[STEP].params]
        self._machine = relax.VirtualMachine(build_module(mod, network.target), tvm.cpu())
        self._slots = tuple(optimizer.slots)
        self._variables = {name: var.name for name, var in variables.items()}

    def run(self, state: TrainingState, x: np.ndarray, labels: np.ndarray, rate: float) -> StepResult:
        """Take a step.

        Args:
            state: is changed.
            x: float32, a batch of the network's input.
            labels: int32 [batch].
            rate: learning rate.
        """
        values = {self._names[0]: tensor_of(x), "labels": tensor_of(labels.astype(np.int32))}
        values |= {"rate": tensor_of(np.array([rate], np.float32))}
        values |= {"count": tensor_of(np.array([state.count + 1], np.float32))}
        if SEED in self._names:
            values[SEED] = tensor_of(np.array([(self.seed & 0x7FFFFFFF) << 32 | state.count & 0xFFFFFFFF], np.int64))
        for name, variable in self._variables.items():
            values[variable] = state.parameters[name]
            values |= {f"{variable}_{slot}": state.slots[name][slot] for slot in self._slots}
        for index, (layer, reuse) in enumerate(self.stage.items()):
            tables = hash_tables(state, layer, self.network.candidates[layer], reuse.setting)
            values[f"planes{index}"], values[f"thresholds{index}"] = map(tensor_of, tables)
            if reuse.stream:
                table = self._table(state, layer)
                values |= {table_name(part, index): tensor for part, tensor in table.items()}
        values[NOW] = tensor_of(np.array([state.count + 1], np.int32))
        loss, logits, *more = self._machine[STEP](*(values[name] for name in self._names))
        state.count += 1
        normalised = 2 * len(self.network.normalisations)
        self._update_statistics(state, more[:normalised])
        found = more[normalised:]
        clusters = self._clusters(found[: len(self.stage)])
        streamed = self._streamed(found[len(self.stage) :])
        correct = int((logits.numpy().argmax(axis=1) == labels).sum())
        return StepResult(float(loss.numpy()), correct, clusters, streamed)

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
            state.streams[layer] = {part: tensor_of(np.zeros(*each)) for part, each in parts.items()}
        return state.streams[layer]

    def _streamed(self, found: list[tvm.runtime.Tensor]) -> dict[str, int]:
        """Clusters taken over, from what the step returns for each layer: their number by segment, then its table."""
        return {layer: int(found[4 * index].numpy().sum()) for index, layer in enumerate(self._tables)}

    def _update_statistics(self, state: TrainingState, found: list[tvm.runtime.Tensor]) -> None:
        """Running statistics as torch keeps them: the variance is that of the population, estimated."""
        for index, layer in enumerate(self.network.normalisations):
            mean, variance = state.statistics[layer.name]
            n = self.batch * layer.pixels
            for running, new in (
                (mean, found[2 * index].numpy()),
                (variance, found[2 * index + 1].numpy() * (n / (n - 1))),
            ):
                running += np.float32(layer.momentum) * (new - running)


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
