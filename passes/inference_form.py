"""The training form as it is evaluated: batch norms take running statistics, dropout does nothing.

``main(x, parameters...)`` becomes ``main(x, parameters..., mean and variance of each batch norm...)`` and returns the
logits alone. ``adr.batch_norm`` with given statistics is
y = (x - mean) gamma / sqrt(variance + epsilon) + beta.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import is_op, static_shape
from adr_tvm.gradients.batch_norm import BATCH_NORM
from adr_tvm.gradients.dropout import DROPOUT
from adr_tvm.passes.extended import fields


@mutator
class _Freezer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.statistics: list[relax.Var] = []

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if is_op(call, DROPOUT):
            return call.args[0]
        if not is_op(call, BATCH_NORM):
            return call
        x, gamma, beta = call.args
        channels = static_shape(x)[-1]
        index = len(self.statistics) // 2
        mean, variance = (
            relax.Var(f"{name}{index}", relax.TensorType([channels], "float32")) for name in ("mean", "variance")
        )
        self.statistics += [mean, variance]
        emit = self.builder_.emit
        shifted = emit(relax.op.add(variance, relax.const(float(call.attrs["epsilon"]), "float32")))
        scale = emit(relax.op.divide(gamma, emit(relax.op.sqrt(shifted))))
        centred = emit(relax.op.subtract(x, mean))
        y = emit(relax.op.add(emit(relax.op.multiply(centred, scale)), beta))
        return relax.Tuple([y, mean, variance])


@tvm.transform.module_pass(opt_level=0, name="InferenceForm")
class InferenceForm:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``."""
        flat = relax.transform.ToNonDataflow()(mod)
        freezer = _Freezer(flat)
        func = freezer.visit_expr(flat["main"])
        logits = fields(func.body.body)[0]
        body = freezer.builder_.normalize(relax.SeqExpr(func.body.blocks, logits))
        whole = freezer.builder_.get().clone()
        whole["main"] = relax.Function([*func.params, *freezer.statistics], body, body.ty, attrs=func.attrs)
        cleaned = relax.transform.ConvertToDataflow()(relax.transform.Normalize()(whole))
        return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(cleaned))
