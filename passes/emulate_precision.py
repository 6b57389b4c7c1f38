"""How a network would round in another data type, in fp32: for a processor without it, to measure accuracy with.

Weights, data and results of every convolution and dense layer are rounded as ``LowerPrecision`` has them, and in a
training step the factors of their gradients and the gradients of data. What it does not show: that tensor cores add up
in another order, that centroids are rounded too, and that Arm cores add up some products in fp16.
"""

from __future__ import annotations

import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import constant, mutate
from adr_tvm.gradients.conv2d import INPUT_GRAD, WEIGHT_GRAD
from adr_tvm.passes.lower_precision import te_round_tf32
from adr_tvm.precision import Precision

LAYERS = (*ops.DENSE_OPS, ops.GROUPED_CONV2D)


@mutator
class _Rounder(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, precision: Precision):
        super().__init__(mod)
        self.precision = precision
        self.rounded: dict[int, relax.Expr] = {}  # of variables, by hash

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, tvm.ir.Op) or call.op.name not in (*LAYERS, WEIGHT_GRAD, INPUT_GRAD):
            return call
        if call.op.name not in LAYERS:
            return self._gradient(call)
        tf32 = self.precision.storage == "float32"
        if tf32 and call.op.name == ops.GROUPED_CONV2D:
            return call
        value = constant(call.args[1])
        weights = call.args[1]
        if value is not None:
            weights = relax.const(self.precision.rounded(value).astype("float32"))
        elif not tf32:
            weights = self._round(weights)
        x, *others = call.args
        made = self.builder_.emit(relax.Call(call.op, [self._round(x), weights, *others[1:]], call.attrs))
        return made if tf32 else self._rounded_result(made)

    def _gradient(self, call: relax.Call) -> relax.Expr:
        if int(call.attrs["groups"]) != 1 or self.precision.storage == "float32":
            return call
        made = self.builder_.emit(relax.Call(call.op, [self._round(arg) for arg in call.args], call.attrs))
        return self._rounded_result(made) if call.op.name == INPUT_GRAD else made

    def _rounded_result(self, made: relax.Expr) -> relax.Expr:
        result = self._round(made)
        self.rounded[hash(result)] = result
        return result

    def _round(self, expr: relax.Expr) -> relax.Expr:
        key = hash(expr)
        if key not in self.rounded:
            self.rounded[key] = self.builder_.emit(self.builder_.call_te(ROUNDINGS[self.precision.name], expr))
        return self.rounded[key]


@tvm.transform.module_pass(opt_level=0, name="EmulatePrecision")
class EmulatePrecision:
    """See the module; it runs on a canonical module.

    Args:
        precision: data type to round to; its weights are those of ``check_weights``.
    """

    def __init__(self, precision: Precision):
        self.precision = precision

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Round in every Relax function."""
        return mutate(mod, lambda m: _Rounder(m, self.precision))


def _te_round_fp16(x: te.Tensor) -> te.Tensor:
    return te.compute(x.shape, lambda *i: tirx.Cast("float32", tirx.Cast("float16", x[i])), name="round_fp16")


def _te_round_bf16(x: te.Tensor) -> te.Tensor:
    """By hand: TVM takes two casts between fp32 and bf16 for none."""

    def rounded(*index: tirx.Var) -> tirx.PrimExpr:
        bits = tirx.reinterpret("uint32", x[index])
        up = tirx.const(0x7FFF, "uint32") + ((bits >> tirx.const(16, "uint32")) & tirx.const(1, "uint32"))
        near = tirx.reinterpret("float32", (bits + up) & tirx.const(0xFFFF0000, "uint32"))
        return tirx.Select(x[index] == x[index], near, x[index])

    return te.compute(x.shape, rounded, name="round_bf16")


ROUNDINGS = {"fp16": _te_round_fp16, "bf16": _te_round_bf16, "tf32": te_round_tf32}
