"""Operators that only rename axes become ``reshape``, which the virtual machine runs as a view, without a copy.

TVM's ``RewriteDataflowReshape`` finds the same after legalisation, but refuses kernels without schedulable blocks.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import mutate

RENAMING = {"relax.expand_dims", "relax.squeeze", "relax.flatten"}
KEPT = ["relax.reshape"]  # left out of legalisation, so that the virtual machine gets them


@mutator
class _Rewriter(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, tvm.ir.Op) or call.op.name not in RENAMING:
            return call
        call = self.builder_.normalize(call)
        return relax.op.reshape(call.args[0], relax.ShapeExpr(list(call.ty.shape)))


@tvm.transform.module_pass(opt_level=0, name="ReshapeViews")
class ReshapeViews:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function."""
        return mutate(mod, _Rewriter)
