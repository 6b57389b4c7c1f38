"""A chain of operators that comes to a local response normalisation (``norm_patterns.py``) becomes ``adr.lrn``.

Before ``LowerOperators``: compact activations follow one operator of pixels, and would take a chain apart.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import Dataflow, mutate
from adr_tvm.gradients import lrn
from adr_tvm.passes.norm_patterns import Chains
from adr_tvm.schedules.lrn import Lrn


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.chains = Chains(Dataflow(mod))

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        chain = self.chains.lrn(call) if isinstance(call.op, tvm.ir.Op) else None
        if chain is None:
            return self.visit_expr_post_order(call)
        norm = Lrn(chain.before, chain.after, chain.alpha, chain.beta, chain.bias)
        return lrn.lrn(self.visit_expr(chain.x), norm)


@tvm.transform.module_pass(opt_level=0, name="FuseLrn")
class FuseLrn:
    """See the module; after ``SimplifyPower`` and ``ChannelsLast``."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function; what the operator replaces is dropped."""
        lrn.register()
        return relax.transform.DeadCodeElimination()(mutate(mod, _Fuser))
