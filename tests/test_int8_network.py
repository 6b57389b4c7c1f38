"""Networks in int8: close to fp32, and in C the bytes of the NumPy executor, here and on an emulated board."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bundles import classifier, images, make_bundle
from onnx import helper
from onnx_graphs import make_model, save, weights_of

from adr_tvm.bare_c.graph import Graph
from adr_tvm.cli.compile import main
from adr_tvm.errors import ModelError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.int8.executor import reused, run_integer
from adr_tvm.int8.float_operators import run_operator
from adr_tvm.int8.network import quantised
from adr_tvm.int8.quantise import unsupported_reuse
from adr_tvm.plan import ReusePlan
from adr_tvm.settings import ReuseSetting
from tests import mps2
from tests.bare_c import Compiled, needs_gcc, network
from tests.test_bare_c import convolutions

needs_board = pytest.mark.skipif(mps2.missing() is not None, reason=str(mps2.missing()))
REUSE = {
    "conv1": ReuseSetting("row", hash="exact"),
    "conv2": ReuseSetting("pixel", L=8, H=6, hash="gaussian", max_clusters=40),
}


def run_float(graph: Graph, x: np.ndarray) -> np.ndarray:
    values = {graph.inputs[0]: x}
    for operator in graph.operators:
        values[operator.output] = run_operator(graph, operator, values)
    return values[graph.outputs[0]]


def quantised_network(model, x, plan=None):
    """(bare C in int8, its float graph)."""
    net = network(model, plan)
    graph, _ = quantised(net.graph, [{net.graph.inputs[0]: x}], None)
    return type(net)(graph, net.model, net.sha256, net.input_names, net.output_names), net.graph


def smooth_images(count: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.cumsum(rng.standard_normal((count, *shape)), axis=-1).astype("float32")


def residual_network():
    """A residual, an addition, depthwise and strided convolutions, pools, a join, ReLU6, a dense layer."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], "a", pads=[1, 1, 1, 1]),
        node("Clip", ["a", "zero", "six"], ["b"], "b"),
        node("Conv", ["b", "w2"], ["c"], "c", pads=[1, 1, 1, 1]),
        node("Add", ["c", "b"], ["d"], "d"),
        node("Relu", ["d"], ["e"], "e"),
        node("Conv", ["e", "w3"], ["f"], "f", group=6, pads=[1, 1, 1, 1], strides=[2, 2]),
        node("MaxPool", ["e"], ["g"], "g", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Concat", ["f", "g"], ["h"], "h", axis=1),
        node("Conv", ["h", "w4"], ["i"], "i"),
        node("Add", ["f", "i"], ["j"], "j"),
        node("Add", ["j", "g"], ["k"], "k"),
        node("GlobalAveragePool", ["k"], ["l"], "l"),
        node("Flatten", ["l"], ["m"], "m"),
        node("Gemm", ["m", "w5", "b5"], ["y"], "y", transB=1),
    ]
    weights = weights_of(
        w1=(6, 3, 3, 3), b1=(6,), w2=(6, 6, 3, 3), w3=(6, 1, 3, 3), w4=(6, 12, 1, 1), w5=(7, 6), b5=(7,)
    )
    weights |= {"zero": np.float32(0), "six": np.float32(6)}
    return make_model(nodes, {"x": [1, 3, 10, 12]}, {"y": [1, 7]}, weights)


@needs_gcc
def test_integer_operators(tmp_path):
    x = smooth_images(24, 3, 10, 12)
    net, graph = quantised_network(save(residual_network(), tmp_path), x)
    kinds = {operator.kind for operator in net.graph.operators}
    assert {"conv2d", "grouped_conv2d", "add", "max_pool2d", "concat_part", "average", "logits"} <= kinds
    assert "dequantise" not in kinds
    expected, y = run_float(graph, x), run_integer(net.graph, {net.graph.inputs[0]: x})[net.graph.outputs[0]]
    variance = np.square(expected - expected.mean(axis=0)).sum()
    assert np.square(y - expected).sum() < 5e-3 * variance  # eight roundings to 1 in 127
    c = Compiled(net, tmp_path / "c")
    for image, reference in zip(x[:6], y, strict=False):
        np.testing.assert_array_equal(c(image[None])[0][0], reference)


