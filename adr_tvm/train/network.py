"""A network that can be trained: from an ONNX file to a Relax module with its weights as parameters, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import tvm
from onnx import numpy_helper
from tvm import relax

from adr_tvm import ops
from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients.coverage import missing_gradients
from adr_tvm.passes.lift_parameters import LiftParameters, places
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.passes.training_operators import NormalisationLayer, normalisation_layers
from adr_tvm.train.tracing import canonical_for_training, trace, with_weights


@dataclass(frozen=True)
class TrainedLayer:
    """A convolution or dense layer.

    Attributes:
        layer: the ONNX node name.
        geometry: its shapes; None where it is grouped.
        reason: why it cannot reuse; empty for a candidate.
    """

    layer: str
    geometry: ConvGeometry | None
    reason: str


class TrainingNetwork:
    """A network in the form that is trained.

    Args:
        model_path: the ONNX file: one float32 input [batch, ...], one output, logits [batch, classes].
        target: TVM's target.
        input_shapes: shapes to fix, by input name.

    Attributes:
        checked: the validated model.
        target: what to compile for.
        mod: ``main(x, parameters...)``; the batch stays symbolic where the file leaves it free.
        parameters: shapes by initializer name, in canonical layout, in the order of ``main``; all are float32.
        layers: its convolutions and dense layers, in network order.
        normalisations: its batch norms, whose running statistics inference needs.
        classes: number of classes.

    Raises:
        ModelError: the file is bad, or has an operator that is not supported or has no gradient (all are named).
    """

    def __init__(
        self,
        model_path: str | Path,
        target: tvm.target.Target,
        input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    ) -> None:
        self.checked = check_model(model_path, input_shapes)
        self.target = target
        path = self.checked.path
        if len(self.checked.inputs) != 1 or len(self.checked.outputs) != 1:
            raise ModelError(
                f"{path}: has {len(self.checked.inputs)} inputs and {len(self.checked.outputs)} outputs; a network is "
                "trained that takes one batch of images and returns their logits"
            )
        output = self.checked.outputs[0].shape
        if len(output) != 2 or not isinstance(output[1], int):
            raise ModelError(f"{path}: its output is {list(output)}; logits [batch, classes] are expected")
        self.classes: int = output[1]
        self.layers, self.normalisations = self._inspected()
        # Weights may take most of the memory of a run, so no copy of them is held but that of the file.
        self._origins = [None if each is None else each.initializer for each in trace(self.checked, target)]
        if not any(self._origins):
            raise ModelError(f"{path}: has no weights that can be trained")
        canonical = canonical_for_training(self.checked, target)
        self.parameters: dict[str, tuple[int, ...]] = {
            name: value.shape for name, value in self._named_weights(canonical)
        }
        self.mod: tvm.IRModule = LiftParameters(self._origins)(canonical)

    def initial_parameters(self) -> dict[str, np.ndarray]:
        """The values of the file, float32, by initializer name, in the order of ``parameters``."""
        return dict(self._named_weights(canonical_for_training(self.checked, self.target)))

    def _named_weights(self, canonical: tvm.IRModule) -> Iterator[tuple[str, np.ndarray]]:
        for name, place in zip(self._origins, places(canonical["main"]), strict=True):
            if name is not None:
                yield name, place.value

    def _inspected(self) -> tuple[list[TrainedLayer], list[NormalisationLayer]]:
        """``layers`` and ``normalisations``; see ``__init__`` for errors."""
        canonical = canonical_for_training(self.checked, self.target)
        if missing := missing_gradients(canonical):
            names = "; ".join(f"{name} ({reason})" for name, reason in missing)
            raise ModelError(f"{self.checked.path}: cannot be trained, these operators have no gradient: {names}")
        layers = [
            TrainedLayer(each.layer, each.geometry, each.reason)
            for each in find_candidates(canonical["main"], "main", CandidateRules())
            if each.geometry is not None or each.call.op.name == ops.GROUPED_CONV2D
        ]
        return layers, normalisation_layers(canonical)

    @property
    def candidates(self) -> dict[str, ConvGeometry]:
        """Shapes of the layers that may reuse, by name, in network order."""
        return {each.layer: each.geometry for each in self.layers if each.geometry is not None and not each.reason}

    def statistics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Running mean and variance float32 [C] of each batch norm as the file has them, by its node name."""
        nodes = {node.name: node for node in self.checked.proto.graph.node}
        arrays = {i.name: i for i in self.checked.proto.graph.initializer}
        names = {each.name: tuple(nodes[each.name].input[3:5]) for each in self.normalisations}
        return {
            layer: (numpy_helper.to_array(arrays[mean]).copy(), numpy_helper.to_array(arrays[variance]).copy())
            for layer, (mean, variance) in names.items()
        }

    def variables(self) -> dict[str, relax.Var]:
        """The parameters of ``main``, by initializer name."""
        return dict(zip(self.parameters, self.mod["main"].params[1:], strict=True))

    @property
    def fixed_batch(self) -> bool:
        """Whether the file fixes the size of a batch."""
        return isinstance(self.mod["main"].params[0].ty.shape[0], tvm.tirx.IntImm)

    def with_batch(self, batch: int) -> tvm.IRModule:
        """The module for batches of one size.

        Raises:
            ModelError: the file fixes another.
        """
        first = self.mod["main"].params[0].ty.shape[0]
        if isinstance(first, tvm.tirx.IntImm):
            if int(first) != batch:
                raise ModelError(f"{self.checked.path}: is fixed to batches of {int(first)}, not {batch}")
            return self.mod
        return relax.transform.BindSymbolicVars({str(first.name): batch}, "main")(self.mod)

    def to_onnx(
        self, parameters: Mapping[str, np.ndarray], statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> onnx.ModelProto:
        """The model with trained values.

        Args:
            parameters: by initializer name, in canonical layout.
            statistics: running mean and variance of each batch norm, float32 [C], by its node name.
        """
        arrays: dict[str, np.ndarray] = {}
        for origin in trace(self.checked, self.target):
            if origin is not None:
                values = np.empty(origin.positions.size, np.float32)
                values[origin.positions.reshape(-1)] = parameters[origin.initializer].reshape(-1)
                arrays[origin.initializer] = values
        nodes = {node.name: node for node in self.checked.proto.graph.node}
        for layer, (mean, variance) in statistics.items():
            arrays[nodes[layer].input[3]], arrays[nodes[layer].input[4]] = mean, variance
        return with_weights(self.checked.proto, arrays)
