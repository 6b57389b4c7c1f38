"""From a canonical Relax module to the graph of bare C.

The module gets its reuse layers and loses its chains (``FuseResidual``, ``FuseLrn``), and is read before any lowering.
Batches become 1. Operators without C code are found all at once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from adr_tvm._tvm import constant, node_name
from adr_tvm.bare_c.graph import Graph, Operator, Tensor
from adr_tvm.bare_c.relax_operators import CONVERTERS, Converted, Unsupported
from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.passes.adaptive_deep_reuse import AdaptiveDeepReuse
from adr_tvm.passes.fuse_lrn import FuseLrn
from adr_tvm.passes.fuse_residual import FuseResidual
from adr_tvm.plan import ReusePlan

# Names that a tensor cannot have: of C, and of the driver's own variables.
RESERVED = (
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
    "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed",
    "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "errno",
    "arena", "arena_bytes", "weights", "weights_bytes", "weights_at", "status", "at", "counts", "null",
)  # fmt: skip
MAX_NAME = 40
MAX_ENTRIES = 2**29  # indices are int32


def graph_of(mod: tvm.IRModule, checked: CheckedModel, plan: ReusePlan) -> Graph:
    """The graph of a canonical module under a plan.

    Args:
        mod: canonical, not rewritten.
        checked: the model it came from, for the names of its inputs and outputs.
        plan: layers that reuse.

    Raises:
        ModelError: the model has operators without C code, a batch other than 1, or another size that is not fixed.
    """
    rewritten = tvm.transform.Sequential([AdaptiveDeepReuse(plan, function="main"), FuseResidual(), FuseLrn()])(mod)
    return _Builder().build(rewritten["main"], checked)


def identifier(name: str) -> str:
    """A C identifier that reminds of a name."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()[:MAX_NAME].strip("_")
    return plain if plain and not plain[0].isdigit() else f"t_{plain}"


class _Builder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.values: dict[Any, Any] = {}  # by variable: name of a tensor, a tuple of them, or None (not read)
        self.taken: Counter[str] = Counter(RESERVED)
        self.missing: dict[str, list[str]] = {}

    def build(self, func: relax.Function, checked: CheckedModel) -> Graph:
        inputs = tuple(spec.name for spec in checked.inputs)
        for param, name in zip(func.params, inputs, strict=True):
            self.values[param] = self._tensor(param.ty, name)
        given = tuple(self.values[param] for param in func.params)
        results = [self._unique(identifier(spec.name)) for spec in checked.outputs]
        for block in func.body.blocks:
            for binding in block.bindings:
                self.values[binding.var] = self._value(binding.value, binding.var)
        if self.missing:
            listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(self.missing.items()))
            raise ModelError(f"{checked.path.name} has operators without C code (--emit c): {listed}")
        found = self._value(func.body.body, None)
        renamed: dict[str, str] = {}
        for name, result in zip(found if isinstance(found, tuple) else (found,), results, strict=True):
            if name in given or name in renamed:
                self._renamed(self._copied(renamed.get(name, name)), result)
            else:
                renamed[name] = self._renamed(name, result)
        return Graph(self.tensors, tuple(self.operators), given, tuple(results))

    def _renamed(self, name: str, to: str) -> str:
        """Give a tensor another name; returns it."""

        def of(each: str) -> str:
            return to if each == name else each

        self.tensors = {of(key): replace(tensor, name=of(key)) for key, tensor in self.tensors.items()}
        self.operators = [
            replace(each, inputs=tuple(map(of, each.inputs)), output=of(each.output)) for each in self.operators
        ]
        return to

    def _unique(self, name: str) -> str:
        self.taken[name] += 1
        return name if self.taken[name] == 1 else self._unique(f"{name}_{self.taken[name]}")

    def _tensor(self, type_: relax.TensorType, name: str) -> str:
        shape = tuple(int(dim) if isinstance(dim, tvm.tirx.IntImm) else None for dim in type_.shape)
        dtype = str(type_.dtype)
        name = self._unique(identifier(name))
        if dtype != "float32":
            raise ModelError(f"{name} is {dtype}: bare C (--emit c) computes in float32")
        if shape and shape[0] not in (None, 1):
            raise ModelError(f"{name} is of a batch of {shape[0]}: bare C (--emit c) takes one sample a call")
        fixed = (1, *(dim or 0 for dim in shape[1:]))
        if not shape or None in shape[1:] or math.prod(fixed) > MAX_ENTRIES:
            raise ModelError(f"{name} has no fixed shape of at most 2^29 entries: give one by --input-shapes")
        self.tensors[name] = Tensor(name, fixed)
        return name

    def _value(self, expr: relax.Expr, var: relax.Var | None) -> Any:
        if isinstance(expr, relax.Var):
            return self.values.get(expr)
        if isinstance(expr, relax.Tuple):
            return tuple(self._value(field, None) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            value = self._value(expr.tuple_value, None)
            return value[expr.index] if isinstance(value, tuple) else None
        if isinstance(expr, relax.Call):
            return self._call(expr, var)
        if constant(expr) is not None or isinstance(expr, relax.ShapeExpr):
            return None
        raise ModelError(f"no C code for {type(expr).__name__}")

    def _call(self, call: relax.Call, var: relax.Var | None) -> Any:
        kind = str(call.op.name) if isinstance(call.op, tvm.ir.Op) else "call"
        try:
            if kind not in CONVERTERS:
                raise Unsupported("")
            converted = CONVERTERS[kind](call)
            inputs = tuple(self._read(expr) for expr in converted.inputs)
        except Unsupported as reason:
            where = node_name(call) or (var.name_hint if var is not None else "unnamed")
            self.missing.setdefault(kind.removeprefix("relax."), []).append(f"{where} {reason}".strip())
            return None
        return None if None in inputs else self._append(converted, inputs, call, var)

    def _read(self, expr: relax.Expr) -> str | None:
        """The tensor that an argument is; None where an earlier operator had no C code."""
        if constant(expr) is not None:
            raise Unsupported("reads a constant tensor")
        value = self._value(expr, None)
        assert value is None or isinstance(value, str)
        return value

    def _append(self, converted: Converted, inputs: tuple[Any, ...], call: relax.Call, var: relax.Var | None) -> Any:
        reuses = converted.kind.startswith("reuse_")
        result = call.ty.fields[0] if reuses else call.ty
        name = self._tensor(result, converted.name or (node_name(call) or converted.kind))
        label = converted.name or node_name(call) or name
        if converted.kind == "concat":
            self._concatenate(label, inputs, name, converted.attributes["axis"])
            return name
        self.operators.append(Operator(converted.kind, label, inputs, name, converted.constants, converted.attributes))
        return (name, None) if reuses else name

    def _concatenate(self, label: str, inputs: tuple[Any, ...], name: str, axis: int) -> None:
        start = 0
        for i, part in enumerate(inputs):
            attributes = {"axis": axis, "start": start}
            self.operators.append(Operator("concat_part", f"{label} {i}", (part,), name, {}, attributes))
            start += self.tensors[part].shape[axis]

    def _copied(self, name: str) -> str:
        """A copy of a tensor, where the model returns an input, or a result twice."""
        copy = self._unique(f"{name}_copy")
        self.tensors[copy] = Tensor(copy, self.tensors[name].shape)
        self.operators.append(Operator("view", copy, (name,), copy))
        return copy
