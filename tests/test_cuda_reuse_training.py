"""Reuse in training for CUDA, emulated, against the references (``docs/algorithm.md``, B1 to B8 and B10)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated_cuda, thread_order
from cuda_harness import TARGET
from kernel_harness import GEOMETRIES, Layer, close, sample_input, sample_tensors
from reuse_gradients import check, ids_of, run_dense

from adr_tvm.activation import Activation
from adr_tvm.geometry import dense_geometry
from adr_tvm.reference import reuse_conv2d_given_ids
from adr_tvm.schedules.cuda import cluster_pieces
from adr_tvm.settings import ReuseSetting

PIXEL = ReuseSetting("pixel", L=8, H=4)


def check_on_cuda(layer, input_gradient="averaged", x=None, backward_only=False, batch=3):
    """Gradients, result and ids against the references; the same bytes in every order of threads."""
    g, tensors = layer.geometry, sample_tensors(layer)
    x = sample_input(g, batch, seed=5) if x is None else x
    with emulated_cuda():
        first = check(layer, input_gradient, x, tensors, len(x), backward_only, TARGET)
        for order in ORDERS[1:]:
            with thread_order(order):
                again = check(layer, input_gradient, x, tensors, len(x), backward_only, TARGET)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(again, first, strict=True))
        y, ids, *_ = first
        if backward_only:
            np.testing.assert_array_equal(y, run_dense(layer, tensors, x, TARGET))
        else:
            own = ids_of(layer, ids, len(x))
            close(y, reuse_conv2d_given_ids(x, tensors.w, tensors.bias, g, layer.setting, own, layer.activation).y)
    return first


@pytest.mark.parametrize(
    ("geometry", "setting", "limits"),
    [
        ("asymmetric", replace(PIXEL, L=4, scope="batch"), {"PIECE": 2, "TABLE_BYTES": 1}),
        ("5x5_stride2", ReuseSetting("segment", L=10, H=4), {"PIECE": 3}),
        ("3x3", ReuseSetting("row", H=5), {"PIECE": 4}),
    ],
    ids=["pixel", "segment", "row"],
)
def test_gradients(geometry, setting, limits, monkeypatch):
    """Pieces of few members; rounds of one segment and not all of its pieces; parts; units; long vectors."""
    for name, value in limits.items():
        monkeypatch.setattr(cluster_pieces, name, value)
    layer = Layer(GEOMETRIES[geometry], setting)
    layout = cluster_pieces.ClusterPieces.of(layer.geometry, setting, 3)
    assert layout.piece_rounds == layout.segment_rounds + 1 == 3 or "TABLE_BYTES" not in limits
    x = sample_input(layer.geometry, 3, seed=5)
    x[1, :2] = 0
    x[0, 0, 0, 0], x[2, -1, -1, -1] = np.nan, np.inf
    _, _, dx, dw, _ = check_on_cuda(layer, x=x)
    assert np.isfinite(dx).all() and np.isfinite(dw).all() and (dx[1, :2] != 0).any()


def test_sampled_and_backward_only():
    """A dense layer whose positions fill more than one block of the sort."""
    layer = Layer(dense_geometry(400, 18, 12), replace(PIXEL, H=6, scope="batch"), Activation.relu(), rank=3)
    check_on_cuda(layer, "sampled", backward_only=True)
