"""Convolutions with reuse in bare C against the NumPy reference (``docs/algorithm.md``)."""

from __future__ import annotations

import numpy as np
import pytest

from adr_tvm import reference
from adr_tvm.activation import Activation
from adr_tvm.bare_c.emit import CNetwork
from adr_tvm.bare_c.graph import Graph, Operator, Tensor
from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting
from tests.bare_c import Compiled, needs_gcc

pytestmark = needs_gcc
TOLERANCE = 1e-5  # relative to the largest output: sums of another order
SQUARE = ConvGeometry(H=9, W=10, C=11, KH=3, KW=3, M=6, padding=(1, 1, 1, 1))
SPARSE = ConvGeometry(H=11, W=9, C=5, KH=3, KW=2, M=7, strides=(3, 2), padding=(2, 0, 1, 3), dilation=(2, 1))
POINTS = ConvGeometry(H=6, W=7, C=12, KH=1, KW=1, M=5)
RELU = Activation.relu()
SETTINGS = {
    "pixel": ReuseSetting("pixel", L=4, H=3, hash="gaussian"),
    "pixel with more keys than places": ReuseSetting("pixel", L=4, H=14, hash="gaussian"),
    "pixel, gain": ReuseSetting("pixel", L=5, H=4, hash="gaussian", gain=True),
    "pixel, exact": ReuseSetting("pixel", L=4, H=1, hash="exact"),
    "segment": ReuseSetting("segment", L=7, H=5, hash="gaussian"),
    "segment, gain": ReuseSetting("segment", L=9, H=3, hash="gaussian", gain=True),
    "segment, exact": ReuseSetting("segment", L=3, H=1, hash="exact"),
    "row": ReuseSetting("row", H=3, hash="gaussian"),
    "row, exact": ReuseSetting("row", H=1, hash="exact"),
}


def layer(geometry: ConvGeometry, setting: ReuseSetting | None, seed: int = 0) -> CNetwork:
    """One layer as a network: x -> y."""
    rng = np.random.default_rng(seed)
    g = geometry
    constants = {
        "weight": rng.standard_normal((g.KH, g.KW, g.C, g.M)).astype("float32"),
        "bias": rng.standard_normal(g.M).astype("float32"),
    }
    attributes: dict = {"geometry": g, "activation": RELU}
    if setting is not None:
        S, L = g.segments(setting), g.vector_length(setting)
        constants["planes"] = rng.standard_normal((S, L, setting.H)).astype("float32")
        constants["thresholds"] = rng.standard_normal((S, setting.H)).astype("float32")
        constants["thresholds"][:, -1:] = np.inf if setting.H > 2 else 0.0
        attributes["setting"] = setting
    kind = "conv2d" if setting is None else "reuse_conv2d"
    tensors = {"x": Tensor("x", (1, g.H, g.W, g.C)), "y": Tensor("y", (1, g.OH, g.OW, g.M))}
    graph = Graph(tensors, (Operator(kind, "layer", ("x",), "y", constants, attributes),), ("x",), ("y",))
    return CNetwork(graph, "layer.onnx", "0" * 64, ("x",), ("y",))


def image(g: ConvGeometry, seed: int = 1) -> np.ndarray:
    """Pixels of a few kinds, zeros and noise."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((5, g.C)).astype("float32")
    kinds[0] = 0
    x = kinds[rng.integers(0, 5, (g.H, g.W))]
    x[: g.H // 3] += 0.01 * rng.standard_normal((g.H // 3, g.W, g.C)).astype("float32")
    x[g.H // 2 :, : g.W // 2] = kinds[1]
    return x[None]


def expected(net: CNetwork, x: np.ndarray) -> reference.ReuseResult:
    operator = net.graph.operators[0]
    c, a = operator.constants, operator.attributes
    given = (c["planes"], c["thresholds"])
    return reference.reuse_conv2d(x, c["weight"], c["bias"], a["geometry"], a["setting"], *given, a["activation"])


def check(net: CNetwork, compiled: Compiled, x: np.ndarray) -> None:
    (y,), r = compiled(x), expected(net, x)
    finite = np.isfinite(r.y)
    scale = float(np.abs(r.y[finite]).max())
    np.testing.assert_allclose(y[finite], r.y[finite], rtol=0, atol=TOLERANCE * scale)
    assert not np.isfinite(y[~finite]).any()
    assert compiled.counts.tolist() == [[int(r.clusters.sum()), int(r.reused[0])]]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("geometry", [SQUARE, SPARSE, POINTS], ids=["square", "sparse", "points"])
def test_values_and_counts(name, geometry, tmp_path):
    net = layer(geometry, SETTINGS[name])
    compiled = Compiled(net, tmp_path)
    x = image(geometry)
    check(net, compiled, x)
    x[0, 2, 3, 1], x[0, 4, 4, 0] = np.nan, np.inf
    if name == "row, exact":  # counts of a unit without repetition are those of a sample
        return
    with np.errstate(invalid="ignore"):
        check(net, compiled, x)


@pytest.mark.parametrize("granularity", ["pixel", "segment", "row"])
def test_guard(granularity, tmp_path):
    setting = ReuseSetting(granularity, L=4, H=8, hash="gaussian", max_clusters=40)
    net, dense = layer(SQUARE, setting), layer(SQUARE, None)
    compiled, plain = Compiled(net, tmp_path / "reuse"), Compiled(dense, tmp_path / "dense")
    noise = np.random.default_rng(0).standard_normal((1, 9, 10, 11)).astype("float32")
    check(net, compiled, noise)
    assert compiled.counts[0, 1] == 0
    np.testing.assert_array_equal(compiled(noise)[0], plain(noise)[0])
    check(net, compiled, np.zeros_like(noise))
    assert compiled.counts[0, 1] == 1


def test_lossless(tmp_path):
    net, dense = layer(SQUARE, SETTINGS["row, exact"]), layer(SQUARE, None)
    compiled, plain = Compiled(net, tmp_path / "reuse"), Compiled(dense, tmp_path / "dense")
    x = image(SQUARE)
    np.testing.assert_array_equal(compiled(x)[0], plain(x)[0])
    assert compiled.counts[0, 1] == 1 and compiled.counts[0, 0] < SQUARE.rows
    noise = np.random.default_rng(0).standard_normal(x.shape).astype("float32")
    np.testing.assert_array_equal(compiled(noise)[0], plain(noise)[0])
    assert compiled.counts[0, 1] == 0
