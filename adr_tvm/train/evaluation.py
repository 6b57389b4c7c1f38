"""Loss and accuracy of a network under training on images that it does not learn from."""

from __future__ import annotations

import numpy as np
from tvm import relax

from adr_tvm._tvm import device_of
from adr_tvm.build import build_module
from adr_tvm.passes import pipeline
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.stage import LayerReuse, Stage
from adr_tvm.train.state import TrainingState, tensor_of
from adr_tvm.train.step import hash_tables


class Evaluator:
    """The network as it infers, for any number of images.

    Args:
        network: what is trained.
        batch: images of a call where the network's file leaves it free.
        stage: the layers that reuse, in any setting that inference has; None: all dense. A last batch that is smaller
            is a unit of its own where the scope is the batch, as in the compiled network; where the file fixes the
            batch, it is filled by repeating its images.
    """

    def __init__(self, network: TrainingNetwork, batch: int, stage: Stage | None = None) -> None:
        self.batch, self.network = batch, network
        self.stage: dict[str, LayerReuse] = {
            layer: reuse for layer in network.candidates if (reuse := (stage or {}).get(layer)) is not None
        }
        self._whole = not self.stage or network.fixed_batch
        mod = network.with_batch(batch) if self._whole else network.mod
        mod = pipeline.run(pipeline.evaluate(self.stage), mod, network.target)
        self._device = device_of(network.target)
        self._main = relax.VirtualMachine(build_module(mod, network.target), self._device)["main"]

    def logits(self, state: TrainingState, x: np.ndarray) -> np.ndarray:
        """Logits float32 [n, classes] of a batch or less, x float32 [n, ...]."""
        filling = self._whole and len(x) < self.batch
        given = np.resize(x, (self.batch, *x.shape[1:])) if filling else x
        statistics = [part for both in state.statistics.values() for part in both]
        geometries = self.network.candidates
        tables = [
            tensor_of(part, self._device)
            for layer, reuse in self.stage.items()
            for part in hash_tables(state, layer, geometries[layer], reuse.setting)
        ]
        found = self._main(tensor_of(given, self._device), *state.parameters.values(), *tables, *statistics)
        return found.numpy()[: len(x)]

    def run(self, state: TrainingState, x: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Sum of the cross entropies and number of right answers of a batch or less.

        Args:
            x: float32 [n, ...], n at most the batch.
            labels: int [n].
        """
        logits = self.logits(state, x).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
        return float(losses.sum()), int((logits.argmax(axis=1) == labels).sum())
