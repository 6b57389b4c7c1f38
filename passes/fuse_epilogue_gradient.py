"""A layer whose dz = dy activation'(y) only its weight gradient reads has both from one kernel, which writes no dz.

That is the first layer of a network, which needs no input gradient: its output is the largest, and dz goes through
memory twice. ``adr.epilogue_grad`` and ``adr.conv2d_weight_grad`` become ``adr.epilogue_weight_grad``.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import Dataflow, calls, is_op, mutate, relax_functions
from adr_tvm.gradients import conv2d, epilogue


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        dataflow = Dataflow(mod)
        self.weight_calls = {}
        for _, func in relax_functions(mod):
            for call in calls(func, conv2d.WEIGHT_GRAD):
                if (made := _only_source(call, dataflow)) is not None:
                    self.weight_calls[hash(made)] = call
        self.fused: dict[int, relax.Var] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if hash(call) in self.weight_calls:
            weight_call = self.weight_calls[hash(call)]
            x, made = self.visit_expr(weight_call.args[0]), self.visit_expr_post_order(call)
            both = self.builder_.emit(conv2d.epilogue_weight_grad(x, made, weight_call))
            self.fused[hash(weight_call)] = both
            # Nothing reads dz any more.
            return relax.Tuple([made.args[1], self.builder_.emit(relax.TupleGetItem(both, 1))])
        if hash(call) in self.fused:
            return relax.TupleGetItem(self.fused[hash(call)], 0)
        return self.visit_expr_post_order(call)


def _only_source(call: relax.Call, dataflow: Dataflow) -> relax.Call | None:
    """The call that makes dz for a weight gradient and for nothing else."""
    dz = call.args[1]
    item = dataflow.value(dz)
    if not dataflow.read_once(dz) or not isinstance(item, relax.TupleGetItem) or item.index != 0:
        return None
    made = dataflow.value(item.tuple_value)
    if not is_op(made, epilogue.EPILOGUE_GRAD) or ops.activation_of(made).kind == "linear":
        return None
    return made


@tvm.transform.module_pass(opt_level=0, name="FuseEpilogueGradient")
class FuseEpilogueGradient:
    """See the module; after ``Differentiate``."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function."""
        return relax.transform.DeadCodeElimination()(mutate(mod, _Fuser))
