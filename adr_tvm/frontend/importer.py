"""ONNX -> Relax: TVM's importer, with the node's name on every call and errors that name the node."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from adr_tvm.errors import AdrError, ModelError
from adr_tvm.frontend.converters import CONVERTERS, TRAINING_CONVERTERS
from adr_tvm.frontend.onnx_limits import Limits, node_label, one_line, quoted, size_text
from adr_tvm.frontend.onnx_model import CheckedModel

_log = logging.getLogger(__name__)

_REFUSED = {
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), "control flow"),
    **dict.fromkeys(
        (
            *("Optional", "OptionalGetElement", "OptionalHasElement", "ConcatFromSequence", "SequenceAt"),
            *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
            "SplitToSequence",
        ),
        "values that are no tensors",
    ),
    "Attention": "TVM knows the com.microsoft operator of that name only",
    "NonMaxSuppression": "TVM selects other boxes at the threshold",
}
"""Standard operators that TVM's importer has, or says it has, but must not get, with the reason."""


def import_onnx(checked: CheckedModel, training: bool = False) -> tvm.IRModule:
    """Convert a checked model to Relax.

    Args:
        checked: the model.
        training: keep what does nothing at inference (dropout).

    Returns:
        A module whose ``main`` takes exactly the graph inputs, in order, and returns the output, or a tuple
        of the outputs. Weights are constants; a symbolic batch stays symbolic; every call made for an ONNX
        node carries its name (``node_name``).

    Raises:
        ModelError: unsupported operators (all at once), or a node that TVM cannot convert.
    """
    path, graph = one_line(checked.path), checked.proto.graph
    _check_supported(path, graph)
    importer = _Importer(checked.limits, TRAINING_CONVERTERS if training else CONVERTERS)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importer.from_onnx(graph, checked.opset)
    except AdrError as error:
        raise ModelError(f"{path}: {error}") from None
    except NotImplementedError as error:
        raise ModelError(f"{path}: {importer.position}: not supported: {one_line(error)}") from None
    except Exception as error:  # the importer raises whatever Python, NumPy or TVM's C++ does
        reason = f"{type(error).__name__}: {one_line(_last_line(error))}"
        raise ModelError(f"{path}: {importer.position}: TVM cannot convert it ({reason})") from None
    finally:
        if printed.getvalue():
            _log.debug("TVM's importer: %s", one_line(printed.getvalue(), 2000))


def unsupported_operators(graph: onnx.GraphProto) -> dict[tuple[str, str], list[onnx.NodeProto]]:
    """Nodes that cannot be converted, by (domain, operator)."""
    supported = (onnx_frontend._get_convert_map().keys() | CONVERTERS.keys()) - _REFUSED.keys()
    found = defaultdict(list)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in supported:
            found[node.domain, node.op_type].append(node)
    return dict(found)


def _check_supported(path: str, graph: onnx.GraphProto) -> None:
    found = unsupported_operators(graph)
    if not found:
        return
    parts = []
    for (domain, op_type), nodes in sorted(found.items()):
        names = ", ".join(quoted(node.name) for node in nodes[:3])
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        of = f" of domain {quoted(domain)}" if domain not in ("", "ai.onnx") else ""
        why = f": {_REFUSED[op_type]}" if op_type in _REFUSED and not of else ""
        parts.append(f"{one_line(op_type, 40)}{of} ({names}{more}{why})")
    raise ModelError(
        f"{path}: unsupported operators: {'; '.join(parts)}; export the model with other operators, or cut "
        "these parts off (onnx.utils.extract_model)"
    )


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else ""


