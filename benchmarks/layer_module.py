"""One convolution as a module, dense or with reuse, as the benchmarks of CUDA compile it."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import tensor_type
from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
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
