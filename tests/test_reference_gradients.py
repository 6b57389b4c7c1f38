"""The reference's backward pass against central differences of the forward pass with frozen ids, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.reference import reuse_conv2d
from adr_tvm.reference_gradients import activation_gradient, reuse_conv2d_gradients
from adr_tvm.settings import ReuseSetting

# z is linear in each argument, so a central difference has no truncation error: what is left is rounding of sums of
# some 1000 products of order 1, divided by a step of 1.
TOLERANCE = 1e-9

GEOMETRIES = {
    "3x3": ConvGeometry(5, 6, 6, 3, 3, 4, padding=(1, 1, 1, 1)),
    "stride": ConvGeometry(7, 6, 5, 3, 2, 3, strides=(2, 3), padding=(1, 0, 2, 1)),
    "dilation": ConvGeometry(6, 7, 4, 2, 3, 5, padding=(1, 2, 0, 1), dilation=(2, 2)),
    "unread": ConvGeometry(6, 7, 4, 1, 2, 3, strides=(2, 3)),
    "dense": dense_geometry(3, 10, 4),
}
SETTINGS = {
    "pixel": ReuseSetting("pixel", L=3, H=2, hash="gaussian"),
    "segment": ReuseSetting("segment", L=7, H=2, hash="gaussian"),
    "row": ReuseSetting("row", H=3, hash="gaussian"),
}


def forward(x: np.ndarray, w: np.ndarray, g: ConvGeometry, setting: ReuseSetting, ids: np.ndarray) -> np.ndarray:
    """z [B, OH, OW, M] by definition: one output at a time, vectors replaced by the means of their clusters."""
    B, taps = len(x), g.KH * g.KW
    padded = np.pad(x, ((0, 0), (g.padding[0], g.padding[2]), (g.padding[1], g.padding[3]), (0, 0)))
    (SH, SW), (DH, DW) = g.strides, g.dilation
    L, S = g.vector_length(setting), g.segments(setting)
    if setting.granularity == "pixel":
        maps = ids.reshape(B, S, g.H, g.W)
        averaged = np.zeros_like(x)
        unit = np.arange(B) if setting.scope == "image" else np.zeros(B, int)
        for s in range(S):
            part = slice(s * L, min((s + 1) * L, g.C))
            for b, y, c in zip(*np.nonzero(maps[:, s] >= 0), strict=True):
                same = (maps[:, s] == maps[b, s, y, c]) & (unit == unit[b])[:, None, None]
                averaged[b, y, c, part] = x[..., part][same].mean(axis=0)
        padded[:, g.padding[0] : g.padding[0] + g.H, g.padding[1] : g.padding[1] + g.W] = averaged
    rows = np.zeros((B, g.OH, g.OW, g.C, taps))
    for oy, ox, ky, kx in np.ndindex(g.OH, g.OW, g.KH, g.KW):
        rows[:, oy, ox, :, ky * g.KW + kx] = padded[:, oy * SH + ky * DH, ox * SW + kx * DW]
    rows = rows.reshape(len(ids) if setting.granularity != "pixel" else 1, -1, g.K)
    if setting.granularity != "pixel":
        means = np.zeros_like(rows)
        for u, s in np.ndindex(ids.shape[:2]):
            for id in np.unique(ids[u, s][ids[u, s] >= 0]):
                members, part = ids[u, s] == id, slice(s * L, min((s + 1) * L, g.K))
                means[u, members, part] = rows[u, members, part].mean(axis=0)
        rows = means
    z = rows.reshape(-1, g.K) @ w.transpose(2, 0, 1, 3).reshape(g.K, g.M)
    return z.reshape(B, g.OH, g.OW, g.M)


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("granularity", SETTINGS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_are_those_of_the_forward_pass_with_frozen_ids(geometry, granularity, scope):
    g, base = GEOMETRIES[geometry], SETTINGS[granularity]
    setting = ReuseSetting(base.granularity, base.L, base.H, base.hash, scope)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, g.H, g.W, g.C)).astype(np.float32)
    x[0, 0, :2] = 0
    w = rng.standard_normal((g.KH, g.KW, g.C, g.M))
    planes = rng.standard_normal((g.segments(setting), g.vector_length(setting), setting.H)).astype(np.float32)
    ids = reuse_conv2d(x, w, np.zeros(g.M), g, setting, planes).ids
    dz = rng.standard_normal((2, g.OH, g.OW, g.M))
    found = reuse_conv2d_gradients(x, w, dz, g, setting, ids)
    x = x.astype(np.float64)
    for expected, value, of in ((found.x, x, "x"), (found.w, w, "w")):
        for place in rng.permutation(list(np.ndindex(value.shape)))[:40]:
            step = np.zeros_like(value)
            step[tuple(place)] = 0.5
            ends = [
                (dz * forward(x + d if of == "x" else x, w + d if of == "w" else w, g, setting, ids)).sum()
                for d in (step, -step)
            ]
            assert abs(ends[0] - ends[1] - expected[tuple(place)]) < TOLERANCE * max(1, abs(expected).max()), of
    np.testing.assert_allclose(found.bias, dz.sum(axis=(0, 1, 2)), atol=TOLERANCE)


def test_straight_through_is_the_input_gradient_of_the_dense_layer():
    g, setting = GEOMETRIES["stride"], SETTINGS["pixel"]
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, g.H, g.W, g.C)).astype(np.float32)
    w, dz = rng.standard_normal((g.KH, g.KW, g.C, g.M)), rng.standard_normal((2, g.OH, g.OW, g.M))
    together = np.zeros((2, 1, g.segments(setting), g.H, g.W), int)
    alone = np.arange(g.H * g.W).reshape(g.H, g.W) + together
    straight = reuse_conv2d_gradients(x, w, dz, g, setting, together, "straight-through")
    dense = reuse_conv2d_gradients(x, w, dz, g, setting, alone)
    np.testing.assert_allclose(straight.x, dense.x, atol=TOLERANCE)
    averaged = reuse_conv2d_gradients(x, w, dz, g, setting, together)
    np.testing.assert_array_equal(straight.w, averaged.w)
    assert np.abs(averaged.x - dense.x).max() > 0.1


def test_non_finite_vectors_are_left_out():
    g, setting = ConvGeometry(4, 4, 6, 1, 1, 3), SETTINGS["pixel"]
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 4, 4, 6)).astype(np.float32)
    w, dz = rng.standard_normal((1, 1, 6, 3)), rng.standard_normal((1, 4, 4, 3))
    ids = np.zeros((1, 1, 2, 4, 4), int)
    ids[0, 0, 0, 1, 2] = -2
    broken = x.copy()
    broken[0, 1, 2, 0] = np.nan
    found = reuse_conv2d_gradients(broken, w, dz, g, setting, ids)
    assert np.isfinite(found.w).all() and (found.x[0, 1, 2, :3] == 0).all() and (found.x[0, 1, 2, 3:] != 0).all()
    x[0, 1, 2, :3] = 1e6
    np.testing.assert_array_equal(reuse_conv2d_gradients(x, w, dz, g, setting, ids).w, found.w)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Activation(), [1, 1, 1, 1]),
        (Activation.relu(), [0, 0, 1, 1]),
        (Activation.relu6(), [0, 0, 1, 0]),
        (Activation("leaky_relu", slope=0.25), [0.25, 0.25, 1, 1]),
    ],
)
def test_activation_gradient_is_told_from_the_output(activation, expected):
    y = activation.apply(np.array([-2, 0, 1, 7], np.float32))
    np.testing.assert_array_equal(activation_gradient(y, np.ones(4), activation), expected)


@pytest.mark.parametrize(("dz", "mode"), [((2, 4, 4, 3), "averaged"), ((1, 4, 4, 3), "exact")])
def test_wrong_arguments_are_refused(dz, mode):
    g, setting = ConvGeometry(4, 4, 6, 1, 1, 3), SETTINGS["pixel"]
    with pytest.raises(ValueError, match=r"dz is|input_gradient"):
        reuse_conv2d_gradients(
            np.zeros((1, 4, 4, 6)), np.zeros((1, 1, 6, 3)), np.zeros(dz), g, setting, np.zeros((1, 1, 2, 4, 4)), mode
        )
