"""Move transposes behind elementwise operators that TVM's layout pass does not know, and cancel inverse pairs."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import is_op, mutate

UNARY = {"relax.nn.leakyrelu", "relax.clip", "relax.nn.relu6"}


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
        inner: Any = self.lookup_binding(call.args[0]) if isinstance(call.args[0], relax.Var) else None
        if not is_op(inner, "relax.permute_dims"):
            return call
        axes = _axes(inner)
        if is_op(call, "relax.permute_dims"):
            outer = _axes(self.builder_.normalize(call))
            composed = [axes[a] for a in outer]
            if composed == sorted(composed):
                return inner.args[0]
        elif call.op.name in UNARY:
            moved = relax.Call(call.op, [inner.args[0], *call.args[1:]], call.attrs, list(call.ty_args), call.span)
            return relax.op.permute_dims(self.builder_.emit(moved), axes)
        return call


@tvm.transform.module_pass(opt_level=0, name="SinkTransposes")
class SinkTransposes:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function."""
        return relax.transform.DeadCodeElimination()(mutate(mod, _Sinker))
