"""The seed of the dropouts becomes an input: ``main(x, ...)`` with dropouts becomes ``main(x, ..., seed)``.

The seed is int64 [1]; each dropout makes bits of its own of it. A function without dropout stays as it was.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import is_op
from adr_tvm.gradients.dropout import DROPOUT

SEED = "seed"


@mutator
class _Seeder(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.seed = relax.Var(SEED, relax.TensorType([1], "int64"))
        self.found = False

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not is_op(call, DROPOUT):
            return call
        self.found = True
        return relax.Call(call.op, [call.args[0], self.seed], call.attrs, list(call.ty_args), call.span)


@tvm.transform.module_pass(opt_level=0, name="SeedDropout")
class SeedDropout:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``."""
        seeder = _Seeder(mod)
        func = seeder.visit_expr(mod["main"])
        if not seeder.found:
            return mod
        result = seeder.builder_.get().clone()
        result["main"] = relax.Function([*func.params, seeder.seed], func.body, func.ret_ty, attrs=func.attrs)
        return result
