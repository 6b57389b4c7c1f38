"""From a file of unknown origin to an ONNX model that the importer can trust.

``check_model`` parses, validates and normalises: every error is a ``ModelError`` of one line. The result has
static shapes (the batch may stay symbolic), explicit pads, uniquely named nodes, shapes inferred for every
tensor and shape arithmetic folded away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_inputs import TensorSpec, parse_input_shapes, resolve_inputs
from adr_tvm.frontend.onnx_limits import (
    Dim,
    Limits,
    first_fault,
    node_label,
    one_line,
    quoted,
    tensor_bytes,
    type_name,
)
from adr_tvm.frontend.onnx_load import load_proto
from adr_tvm.frontend.onnx_node_rules import check_constants, check_nodes
from adr_tvm.frontend.onnx_rewrites import (
    MAX_FOLDED,
    drop_unused,
    explicit_pads,
    fold_constants,
    lift_constants,
    name_nodes,
)

__all__ = ["CheckedModel", "Limits", "TensorSpec", "check_model", "parse_input_shapes"]

_MAX_FOLDS = 8


@dataclass(frozen=True)
class CheckedModel:
    """A validated model.

    Attributes:
        path: the file it came from.
        proto: the normalised model; ``graph.value_info`` holds the inferred shapes.
        sha256: of the file, followed by its external data.
        inputs: what the caller passes, in order.
        outputs: what it gets back, in order; symbols are ONNX's, new ones where it lost track of the batch.
        limits: what it was checked against.
    """

    path: Path
    proto: onnx.ModelProto
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: Limits

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.proto.opset_import[0].version


def check_model(
    path: str | Path,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    limits: Limits | None = None,
) -> CheckedModel:
    """Load and validate an ONNX file.

    Args:
        path: the file. External data must lie in its folder or below.
        input_shapes: shapes to fix, by input name; a name as first dimension leaves the batch symbolic.
        limits: bounds on sizes; the defaults of ``Limits`` if None.

    Raises:
        ModelError: anything wrong with the file, its graph or the shapes; one line with the way on.
    """
    path, limits = Path(path), limits or Limits()
    where = one_line(path)
    model, sha256 = load_proto(path, limits)
    model.ir_version = max(model.ir_version, 4)  # from 4 on, weights need not be inputs
    inputs = resolve_inputs(where, model.graph, input_shapes or {}, limits)
    _check_valid(where, model)
    outputs = _normalise(where, model, limits)
    return CheckedModel(path, model, sha256, inputs, outputs, limits)


def _check_valid(where: str, model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(_without_weights(model), full_check=True)
    except Exception as error:  # ValidationError, InferenceError, ValueError
        raise ModelError(f"{where}: not a valid ONNX model ({first_fault(error)})") from None


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large initializers turned into inputs: onnx copies what it checks, data and all.

    ``load_proto`` has checked the initializers themselves.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = model.graph
    for field in ("node", "input", "output", "value_info", "quantization_annotation"):
        getattr(light.graph, field).extend(getattr(graph, field))
    light.graph.name = graph.name
    declared = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= MAX_FOLDED:
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _normalise(where: str, model: onnx.ModelProto, limits: Limits) -> tuple[TensorSpec, ...]:
    """Rewrite the model in place into what the importer takes; returns the outputs."""
    graph = model.graph
    model.opset_import.sort(key=lambda entry: entry.domain not in ("", "ai.onnx"))
    graph.name = one_line(graph.name, 100) or "main"
    name_nodes(graph)
    lift_constants(where, graph)
    drop_unused(graph)
    for value in graph.output:
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"{where}: output {quoted(value.name)} is not a tensor")
        value.type.tensor_type.ClearField("shape")
    shapes = _infer(where, model, limits)
    for _ in range(_MAX_FOLDS):
        if not fold_constants(graph, shapes, model.opset_import[0].version):
            break
        drop_unused(graph)
        shapes = _infer(where, model, limits)
    check_nodes(where, graph, shapes, limits)
    check_constants(where, graph, shapes, limits)
    explicit_pads(graph, shapes)
    return tuple(_output_spec(value, shapes) for value in graph.output)


def _output_spec(value: onnx.ValueInfoProto, shapes: Mapping[str, tuple[Dim, ...]]) -> TensorSpec:
    shape = tuple("?" if dim is None else dim for dim in shapes.get(value.name, ()))
    return TensorSpec(value.name, shape, type_name(value.type.tensor_type.elem_type))


def _infer(where: str, model: onnx.ModelProto, limits: Limits) -> dict[str, tuple[Dim, ...]]:
    """Infer all shapes, write them to ``value_info`` and ``output``, and check them against the limits.

    Returns:
        Shape by tensor name, initializers and inputs included; tensors of unknown rank are missing.
    """
    graph = model.graph
    del graph.value_info[:]
    inferred = _inferred(where, model)
    shapes: dict[str, tuple[Dim, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    for value in (*graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims
        )
        if value.name in made:
            _check_size(f"{where}: {node_label(made[value.name])}", value, shapes[value.name], limits)
    graph.value_info.extend(value for value in inferred.graph.value_info if value.name in made)
    del graph.output[:]
    graph.output.extend(inferred.graph.output)
    return shapes


def _inferred(where: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without weights, with the shapes that onnx infers."""
    light = _without_weights(model)
    for node in light.graph.node:
        if node.op_type == "GroupNormalization":  # onnx infers no shape for it; it keeps its input's
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output[:1], node.name))
    try:
        return onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # InferenceError, RuntimeError
        raise ModelError(f"{where}: shapes do not fit together ({first_fault(error)})") from None


def _check_size(where: str, value: onnx.ValueInfoProto, shape: tuple[Dim, ...], limits: Limits) -> None:
    label = f"{where}: its output {quoted(value.name)}"
    tensor_bytes(label, value.type.tensor_type.elem_type, shape, limits)
    if 0 in shape and len(shape) > 1:
        raise ModelError(f"{label} is empty (shape {list(shape)}); use a larger --input-shapes")
