"""Fold multiplications and additions of per-channel constants into each other and into the convolution before them.

Networks exported from Caffe carry batch norms as ``v * a + b`` in up to two steps. A chain of such steps, each read by
the next alone, is one step: ``(v * a + b) * a' + b' = v * (a a') + (b a' + b')``. Behind a convolution that only the
chain reads: ``W' = W * a``, ``bias' = b``. Activations are NCHW here. Constants of fewer axes than their partner get
the missing ones, without which TVM's layout conversion would not let the operator pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import Dataflow, constant, is_op, mutate

BINARY = {f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum")}


@dataclass(frozen=True)
class _Step:
    """``data * scale + shift``, float64 [1] or [channels] each."""

    data: relax.Expr
    scale: np.ndarray
    shift: np.ndarray


@mutator
class _Folder(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.dataflow = Dataflow(mod)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        last = self._step(call)
        if last is None:
            return _with_all_axes(self.visit_expr_post_order(call))
        data, scale, shift, length = last.data, last.scale, last.shift, 1
        while self.dataflow.read_once(data):
            step = self._step(self.dataflow.value(data))
            if step is None:
                break
            data, scale, shift, length = step.data, step.scale * scale, step.shift * scale + shift, length + 1
        conv = self.dataflow.value(data)
        if self.dataflow.read_once(data) and _has_constant_weights(conv):
            if np.all(scale == 1) and length == 1:
                return _with_all_axes(self.visit_expr_post_order(call))  # a bias
            weight = (constant(conv.args[1]) * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
            args = [self.visit_expr(conv.args[0]), relax.const(weight)]
            y = self.builder_.emit(relax.Call(conv.op, args, conv.attrs, list(conv.ty_args), conv.span))
            return relax.op.add(y, _channels(np.broadcast_to(shift, weight.shape[:1])))
        y = self.visit_expr(data)
        if np.any(scale != 1):
            y = relax.op.multiply(y, _channels(scale))
        if np.any(shift != 0):
            y = relax.op.add(self.builder_.emit(y) if isinstance(y, relax.Call) else y, _channels(shift))
        return y

    def _step(self, call: relax.Expr) -> _Step | None:
        if not (is_op(call, "relax.multiply") or is_op(call, "relax.add")):
            return None
        for data, other in (call.args, call.args[::-1]):
            value = constant(self.dataflow.value(other))
            shape = data.ty.shape
            if value is None or str(data.ty.dtype) != "float32" or shape is None or len(shape) != 4:
                continue
            if value.size != 1 and (value.ndim < 3 or value.shape[-3] != value.size or shape[1] != value.size):
                continue
            v, one = value.reshape(-1).astype(np.float64), np.ones(1)
            return _Step(data, v, one * 0) if is_op(call, "relax.multiply") else _Step(data, one, v)
        return None


def _has_constant_weights(call: relax.Expr) -> bool:
    if not is_op(call, "relax.nn.conv2d") or constant(call.args[1]) is None:
        return False
    a = call.attrs
    return (str(a.data_layout), str(a.kernel_layout), str(a.out_layout)) == ("NCHW", "OIHW", "NCHW")


def _channels(v: np.ndarray) -> relax.Expr:
    return relax.const(v.reshape(1, -1, 1, 1).astype(np.float32))


def _with_all_axes(call: relax.Call) -> relax.Expr:
    if not isinstance(call.op, tvm.ir.Op) or call.op.name not in BINARY:
        return call
    for i in (0, 1):
        value, other = constant(call.args[i]), call.args[1 - i].ty
        if value is None or other.shape is None or not 0 < value.ndim < len(other.shape) or value.dtype == bool:
            continue
        args = list(call.args)
        args[i] = relax.const(value.reshape([1] * (len(other.shape) - value.ndim) + list(value.shape)))
        return relax.Call(call.op, args, call.attrs, list(call.ty_args), call.span)
    return call


@tvm.transform.module_pass(opt_level=0, name="FoldScales")
class FoldScales:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Fold in every Relax function."""
        return relax.transform.DeadCodeElimination()(mutate(mod, _Folder))
