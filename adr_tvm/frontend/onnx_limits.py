"""What an ONNX file may ask for: size limits, and the wording of the errors about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from adr_tvm.errors import ModelError

GIB = 1 << 30
MIN_OPSET, MAX_OPSET = 7, 23

Dim = int | str | None


@dataclass(frozen=True)
class Limits:
    """Upper bounds on a model; more is refused before anything of that size is allocated.

    Attributes:
        file_bytes: the model file, and each file of external data.
        nodes: nodes of the graph.
        node_inputs: inputs or outputs of one node.
        tensor_bytes: one tensor (weight or activation), at batch 1 where the batch is symbolic.
        initializer_bytes: all initializers and constants together.
        rank: dimensions of a tensor.
        dimension: length of one dimension.
        window: kernel size, stride, dilation and padding along one dimension.
    """

    file_bytes: int = 2 * GIB
    nodes: int = 20_000
    node_inputs: int = 4096
    tensor_bytes: int = 2 * GIB
    initializer_bytes: int = 2 * GIB
    rank: int = 8
    dimension: int = 2**31 - 1
    window: int = 4096


def one_line(error: object, width: int = 300) -> str:
    """The text of an error on one line of at most ``width`` printable characters."""
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= width else text[: width - 3] + "..."


def first_fault(error: object) -> str:
    """The first of the faults that onnx's shape inference lists, which the others follow from."""
    text = str(error)
    start = text.find("(op_type:")
    end = text.find("(op_type:", start + 1)
    return one_line(text if start < 0 or end < 0 else text[start:end])


def quoted(name: str) -> str:
    """A name from the file, safe to print."""
    return repr(one_line(name, 100))


def node_label(node: onnx.NodeProto) -> str:
    """How an error names a node: ``node 'conv1' (Conv)``; by its first output if it has no name."""
    name = node.name or (node.output[0] if node.output else "?")
    return f"node {quoted(name)} ({one_line(node.op_type, 40)})"


def size_text(size: int) -> str:
    """Bytes for people: ``3.2 GiB``."""
    for unit, scale in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def walk_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph nested in an attribute of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from walk_graphs(attribute.g)
            for nested in attribute.graphs:
                yield from walk_graphs(nested)


_ELEMENT_TYPES = {
    getattr(onnx.TensorProto, name): size
    for name, size in {
        "FLOAT": 4, "DOUBLE": 8, "FLOAT16": 2, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
        "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "BOOL": 1,
    }.items()
}  # fmt: skip


def type_name(element_type: int) -> str:
    """NumPy's name of an ONNX element type (``float32``), else ONNX's own."""
    if element_type in _ELEMENT_TYPES:
        return str(onnx.helper.tensor_dtype_to_np_dtype(element_type))
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return names.get(element_type, f"type {element_type}").lower()


def tensor_bytes(where: str, element_type: int, shape: Sequence[Dim], limits: Limits) -> int:
    """Bytes of a tensor, symbolic or unknown dimensions counted as 1.

    Raises:
        ModelError: unsupported element type, a negative dimension, or a limit exceeded; ``where`` begins
            the message.
    """
    if element_type not in _ELEMENT_TYPES:
        raise ModelError(f"{where} has element type {type_name(element_type)}, which is not supported")
    if len(shape) > limits.rank:
        raise ModelError(f"{where} has {len(shape)} dimensions; at most {limits.rank} are supported")
    known = [dim for dim in shape if isinstance(dim, int)]
    for dim in known:
        if not 0 <= dim <= limits.dimension:
            raise ModelError(f"{where} has a dimension of {dim}; 0 to {limits.dimension} are supported")
    size = math.prod(known) * _ELEMENT_TYPES[element_type]
    if size > limits.tensor_bytes:
        raise ModelError(
            f"{where} would take {size_text(size)} (shape {list(shape)}); the limit is "
            f"{size_text(limits.tensor_bytes)}: check the model or use a smaller --input-shapes"
        )
    return size
