"""Weights in the layout of the microkernels: ``[ceil(M / NR), K, NR]``, K in the order (KH, KW, C)."""

from __future__ import annotations

import numpy as np
from tvm import te, tirx


def pack_weights(w: np.ndarray, NR: int) -> np.ndarray:
    """Pack a constant weight.

    Args:
        w: float32 or float16 [KH, KW, C, M].
        NR: output channels of a block.

    Returns:
        the same type, [ceil(M / NR), KH * KW * C, NR], zero beyond M.
    """
    M = w.shape[-1]
    blocks = -(-M // NR)
    flat = np.zeros((w.size // M, blocks * NR), w.dtype)
    flat[:, :M] = w.reshape(-1, M)
    return np.ascontiguousarray(flat.reshape(-1, blocks, NR).transpose(1, 0, 2))


def te_pack_weights(w: te.Tensor, NR: int) -> te.Tensor:
    """`pack_weights` for a weight that is an argument of the function, as a tensor expression."""
    _KH, KW, C, M = (int(d) for d in w.shape)
    K = int(w.shape[0]) * KW * C
    blocks = -(-M // NR)
    return te.compute(
        (tirx.const(blocks, "int64"), tirx.const(K, "int64"), tirx.const(NR, "int64")),
        lambda b, k, j: tirx.if_then_else(
            b * NR + j < M,
            w[k // (KW * C), k // C % KW, k % C, tirx.min(b * NR + j, M - 1)],
            tirx.const(0.0, w.dtype),
        ),
        name="pack_weights",
    )


def pad_channels(v: np.ndarray, NR: int) -> np.ndarray:
    """A per-channel float32 [M] vector, zero-padded to a multiple of NR."""
    return np.pad(np.asarray(v, np.float32), (0, -v.shape[0] % NR))


def te_pad_channels(v: te.Tensor, NR: int) -> te.Tensor:
    """`pad_channels` for a vector that is an argument of the function."""
    return te_lengthen(v, -int(v.shape[0]) % NR)


def te_lengthen(v: te.Tensor, more: int) -> te.Tensor:
    """A vector that is an argument of the function, with ``more`` zeros at its end."""
    M = int(v.shape[0])
    return te.compute(
        (tirx.const(M + more, "int64"),),
        lambda j: tirx.if_then_else(j < M, v[tirx.min(j, M - 1)], tirx.const(0.0, "float32")),
        name="lengthen",
    )
