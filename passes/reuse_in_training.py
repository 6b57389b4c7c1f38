"""Layers reuse in training, and as it is evaluated: planes and thresholds are parameters of ``main``, counts results.

``main(x, parameters...)`` becomes ``main(x, parameters..., planes and thresholds of each reusing layer...)``, which
returns what it returned and then the ``stats`` of each of these layers, in network order. A layer whose clusters
persist over batches also takes its table of centroids, behind its thresholds, and then returns, behind the stats of
all, how many clusters it took over and the table; the number of the step, ``now`` int32 [1], is the last parameter.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.extended import fields
from adr_tvm.settings import ReuseSetting
from adr_tvm.stream_table import StreamTable
from adr_tvm.train.stage import LayerReuse, Stage

NOW = "now"


def table_name(part: str, index: int) -> str:
    """Parameter for a part of the table of the reusing layer ``index``."""
    return f"table_{part}{index}"


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
        self.streams: list[relax.Var] = []
        self.now = relax.Var(NOW, relax.TensorType([1], "int32"))
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
        table = self._table(call, reuse, index) if reuse.stream else []
        made = ops.with_reuse(
            call,
            reuse.setting,
            planes,
            thresholds,
            training=self.training,
            input_gradient=reuse.input_gradient,
            backward_only=self.training and reuse.backward_only,
            forward_only=self.training and reuse.forward_only,
            stream=[*table, self.now] if reuse.stream else (),
        )
        result = self.builder_.emit(made)
        stats, *stream = (
            self.builder_.emit(relax.TupleGetItem(result, i)) for i in (1, *range(4, len(result.ty.fields)))
        )
        self.stats.append(stats)
        self.streams += stream
        self.parameters += [planes, thresholds, *table]
        self.layers.append(ops.layer_name(call))
        return relax.TupleGetItem(result, 0)

    @staticmethod
    def _table(call: relax.Call, reuse: LayerReuse, index: int) -> list[relax.Var]:
        parts = StreamTable.of(ops.geometry_of(call), reuse.setting, reuse.slots).parts
        return [
            relax.Var(table_name(part, index), relax.TensorType(list(shape), dtype))
            for part, (shape, dtype) in parts.items()
        ]


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
        result = relax.Tuple([*fields(func.body.body), *rewriter.stats, *rewriter.streams])
        parameters = [*rewriter.parameters, *([rewriter.now] if rewriter.streams else [])]
        body = rewriter.builder_.normalize(relax.SeqExpr(func.body.blocks, result))
        whole = rewriter.builder_.get().clone()
        whole["main"] = relax.Function([*func.params, *parameters], body, body.ty, attrs=func.attrs)
        return relax.transform.ConvertToDataflow()(relax.transform.Normalize()(whole))
