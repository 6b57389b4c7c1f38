"""Transposed convolutions become convolutions followed by a rearrangement of channels into space.

Output row ``y`` with ``q = y + pad_top`` is a sum over taps ``k = r + s j`` with ``r = q mod s``: so the s*s phases of
the output are s*s convolutions of stride 1 over the same window of ``ceil(K / s)`` input rows. They run as one
convolution with s*s*M channels, and no multiply meets an inserted zero except where s does not divide K.
Expects NHWC data and IOHW weights, as ``ChannelsLast`` leaves them, with groups = 1 and dilation = 1.
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
    """(pad before, pad after, rows to drop in front) of the phase convolution along one axis."""
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
        strides = (int(a.strides[0]), int(a.strides[1]))
        shape, out = static_shape(call.args[0]), static_shape(call)
        if (
            w is None
            or int(a.groups) != 1
            or any(int(d) != 1 for d in a.dilation)
            or (str(a.data_layout), str(a.kernel_layout)) != ("NHWC", "IOHW")
            or None in shape[1:]
        ):
            return call
        pads = [int(v) for v in a.padding]
        M, (KH, KW) = w.shape[1], w.shape[2:]
        rows = _window(shape[1], out[1], KH, strides[0], pads[0])
        cols = _window(shape[2], out[2], KW, strides[1], pads[1])
        if min(*rows, *cols) < 0:
            return call
        emit = self.builder_.emit
        batch = call.args[0].ty.shape[0]
        phases = relax.op.nn.conv2d(
            call.args[0],
            relax.const(phase_weights(w, strides)),
            padding=[rows[0], cols[0], rows[1], cols[1]],
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


@tvm.transform.module_pass(opt_level=0, name="ConvTransposeToConv")
class ConvTransposeToConv:
    """See the module; what does not fit stays as it was."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite every Relax function."""
        return mutate(mod, _Rewriter)
