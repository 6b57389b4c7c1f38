"""Move transposes behind the operators that TVM's layout pass leaves them before, until inverse pairs meet and cancel.

With ``x' = permute_dims(x, axes)``: ``op(x') = permute_dims(op'(x), axes)``, where op' is op with its axes renamed.
Operators of several tensors take part where all tensors are transposed alike or constant. A reshape that splits or
merges neighbouring axes takes part where at most channels have to change places, which makes the channel shuffle of
NCHW networks a rearrangement of channels alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import constant, is_op, mutate, static_shape

UNARY = {
    "relax.nn.leakyrelu",
    "relax.clip",
    "relax.nn.relu6",
    "relax.adr.dropout",
}  # also what ConvertLayout has no rule for
ELEMENTWISE = UNARY | {
    f"relax.{name}"
    for name in (
        *("nn.relu", "nn.silu", "nn.gelu", "nn.gelu_tanh", "nn.softplus", "nn.selu", "sigmoid", "tanh", "exp", "log"),
        *("sqrt", "rsqrt", "square", "abs", "negative", "erf", "ceil", "floor", "round", "sign", "astype"),
    )
}
BINARY = {f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "mod")}
SOFTMAX = {"relax.nn.softmax": relax.op.nn.softmax, "relax.nn.log_softmax": relax.op.nn.log_softmax}
REDUCTIONS = {f"relax.{name}": getattr(relax.op, name) for name in ("mean", "sum", "max", "min", "prod")}
NHWC_TO_NCHW = [0, 3, 1, 2]


def _axes(call: relax.Call) -> list[int]:
    if call.attrs.axes is None:
        return list(range(len(call.ty.shape)))[::-1]
    return [int(a) for a in call.attrs.axes]


@mutator
class _Sinker(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, tvm.ir.Op) or not call.args:
            return call
        rule = _RULES.get(call.op.name)
        if rule is None:
            return call
        tensors = self._fields(call.args[0]) if call.op.name == "relax.concat" else list(call.args)
        inner = [self._transpose(t) for t in tensors]
        axes = next((_axes(t) for t in inner if t is not None), None)
        sunk = None if axes is None else rule(self, call, tensors, inner, axes)
        return call if sunk is None else sunk

    def moved(self, op: relax.Expr, axes: list[int]) -> relax.Expr:
        """``op`` and behind it the transpose."""
        y = self.builder_.emit(op)
        return y if axes == sorted(axes) else relax.op.permute_dims(y, axes)

    def untransposed(self, tensors: list[Any], inner: list[Any], axes: list[int]) -> list[relax.Expr] | None:
        """The tensors without the transpose they share; None where one of them neither has it nor is constant."""
        found = []
        for tensor, transpose in zip(tensors, inner, strict=True):
            value = constant(tensor)
            if transpose is not None and _axes(transpose) == axes:
                found.append(transpose.args[0])
            elif value is not None and value.size == 1:
                found.append(tensor)
            elif value is not None and value.ndim == len(axes):
                found.append(relax.const(np.ascontiguousarray(value.transpose(np.argsort(axes)))))
            else:
                return None
        return found

    def normalised(self, call: relax.Call) -> relax.Call:
        return self.builder_.normalize(call)

    def _transpose(self, expr: relax.Expr) -> relax.Call | None:
        value: Any = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return value if is_op(value, "relax.permute_dims") else None

    def _fields(self, expr: relax.Expr) -> list[relax.Expr]:
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
        return list(value.fields) if isinstance(value, relax.Tuple) else []


Rule = Callable[[_Sinker, relax.Call, list[Any], list[Any], list[int]], relax.Expr | None]


def _permute(s: _Sinker, call: relax.Call, _t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    composed = [axes[a] for a in _axes(s.normalised(call))]
    x = inner[0].args[0]
    return x if composed == sorted(composed) else relax.op.permute_dims(x, composed)


def _elementwise(s: _Sinker, call: relax.Call, _t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    args = [inner[0].args[0], *call.args[1:]]
    return s.moved(relax.Call(call.op, args, call.attrs, list(call.ty_args), call.span), axes)


def _binary(s: _Sinker, call: relax.Call, t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    args = s.untransposed(t, inner, axes)
    if args is None:
        return None
    return s.moved(relax.Call(call.op, args, call.attrs, list(call.ty_args), call.span), axes)


def _concat(s: _Sinker, call: relax.Call, t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    parts = s.untransposed(t, inner, axes)
    if parts is None or any(constant(p) is not None for p in t):
        return None
    return s.moved(relax.op.concat(parts, axis=axes[int(call.attrs.axis) % len(axes)]), axes)


def _pad(s: _Sinker, call: relax.Call, _t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    widths = [int(v) for v in call.attrs.pad_width]
    moved = [0] * len(widths)
    for outer, axis in enumerate(axes):
        moved[2 * axis : 2 * axis + 2] = widths[2 * outer : 2 * outer + 2]
    mode, value = str(call.attrs.pad_mode), float(call.attrs.pad_value)
    return s.moved(relax.op.nn.pad(inner[0].args[0], moved, mode, value), axes)


def _softmax(s: _Sinker, call: relax.Call, _t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    axis = axes[int(call.attrs.axis) % len(axes)]
    return s.moved(SOFTMAX[call.op.name](inner[0].args[0], axis=axis), axes)


def _reduction(s: _Sinker, call: relax.Call, _t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    if call.attrs.axis is None:
        return None
    outer = [int(a) % len(axes) for a in call.attrs.axis]
    kept = [axes[a] for a in range(len(axes)) if a not in outer]
    keepdims = bool(call.attrs.keepdims)
    y = REDUCTIONS[call.op.name](inner[0].args[0], axis=sorted(axes[a] for a in outer), keepdims=keepdims)
    return s.moved(y, axes if keepdims else [sorted(kept).index(a) for a in kept])


def _resize(s: _Sinker, call: relax.Call, _t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    a = call.attrs
    if axes != NHWC_TO_NCHW or str(a.layout) != "NCHW":
        return None
    y = relax.op.image.resize2d(
        *(inner[0].args[0], call.args[1]),
        roi=[float(v) for v in a.roi],
        layout="NHWC",
        method=str(a.method),
        coordinate_transformation_mode=str(a.coordinate_transformation_mode),
        rounding_method=str(a.rounding_method),
        cubic_alpha=float(a.cubic_alpha),
        cubic_exclude=int(a.cubic_exclude),
        extrapolation_value=float(a.extrapolation_value),
        out_dtype=a.out_dtype or None,
    )
    return s.moved(y, axes)


def _reshape(s: _Sinker, call: relax.Call, _t: list[Any], inner: list[Any], axes: list[int]) -> relax.Expr | None:
    before, after = static_shape(inner[0]), static_shape(s.normalised(call))
    groups = _groups(before, after)
    if groups is None:
        return None
    # Groups in the order in which their first axis lies in x; there their axes must be made neighbours.
    order = sorted(range(len(groups)), key=lambda g: min(axes[a] for a in groups[g][0]))
    gather = [axes[a] for g in order for a in groups[g][0]]
    result = [a for g in order for a in groups[g][1]]  # axes of the reshaped tensor in the order they come to lie
    back = [result.index(a) for a in range(len(after))]
    if back == sorted(back) or gather[:3] != [0, 1, 2]:
        return None
    x = inner[0].args[0]
    if gather != sorted(gather):
        x = s.builder_.emit(relax.op.permute_dims(x, gather))
    shape = s.normalised(call).ty.shape
    return s.moved(relax.op.reshape(x, relax.ShapeExpr([shape[a] for a in result])), back)


def _groups(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Smallest runs of neighbouring axes before and after a reshape that hold the same entries."""
    groups, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        left, right = [i], [j]
        if before[i] is None or after[j] is None:
            if before[i] is not after[j]:
                return None
        else:
            while (a := math.prod(before[k] or 0 for k in left)) != (b := math.prod(after[k] or 0 for k in right)):
                grown, limit = (left, before) if a < b else (right, after)
                if 0 in (a, b) or grown[-1] + 1 >= len(limit):
                    return None
                grown.append(grown[-1] + 1)
        groups.append((left, right))
        i, j = left[-1] + 1, right[-1] + 1
    return groups if (i, j) == (len(before), len(after)) else None


_RULES: dict[str, Rule] = {
    "relax.permute_dims": _permute,
    "relax.concat": _concat,
    "relax.nn.pad": _pad,
    "relax.image.resize2d": _resize,
    "relax.reshape": _reshape,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(SOFTMAX, _softmax),
    **dict.fromkeys(REDUCTIONS, _reduction),
}


@tvm.transform.module_pass(opt_level=0, name="SinkTransposes")
class SinkTransposes:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function."""
        return relax.transform.DeadCodeElimination()(mutate(mod, _Sinker))
