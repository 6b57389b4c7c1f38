"""NHWC activations and HWIO weights for every convolution; transposes remain only at the graph's edges.

TVM's ``ConvertLayout`` does the work. It drops the spans that carry the ONNX node names, but neither removes nor
reorders calls, so the spans are put back in order.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import calls, mutate, relax_functions
from adr_tvm.passes.fold_shapes import FoldShapes
from adr_tvm.passes.sink_transposes import SinkTransposes

NAMED_OPS = ("relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul")
LAYOUTS = {"relax.nn.conv2d": ["NHWC", "HWIO"], "relax.nn.conv2d_transpose": ["NHWC", "IOHW"]}


@mutator
class _Renamer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, spans: dict[str, deque[Any]]):
        super().__init__(mod)
        self.spans = spans

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        waiting = self.spans.get(call.op.name) if isinstance(call.op, tvm.ir.Op) else None
        if not waiting:
            return call
        return relax.Call(call.op, list(call.args), call.attrs, list(call.ty_args), waiting.popleft())


@tvm.transform.module_pass(opt_level=0, name="ChannelsLast")
class ChannelsLast:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Convert every Relax function.

        Raises:
            RuntimeError: TVM's pass changed the number of calls, so names cannot be put back.
        """
        mod = FoldShapes()(mod)  # a reshape of a constant would pin its readers to NCHW
        result = relax.transform.ConvertLayout(LAYOUTS)(mod)
        converted = {gv.name_hint: func for gv, func in relax_functions(result)}
        spans: dict[str, deque[Any]] = {op: deque() for op in NAMED_OPS}
        for gv, func in relax_functions(mod):
            for op in NAMED_OPS:
                named = calls(func, op)
                if len(named) != len(calls(converted[gv.name_hint], op)):
                    raise RuntimeError(f"ConvertLayout changed the number of {op} calls in {gv.name_hint}")
                spans[op].extend(call.span for call in named)
        result = mutate(result, lambda m: _Renamer(m, spans))
        return SinkTransposes()(FoldShapes()(result))
