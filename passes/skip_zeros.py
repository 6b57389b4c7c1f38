"""Gradients of convolutions skip what is zero in dZ, where few of its entries are not: exactly the same, in less time.

dZ behind ReLU and max pooling is mostly zero. Its other entries are listed once for both gradients; a call in which
they are too many runs the dense kernels (``schedules/nonzero_lists.py``). Left alone are 1x1 and grouped convolutions,
and dense layers.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import is_op, mutate
from adr_tvm.gradients import conv2d, nonzero
from adr_tvm.schedules.nonzero_weight_gradient import can_skip_zeros


@mutator
class _Skipper(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.lists: dict[int, relax.Var] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not any(is_op(call, name) for name in (conv2d.WEIGHT_GRAD, conv2d.INPUT_GRAD, conv2d.EPILOGUE_WEIGHT_GRAD)):
            return call
        batch, geometry, groups = conv2d.gradient_geometry(call)
        if groups > 1 or not can_skip_zeros(geometry, batch):
            return call
        if is_op(call, conv2d.EPILOGUE_WEIGHT_GRAD):
            return nonzero.skipping(call, self.builder_.emit(nonzero.epilogue_nonzeros(call)))
        dz = call.args[1 if is_op(call, conv2d.WEIGHT_GRAD) else 0]
        if hash(dz) not in self.lists:
            self.lists[hash(dz)] = self.builder_.emit(nonzero.nonzeros(dz))
        return nonzero.skipping(call, self.lists[hash(dz)])


@tvm.transform.module_pass(opt_level=0, name="SkipZeros")
class SkipZeros:
    """See the module; after ``FuseEpilogueGradient``."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function."""
        return mutate(mod, _Skipper)
