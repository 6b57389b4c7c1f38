"""How one operator of ours becomes calls of TIR kernels, for a CPU target.

Dense: one kernel. Reuse: the visible subgraph cluster -> GEMM -> scatter, where ``pixel`` and ``segment`` keep GEMM and
scatter in one kernel (its table must not leave the cache) and ``row`` has all three. Lossless layers are lowered apart
(``passes/lowering_lossless.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import constant, cpu_target, dict_attrs, static_shape, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.carried_ids import CarriedIds
from adr_tvm.passes.lowering_dense import image_of, lower_dense, packed_weights, prepared
from adr_tvm.passes.lowering_grouped import lower_grouped
from adr_tvm.passes.lowering_lossless import lower_lossless
from adr_tvm.passes.lowering_stream import take_over
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, cluster, units
from adr_tvm.schedules.cluster_rows import cluster_rows
from adr_tvm.schedules.gemm_rows import gemm_rows, scatter_rows
from adr_tvm.schedules.gemm_scatter import gemm_scatter
from adr_tvm.schedules.neuron_vectors import vector_source
from adr_tvm.schedules.register_tile import RegisterTile, gemm_tile, isa_of
from adr_tvm.schedules.tuned import reuse_schedule
from adr_tvm.schedules.vector_key import pad_planes, te_pad_planes, te_pad_thresholds
from adr_tvm.settings import ReuseSetting


def lower_call(
    bb: relax.BlockBuilder, call: relax.Call, target: Target | None, carried: CarriedIds | None = None
) -> relax.Expr:
    """The lowered form of a call of one of our operators.

    Args:
        bb: builder that takes the intermediate bindings and the kernels.
        call: call of one of the operators in ``adr_tvm/ops.py``.
        target: CPU target; None is this machine.
        carried: compact activations of the function; lossless layers take and make such. None: the result is ordinary.
    """
    if call.op.name not in (*ops.DENSE_OPS, ops.CONV2D_ADD) and str(call.args[0].ty.dtype) == "float16":
        return _lower_in_float32(bb, call, target)
    if call.op.name == ops.GROUPED_CONV2D:
        return lower_grouped(bb, call, target or cpu_target())
    if call.op.name in (*ops.DENSE_OPS, ops.CONV2D_ADD):
        return lower_dense(bb, call, target or cpu_target())
    if ops.setting_of(call).lossless:
        alone = CarriedIds(bb)
        lowered = lower_lossless(bb, call, target or cpu_target(), alone if carried is None else carried)
        return alone.expanded(lowered)
    return _Lowering(bb, call, target or cpu_target()).lower()


def _lower_in_float32(bb: relax.BlockBuilder, call: relax.Call, target: Target | None) -> relax.Expr:
    """A layer on float16 whose kernels are float32: data are cast, and the result back."""
    x, w, *others = call.args
    value = constant(w)
    w = relax.op.astype(w, "float32") if value is None else relax.const(value.astype(np.float32))
    attrs = {name: value for name, value in ops.attributes(call).items() if name != "precision"}
    wide = relax.Call(call.op, [bb.emit(relax.op.astype(x, "float32")), w, *others], dict_attrs(**attrs))
    result = lower_call(bb, bb.normalize(wide), target)
    if isinstance(result, relax.Tuple):
        y, *counted = result.fields
        return relax.Tuple([bb.emit(relax.op.astype(y, "float16")), *counted])
    return relax.op.astype(bb.emit(result), "float16")


class _Lowering:
    def __init__(self, bb: relax.BlockBuilder, call: relax.Call, target: Target):
        self.bb, self.call = bb, call
        self.geometry: ConvGeometry = ops.geometry_of(call)
        self.activation: Activation = ops.activation_of(call)
        self.target = target
        self.tile: RegisterTile = gemm_tile(isa_of(target), self.geometry.M)

    def lower(self) -> relax.Expr:
        g, out = self.geometry, ops.output_type(self.call)
        x = image_of(self.bb, self.call)
        image = tensor_type([x.ty.shape[0], g.OH, g.OW, g.M])
        setting = ops.setting_of(self.call)
        lower = self._rows if setting.granularity == "row" else self._vectors
        y, stats, *saved = lower(x, setting, image)
        if self.call.op.name == ops.REUSE_DENSE:
            y = self.bb.emit(relax.op.reshape(y, out.shape))
        return relax.Tuple([y, stats, *(saved if ops.is_training(self.call) else [])])

    def _call(self, kernel: str, func: tirx.PrimFunc, args: list[Any], out: Any) -> relax.Call:
        return relax.call_tir(self.bb.add_func(func, f"adr_{kernel}"), args, out)

    def _dense(self, image: relax.TensorType) -> relax.Expr:
        """The result without reuse."""
        y = self.bb.emit(lower_dense(self.bb, ops.without_reuse(self.call), self.target))
        return self.bb.emit(relax.op.reshape(y, image.shape))

    def _weights(self) -> tuple[relax.Expr, relax.Expr]:
        return packed_weights(self.bb, self.call, self.geometry, self.tile.NR)

    def _planes(self, setting: ReuseSetting) -> tuple[relax.Expr, relax.Expr]:
        g = self.geometry
        by_tap = setting.granularity == "row"  # the kernels' rows run over (KH, KW, C), planes over (C, KH, KW)
        shape = (g.C, g.KH, g.KW) if by_tap else None

        def fold(v: np.ndarray) -> np.ndarray:
            if shape is not None:
                v = v.reshape(1, *shape, -1).transpose(0, 2, 3, 1, 4).reshape(1, g.K, -1)
            return pad_planes(v)

        return (
            prepared(self.bb, self.call.args[3], fold, lambda t: te_pad_planes(t, shape)),
            prepared(self.bb, self.call.args[4], lambda v: pad_planes(v, np.inf), te_pad_thresholds),
        )

    def _vectors(self, x: relax.Expr, setting: ReuseSetting, image: Any) -> list[relax.Expr]:
        """y, stats, ids and centroids; with a table of centroids also clusters taken over, and the table."""
        g, streaming = self.geometry, ops.is_streaming(self.call)
        source = vector_source(g, setting)
        U, G = units(setting, x.ty.shape[0])
        S, size = source.segments, G * source.map_size
        cap = capacity(setting, G * source.per_image)
        gains = [U, S, size] if setting.gain else [1, 1, 1]
        planes = [relax.const(np.zeros((1, 1, 8), np.float32)), relax.const(np.zeros((1, 8), np.float32))]
        if setting.hash != "exact":
            planes = list(self._planes(setting))
        found = self.bb.emit(
            self._call(
                f"{setting.granularity}_cluster",
                cluster(g, setting, keyed=streaming),
                [x, *planes],
                [
                    tensor_type([U, S, size], "int32"),
                    tensor_type(gains),
                    tensor_type([U, S, cap + SPARE_CENTROIDS, source.Lp]),
                    tensor_type([U, S, 2], "int32"),
                    tensor_type([U, 2], "int32"),
                    tensor_type([U, S, cap] if streaming else [1, 1, 1], "int32"),
                ],
            )
        )
        *parts, keys = (self.bb.emit(relax.TupleGetItem(found, i)) for i in range(6))
        stream: list[relax.Expr] = []
        if streaming:
            parts[2], *stream = take_over(self.bb, self.call, keys, parts[3], parts[2])
        saved = [parts[4], parts[0], parts[2], *stream]
        if ops.is_backward_only(self.call):
            return [self._dense(image), *saved]
        schedule = reuse_schedule(self.target, g, setting, static_shape(x)[0])
        kernel = gemm_scatter(g, setting, self.activation, self.tile, schedule)
        y = self._call(f"{setting.granularity}_gemm_scatter", kernel, [x, *self._weights(), *parts], image)
        return [self.bb.emit(y), *saved]

    def _rows(self, x: relax.Expr, setting: ReuseSetting, image: Any) -> list[relax.Expr]:
        """y, stats, ids and centroids."""
        g = self.geometry
        U, G = units(setting, x.ty.shape[0])
        N = G * g.rows
        rows, centroids = tensor_type([U, N], "int32"), tensor_type([U, capacity(setting, N), g.K])
        found = self.bb.emit(
            self._call(
                "row_cluster",
                cluster_rows(g, setting),
                [x, *self._planes(setting)],
                [rows, rows, rows, rows, centroids, tensor_type([U, 2], "int32")],
            )
        )
        ids, lead, reps, source, means, stats = (self.bb.emit(relax.TupleGetItem(found, i)) for i in range(6))
        if ops.is_backward_only(self.call):
            return [self._dense(image), stats, ids, means]
        kernel = gemm_rows(g, setting, self.activation, self.tile)
        partial = self.bb.emit(self._call("row_gemm", kernel, [x, *self._weights(), lead, reps, source, means], image))
        copy = self.bb.add_func(scatter_rows(g, setting), "adr_row_scatter")
        return [self.bb.emit(relax.op.call_tir_inplace(copy, [lead, partial], [1], image)), stats, ids, means]
