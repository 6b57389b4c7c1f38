"""The rewrite: layers that the plan reuses become reuse operators; everything else stays as it was."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import mutate
from adr_tvm.passes.fuse_epilogue import HEADS, FuseEpilogue
from adr_tvm.plan import ReusePlan


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, plan: ReusePlan):
        super().__init__(mod)
        self.plan = plan

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, tvm.ir.Op) or call.op.name not in ops.DENSE_OPS:
            return call
        layer = self.plan.layers.get(ops.layer_name(call))
        if layer is None or layer.decision != "reuse" or layer.setting is None:
            return call
        planes = self.plan.planes.get(layer.layer)
        reuse = ops.with_reuse(
            call,
            layer.setting,
            None if planes is None else planes.planes,
            None if planes is None else planes.thresholds,
        )
        return relax.TupleGetItem(self.builder_.emit(reuse), 0)


@tvm.transform.module_pass(opt_level=0, name="AdaptiveDeepReuse")
class AdaptiveDeepReuse:
    """Apply a plan to a Relax module.

    Works on any module: convolutions (``nn.conv2d``, NCHW or NHWC) and matrix products not yet in the form of
    ``adr.conv2d`` / ``adr.dense`` are brought there first. Layers are found by name: the ONNX node name, else
    ``function/op_index``.

    Args:
        plan: what to do with each layer; layers it does not name stay dense.
        function: the Relax function to rewrite; None rewrites all.

    Raises:
        ValueError: planes of the plan do not fit a layer.
    """

    def __init__(self, plan: ReusePlan, function: str | None = None):
        self.plan, self.function = plan, function

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite the module."""
        from adr_tvm._tvm import calls, relax_functions

        if any(calls(func, *HEADS) for _, func in relax_functions(mod)):
            mod = FuseEpilogue()(mod)
        return mutate(mod, lambda m: _Rewriter(m, self.plan), self.function)
