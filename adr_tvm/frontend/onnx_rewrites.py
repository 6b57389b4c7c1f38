"""Rewrites of an ONNX graph that TVM's importer needs: node names, folded shape arithmetic, explicit pads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_limits import Dim, node_label, one_line

MAX_FOLDED = 1024
"""Entries of the largest tensor that is folded: enough for shapes, pads and scales, never for weights."""

_FOLDED_OPS = frozenset(
    {
        *("Add", "Cast", "Ceil", "Concat", "Div", "Equal", "Floor", "Gather", "Greater", "Identity", "Less"),
        *("Max", "Min", "Mul", "Neg", "Not", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose"),
        *("Unsqueeze", "Where"),
    }
)
_MOVING_OPS = frozenset({"Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
"""Folded operators that only move elements, and so work where some are symbolic."""

_OPTIONAL_OUTPUTS = frozenset({"BatchNormalization", "Dropout", "LayerNormalization", "MaxPool"})
_WINDOW_OPS = frozenset({"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"})


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: ``Conv_3`` where it had none, ``name_2`` where it was taken."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    for index, node in enumerate(graph.node):
        base = name = one_line(node.name, 200) or f"{one_line(node.op_type, 40)}_{index}"
        while name in seen or (name != node.name and name in taken):
            counts[base] += 1
            name = f"{base}_{counts[base] + 1}"
        node.name = name
        seen.add(name)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attribute values by name; strings as text."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in values.items()}


def lift_constants(where: str, graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers.

    Raises:
        ModelError: a Constant that is no dense tensor of numbers.
    """
    kept = []
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            kept.append(node)
            continue
        (name, value), *more = attributes(node).items() or [("", None)]
        if name == "value" and not more:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
        elif name in ("value_float", "value_floats", "value_int", "value_ints") and not more:
            array = np.array(value, "float32" if "float" in name else "int64")
            graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
        else:
            raise ModelError(f"{where}: {node_label(node)} is not a dense tensor of numbers")
    _replace_nodes(graph, kept)


def fold_constants(graph: onnx.GraphProto, shapes: Mapping[str, tuple[Dim, ...]], opset: int) -> bool:
    """Evaluate small arithmetic on constants (shapes, pads, scales); True if anything changed.

    Works on the graph in place. A node that cannot be evaluated stays. A Reshape whose target has one
    symbolic entry, ``[N, 6, 4]`` say, gets the constant ``[-1, 6, 4]``.
    """
    known = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if math.prod(t.dims) <= MAX_FOLDED}
    outputs = {value.name for value in graph.output}
    kept, changed = [], False
    for node in graph.node:
        value = None
        if len(node.output) == 1 and node.output[0] not in outputs and node.domain in ("", "ai.onnx"):
            value = _evaluate(node, known, shapes, opset)
        if value is not None and value.size <= MAX_FOLDED:
            known[node.output[0]] = value
            if value.dtype != object:
                graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
                changed = True
                continue
        changed |= _free_entry_as_minus_one(graph, node, known)
        kept.append(node)
    _replace_nodes(graph, kept)
    return changed


def _free_entry_as_minus_one(graph: onnx.GraphProto, node: onnx.NodeProto, known: Mapping[str, np.ndarray]) -> bool:
    target = known.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) == 2 else None
    if target is None or target.dtype != object:
        return False
    dims = [dim if isinstance(dim, int) else -1 for dim in target.reshape(-1)]
    if dims.count(-1) != 1 or 0 in dims:
        return False
    name, taken = f"{node.output[0]}/target", {tensor.name for tensor in graph.initializer}
    taken.update(name for n in graph.node for name in n.output)
    while name in taken:
        name += "_"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(dims, "int64"), name))
    node.input[1] = name
    return True


