"""Gradients of the loss by the outputs of layers, as a training step sees them: what a layer is timed on."""

from __future__ import annotations

import numpy as np
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import calls, device_of, static_shape
from adr_tvm.build import build_module
from adr_tvm.gradients import register_all
from adr_tvm.passes import pipeline
from adr_tvm.passes.probe_outputs import probe_name
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.state import TrainingState, tensor_of


class OutputGradients:
    """The network's dense forward and backward pass, without the gradients of its weights.

    Args:
        network: what is trained.
        batch: images.
    """

    def __init__(self, network: TrainingNetwork, batch: int) -> None:
        register_all()
        self._device = device_of(network.target)
        mod = network.with_batch(batch)
        found = calls(mod["main"], *ops.DENSE_OPS)
        self._shapes = {ops.layer_name(call): static_shape(call) for call in found}
        mod = pipeline.run(
            pipeline.output_gradients([probe_name(layer) for layer in self._shapes]), mod, network.target
        )
        self._names = [var.name for var in mod["main_adjoint"].params]
        del mod["main"]
        self._machine = relax.VirtualMachine(build_module(mod, network.target), self._device)
        self._variables = {name: var.name for name, var in network.variables().items()}

    def __call__(self, state: TrainingState, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """By layer, float32 of the shape of its output, for images x float32 [batch, ...] and labels int32 [batch]."""
        values = {
            self._names[0]: tensor_of(x, self._device),
            "labels": tensor_of(labels.astype(np.int32), self._device),
        }
        values |= {variable: state.parameters[name] for name, variable in self._variables.items()}
        probes = {layer: np.zeros(shape, np.float32) for layer, shape in self._shapes.items()}
        values |= {probe_name(layer): tensor_of(zeros, self._device) for layer, zeros in probes.items()}
        _, found = self._machine["main_adjoint"](*(values[name] for name in self._names))
        return dict(zip(self._shapes, (tensor.numpy() for tensor in found), strict=True))
