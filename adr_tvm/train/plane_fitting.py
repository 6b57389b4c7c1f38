"""Hash planes for layers under training: fitted to their inputs or refined on them, anew as the network changes.

Between two fits planes and means are constants, in forward and backward. Centroids that were kept over batches are
forgotten at a fit: their keys mean something else then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tvm import relax

from adr_tvm._tvm import device_of
from adr_tvm.build import build_module
from adr_tvm.hashing.planes import HashPlanes, make_planes
from adr_tvm.hashing.vector_statistics import SAMPLE_BYTES, VectorStatistics
from adr_tvm.hashing.vectors import vectors_at
from adr_tvm.passes import pipeline
from adr_tvm.passes.observe_candidates import ENTRY
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.plane_learning import learned
from adr_tvm.train.stage import LayerReuse
from adr_tvm.train.state import TrainingState, tensor_of

VECTORS = 8192  # of a segment that a fit looks at


class PlaneFitter:
    """Fits planes of chosen layers to a batch of images under the weights of the moment.

    Args:
        network: what is trained.
        layers: that may need planes.
        batch: images that a fit looks at.
    """

    def __init__(self, network: TrainingNetwork, layers: Sequence[str], batch: int) -> None:
        self.network, self.layers, self.batch = network, list(layers), batch
        mod = pipeline.run(pipeline.observe(self.layers), network.with_batch(batch), network.target)
        del mod["main"]
        self._device = device_of(network.target)
        self._observe = relax.VirtualMachine(build_module(mod, network.target), self._device)[ENTRY]

    def inputs(self, state: TrainingState, x: np.ndarray) -> dict[str, np.ndarray]:
        """What each layer gets, float32 [batch, H, W, C], for images x float32 [batch, ...]."""
        _, found = self._observe(tensor_of(x, self._device), *state.parameters.values())
        shapes = {layer: self.network.candidates[layer] for layer in self.layers}
        return {
            layer: tensor.numpy().reshape(self.batch, g.H, g.W, g.C)
            for (layer, g), tensor in zip(shapes.items(), found, strict=True)
        }

    def fit(self, state: TrainingState, x: np.ndarray, reuse: Mapping[str, LayerReuse], seed: int) -> None:
        """Set the planes of the layers in ``reuse``, the stage's, in the state, and empty all tables of centroids.

        Args:
            x: float32 [batch, ...].
            seed: of planes and of the sample; the same gives the same planes.
        """
        inputs = self.inputs(state, x)
        state.streams.clear()
        for layer, each in reuse.items():
            found = self._planes(inputs[layer], layer, each, seed)
            if found is not None:
                state.planes[layer] = found

    def learn(self, state: TrainingState, x: np.ndarray, reuse: Mapping[str, LayerReuse], seed: int) -> None:
        """Refine the planes that the layers in ``reuse`` have in the state.

        Args:
            x: float32 [batch, ...].
            seed: of the sample: whole images where each is clustered alone, else places of all images.
        """
        inputs = self.inputs(state, x)
        for layer, each in reuse.items():
            geometry, setting, found = self.network.candidates[layer], each.setting, inputs[layer]
            positions, segments = geometry.positions(setting), np.arange(geometry.segments(setting))
            count = min(VECTORS, SAMPLE_BYTES // (4 * len(segments) * geometry.vector_length(setting)))
            rng = np.random.default_rng([seed, state.count])
            if setting.scope == "image":
                images = np.sort(rng.permutation(len(found))[: max(1, count // positions)])
                places, units = np.arange(positions), np.arange(len(images)).repeat(positions)
                vectors = vectors_at(found[images], geometry, setting, places, segments)
            else:
                places = np.sort(rng.permutation(positions)[: max(1, count // len(found))])
                units = np.zeros(len(found) * len(places), np.int64)
                vectors = vectors_at(found, geometry, setting, places, segments)
            vectors = vectors.reshape(-1, *vectors.shape[2:])
            state.planes[layer] = learned(state.planes[layer], vectors, units)

    def _planes(self, x: np.ndarray, layer: str, reuse: LayerReuse, seed: int) -> HashPlanes | None:
        geometry, setting = self.network.candidates[layer], reuse.setting
        segments = geometry.segments(setting)
        statistics = VectorStatistics(segments, geometry.vector_length(setting), seed)
        count = min(geometry.positions(setting), max(1, VECTORS // len(x)))
        rng = np.random.default_rng([seed, segments])
        positions = np.sort(rng.choice(geometry.positions(setting), count, replace=False))
        found = vectors_at(x, geometry, setting, positions, np.arange(segments))
        statistics.update(found.reshape(-1, *found.shape[2:]))
        return make_planes(setting.hash, setting.H, statistics, seed)
