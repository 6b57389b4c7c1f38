"""What the importer and ``ChannelsLast`` leave becomes operators that have gradients.

- ``nn.max_pool2d`` of NHWC images: ``adr.max_pool2d``, which keeps a byte for each window for the way back.
- ``nn.batch_norm`` over the last axis: ``adr.batch_norm`` with the statistics of the batch, which ``main`` returns too:
  after its results mean and variance of each layer, in network order.
- ``adr.dropout``, as the importer leaves it: identity where its rate is 0, else one of its own ``stream``.

What none of these applies to stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import calls, is_op, node_name, static_shape
from adr_tvm.gradients import batch_norm, dropout, pooling, register_all
from adr_tvm.passes.extended import fields
from adr_tvm.passes.lowering_pooling import pool_geometry


@dataclass(frozen=True)
class NormalisationLayer:
    """A batch norm, whose running statistics inference needs.

    Attributes:
        name: of its ONNX node, else ``batch_norm`` and its number.
        channels: of its input.
        pixels: rows that an image adds to the statistics.
        momentum: share of the batch in the running statistics.
    """

    name: str
    channels: int
    pixels: int
    momentum: float


def normalisation_layers(mod: tvm.IRModule) -> list[NormalisationLayer]:
    """The batch norms of ``main``, in the order in which it returns their statistics."""
    found = []
    for call in calls(mod["main"], batch_norm.BATCH_NORM):
        shape, pixels = static_shape(call.args[0]), 1
        for dim in shape[1:-1]:
            pixels *= dim
        a = call.attrs
        found.append(NormalisationLayer(str(a["name"]), shape[-1], pixels, float(a["momentum"])))
    return found


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.dropouts = 0
        self.statistics: list[relax.Expr] = []

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if not isinstance(call.op, tvm.ir.Op):
            return self.visit_expr_post_order(call)
        name = node_name(call)
        call = self.builder_.normalize(self.visit_expr_post_order(call))
        if is_op(call, "relax.nn.max_pool2d") and pooling.max_pool_refusal(call) is None:
            both = self.builder_.emit(pooling.max_pool2d(call.args[0], pool_geometry(call)))
            return relax.TupleGetItem(both, 0)
        if is_op(call, "relax.nn.batch_norm") and batch_norm_refusal(call) is None:
            return self._batch_norm(call, name)
        if is_op(call, dropout.DROPOUT):
            return self._dropout(call)
        return call

    def _batch_norm(self, call: relax.Call, name: str | None) -> relax.Expr:
        a = call.attrs
        # ONNX, and TVM with it, counts the share of the running statistics that stays.
        x, gamma, beta = call.args[:3]
        made = batch_norm.batch_norm(
            x,
            gamma,
            beta,
            epsilon=float(a.epsilon),
            name=name or f"batch_norm{len(self.statistics) // 2}",
            momentum=1 - float(a.momentum),
        )
        found = self.builder_.emit(made)
        self.statistics += [self.builder_.emit(relax.TupleGetItem(found, i)) for i in (1, 2)]
        return found

    def _dropout(self, call: relax.Call) -> relax.Expr:
        rate = float(call.attrs["rate"])
        if rate == 0:
            return call.args[0]
        self.dropouts += 1
        return dropout.dropout(call.args[0], call.args[1], rate, stream=self.dropouts)


def batch_norm_refusal(call: relax.Call) -> str | None:
    """Why a call of ``nn.batch_norm`` cannot become ``adr.batch_norm``; None where it can."""
    shape, a = static_shape(call.args[0]), call.attrs
    if str(call.args[0].ty.dtype) != "float32" or None in shape[1:]:
        return "only float32 of fixed size is handled"
    if int(a.axis) % len(shape) != len(shape) - 1:
        return f"over axis {int(a.axis)} of {len(shape)}, not the last"
    return None if a.center and a.scale else "without scale or shift"


@tvm.transform.module_pass(opt_level=0, name="TrainingOperators")
class TrainingOperators:
    """See the module; after ``ChannelsLast``."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``."""
        register_all()
        flat = relax.transform.ToNonDataflow()(mod)
        rewriter = _Rewriter(flat)
        func = rewriter.visit_expr(flat["main"])
        results = [*fields(func.body.body), *rewriter.statistics]
        result = relax.Tuple(results) if rewriter.statistics else func.body.body
        body = rewriter.builder_.normalize(relax.SeqExpr(func.body.blocks, result))
        whole = rewriter.builder_.get().clone()
        whole["main"] = relax.Function(func.params, body, body.ty, attrs=func.attrs)
        cleaned = relax.transform.ConvertToDataflow()(relax.transform.Normalize()(whole))
        return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(cleaned))
