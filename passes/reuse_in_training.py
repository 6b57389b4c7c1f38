"""Layers reuse in training, and as it is evaluated: planes and thresholds are parameters of ``main``, counts results.

``main(x, parameters...)`` becomes ``main(x, parameters..., planes and thresholds of each reusing layer...)``, which
returns what it returned and then the ``stats`` of each of these layers, in network order.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.extended import fields
from adr_tvm.settings import ReuseSetting
from adr_tvm.train.stage import Stage


def hash_shapes(geometry: ConvGeometry, setting: ReuseSetting) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Shapes of planes [S, L, H] and thresholds [S, H] of a layer."""
    S, L = geometry.segments(setting), geometry.vector_length(setting)
    return (S, L, setting.H), (S, setting.H)


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, stage: Stage, training: bool):
        super().__init__(mod)
        self.stage, self.training = stage, training
        self.parameters: list[relax.Var] = []
        self.stats: list[relax.Var] = []
        self.layers: list[str] = []

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", None) not in ops.DENSE_OPS:
            return call
        reuse = self.stage.get(ops.layer_name(call))
        if reuse is None:
            return call
        index = len(self.layers)
        shapes = hash_shapes(ops.geometry_of(call), reuse.setting)
        planes, thresholds = (
            relax.Var(f"{name}{index}", relax.TensorType(list(shape), "float32"))
            for name, shape in zip(("planes", "thresholds"), shapes, strict=True)
        )
        made = ops.with_reuse(
            call, reuse.setting, planes, thresholds, training=self.training, input_gradient=reuse.input_gradient
        )
        result = self.builder_.emit(made)
        self.stats.append(self.builder_.emit(relax.TupleGetItem(result, 1)))
        self.parameters += [planes, thresholds]
        self.layers.append(ops.layer_name(call))
        return relax.TupleGetItem(result, 0)


@tvm.transform.module_pass(opt_level=0, name="ReuseInTraining")
class ReuseInTraining:
    """See the module.

    Args:
        stage: the layers that reuse, and how.
        training: whether they are to have a gradient, which not every setting has.
    """

    def __init__(self, stage: Stage, training: bool = True):
        self.training = training
        self.stage = {layer: reuse for layer, reuse in stage.items() if reuse is not None}

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``.

        Raises:
            ValueError: the network has no layer of a name in the stage.
        """
        if not self.stage:
            return mod
        flat = relax.transform.ToNonDataflow()(mod)
        rewriter = _Rewriter(flat, self.stage, self.training)
        func = rewriter.visit_expr(flat["main"])
        if unknown := self.stage.keys() - set(rewriter.layers):
            raise ValueError(f"no convolution or dense layer is named {', '.join(sorted(unknown))}")
        result = relax.Tuple([*fields(func.body.body), *rewriter.stats])
        body = rewriter.builder_.normalize(relax.SeqExpr(func.body.blocks, result))
        whole = rewriter.builder_.get().clone()
        whole["main"] = relax.Function([*func.params, *rewriter.parameters], body, body.ty, attrs=func.attrs)
        return relax.transform.ConvertToDataflow()(relax.transform.Normalize()(whole))
