"""Gradient of ``image.resize2d``, nearest and linear, of NHWC images: ``relax.adr.resize2d_grad(dy, ...)``.

Resizing is linear and separable: Y = A_H X A_W^T with A [out, size] for each axis, so dX = A_H^T dY A_W. A has a few
entries in each column; their places and factors are arguments of the operator. Kernel:
``schedules/resize_gradient.py``.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.gradients.registration import current_target, register_gradient
from adr_tvm.schedules.register_tile import isa_of
from adr_tvm.schedules.resize_gradient import resize_gradient

RESIZE_GRAD = "relax.adr.resize2d_grad"
MODES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
EPSILON = 1e-5  # TVM's, at floor and ceil


def reading(size: int, out: int, method: str, mode: str, rounding: str) -> np.ndarray:
    """A float32 [out, size]: how output entries read input entries along one axis, as TVM resizes.

    Args:
        method: ``linear`` or ``nearest_neighbor``.
        mode: coordinate transformation, one of ``MODES``.
        rounding: of nearest.
    """
    i = np.arange(out, dtype=np.float64)
    half = (i + 0.5) * (size / out) - 0.5
    places = {
        "half_pixel": half,
        "align_corners": i * ((size - 1) / max(1, out - 1)),
        "asymmetric": i * (size / out),
        "pytorch_half_pixel": half if out > 1 else 0 * i,
    }[mode]
    matrix, rows = np.zeros((out, size), np.float32), np.arange(out)
    if method == "linear":
        first = np.floor(places)
        share = (places - first).astype(np.float32)
        for offset, factor in ((0, 1 - share), (1, share)):
            columns = np.clip(first.astype(int) + offset, 0, size - 1)
            np.add.at(matrix, (rows, columns), factor)
        return matrix
    rounded = {
        "round": np.rint(places),
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
        "floor": np.floor(places + EPSILON),
        "ceil": np.ceil(places - EPSILON),
    }[rounding]
    matrix[rows, np.clip(rounded.astype(int), 0, size - 1)] = 1
    return matrix


def gathering(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places int32, factors float32), each [size, n]: the entries of the columns of A, filled up with factors of 0."""
    columns = [np.flatnonzero(column) for column in matrix.T]
    count = max(1, *(len(places) for places in columns))
    places, factors = np.zeros((len(columns), count), np.int32), np.zeros((len(columns), count), np.float32)
    for index, found in enumerate(columns):
        places[index, : len(found)], factors[index, : len(found)] = found, matrix[found, index]
    return places, factors


def _refusal(call: relax.Call) -> str | None:
    a, shape, out = call.attrs, static_shape(call.args[0]), static_shape(call)
    if str(a.layout) != "NHWC" or None in (*shape[1:], *out[1:]) or str(call.ty.dtype) != "float32":
        return "only NHWC float32 images of fixed size are handled"
    if str(a.method) not in ("linear", "nearest_neighbor"):
        return f"method {a.method}"
    mode = str(a.coordinate_transformation_mode)
    return None if mode in MODES else f"coordinate transformation {mode}"


def _gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: relax.BlockBuilder) -> list[relax.Expr]:
    refusal = _refusal(call)
    assert refusal is None, f"{call.op.name}: {refusal}"
    a, shape, out = call.attrs, static_shape(call.args[0]), static_shape(call)
    how = (str(a.method), str(a.coordinate_transformation_mode), str(a.rounding_method))
    tables = [relax.const(table) for axis in (1, 2) for table in gathering(reading(shape[axis], out[axis], *how))]
    more = [relax.op.grad.no_grad(arg) for arg in call.args[1:]]
    return [relax.Call(tvm.ir.Op.get(RESIZE_GRAD), [dy, *tables]), *more]


def _infer(call: relax.Call) -> relax.Type:
    dy, H, W = call.args[0].ty.shape, call.args[1].ty.shape[0], call.args[3].ty.shape[0]
    return tensor_type([dy[0], H, W, dy[3]])


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (_, OH, OW, C), (H, I), (W, J) = (static_shape(call.args[i]) for i in (0, 1, 3))
    kernel = resize_gradient((H, W), (OH, OW), (I, J), C, isa_of(current_target()))
    return relax.call_tir(bb.add_func(kernel, "adr_resize_gradient"), list(call.args), _infer(call))


def register() -> None:
    """Register the operator and the gradient; once per process, later calls change nothing."""
    names = ("gradient", "row_places", "row_factors", "column_places", "column_factors")
    ops.register_operator(RESIZE_GRAD, names, _infer, _legalize)
    register_gradient("relax.image.resize2d", _gradient, _refusal)
