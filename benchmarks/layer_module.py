"""One convolution as a module, dense or with reuse, or its backward pass, as the benchmarks of CUDA compile it."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import tensor_type
from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import register_all
from adr_tvm.gradients.reuse import reuse_grad
from adr_tvm.schedules.cuda.cluster_pieces import ClusterPieces
from adr_tvm.settings import ReuseSetting


def layer_module(
    geometry: ConvGeometry,
    batch: int,
    w: np.ndarray,
    bias: np.ndarray,
    setting: ReuseSetting | None,
    planes: np.ndarray | None,
) -> tvm.IRModule:
    """``main(x)``: the layer with ReLU.

    Args:
        geometry: its shapes.
        batch: images.
        w: float32 [KH, KW, C, M].
        bias: float32 [M].
        setting: how to reuse; None: dense.
        planes: float32 [S, L, H], whose thresholds are 0; None for ``exact`` and dense.
    """
    g = geometry
    x = relax.Var("x", tensor_type([batch, g.H, g.W, g.C]))
    call = ops.conv2d(
        x,
        relax.const(w),
        relax.const(bias),
        name="layer",
        strides=g.strides,
        padding=g.padding,
        activation=Activation.relu(),
    )
    if setting is not None:
        thresholds = None if planes is None else np.zeros(planes.shape[::2], np.float32)
        call = ops.with_reuse(call, setting, planes, thresholds)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(call)
        builder.emit_func_output(out)
    return builder.get()


def gradient_module(geometry: ConvGeometry, batch: int, setting: ReuseSetting) -> tvm.IRModule:
    """``main(dz, w, ids, centroids)``: the gradients of a layer that reuses, averaged.

    Args:
        geometry: its shapes.
        batch: images.
        setting: how it reuses.
    """
    register_all()
    g, layout = geometry, ClusterPieces.of(geometry, setting, batch)
    U, S, N = layout.units, layout.segments, layout.positions
    rows = setting.granularity == "row"
    dz, w = (relax.Var(n, tensor_type(s)) for n, s in (("dz", [batch, g.OH, g.OW, g.M]), ("w", [g.KH, g.KW, g.C, g.M])))
    ids = relax.Var("ids", tensor_type([U, N] if rows else [U, S, N], "int32"))
    shape = [U, layout.capacity, g.K] if rows else list(layout.centroids_shape)
    centroids = relax.Var("centroids", tensor_type(shape))
    builder = relax.BlockBuilder()
    with builder.function("main", [dz, w, ids, centroids]):
        with builder.dataflow():
            out = builder.emit_output(reuse_grad(dz, w, ids, centroids, g, setting))
        builder.emit_func_output(out)
    return builder.get()
