"""Powers with simple constant exponents become square roots and products.

``powf`` runs one element at a time: in LRN (exponent .75) it took longer than the convolution before it (5 ms against
0.9 ms in AlexNet). x^.75 = sqrt(x) sqrt(sqrt(x)) differs from it by rounding alone, and is NaN for x < 0 likewise.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import constant, is_op, mutate


@mutator
class _Simplifier(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        exponent = constant(call.args[1]) if is_op(call, "relax.power") else None
        if exponent is None or exponent.size != 1:
            return call
        x, value = call.args[0], float(exponent.reshape(()))
        if constant(x) is not None or exponent.ndim > len(x.ty.shape):
            return call
        if value == 1.0:
            return x
        if value == 2.0:
            return relax.op.multiply(x, x)
        if value == 0.5:
            return relax.op.sqrt(x)
        if value == 0.75:
            root = self.builder_.emit(relax.op.sqrt(x))
            return relax.op.multiply(root, self.builder_.emit(relax.op.sqrt(root)))
        return call


@tvm.transform.module_pass(opt_level=0, name="SimplifyPower")
class SimplifyPower:
    """See the module; other exponents stay."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function."""
        return mutate(mod, _Simplifier)
