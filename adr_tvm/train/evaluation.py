"""Loss and accuracy of a network under training on images that it does not learn from."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from adr_tvm.build import build_module
from adr_tvm.passes import pipeline
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.state import TrainingState, tensor_of


class Evaluator:
    """The network as it infers, without reuse, for any number of images.

    Args:
        network: what is trained.
        batch: images of a call where the network's file leaves it free.
    """

    def __init__(self, network: TrainingNetwork, batch: int) -> None:
        mod = pipeline.run(pipeline.evaluate(), network.with_batch(batch), network.target)
        self.batch = batch
        self._main = relax.VirtualMachine(build_module(mod, network.target), tvm.cpu())["main"]

    def logits(self, state: TrainingState, x: np.ndarray) -> np.ndarray:
        """Logits float32 [n, classes] of a batch or less, x float32 [n, ...]; a smaller batch is padded."""
        whole = np.zeros((self.batch, *x.shape[1:]), np.float32)
        whole[: len(x)] = x
        statistics = [tensor_of(part) for both in state.statistics.values() for part in both]
        return self._main(tensor_of(whole), *state.parameters.values(), *statistics).numpy()[: len(x)]

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
