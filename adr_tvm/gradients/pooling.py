"""Pooling of NHWC images and its gradients.

- ``relax.adr.max_pool2d(x) -> (y, taps)``: maximum pooling that also tells which entry of each window was the largest,
  uint8, which is all that ``relax.adr.max_pool2d_grad(dy, taps)`` needs. Attributes pool_size, strides, padding (top,
  left, bottom, right; with what ``ceil_mode`` adds), dilation; of the gradient also input = [H, W].
- ``relax.adr.avg_pool2d_grad(dy)``: gradient of ``nn.avg_pool2d`` and ``nn.adaptive_avg_pool2d``, which stay as they
  are. Attributes as above, and counted: the padding whose entries the mean counts.

Shapes: x float32 [B, H, W, C], y [B, OH, OW, C]; all but B fixed. Kernels: ``schedules/max_pool_taps.py`` and
``schedules/avg_pool_gradient.py``.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import dict_attrs, static_shape, tensor_type
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients.registration import current_target, register_gradient
from adr_tvm.passes.lowering_pooling import pool_geometry, pool_padding
from adr_tvm.schedules.avg_pool_gradient import avg_pool_gradient
from adr_tvm.schedules.max_pool_taps import MAX_TAPS, max_pool_gradient, max_pool_taps
from adr_tvm.schedules.register_tile import isa_of

MAX_POOL, MAX_POOL_GRAD = "relax.adr.max_pool2d", "relax.adr.max_pool2d_grad"
AVG_POOL_GRAD = "relax.adr.avg_pool2d_grad"
NOT_NHWC = "only NHWC float32 images of fixed size are handled"


def max_pool2d(x: relax.Expr, geometry: ConvGeometry) -> relax.Call:
    """A call of ``adr.max_pool2d``.

    Raises:
        ValueError: a window has more taps than a byte can name.
    """
    if geometry.KH * geometry.KW > MAX_TAPS:
        raise ValueError(f"max_pool2d: a window of {geometry.KH}x{geometry.KW} has more than {MAX_TAPS} entries")
    return relax.Call(tvm.ir.Op.get(MAX_POOL), [x], dict_attrs(**_attrs(geometry)))


def max_pool_refusal(call: relax.Call) -> str | None:
    """Why a call of ``nn.max_pool2d`` cannot become ``adr.max_pool2d``; None where it can."""
    geometry = pool_geometry(call)
    if geometry is None:
        return NOT_NHWC
    return f"more than {MAX_TAPS} entries in a window" if geometry.KH * geometry.KW > MAX_TAPS else None


def _attrs(g: ConvGeometry) -> dict[str, Any]:
    return {
        "pool_size": [g.KH, g.KW],
        "strides": list(g.strides),
        "padding": list(g.padding),
        "dilation": list(g.dilation),
    }


def _geometry(call: relax.Call, H: int, W: int, C: int) -> ConvGeometry:
    ints: dict[str, Any] = {k: tuple(int(v) for v in call.attrs[k]) for k in ("strides", "padding", "dilation")}
    KH, KW = (int(v) for v in call.attrs["pool_size"])
    return ConvGeometry(H, W, C, KH, KW, C, **ints)


def _infer_max(call: relax.Call) -> relax.Type:
    x = call.args[0]
    _, H, W, C = static_shape(x)
    g = _geometry(call, H, W, C)
    shape = [x.ty.shape[0], g.OH, g.OW, C]
    return relax.TupleType([tensor_type(shape), tensor_type(shape, "uint8")])


def _infer_gradient(call: relax.Call) -> relax.Type:
    dy = call.args[0].ty.shape
    H, W = (int(v) for v in call.attrs["input"])
    return tensor_type([dy[0], H, W, dy[3]])


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    isa, first = isa_of(current_target()), static_shape(call.args[0])
    if call.op.name == MAX_POOL:
        kernel = max_pool_taps(_geometry(call, *first[1:]), isa, first[0])
        gv = bb.add_func(kernel, "adr_max_pool_taps")
        return relax.call_tir(gv, list(call.args), list(_infer_max(call).fields))
    H, W = (int(v) for v in call.attrs["input"])
    geometry = _geometry(call, H, W, first[3])
    if call.op.name == MAX_POOL_GRAD:
        gv = bb.add_func(max_pool_gradient(geometry, isa, first[0]), "adr_max_pool_gradient")
    else:
        top, left, bottom, right = (int(v) for v in call.attrs["counted"])
        kernel = avg_pool_gradient(geometry, (top, left, bottom, right), isa, first[0])
        gv = bb.add_func(kernel, "adr_avg_pool_gradient")
    return relax.call_tir(gv, list(call.args), _infer_gradient(call))


def _max_gradient(var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    _, H, W, _ = static_shape(call.args[0])
    attrs = dict_attrs(**ops.attributes(call), input=[H, W])
    args = [bb.emit(relax.TupleGetItem(dy, 0)), bb.emit(relax.TupleGetItem(var, 1))]
    return [relax.Call(tvm.ir.Op.get(MAX_POOL_GRAD), args, attrs)]


def _avg_gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: relax.BlockBuilder) -> list[relax.Expr]:
    geometry = pool_geometry(call)
    assert geometry is not None, f"{call.op.name}: {NOT_NHWC}"
    counted = pool_padding(call) if call.attrs.count_include_pad else (0, 0, 0, 0)
    return [_avg_grad(dy, geometry, counted)]


def _avg_grad(dy: relax.Expr, geometry: ConvGeometry, counted: tuple[int, int, int, int]) -> relax.Call:
    attrs = dict_attrs(**_attrs(geometry), input=[geometry.H, geometry.W], counted=list(counted))
    return relax.Call(tvm.ir.Op.get(AVG_POOL_GRAD), [dy], attrs)


def _adaptive_refusal(call: relax.Call) -> str | None:
    shape, out = static_shape(call.args[0]), static_shape(call)
    if str(call.attrs.layout) != "NHWC" or str(call.attrs.out_layout) != "NHWC" or None in shape[1:]:
        return NOT_NHWC
    if shape[1] % out[1] or shape[2] % out[2]:
        return f"windows of unequal size: {shape[1]}x{shape[2]} to {out[1]}x{out[2]}"
    return None


def _adaptive_gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: relax.BlockBuilder) -> list[relax.Expr]:
    refusal = _adaptive_refusal(call)
    assert refusal is None, f"{call.op.name}: {refusal}"
    _, H, W, C = static_shape(call.args[0])
    _, OH, OW, _ = static_shape(call)
    step = (H // OH, W // OW)
    return [_avg_grad(dy, ConvGeometry(H, W, C, *step, C, strides=step), (0, 0, 0, 0))]


def register() -> None:
    """Register the operators and gradients; once per process, later calls change nothing."""
    ops.register_operator(MAX_POOL, ("data",), _infer_max, _legalize)
    ops.register_operator(MAX_POOL_GRAD, ("gradient", "taps"), _infer_gradient, _legalize)
    ops.register_operator(AVG_POOL_GRAD, ("gradient",), _infer_gradient, _legalize)
    register_gradient(MAX_POOL, _max_gradient)
    register_gradient(
        "relax.nn.avg_pool2d", _avg_gradient, lambda call: NOT_NHWC if pool_geometry(call) is None else None
    )
    register_gradient("relax.nn.adaptive_avg_pool2d", _adaptive_gradient, _adaptive_refusal)
