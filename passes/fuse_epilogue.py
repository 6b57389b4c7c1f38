"""Convolutions and matrix products become ``adr.conv2d`` / ``adr.dense`` with their bias and activation inside.

Matches ``nn.conv2d`` (NHWC, HWIO, any groups) and ``matmul`` (data of rank 2 or 3, weight of rank 2), then, while each
result has one reader: an added constant per-channel bias, and ReLU, clip or leaky ReLU. An NCHW convolution, as in a
module that has not been through ``ChannelsLast``, is bracketed by transposes. Layer names come from the ONNX node
names in the spans, else ``function/op_index``. What does not match stays as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import Dataflow, calls, constant, dict_attrs, is_op, node_name, relax_functions, static_shape
from adr_tvm.activation import Activation

HEADS = ("relax.nn.conv2d", "relax.matmul")
FUSED_OPS = (*ops.DENSE_OPS, ops.GROUPED_CONV2D)


def convertible(call: relax.Call) -> str | None:
    """Why a ``nn.conv2d`` or ``matmul`` call cannot become one of our operators; None if it can."""
    if any(t.ty.dtype != "float32" for t in call.args):
        return f"dtype {call.args[0].ty.dtype}, only float32 is supported"
    if is_op(call, "relax.matmul"):
        x, w = static_shape(call.args[0]), static_shape(call.args[1])
        if len(w) != 2 or len(x) not in (2, 3):
            return f"matrix product of ranks {len(x)} and {len(w)}: the second operand is no weight matrix"
        if constant(call.args[1]) is None and call.args[1] not in _weights_from_parameters(call):
            return "both operands are activations"
        if None in x[1:] or None in w:
            return "a dimension other than the batch is symbolic"
        return None
    a = call.attrs
    if int(a.groups) != 1 and constant(call.args[1]) is None:
        return "grouped convolution whose weights are not constant"
    layouts = (str(a.data_layout), str(a.kernel_layout))
    if layouts not in (("NHWC", "HWIO"), ("NCHW", "OIHW")):
        return f"layout {layouts[0]}/{layouts[1]} is not handled"
    if None in static_shape(call.args[0])[1:] or None in static_shape(call.args[1]):
        return "a dimension other than the batch is symbolic"
    return None


def _weights_from_parameters(call: relax.Call) -> tuple[relax.Expr, ...]:
    """Weights that are function parameters (a module whose weights are not bound)."""
    w = call.args[1]
    return (w,) if isinstance(w, relax.Var) and not isinstance(w, relax.DataflowVar) else ()


def layer_names(func: relax.Function, function: str) -> list[str]:
    """Name of each convolution and matrix product of a function, in order; unique.

    Operators of ours count too, so that the index of a layer does not depend on how many are converted already.
    """
    names: list[str] = []
    for index, call in enumerate(calls(func, *HEADS, *FUSED_OPS, *ops.REUSE_OPS)):
        given = node_name(call) if call.op.name in HEADS else ops.layer_name(call)
        name = given or f"{function}/op_{index}"
        names.append(name if name not in names else f"{name}_{index}")
    return names


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.names: dict[int, str] = {}
        self.dataflow = Dataflow(mod)

    def start(self, func: relax.Function, function: str) -> None:
        heads = calls(func, *HEADS, *FUSED_OPS, *ops.REUSE_OPS)
        self.names = {hash(call): name for call, name in zip(heads, layer_names(func, function), strict=True)}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        once = [self.dataflow.read_once(arg) for arg in call.args]
        name = self.names.get(hash(call))
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, tvm.ir.Op):
            return call
        if call.op.name in HEADS:
            if name is None or convertible(call) is not None:  # within a branch layers have no name
                return call
            return self._matmul(call, name) if is_op(call, "relax.matmul") else self._conv2d(call, name)
        if call.op.name == "relax.add":
            return self._bias(call, once)
        activation = activation_after(call)
        return call if activation is None else self._activated(call, activation, once[0])

    def _conv2d(self, call: relax.Call, name: str) -> relax.Expr:
        x, w = call.args
        nchw = str(call.attrs.data_layout) == "NCHW"
        if nchw:
            x = self.builder_.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
            value = constant(w)
            if value is not None:
                w = relax.const(np.ascontiguousarray(value.transpose(2, 3, 1, 0)))
            else:
                w = self.builder_.emit(relax.op.permute_dims(w, [2, 3, 1, 0]))
        a = call.attrs
        ints: dict[str, Any] = {k: tuple(int(v) for v in getattr(a, k)) for k in ("strides", "padding", "dilation")}
        bias = relax.const(np.zeros(static_shape(w)[-1], np.float32))
        y = ops.conv2d(x, w, bias, name=name, groups=int(a.groups), **ints)
        return relax.op.permute_dims(self.builder_.emit(y), [0, 3, 1, 2]) if nchw else y

    def _matmul(self, call: relax.Call, name: str) -> relax.Expr:
        x, w = call.args
        return ops.dense(x, w, relax.const(np.zeros(static_shape(w)[-1], np.float32)), name=name)

    def _head(self, expr: relax.Expr) -> relax.Call | None:
        """The call of ours that ``expr`` is bound to, if no activation follows it yet."""
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        if any(is_op(value, op) for op in FUSED_OPS) and ops.activation_of(value).kind == "linear":
            return value
        return None

    def _bias(self, call: relax.Call, once: list[bool]) -> relax.Expr:
        for i in (0, 1):
            data, value = call.args[i], constant(call.args[1 - i])
            head = self._head(data) if once[i] else None
            if head is None or value is None or constant(head.args[2]) is None or value.ndim > len(data.ty.shape):
                continue
            channels = static_shape(head.args[1])[-1]
            if value.size == 1 or value.shape[-1:] == (channels,) == (value.size,):
                bias = constant(head.args[2]) + np.broadcast_to(value.reshape(-1), (channels,))
                return _replaced(head, bias=bias.astype(np.float32))
        return call

    def _activated(self, call: relax.Call, activation: Activation, once: bool) -> relax.Expr:
        head = self._head(call.args[0]) if once else None
        return call if head is None else _replaced(head, activation=activation)


def activation_after(call: relax.Call) -> Activation | None:
    """The activation that a call is; None if it is something else."""
    if is_op(call, "relax.nn.relu"):
        return Activation.relu()
    if is_op(call, "relax.nn.relu6"):
        return Activation.relu6()
    if is_op(call, "relax.nn.leakyrelu"):
        return Activation("leaky_relu", slope=float(call.attrs.alpha))
    if is_op(call, "relax.clip"):
        low, high = (float(a.value) for a in call.args[1:3])
        if not low <= high:
            return None
        return Activation("clip", low=max(low, -3.4e38), high=min(high, 3.4e38))
    return None


def _replaced(head: relax.Call, bias: np.ndarray | None = None, activation: Activation | None = None) -> relax.Call:
    attrs = ops.attributes(head)
    if activation is not None:
        attrs |= ops.activation_attrs(activation)
    args = [*head.args[:2], head.args[2] if bias is None else relax.const(bias)]
    return relax.Call(head.op, args, dict_attrs(**attrs))


@tvm.transform.module_pass(opt_level=0, name="FuseEpilogue")
class FuseEpilogue:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Fuse in every Relax function."""
        fuser = _Fuser(mod)
        for gv, func in relax_functions(mod):
            fuser.start(func, gv.name_hint)
            fuser.builder_.update_func(gv, fuser.visit_expr(func))
        result = fuser.builder_.get()
        return relax.transform.DeadCodeElimination()(result.with_attrs(dict(mod.attrs)) if mod.attrs else result)