@needs_gcc
def test_what_has_no_integer_kernel_stays_float(tmp_path):
    x = smooth_images(8, 3, 9, 11)
    net, graph = quantised_network(save(convolutions(), tmp_path), x)
    kinds = [operator.kind for operator in net.graph.operators]
    assert kinds.count("quantise") >= 2 and "lrn" in kinds and "softmax" in kinds
    expected, y = run_float(graph, x), run_integer(net.graph, {net.graph.inputs[0]: x})[net.graph.outputs[0]]
    assert np.abs(y - expected).max() < 0.05
    c = Compiled(net, tmp_path / "c")
    np.testing.assert_allclose(c(x[:1])[0], y[:1], rtol=0, atol=1e-5)  # exp and pow of the C library


@pytest.fixture(scope="module")
def reusing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "net"
    model = make_bundle(folder, classifier(), REUSE)
    return model, folder / "plan.json"


@needs_gcc
def test_reuse(reusing, tmp_path):
    model, plan = reusing
    x = images(8)
    net, _ = quantised_network(model, x, ReusePlan.load(plan))
    values = run_integer(net.graph, {net.graph.inputs[0]: x})
    c = Compiled(net, tmp_path / "c")
    for i, image in enumerate(x):
        np.testing.assert_array_equal(c(image[None])[0][0], values[net.graph.outputs[0]][i])
        for layer, counts in zip(net.graph.reuse_layers, c.counts, strict=True):
            expected = reused(layer, values[layer.inputs[0]][i : i + 1])
            assert counts.tolist() == [expected.seen[0], expected.reused[0]]


def test_rows_with_planes_are_refused(tmp_path):
    model = make_bundle(tmp_path / "net", classifier(), {"conv2": ReuseSetting("row", H=4, hash="gaussian")})
    net = network(model, ReusePlan.load(tmp_path / "net"))
    with pytest.raises(ModelError, match=r"layer 'conv2' cannot reuse in int8: row with hash planes"):
        quantised(net.graph, [], None)


def test_ids_of_16_bits():
    fits, larger = (ConvGeometry(H=1, W=width, C=4, KH=1, KW=1, M=8) for width in (65534, 65535))
    setting = ReuseSetting("pixel", L=4, H=8)
    assert unsupported_reuse(fits, setting) == ""
    assert unsupported_reuse(larger, setting) == "65535 neuron vectors in a segment: int8 numbers at most 65534"


@needs_board
def test_board_and_host_give_the_same_bytes(reusing, tmp_path):
    model, plan = reusing
    x = images(8)
    np.savez(tmp_path / "calib.npz", x=x)
    argv = [model, "--target", "cortex-m4", "--emit", "c", "--dtype", "int8", "--calib", tmp_path / "calib.npz"]
    argv += ["--plan", plan, "-o", tmp_path / "c", "-q"]
    assert main([str(each) for each in argv]) == 0
    result = json.loads((tmp_path / "c" / "report.json").read_text())
    assert any(note.startswith("int8, against dense fp32 on 8 calibration samples") for note in result["notes"])
    outputs, counts = zip(*(mps2.run(tmp_path / "c", x, target) for target in TARGETS), strict=True)
    for other in (1, 2):
        np.testing.assert_array_equal(outputs[0], outputs[other])
        np.testing.assert_array_equal(counts[0], counts[other])
    assert counts[0][0, 1, 1] == 0 and counts[0][1:, :, 1].all()  # noise has too many clusters


TARGETS = ("run", "run-cortex-m4", "run-cortex-m7")


@pytest.mark.parametrize(
    "options, said",
    [
        (["--target", "cortex-m4", "--emit", "c"], "--dtype int8 is quantised with calibration data: add --calib"),
        (["--calib", "x.npz"], "--dtype int8 is for --emit c"),
    ],
)
def test_wrong_use_is_said_before_any_work(options, said, capsys):
    assert main(["no-such-model.onnx", "--dtype", "int8", *options]) == 2
    assert said in capsys.readouterr().err
