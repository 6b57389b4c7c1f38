"""A flattened NCHW tensor before a dense layer is flattened as NHWC: the transpose moves into the constant weights.

``dense(reshape(permute_dims(x, NHWC to NCHW), [B, C H W]), w)`` becomes ``dense(reshape(x, [B, H W C]), w')``, w' being
w with its rows in the order (H, W, C).
"""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import constant, is_op, mutate, static_shape

TO_NCHW = (0, 3, 1, 2)


@mutator
class _Folder(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        w = constant(call.args[1]) if is_op(call, ops.DENSE) else None
        if w is None:
            return call
        flat = self._bound(call.args[0], "relax.reshape")
        transposed = None if flat is None else self._bound(flat.args[0], "relax.permute_dims")
        if transposed is None or tuple(int(axis) for axis in transposed.attrs.axes) != TO_NCHW:
            return call
        x = transposed.args[0]
        H, W, C = static_shape(x)[1:]
        if None in (H, W, C) or static_shape(call.args[0])[1:] != (math.prod((H, W, C)),):
            return call
        rows = w.reshape(C, H, W, -1).transpose(1, 2, 0, 3).reshape(w.shape)
        folded = self.builder_.emit(relax.op.reshape(x, call.args[0].ty.shape))
        return relax.Call(call.op, [folded, relax.const(np.ascontiguousarray(rows)), *call.args[2:]], call.attrs)

    def _bound(self, expr: relax.Expr, op: str) -> relax.Call | None:
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return value if is_op(value, op) else None


@tvm.transform.module_pass(opt_level=0, name="FoldFlatten")
class FoldFlatten:
    """See the module; after ``FuseEpilogue``."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Fold in every Relax function; transposes that nothing else reads are dropped."""
        return relax.transform.DeadCodeElimination()(mutate(mod, _Folder))