class _Importer(onnx_frontend.ONNXGraphImporter):
    """TVM's importer with our converters, spans on calls, and each result checked against ONNX's shape.

    ``position`` says where it is, for errors.
    """

    position = "inputs"

    def __init__(self, limits: Limits, converters: Mapping[str, Any]) -> None:
        super().__init__({}, "float32")
        self._limits, self._converters = limits, converters

    def from_onnx(self, graph, opset):
        try:
            return super().from_onnx(graph, opset)
        except Exception:
            if self.position != "inputs":
                self.bb._end_block()  # TVM warns on stderr about a block left open
            raise

    def _construct_nodes(self, graph):
        self._by_name = {node.name: node for node in graph.node}
        self._shapes = {value.name: value for value in (*graph.value_info, *graph.output)}
        super()._construct_nodes(graph)
        self.position = "outputs"
        for output in graph.output:
            value = self._nodes[output.name]
            if isinstance(value.ty, relax.ShapeType):
                self._nodes[output.name] = self.bb.emit(relax.op.shape_to_tensor(value))

    def _convert_operator(self, op_name, inputs, attrs, opset):
        node = self._by_name[attrs["tvm_custom"]["name"]]
        self.position = node_label(node)
        converter = self._converters.get(op_name) or onnx_frontend._get_convert_map()[op_name]
        builder = _SpanBuilder(self.bb, node.name)
        result = converter.get_converter(opset)(builder, inputs, attrs, [self._nodes, self._params])
        if isinstance(result, relax.Expr):
            result = builder.normalize(result)
        for index, name in enumerate(node.output):
            self._check_shape(name, _output_type(result, index))
        return result

    def _check_shape(self, name: str, converted: relax.Type | None) -> None:
        """TVM's converters are wrong for some attributes: their shapes must be ONNX's, and in bounds."""
        if not isinstance(converted, relax.TensorType) or converted.shape is None:
            return
        got = [int(dim) if isinstance(dim, tvm.tirx.IntImm) else None for dim in converted.shape.values]
        size = math.prod(dim for dim in got if dim is not None) * np.dtype(str(converted.dtype)).itemsize
        if size > self._limits.tensor_bytes:
            raise ModelError(
                f"{self.position}: its output would take {size_text(size)}; the limit is "
                f"{size_text(self._limits.tensor_bytes)}"
            )
        value = self._shapes.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return
        expected = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        if len(got) != len(expected) or any(
            a != b for a, b in zip(got, expected, strict=True) if a is not None and b is not None
        ):
            raise ModelError(
                f"{self.position}: TVM makes its output {got} where ONNX says {expected} (None is symbolic); "
                "these attributes are not supported"
            )


def _output_type(result: object, index: int) -> relax.Type | None:
    if isinstance(result, relax.Tuple):
        result = result.fields[index] if index < len(result.fields) else None
        return getattr(result, "ty", None)
    ty = getattr(result, "ty", None)
    if isinstance(ty, relax.TupleType):
        return ty.fields[index] if index < len(ty.fields) else None
    return ty if index == 0 else None


class _SpanBuilder:
    """A block builder that binds every call to a variable, with the node's name on it.

    TVM's importer leaves calls unbound, and so duplicates them where two nodes read one result; its
    normaliser drops the span of a call with unbound arguments.
    """

    def __init__(self, builder: relax.BlockBuilder, name: str) -> None:
        self._builder = builder
        self._span = tvm.ir.Span(tvm.ir.SourceName(name), 0, 0, 0, 0)
        self._bound: dict[relax.Expr, relax.Expr] = {}

    def __getattr__(self, name: str):
        return getattr(self._builder, name)

    def normalize(self, expr: relax.Expr) -> relax.Expr:
        return self._builder.normalize(self._bind(expr))

    def emit(self, expr: relax.Expr, name_hint: str = "") -> relax.Var:
        bound = self._bind(expr)
        return bound if isinstance(bound, relax.Var) else self._builder.emit(bound, name_hint)

    def emit_te(self, func, *args, **kwargs) -> relax.Var:
        return self.normalize(self._builder.call_te(func, *args, **kwargs))

    def _bind(self, expr: relax.Expr) -> relax.Expr:
        if not isinstance(expr, relax.Call | relax.Tuple | relax.TupleGetItem):
            return expr
        if expr not in self._bound:
            if isinstance(expr, relax.Tuple):
                new = relax.Tuple([self._bind(field) for field in expr.fields])
            elif isinstance(expr, relax.TupleGetItem):
                new = self._builder.emit(relax.TupleGetItem(self._bind(expr.tuple_value), expr.index))
            else:
                args = [self._bind(arg) for arg in expr.args]
                call = relax.Call(expr.op, args, expr.attrs, expr.ty_args, self._span)
                new = self._builder.emit(call)
            self._bound[expr] = new
        return self._bound[expr]
