"""Lower operators of NHWC tensors that are no layers: pooling, means, ... to calls of TIR kernels for a target."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from adr_tvm._tvm import Dataflow, cpu_target, mutate
from adr_tvm.gradients.conv_transpose import lower_conv_transpose
from adr_tvm.passes.lowering_math import FUNCTIONS, lower_function, lower_softmax
from adr_tvm.passes.lowering_norms import Visit, lower_instance_norm
from adr_tvm.passes.lowering_pad import lower_pad, lower_slice
from adr_tvm.passes.lowering_permute import lower_permute
from adr_tvm.passes.lowering_pooling import lower_mean, lower_pool
from adr_tvm.passes.norm_patterns import Chains
from adr_tvm.schedules.register_tile import Isa, isa_of

# Each returns the lowered form of a call, or None where its kernel does not apply.
LOWERINGS: dict[str, Callable[[relax.BlockBuilder, relax.Call, Isa], relax.Expr | None]] = {
    "relax.nn.max_pool2d": lower_pool,
    "relax.nn.avg_pool2d": lower_pool,
    "relax.mean": lower_mean,
    "relax.nn.conv2d_transpose": lower_conv_transpose,
    "relax.permute_dims": lower_permute,
    "relax.nn.softmax": lower_softmax,
    **dict.fromkeys(FUNCTIONS, lower_function),
}
# Those that take the operators before them along: they get the call as it was before the pass.
CHAINS: dict[str, Callable[[relax.BlockBuilder, relax.Call, Chains, Visit], relax.Expr | None]] = {
    "relax.nn.pad": lower_pad,
    "relax.strided_slice": lower_slice,
}


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: Target):
        super().__init__(mod)
        self.isa = isa_of(target)
        self.chains = Chains(Dataflow(mod))

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if not isinstance(call.op, tvm.ir.Op):
            return self.visit_expr_post_order(call)
        if (norm := self.chains.instance_norm(call)) is not None:
            return lower_instance_norm(self.builder_, norm, self.chains, self.visit_expr, self.isa)
        if (chain := CHAINS.get(call.op.name)) is not None:
            lowered = chain(self.builder_, call, self.chains, self.visit_expr)
            if lowered is not None:
                return lowered
        call = self.visit_expr_post_order(call)
        lower = LOWERINGS.get(call.op.name)
        lowered = None if lower is None else lower(self.builder_, self.builder_.normalize(call), self.isa)
        return call if lowered is None else lowered


@tvm.transform.module_pass(opt_level=0, name="LowerTensorOps")
class LowerTensorOps:
    """See the module; what no kernel applies to stays as it was.

    Args:
        target: CPU target; None is this machine.
    """

    def __init__(self, target: Target | None = None):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Lower every Relax function; what a chain's kernel replaces is dropped."""
        lowered = mutate(mod, lambda m: _Lowerer(m, self.target or cpu_target()))
        return relax.transform.DeadCodeElimination()(lowered)
