"""Sums of a convolution and another tensor of its shape are made in the convolution's epilogue.

Matches ``add(adr.conv2d(...), other)`` where the convolution has no activation yet and no other reader, and the ReLU,
clip or leaky ReLU that may follow. It runs after the rewrite: a layer that reuses stays as it is.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import Dataflow, dict_attrs, is_op, mutate
from adr_tvm.activation import Activation
from adr_tvm.passes.fuse_epilogue import activation_after


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.dataflow = Dataflow(mod)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        once = [self.dataflow.read_once(arg) for arg in call.args]
        call = self.visit_expr_post_order(call)
        if is_op(call, "relax.add"):
            return self._sum(call, once)
        activation = activation_after(call)
        return call if activation is None or not once[0] else self._activated(call, activation)

    def _sum(self, call: relax.Call, once: list[bool]) -> relax.Expr:
        shapes = [arg.ty.shape for arg in call.args]
        if not all(isinstance(shape, relax.ShapeExpr) for shape in shapes):
            return call
        if not tvm_ffi.structural_equal(*shapes):
            return call
        for i in (1, 0):
            conv = self._bound(call.args[i], ops.CONV2D)
            if conv is not None and once[i] and ops.activation_of(conv).kind == "linear":
                return relax.Call(tvm.ir.Op.get(ops.CONV2D_ADD), [*conv.args, call.args[1 - i]], conv.attrs)
        return call

    def _activated(self, call: relax.Call, activation: Activation) -> relax.Expr:
        conv = self._bound(call.args[0], ops.CONV2D_ADD)
        if conv is None or ops.activation_of(conv).kind != "linear":
            return call
        attrs = ops.attributes(conv) | ops.activation_attrs(activation)
        return relax.Call(conv.op, conv.args, dict_attrs(**attrs))

    def _bound(self, expr: relax.Expr, op: str) -> relax.Call | None:
        """The call of an operator that a variable is bound to."""
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return value if is_op(value, op) else None


@tvm.transform.module_pass(opt_level=0, name="FuseResidual")
class FuseResidual:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Fuse in every Relax function."""
        return relax.transform.DeadCodeElimination()(mutate(mod, _Fuser))
