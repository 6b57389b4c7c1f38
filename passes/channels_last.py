"""NHWC activations and HWIO weights for every convolution; transposes remain only at the graph's edges.

TVM's ``ConvertLayout`` does the work. It drops the spans that carry the ONNX node names, and gives up at elementwise
operators that it has no rule for; but it neither removes nor reorders calls. So the spans are put back in order, and
those operators stand in its input as one that it knows, and are put back likewise.
"""

from __future__ import annotations

from collections import deque
from functools import partial

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import calls, mutate, relax_functions
from adr_tvm.passes.fold_shapes import FoldShapes
from adr_tvm.passes.sink_transposes import UNARY, SinkTransposes

NAMED_OPS = ("relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul", "relax.nn.batch_norm")
LAYOUTS = {"relax.nn.conv2d": ["NHWC", "HWIO"], "relax.nn.conv2d_transpose": ["NHWC", "IOHW"]}
STAND_IN = "relax.nn.silu"


def _unknown(call: relax.Call) -> bool:
    """Whether ConvertLayout has no rule for an elementwise operator that a stand-in can replace."""
    return isinstance(call.op, tvm.ir.Op) and call.op.name in UNARY and str(call.args[0].ty.dtype).startswith("float")


@mutator
class _StandIns(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        return relax.op.nn.silu(call.args[0]) if _unknown(call) else call


@mutator
class _Restorer(PyExprMutator):
    """Gives the calls of a converted function the spans, or all but the data, of the calls they were."""

    def __init__(self, mod: tvm.IRModule, originals: dict[str, deque[relax.Call]]):
        super().__init__(mod)
        self.originals = originals

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        waiting = self.originals.get(call.op.name) if isinstance(call.op, tvm.ir.Op) else None
        if not waiting:
            return call
        was = waiting.popleft()
        if call.op.name == STAND_IN:
            return relax.Call(was.op, [call.args[0], *was.args[1:]], was.attrs, list(was.ty_args), was.span)
        return relax.Call(call.op, list(call.args), call.attrs, list(call.ty_args), was.span)


@tvm.transform.module_pass(opt_level=0, name="ChannelsLast")
class ChannelsLast:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Convert every Relax function.

        Raises:
            RuntimeError: TVM's pass changed the number of calls, so names cannot be put back.
        """
        mod = FoldShapes()(mod)  # a reshape of a constant would pin its readers to NCHW
        result = relax.transform.ConvertLayout(LAYOUTS)(mutate(mod, _StandIns))
        for gv, func in relax_functions(mod):
            originals = {op: deque(calls(func, op)) for op in NAMED_OPS}
            originals[STAND_IN] = deque(
                c for c in calls(func, *UNARY, STAND_IN) if _unknown(c) or c.op.name == STAND_IN
            )
            for op, was in originals.items():
                if len(was) != len(calls(result[gv.name_hint], op)):
                    raise RuntimeError(f"ConvertLayout changed the number of {op} calls in {gv.name_hint}")
            result = mutate(result, partial(_Restorer, originals=originals), gv.name_hint)
        return SinkTransposes()(FoldShapes()(result))
