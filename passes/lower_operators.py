"""Lower the operators of this project to calls of TIR kernels for a target."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import Dataflow, calls, cpu_target, is_cuda, is_op, mutate, relax_functions
from adr_tvm.passes.carried_ids import CarriedIds, returned_calls
from adr_tvm.passes.lowering import lower_call
from adr_tvm.passes.lowering_concat import lower_concat
from adr_tvm.passes.lowering_cuda import lower_call as lower_cuda_call

OPERATORS = (*ops.DENSE_OPS, ops.CONV2D_ADD, ops.GROUPED_CONV2D, *ops.REUSE_OPS)


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: Target | None):
        super().__init__(mod)
        self.target = target
        self.carried = CarriedIds(self.builder_)
        self.dataflow = Dataflow(mod)
        self.returned = {key for _, func in relax_functions(mod) for key in returned_calls(func)}
        concats = [call for _, func in relax_functions(mod) for call in calls(func, "relax.concat")]
        self.writers = {
            hash(made) for call in concats for made in sole_producers(call, self.dataflow) if made is not None
        }

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if is_cuda(self.target):
            return self._lowered_for_cuda(self.visit_expr_post_order(call))
        if hash(call) in self.writers:
            return self.visit_expr_post_order(call)  # its concatenation lowers it
        returned = hash(call) in self.returned
        producers = [
            None if made is None else self.carried.with_ordinary_arguments(self.visit_expr_post_order(made))
            for made in sole_producers(call, self.dataflow)
        ]
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, tvm.ir.Op):
            return self.carried.with_ordinary_arguments(call)
        lossless = call.op.name in ops.REUSE_OPS and ops.setting_of(call).lossless
        compact = self._lowered(call, []) if lossless else self.carried.follow(call)
        if compact is not None:
            return self.carried.expanded(compact) if returned else compact
        return self._lowered(self.carried.with_ordinary_arguments(call), producers)

    def _lowered_for_cuda(self, call: relax.Call) -> relax.Expr:
        ours = isinstance(call.op, tvm.ir.Op) and call.op.name in OPERATORS
        return lower_cuda_call(self.builder_, call) if ours else call

    def _lowered(self, call: relax.Call, producers: list[relax.Call | None]) -> relax.Expr:
        if call.op.name in OPERATORS:
            return lower_call(self.builder_, call, self.target, self.carried)
        if is_op(call, "relax.concat"):
            lowered = lower_concat(self.builder_, call, self.target or cpu_target(), producers)
            return call if lowered is None else lowered
        return call


def sole_producers(call: relax.Call, dataflow: Dataflow) -> list[relax.Call | None]:
    """The convolutions behind the inputs of a concatenation; None where it is not the only reader, or it is none."""
    if not is_op(call, "relax.concat") or not isinstance(call.args[0], relax.Tuple):
        return []
    fields = call.args[0].fields
    values = [dataflow.value(field) if dataflow.read_once(field) else None for field in fields]
    return [value if is_op(value, ops.CONV2D) else None for value in values]


@tvm.transform.module_pass(opt_level=0, name="LowerOperators")
class LowerOperators:
    """``adr.*`` calls become cluster -> GEMM -> scatter (reuse) or one kernel (dense); CPU: concat writes slices.

    Args:
        target: None is this machine.
    """

    def __init__(self, target: Target | None = None):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Lower every Relax function; convolutions that now write into a concatenation are dropped."""
        return relax.transform.DeadCodeElimination()(mutate(mod, lambda m: _Lowerer(m, self.target)))
