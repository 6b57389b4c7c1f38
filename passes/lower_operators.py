"""Lower the operators of this project to calls of TIR kernels for a target."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import is_op, mutate
from adr_tvm.passes.carried_ids import CarriedIds
from adr_tvm.passes.lowering import lower_call
from adr_tvm.passes.lowering_concat import lower_concat


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: Target | None):
        super().__init__(mod)
        self.target = target
        self.carried = CarriedIds(self.builder_)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if isinstance(call.op, tvm.ir.Op) and call.op.name in (*ops.DENSE_OPS, ops.GROUPED_CONV2D, *ops.REUSE_OPS):
            return lower_call(self.builder_, call, self.target, self.carried)
        if is_op(call, "relax.concat"):
            lowered = lower_concat(self.builder_, call)
            return call if lowered is None else self.carried.join(call.args[0].fields, lowered)
        return self.carried.follow(call) if isinstance(call.op, tvm.ir.Op) else call


@tvm.transform.module_pass(opt_level=0, name="LowerOperators")
class LowerOperators:
    """``adr.*`` calls become cluster -> GEMM -> scatter (reuse) or one kernel (dense), channel concatenations copies.

    Args:
        target: CPU target; None is this machine.
    """

    def __init__(self, target: Target | None = None):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Lower every Relax function."""
        return mutate(mod, lambda m: _Lowerer(m, self.target))
