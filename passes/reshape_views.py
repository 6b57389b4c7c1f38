"""Operators that only rename axes become ``reshape``, which the virtual machine runs as a view, without a copy.

Reshapes of reshapes are one, and one to the shape that a tensor has already is none: on a network of some 30 us each
view costs a percent. TVM's ``RewriteDataflowReshape`` finds views after legalisation, but refuses kernels without
schedulable blocks.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import is_op, mutate

RENAMING = {"relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten"}
KEPT = ["relax.reshape"]  # left out of legalisation, so that the virtual machine gets them


@mutator
class _Rewriter(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, tvm.ir.Op) or call.op.name not in RENAMING:
            return call
        call = self.builder_.normalize(call)
        shape, source = call.ty.shape, self._source(call.args[0])
        if shape is None:
            return call
        if source.ty.shape is not None and tvm_ffi.structural_equal(source.ty.shape, shape):
            return source
        return relax.op.reshape(source, relax.ShapeExpr(list(shape)))

    def _source(self, expr: relax.Expr) -> relax.Expr:
        """What a chain of reshapes starts from."""
        value: Any = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        while is_op(value, "relax.reshape"):
            expr = value.args[0]
            value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return expr


@tvm.transform.module_pass(opt_level=0, name="ReshapeViews")
class ReshapeViews:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function; views that nothing reads any more are dropped."""
        return relax.transform.DeadCodeElimination()(mutate(mod, _Rewriter))
