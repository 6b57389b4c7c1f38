"""Shapes of a model's inputs: the ``--input-shapes`` notation, and which dimensions may stay free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx

from adr_tvm.data.tensor_spec import TensorSpec
from adr_tvm.errors import ModelError, UsageError
from adr_tvm.frontend.onnx_limits import Dim, Limits, quoted, tensor_bytes, type_name

INPUT_TYPES = ("float32", "int32", "int64", "uint8", "bool")


def parse_input_shapes(text: str | Iterable[str]) -> dict[str, tuple[int | str, ...]]:
    """Read ``"x:1,3,224,224;y:1,10"``, or several such strings (a repeated option).

    The first dimension may be a name (``x:N,3,224,224``): the batch stays symbolic. Only the last colon
    separates, so names may hold colons.

    Raises:
        UsageError: malformed, or one input named twice.
    """
    parts = [part for item in ([text] if isinstance(text, str) else text) for part in item.split(";")]
    shapes: dict[str, tuple[int | str, ...]] = {}
    for part in (part.strip() for part in parts):
        if not part:
            continue
        name, colon, dims = part.rpartition(":")
        name = name.strip()
        if not colon or not name:
            raise UsageError(f"--input-shapes {quoted(part)}: expected NAME:DIM,DIM,... as in x:1,3,224,224")
        if name in shapes:
            raise UsageError(f"--input-shapes: input {quoted(name)} is given twice")
        entries = [dim.strip() for dim in dims.split(",")] if dims.strip() else []
        shapes[name] = tuple(_parse_dim(part, axis, dim) for axis, dim in enumerate(entries))
    return shapes


def _is_name(dim: object) -> bool:
    """Whether a dimension is a plain name. Exporters also write ``?`` and expressions."""
    return isinstance(dim, str) and dim.isascii() and dim.isidentifier() and len(dim) <= 64


def _parse_dim(part: str, axis: int, dim: str) -> int | str:
    if dim.isascii() and dim.isdigit() and len(dim) <= 18 and int(dim) >= 1:
        return int(dim)
    if axis == 0 and _is_name(dim):
        return dim
    raise UsageError(
        f"--input-shapes {quoted(part)}: {quoted(dim)} is not a dimension; give integers of 1 or more "
        "(the first may be a name such as N, a batch that stays free)"
    )


def resolve_inputs(
    where: str,
    graph: onnx.GraphProto,
    input_shapes: Mapping[str, Sequence[int | str]],
    limits: Limits,
) -> tuple[TensorSpec, ...]:
    """Fix the shapes of the graph's inputs, in place, and return them.

    Inputs that have an initializer are weights with a default value and are dropped from the inputs.

    Raises:
        ModelError: no input, an input that is no tensor of a supported type, a free dimension other than the
            batch, or ``input_shapes`` that names an unknown input or has another rank.
    """
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not inputs:
        raise ModelError(f"{where}: the model has no input")
    names = [value.name for value in inputs]
    for name in input_shapes:
        if name not in names:
            known = ", ".join(quoted(n) for n in names[:8])
            raise ModelError(f"{where}: --input-shapes names {quoted(name)}, but the inputs are {known}")
    specs = tuple(_resolve(where, value, input_shapes.get(value.name), limits) for value in inputs)
    if any(contradicts(value, input_shapes.get(value.name)) for value in inputs):
        _forget_shapes(graph)
    del graph.input[:]
    for spec, value in zip(specs, inputs, strict=True):
        element_type = value.type.tensor_type.elem_type
        graph.input.append(onnx.helper.make_tensor_value_info(spec.name, element_type, spec.shape))
    return specs


def _resolve(where: str, value: onnx.ValueInfoProto, given: Sequence[int | str] | None, limits: Limits) -> TensorSpec:
    label = f"{where}: input {quoted(value.name)}"
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or type_name(tensor.elem_type) not in INPUT_TYPES:
        kind = type_name(tensor.elem_type) if value.type.HasField("tensor_type") else "no tensor"
        raise ModelError(f"{label} is {kind}; supported are {', '.join(INPUT_TYPES)} tensors")
    declared = _declared_shape(value)
    if declared is None and given is None:
        raise ModelError(f"{label} has no shape; give --input-shapes {value.name}:1,3,224,224")
    shape: list[Any] = list((declared if given is None else given) or ())
    if declared is not None and given is not None and len(given) != len(declared):
        raise ModelError(f"{label} has {len(declared)} dimensions, --input-shapes gives {len(given)} ({list(given)})")
    for axis, dim in enumerate(shape):
        if not isinstance(dim, int) and axis > 0:
            fix = ",".join(str(d) if isinstance(d, int) else "1" if not i else "224" for i, d in enumerate(shape))
            called = f" ({quoted(dim)})" if dim else ""
            raise ModelError(
                f"{label}: dimension {axis}{called} is free, only the first (the batch) may be; "
                f"give --input-shapes {value.name}:{fix}"
            )
        if dim == 0:
            raise ModelError(f"{label}: dimension {axis} is 0")
    if shape and not isinstance(shape[0], int):
        shape[0] = shape[0] if _is_name(shape[0]) else "batch"
    tensor_bytes(label, tensor.elem_type, shape, limits)
    return TensorSpec(value.name, tuple(shape), type_name(tensor.elem_type))


def _declared_shape(value: onnx.ValueInfoProto) -> list[Dim] | None:
    """The shape in the file; exporters write 0 or -1 as well as a name for a free dimension."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else dim.dim_param or None for dim in value.type.tensor_type.shape.dim]


def contradicts(value: onnx.ValueInfoProto, given: Sequence[int | str] | None) -> bool:
    """Whether a given shape changes a dimension that the file fixes."""
    declared = _declared_shape(value)
    if declared is None or given is None:
        return False
    return any(isinstance(fixed, int) and fixed != dim for fixed, dim in zip(declared, given, strict=True))


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """Drop the shapes that the file states for another input size; shape inference finds the new ones.

    A network that does not work at the new size (a dense layer behind a flatten, say) fails there.
    """
    del graph.value_info[:]
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
