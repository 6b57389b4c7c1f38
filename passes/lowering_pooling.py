"""Pooling and means over all pixels of NHWC tensors as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

from tvm import relax

from adr_tvm._tvm import is_op, static_shape, tensor_type
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.pool2d import Kind, pool2d
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.spatial_mean import spatial_mean


def pool_geometry(call: relax.Call) -> ConvGeometry | None:
    """Geometry of a call of ``nn.max_pool2d`` or ``nn.avg_pool2d``; None where it is not NHWC of a fixed size.

    What windows that reach over the edge in ceil mode lack, they find in more padding.
    """
    a, shape, out = call.attrs, static_shape(call.args[0]), static_shape(call)
    layouts = (str(a.layout), str(a.out_layout))
    if layouts != ("NHWC", "NHWC") or None in shape[1:]:
        return None
    _, H, W, C = shape
    (KH, KW), (SH, SW), (DH, DW) = ([int(v) for v in values] for values in (a.pool_size, a.strides, a.dilation))
    top, left, bottom, right = pool_padding(call)
    over_y = (out[1] - 1) * SH + DH * (KH - 1) + 1 - H - top - bottom
    over_x = (out[2] - 1) * SW + DW * (KW - 1) + 1 - W - left - right
    padding = (top, left, bottom + max(0, over_y), right + max(0, over_x))
    return ConvGeometry(H, W, C, KH, KW, C, (SH, SW), padding, (DH, DW))


def pool_padding(call: relax.Call) -> tuple[int, int, int, int]:
    """The padding (top, left, bottom, right) that a call asks for."""
    top, left, bottom, right = (int(v) for v in call.attrs.padding)
    return top, left, bottom, right


def lower_pool(bb: relax.BlockBuilder, call: relax.Call, isa: Isa) -> relax.Expr | None:
    """The lowered form of ``nn.max_pool2d`` or ``nn.avg_pool2d``; None where it is not NHWC of a fixed size, in float32
    or, of a maximum, float16."""
    geometry, dtype = pool_geometry(call), str(call.ty.dtype)
    kind: Kind = "max" if is_op(call, "relax.nn.max_pool2d") else "average"
    if geometry is None or not (dtype == "float32" or (dtype == "float16" and kind == "max")):
        return None
    padding = pool_padding(call)
    if kind == "average" and call.attrs.count_include_pad and any(padding):
        if geometry.padding != padding:
            return None  # entries beyond the padding do not count
        kind = "average with padding"
    windows = (geometry.OH, geometry.OW, *geometry.padding)
    if kind == "average" and windows == (1, 1, 0, 0, 0, 0) and (geometry.KH, geometry.KW) == (geometry.H, geometry.W):
        return _mean(bb, call, isa)
    kernel = bb.add_func(pool2d(geometry, kind, isa, static_shape(call.args[0])[0], dtype), "adr_pool2d")
    return relax.call_tir(kernel, [call.args[0]], call.ty)


def lower_mean(bb: relax.BlockBuilder, call: relax.Call, isa: Isa) -> relax.Expr | None:
    """The lowered form of a mean over axes 1 and 2 of an NHWC tensor; None where it is another one."""
    shape = static_shape(call.args[0])
    axes = [] if call.attrs.axis is None else sorted(int(axis) % len(shape) for axis in call.attrs.axis)
    if len(shape) != 4 or axes != [1, 2] or None in shape[1:] or str(call.ty.dtype) != "float32":
        return None
    return _mean(bb, call, isa)


def _mean(bb: relax.BlockBuilder, call: relax.Call, isa: Isa) -> relax.Expr:
    x = call.args[0]
    (batch, H, W, C), B = static_shape(x), x.ty.shape[0]
    flat = bb.emit(relax.op.reshape(x, relax.ShapeExpr([B, H * W, C])))
    kernel = bb.add_func(spatial_mean(H * W, C, isa, batch), "adr_spatial_mean")
    y = bb.emit(relax.call_tir(kernel, [flat], tensor_type([B, C])))
    return relax.op.reshape(y, call.ty.shape)
