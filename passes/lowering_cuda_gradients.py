"""Operators of training as calls of TIR kernels for a CUDA target.

Gradients of convolutions are GEMMs with kernels of their own. The others are written as tensor expressions, which get
the schedules of everything else (``passes/schedule_gpu.py``). Formulas: the modules of ``adr_tvm/gradients``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import mutate, static_shape, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import batch_norm, conv2d, dropout, epilogue, loss, lrn, pooling, resize, reuse
from adr_tvm.passes.lowering_conv_gradients import te_input_gradient, te_weight_gradient
from adr_tvm.passes.lowering_cuda_reuse_gradients import lower_reuse_gradients
from adr_tvm.passes.lowering_tensor_cores import input_gradient_on_tensor_cores, precision_of
from adr_tvm.schedules.cuda.dropout import dropout as dropout_kernel
from adr_tvm.schedules.cuda.implicit_gemm import implicit_gemm, padded_k, padded_m
from adr_tvm.schedules.cuda.tensor_weight_gradient import ROWS, tensor_weight_gradient
from adr_tvm.schedules.cuda.thread_tile import gemm_tile
from adr_tvm.schedules.cuda.weight_gradient import parts_of, sum_parts, weight_gradient
from adr_tvm.schedules.epilogue_gradient import activation_gradient

LOWEST = -3.4028234663852886e38
NO_TAP = 255


def _f(value: float) -> tirx.PrimExpr:
    return tirx.const(value, "float32")


def _axes(*extents: int) -> list[Any]:
    return [te.reduce_axis((0, tirx.const(n, "int64")), f"r{i}") for i, n in enumerate(extents)]


def _epilogue_grad(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    y, dy = call.args
    return relax.Tuple(list(_dz_and_dbias(bb, y, dy, ops.activation_of(call))))


def _dz_and_dbias(
    bb: relax.BlockBuilder, y: relax.Expr, dy: relax.Expr, activation: Activation
) -> tuple[relax.Expr, relax.Expr]:
    shape = static_shape(dy)

    def te_dz(y: te.Tensor, dy: te.Tensor) -> te.Tensor:
        return te.compute(dy.shape, lambda *i: activation_gradient(activation, y(*i), dy(*i)), name="epilogue_gradient")

    def te_dbias(dz: te.Tensor) -> te.Tensor:
        rows = _axes(*shape[:-1])
        return te.compute([tirx.const(shape[-1], "int64")], lambda m: te.sum(dz[(*rows, m)], axis=rows), name="dbias")

    dz = dy if activation.kind == "linear" else bb.emit_te(te_dz, y, dy, primfunc_name_hint="adr_epilogue_gradient")
    return dz, bb.emit_te(te_dbias, dz, primfunc_name_hint="adr_bias_gradient")


def _weight_grad(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return _dw(bb, call, *call.args)


def _epilogue_weight_grad(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, y, dy = call.args
    dz, dbias = _dz_and_dbias(bb, y, dy, ops.activation_of(call))
    return relax.Tuple([bb.emit(_dw(bb, call, x, dz)), dbias])


def _dw(bb: relax.BlockBuilder, call: relax.Call, x: relax.Expr, dz: relax.Expr) -> relax.Expr:
    batch, g, groups = conv2d.gradient_geometry(call)
    if groups != 1:
        return bb.call_te(
            lambda a, b: te_weight_gradient(a, b, g, groups), x, dz, primfunc_name_hint="adr_weight_gradient"
        )
    made, parts = weight_gradient(g, batch), parts_of(g, batch)[0]
    if (precision := precision_of(x)) is not None:
        made, parts = tensor_weight_gradient(g, batch, precision), parts_of(g, batch, ROWS)[0]
    kernel = bb.add_func(made, "adr_weight_gradient")
    sums = bb.emit(relax.call_tir(kernel, [x, dz], tensor_type([parts, g.K, g.M])))
    shape = (g.KH, g.KW, g.C, g.M)
    return relax.call_tir(bb.add_func(sum_parts(parts, shape), "adr_sum_parts"), [sums], tensor_type(shape))


def transposed_geometry(g: ConvGeometry) -> ConvGeometry | None:
    """The convolution of dZ that makes dX; None where a stride or a wide padding makes it none."""
    (PT, PL, _, _), (DH, DW) = g.padding, g.dilation
    top, left = DH * (g.KH - 1) - PT, DW * (g.KW - 1) - PL
    bottom, right = g.H - g.OH + DH * (g.KH - 1) - top, g.W - g.OW + DW * (g.KW - 1) - left
    if g.strides != (1, 1) or min(top, left, bottom, right) < 0:
        return None
    padding = (top, left, bottom, right)
    return ConvGeometry(g.OH, g.OW, g.M, g.KH, g.KW, g.C, padding=padding, dilation=g.dilation)


def _input_grad(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    batch, g, groups = conv2d.gradient_geometry(call)
    dtype = str(call.args[0].ty.dtype)
    turned = transposed_geometry(g) if groups == 1 else None
    if turned is None:
        return bb.call_te(
            lambda a, b: te_input_gradient(a, b, g, groups), *call.args, primfunc_name_hint="adr_input_gradient"
        )
    out = tensor_type([batch, g.H, g.W, g.C], dtype)
    if dtype != "float32":
        half, weights = input_gradient_on_tensor_cores(bb, turned, call.args[1], turned.rows * batch)
        return relax.call_tir(bb.add_func(half, "adr_input_gradient"), [call.args[0], *weights], out)
    tile = gemm_tile(turned.rows * batch, turned.M)
    Kp, Mp = padded_k(turned, tile), padded_m(turned, tile)

    def te_turn(w: te.Tensor) -> te.Tensor:
        def entry(k: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
            k_in, c_in = tirx.min(k, turned.K - 1), tirx.min(c, g.C - 1)
            tap = k_in // g.M
            value = w[g.KH - 1 - tap // g.KW, g.KW - 1 - tap % g.KW, c_in, k_in % g.M]
            return tirx.if_then_else(tirx.all(k < turned.K, c < g.C), value, _f(0))

        return te.compute((tirx.const(Kp, "int64"), tirx.const(Mp, "int64")), entry, name="turn_weights")

    dz, w = call.args
    packed = bb.emit_te(te_turn, w, primfunc_name_hint="adr_turn_weights")
    kernel = bb.add_func(implicit_gemm(turned, Activation(), tile), "adr_input_gradient")
    return relax.call_tir(kernel, [dz, packed, relax.const(np.zeros(Mp, np.float32))], out)


def _pool_geometry(call: relax.Call) -> ConvGeometry:
    first = static_shape(call.args[0])
    H, W = first[1:3] if call.op.name == pooling.MAX_POOL else (int(v) for v in call.attrs["input"])
    ints: dict[str, Any] = {k: tuple(int(v) for v in call.attrs[k]) for k in ("strides", "padding", "dilation")}
    KH, KW = (int(v) for v in call.attrs["pool_size"])
    return ConvGeometry(H, W, first[3], KH, KW, first[3], **ints)


def _max_pool(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    g, (B, *_) = _pool_geometry(call), static_shape(call.args[0])
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    shape = [tirx.const(n, "int64") for n in (B, g.OH, g.OW, g.C)]

    def place(oy, ox, ky, kx):
        iy, ix = oy * SH - PT + ky * DH, ox * SW - PL + kx * DW
        return iy, ix, tirx.all(iy >= 0, iy < g.H, ix >= 0, ix < g.W)

    def te_max(x: te.Tensor) -> te.Tensor:
        ky, kx = _axes(g.KH, g.KW)

        def entry(b, oy, ox, c):
            iy, ix, inside = place(oy, ox, ky, kx)
            return te.max(tirx.if_then_else(inside, x[b, iy, ix, c], _f(LOWEST)), axis=[ky, kx])

        return te.compute(shape, entry, name="max_pool")

    def te_tap(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        ky, kx = _axes(g.KH, g.KW)

        def entry(b, oy, ox, c):
            iy, ix, inside = place(oy, ox, ky, kx)
            same = tirx.if_then_else(inside, x[b, iy, ix, c], _f(math.nan)) == y[b, oy, ox, c]
            tap = tirx.Cast("int32", ky * g.KW + kx)
            return te.min(tirx.if_then_else(same, tap, tirx.const(NO_TAP, "int32")), axis=[ky, kx])

        first = te.compute(shape, entry, name="first_tap")
        return te.compute(shape, lambda *i: tirx.Cast("uint8", first[i]), name="tap")

    y = bb.emit_te(te_max, call.args[0], primfunc_name_hint="adr_max_pool")
    return relax.Tuple([y, bb.emit_te(te_tap, call.args[0], y, primfunc_name_hint="adr_max_pool_taps")])


def _over_windows(bb: relax.BlockBuilder, g: ConvGeometry, batch: int, name: str, term: Any, *args: relax.Expr) -> Any:
    """dX [B, H, W, C] = sum over taps of ``term(tensors, b, oy, ox, c, tap)``, where a window has that tap there."""
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding

    def te_gradient(*tensors: te.Tensor) -> te.Tensor:
        ky, kx = _axes(g.KH, g.KW)

        def entry(b, iy, ix, c):
            y, x = iy + PT - ky * DH, ix + PL - kx * DW
            oy, ox = tirx.floordiv(y, SH), tirx.floordiv(x, SW)
            read = tirx.all(
                *(y >= 0, x >= 0, oy < g.OH, ox < g.OW, tirx.floormod(y, SH) == 0, tirx.floormod(x, SW) == 0)
            )
            value = tirx.if_then_else(read, term(tensors, b, oy, ox, c, ky * g.KW + kx), _f(0))
            return te.sum(value, axis=[ky, kx])

        return te.compute([tirx.const(n, "int64") for n in (batch, g.H, g.W, g.C)], entry, name=name)

    return bb.call_te(te_gradient, *args, primfunc_name_hint=f"adr_{name}")


def _max_pool_grad(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    def term(tensors, b, oy, ox, c, tap):
        dy, taps = tensors
        chosen = tirx.Cast("int64", taps[b, oy, ox, c]) == tap
        return tirx.if_then_else(chosen, dy[b, oy, ox, c], _f(0))

    return _over_windows(bb, _pool_geometry(call), static_shape(call.args[0])[0], "max_pool_gradient", term, *call.args)


def _avg_pool_grad(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    g = _pool_geometry(call)
    top, left, bottom, right = (int(v) for v in call.attrs["counted"])
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding

    def counted(o, taps, stride, pad, dilation, before, size, after):
        """Taps of a window that lie where entries count, along one axis."""
        total: Any = 0
        for k in range(taps):
            i = o * stride - pad + k * dilation
            total = total + tirx.Cast("float32", tirx.all(i >= -before, i < size + after))
        return total

    def term(tensors, b, oy, ox, c, _tap):
        rows = counted(oy, g.KH, SH, PT, DH, top, g.H, bottom)
        return tensors[0][b, oy, ox, c] / (rows * counted(ox, g.KW, SW, PL, DW, left, g.W, right))

    return _over_windows(bb, g, static_shape(call.args[0])[0], "avg_pool_gradient", term, *call.args)


def _lrn(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    a, (*_, C) = call.attrs, static_shape(call.args[0])
    before, after, beta = int(a["before"]), int(a["after"]), float(a["beta"])
    factor = float(a["alpha"]) / (before + 1 + after)

    def windows(value: Callable[..., Any], shape: Any, low: int, high: int, name: str) -> te.Tensor:
        """Sums over channels c - low to c + high."""
        (j,) = _axes(low + high + 1)

        def entry(*i):
            c = i[-1] + j - low
            return te.sum(tirx.if_then_else(tirx.all(c >= 0, c < C), value(*i[:-1], c), _f(0)), axis=[j])

        return te.compute(shape, entry, name=name)

    def te_scale(x: te.Tensor) -> te.Tensor:
        squares = windows(lambda *i: x[i] * x[i], x.shape, before, after, "squares")
        return te.compute(x.shape, lambda *i: _f(float(a["bias"])) + _f(factor) * squares[i], name="scale")

    def te_forward(x: te.Tensor, s: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: x[i] * tirx.power(s[i], _f(-beta)), name="lrn")

    def te_gradient(x: te.Tensor, dy: te.Tensor, s: te.Tensor) -> te.Tensor:
        t = te.compute(x.shape, lambda *i: dy[i] * x[i] * tirx.power(s[i], _f(-beta - 1)), name="t")
        sums = windows(lambda *i: t[i], x.shape, after, before, "sums")
        return te.compute(
            x.shape,
            lambda *i: dy[i] * tirx.power(s[i], _f(-beta)) - _f(2 * beta * factor) * x[i] * sums[i],
            name="lrn_gradient",
        )

    scale = bb.emit_te(te_scale, call.args[0], primfunc_name_hint="adr_lrn_scale")
    if call.op.name == lrn.LRN:
        return bb.call_te(te_forward, call.args[0], scale, primfunc_name_hint="adr_lrn")
    return bb.call_te(te_gradient, *call.args, scale, primfunc_name_hint="adr_lrn_gradient")


def _batch_norm(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    shape, epsilon = static_shape(call.args[0]), float(call.attrs["epsilon"])
    rows, C = math.prod(shape[:-1]), shape[-1]
    flat, whole = relax.ShapeExpr([rows, C]), relax.ShapeExpr(list(shape))

    def sums(value: Callable[..., Any], factor: float, name: str, *args: relax.Expr) -> relax.Expr:
        """``factor`` times the sum over rows n of ``value(tensors, n, c)``, for each channel c."""

        def te_sum(*tensors: te.Tensor) -> te.Tensor:
            (n,) = _axes(rows)
            extent = [tirx.const(C, "int64")]
            total = te.compute(extent, lambda c: te.sum(value(tensors, n, c), axis=[n]), name="total")
            return te.compute(extent, lambda c: total[c] * _f(factor), name=name)

        return bb.emit_te(te_sum, *args, primfunc_name_hint=f"adr_{name}")

    def over(value: Callable[..., Any], name: str, *args: relax.Expr) -> relax.Expr:
        def te_map(*tensors: te.Tensor) -> te.Tensor:
            extent = [tirx.const(rows, "int64"), tirx.const(C, "int64")]
            return te.compute(extent, lambda n, c: value(tensors, n, c), name=name)

        made = bb.emit_te(te_map, *args, primfunc_name_hint=f"adr_{name}")
        return bb.emit(relax.op.reshape(made, whole))

    def centred(t, n, c):
        return t[0][n, c] - t[1][c]

    def scaled(t, n, c):
        return centred(t, n, c) / tirx.sqrt(t[2][c] + _f(epsilon))

    x = bb.emit(relax.op.reshape(call.args[0], flat))
    if call.op.name == batch_norm.BATCH_NORM:
        gamma, beta = call.args[1:]
        mean = sums(lambda t, n, c: t[0][n, c], 1 / rows, "mean", x)
        variance = sums(lambda t, n, c: centred(t, n, c) * centred(t, n, c), 1 / rows, "variance", x, mean)
        y = over(lambda t, n, c: t[3][c] * scaled(t, n, c) + t[4][c], "batch_norm", x, mean, variance, gamma, beta)
        return relax.Tuple([y, mean, variance])
    gamma, mean, variance = call.args[1:4]
    dy = bb.emit(relax.op.reshape(call.args[4], flat))
    dbeta = sums(lambda t, n, c: t[0][n, c], 1.0, "dbeta", dy)
    dgamma = sums(lambda t, n, c: t[3][n, c] * scaled(t, n, c), 1.0, "dgamma", x, mean, variance, dy)

    def dx(t, n, c):
        rest = t[3][n, c] - (t[4][c] + scaled(t, n, c) * t[5][c]) * _f(1 / rows)
        return t[6][c] / tirx.sqrt(t[2][c] + _f(epsilon)) * rest

    made = over(dx, "batch_norm_gradient", x, mean, variance, dy, dbeta, dgamma, gamma)
    return relax.Tuple([made, dgamma, dbeta])


def _cross_entropy(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (B, C), smoothing = static_shape(call.args[0]), float(call.attrs["label_smoothing"])
    row_shape, shape = [tirx.const(B, "int64")], [tirx.const(B, "int64"), tirx.const(C, "int64")]

    def target(labels, b, c):
        hit = tirx.Cast("int64", labels[b]) == c
        value = tirx.if_then_else(hit, _f(1 - smoothing), _f(0)) + _f(smoothing / C)
        return tirx.if_then_else(tirx.all(labels[b] >= 0, labels[b] < C), value, _f(math.nan))

    def te_largest(x: te.Tensor) -> te.Tensor:
        (c,) = _axes(C)
        return te.compute(row_shape, lambda b: te.max(x[b, c], axis=[c]), name="largest")

    def te_total(x: te.Tensor, largest: te.Tensor) -> te.Tensor:
        (c,) = _axes(C)
        return te.compute(row_shape, lambda b: te.sum(tirx.exp(x[b, c] - largest[b]), axis=[c]), name="total")

    logits, labels, *dloss = call.args
    largest = bb.emit_te(te_largest, logits, primfunc_name_hint="adr_largest_logit")
    total = bb.emit_te(te_total, logits, largest, primfunc_name_hint="adr_softmax_sum")
    if dloss:

        def te_gradient(x, labels, largest, total, dloss) -> te.Tensor:
            def entry(b, c):
                softmax = tirx.exp(x[b, c] - largest[b]) / total[b]
                return dloss[()] * _f(1 / B) * (softmax - target(labels, b, c))

            return te.compute(shape, entry, name="cross_entropy_gradient")

        args = (logits, labels, largest, total, *dloss)
        return bb.call_te(te_gradient, *args, primfunc_name_hint="adr_cross_entropy_gradient")

    def te_rows(x, labels, largest, total) -> te.Tensor:
        (c,) = _axes(C)

        def entry(b):
            inner = target(labels, b, c) * (tirx.log(total[b]) + largest[b] - x[b, c])
            return te.sum(inner * _f(1 / B), axis=[c])

        return te.compute(row_shape, entry, name="row_losses")

    rows = bb.emit_te(te_rows, logits, labels, largest, total, primfunc_name_hint="adr_row_losses")
    rows = bb.emit(relax.op.reshape(rows, relax.ShapeExpr([B, 1, 1])))
    made = bb.emit(relax.call_tir(bb.add_func(sum_parts(B, (1,)), "adr_sum_parts"), [rows], tensor_type([1])))
    return relax.op.reshape(made, relax.ShapeExpr([]))


def _dropout(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (x, seed), shape = call.args, static_shape(call.args[0])
    size = math.prod(shape)
    kernel = bb.add_func(dropout_kernel(size, float(call.attrs["rate"]), int(call.attrs["stream"])), "adr_dropout")
    flat = bb.emit(relax.op.reshape(x, relax.ShapeExpr([size])))
    y = bb.emit(relax.call_tir(kernel, [flat, seed], tensor_type([size])))
    return relax.op.reshape(y, relax.ShapeExpr(list(shape)))


def _resize_grad(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (B, _, _, C), (H, taps), (W, across) = (static_shape(call.args[i]) for i in (0, 1, 3))

    def te_gradient(dy: te.Tensor, ph: te.Tensor, fh: te.Tensor, pw: te.Tensor, fw: te.Tensor) -> te.Tensor:
        i, j = _axes(taps, across)

        def entry(b, y, x, c):
            return te.sum(fh[y, i] * fw[x, j] * dy[b, ph[y, i], pw[x, j], c], axis=[i, j])

        return te.compute([tirx.const(n, "int64") for n in (B, H, W, C)], entry, name="resize_gradient")

    return bb.call_te(te_gradient, *call.args, primfunc_name_hint="adr_resize_gradient")


_LOWERED: dict[str, Callable[[relax.BlockBuilder, relax.Call], relax.Expr]] = {
    epilogue.EPILOGUE_GRAD: _epilogue_grad,
    conv2d.WEIGHT_GRAD: _weight_grad,
    conv2d.EPILOGUE_WEIGHT_GRAD: _epilogue_weight_grad,
    conv2d.INPUT_GRAD: _input_grad,
    pooling.MAX_POOL: _max_pool,
    pooling.MAX_POOL_GRAD: _max_pool_grad,
    pooling.AVG_POOL_GRAD: _avg_pool_grad,
    lrn.LRN: _lrn,
    lrn.LRN_GRAD: _lrn,
    batch_norm.BATCH_NORM: _batch_norm,
    batch_norm.BATCH_NORM_GRAD: _batch_norm,
    loss.CROSS_ENTROPY: _cross_entropy,
    loss.CROSS_ENTROPY_GRAD: _cross_entropy,
    dropout.DROPOUT: _dropout,
    resize.RESIZE_GRAD: _resize_grad,
    reuse.GRAD: lower_reuse_gradients,
    reuse.WEIGHT_GRAD: lower_reuse_gradients,
}


@mutator
class _Lowerer(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        lower = _LOWERED.get(str(call.op.name)) if isinstance(call.op, tvm.ir.Op) else None
        return call if lower is None else lower(self.builder_, call)


@tvm.transform.module_pass(opt_level=0, name="LowerCudaGradients")
class LowerCudaGradients:
    """See the module; in the scope of the target."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Lower every Relax function."""
        return mutate(mod, _Lowerer)
