"""Transposed convolutions become convolutions followed by a rearrangement of channels into space.

Output row ``y`` with ``q = y + pad_top`` is a sum over taps ``k = r + s j`` with ``r = q mod s``: so the s*s phases of
the output are s*s convolutions of stride 1 over the same window of ``ceil(K / s)`` input rows. They run as one
convolution with s*s*M channels, and no multiply meets an inserted zero except where s does not divide K.
Expects NHWC data and IOHW weights, as ``ChannelsLast`` leaves them, with groups = 1 and dilation = 1. Others of that
layout go back to NCHW between two transposes, the only form of the operator that TVM can lower.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import constant, is_op, mutate, static_shape


def phase_weights(w: np.ndarray, strides: tuple[int, int]) -> np.ndarray:
    """Weights of the convolution that computes all phases.

    Args:
        w: float32 [C, M, KH, KW] of the transposed convolution.
        strides: its (row, column) strides.

    Returns:
        float32 [JH, JW, C, SH * SW * M], JH = ceil(KH / SH); phase (rh, rw) holds channels (rh * SW + rw) * M onwards.
    """
    C, M, KH, KW = w.shape
    SH, SW = strides
    JH, JW = -(-KH // SH), -(-KW // SW)
    padded = np.zeros((C, M, JH * SH, JW * SW), w.dtype)
    padded[:, :, :KH, :KW] = w
    taps = padded.reshape(C, M, JH, SH, JW, SW)[:, :, ::-1, :, ::-1, :]
    return np.ascontiguousarray(taps.transpose(2, 4, 0, 3, 5, 1).reshape(JH, JW, C, SH * SW * M))


def _window(size: int, out: int, kernel: int, stride: int, pad: int) -> tuple[int, int, int]:
    """(pad before, pad after, rows to drop in front) of the phase convolution along one axis.

    A pad below 0 means that as many rows of the input reach no output.
    """
    taps = -(-kernel // stride)
    first, last = pad // stride, (pad + out - 1) // stride
    return taps - 1 - first, last - (size - 1), pad - first * stride


@mutator
class _Rewriter(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not is_op(call, "relax.nn.conv2d_transpose"):
            return call
        a, w = call.attrs, constant(call.args[1])
        if (str(a.data_layout), str(a.kernel_layout)) != ("NHWC", "IOHW"):
            return call
        strides = (int(a.strides[0]), int(a.strides[1]))
        shape, out = static_shape(call.args[0]), static_shape(call)
        if w is None or int(a.groups) != 1 or any(int(d) != 1 for d in a.dilation) or None in shape[1:]:
            return self._channels_first(call)
        pads = [int(v) for v in a.padding]
        M, (KH, KW) = w.shape[1], w.shape[2:]
        rows = _window(shape[1], out[1], KH, strides[0], pads[0])
        cols = _window(shape[2], out[2], KW, strides[1], pads[1])
        emit = self.builder_.emit
        batch = call.args[0].ty.shape[0]
        x = call.args[0]
        if min(*rows, *cols) < 0:
            begin = [max(0, -rows[0]), max(0, -cols[0])]
            end = [shape[1] - max(0, -rows[1]), shape[2] - max(0, -cols[1])]
            if begin[0] >= end[0] or begin[1] >= end[1]:
                return self._channels_first(call)
            x = emit(relax.op.strided_slice(x, [1, 2], begin, end))
        phases = relax.op.nn.conv2d(
            x,
            relax.const(phase_weights(w, strides)),
            padding=[max(0, pad) for pad in (rows[0], cols[0], rows[1], cols[1])],
            data_layout="NHWC",
            kernel_layout="HWIO",
        )
        phases = emit(relax.Call(phases.op, list(phases.args), phases.attrs, list(phases.ty_args), call.span))
        UH, UW = static_shape(phases)[1:3]
        y = emit(relax.op.reshape(phases, relax.ShapeExpr([batch, UH, UW, *strides, M])))
        y = emit(relax.op.permute_dims(y, [0, 1, 3, 2, 4, 5]))
        y = emit(relax.op.reshape(y, relax.ShapeExpr([batch, UH * strides[0], UW * strides[1], M])))
        if (UH * strides[0], UW * strides[1]) == out[1:3]:
            return y
        begin = [rows[2], cols[2]]
        return relax.op.strided_slice(y, [1, 2], begin, [begin[0] + out[1], begin[1] + out[2]])

    def _channels_first(self, call: relax.Call) -> relax.Expr:
        a = call.attrs
        y = relax.op.nn.conv2d_transpose(
            self.builder_.emit(relax.op.permute_dims(call.args[0], [0, 3, 1, 2])),
            call.args[1],
            strides=list(a.strides),
            padding=list(a.padding),
            output_padding=list(a.output_padding),
            dilation=list(a.dilation),
            groups=int(a.groups),
            data_layout="NCHW",
            kernel_layout="IOHW",
        )
        named = relax.Call(y.op, list(y.args), y.attrs, list(y.ty_args), call.span)
        return relax.op.permute_dims(self.builder_.emit(named), [0, 2, 3, 1])


@tvm.transform.module_pass(opt_level=0, name="ConvTransposeToConv")
class ConvTransposeToConv:
    """See the module; what does not fit stays as it was."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function."""
        return mutate(mod, _Rewriter)
