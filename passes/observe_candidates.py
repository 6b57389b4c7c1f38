"""Calibration instrumentation: an entry that also returns the inputs of chosen layers."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops


@mutator
class _Collector(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, layers: Sequence[str]):
        super().__init__(mod)
        self.layers = list(layers)
        self.inputs: dict[str, relax.Expr] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if any(call.op == tvm.ir.Op.get(op) for op in ops.DENSE_OPS) and ops.layer_name(call) in self.layers:
            self.inputs[ops.layer_name(call)] = call.args[0]
        return call