def _evaluate(
    node: onnx.NodeProto,
    known: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[Dim, ...]],
    opset: int,
) -> np.ndarray | None:
    attrs = attributes(node)
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        return None if shape is None else _array(shape[attrs.get("start", 0) : attrs.get("end")])
    if any(name and name not in known for name in node.input):
        return None
    symbolic = any(known[name].dtype == object for name in node.input if name)
    if symbolic and node.op_type not in _MOVING_OPS:
        return None
    if node.op_type == "ConstantOfShape":
        dims = [int(dim) for dim in known[node.input[0]].ravel()]
        if min(dims, default=0) < 0 or math.prod(dims) > MAX_FOLDED:
            return None
        fill = onnx.numpy_helper.to_array(attrs["value"]) if "value" in attrs else np.zeros(1, "float32")
        return np.full(dims, fill.reshape(-1)[0])
    if node.op_type not in _FOLDED_OPS:
        return None
    try:
        with np.errstate(all="ignore"):
            feeds = {name: known[name] for name in node.input if name}
            (value,) = ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds)
        return _array(value) if symbolic else np.asarray(value)
    except Exception:  # the evaluator raises whatever NumPy does; the node then stays as it is
        return None


def _array(dims: Sequence[Dim] | np.ndarray) -> np.ndarray:
    """Dimensions as int64, or as objects where some are symbolic."""
    array = np.array(dims, dtype=object)
    return array.astype("int64") if all(isinstance(dim, int) for dim in array.reshape(-1)) else array


def _replace_nodes(graph: onnx.GraphProto, kept: list[onnx.NodeProto]) -> None:
    if len(kept) < len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes that no output depends on, optional outputs and initializers that nothing reads."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            kept.append(node)
            if node.op_type in _OPTIONAL_OUTPUTS:
                while len(node.output) > 1 and node.output[-1] not in needed:
                    node.output.pop()
    _replace_nodes(graph, kept[::-1])
    unread = [index for index, tensor in enumerate(graph.initializer) if tensor.name not in needed]
    for index in reversed(unread):
        del graph.initializer[index]


def explicit_pads(graph: onnx.GraphProto, shapes: Mapping[str, tuple[Dim, ...]]) -> None:
    """Replace ``auto_pad`` and ConvTranspose's ``output_shape`` by ``pads`` where the shapes are static.

    TVM would otherwise pad by a separate operator, or ignore ``output_shape``.
    """
    for node in graph.node:
        attrs = attributes(node)
        if node.op_type not in _WINDOW_OPS or not {"auto_pad", "output_shape"} & attrs.keys():
            continue
        pads = _pads(node, attrs, shapes)
        if pads is None:
            continue
        kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads", "output_shape")]
        kept.append(onnx.helper.make_attribute("pads", pads))
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del node.attribute[:]
        node.attribute.extend(copies)


def _pads(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Mapping[str, tuple[Dim, ...]]) -> list[int] | None:
    """[begin..., end...] per spatial dimension by ONNX's formulas; None where they cannot be known."""
    mode = attrs.get("auto_pad", "NOTSET")
    shape = shapes.get(node.input[0])
    if shape is None or len(shape) < 3:
        return None
    rank = len(shape) - 2
    ones = [1] * rank
    kernel = attrs.get("kernel_shape") or (shapes.get(node.input[1]) or ())[2:]
    strides, dilations = attrs.get("strides", ones), attrs.get("dilations", ones)
    wanted = attrs.get("output_shape")
    if mode == "VALID" and not wanted:
        return [0] * 2 * rank
    if mode == "NOTSET" and not wanted:
        return list(attrs.get("pads", [0] * 2 * rank))
    sizes = [d for d in shape[2:] if isinstance(d, int)]
    taps = [d for d in kernel if isinstance(d, int)]
    if len(sizes) != rank or len(taps) != len(kernel):
        return None
    totals = []
    extra = attrs.get("output_padding", [0] * rank)
    for axis in range(rank):
        size, stride = sizes[axis], strides[axis]
        window = (taps[axis] - 1) * dilations[axis] + 1
        if node.op_type == "ConvTranspose":
            out = wanted[axis] if wanted else size * stride
            totals.append(stride * (size - 1) + extra[axis] + window - out)
        else:
            totals.append(max((-(-size // stride) - 1) * stride + window - size, 0))
    if min(totals) < 0:
        return None
    upper = mode == "SAME_UPPER"
    begin = [total // 2 if upper else total - total // 2 for total in totals]
    return begin + [total - first for total, first in zip(totals, begin, strict=True)]
