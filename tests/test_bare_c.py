"""Bare C: networks compiled here, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from bundles import classifier, two_by_two
from onnx import helper
from onnx_graphs import make_model, save, weights_of

from adr_tvm.errors import ModelError
from adr_tvm.models.bundled import cifarnet_path
from tests.bare_c import Compiled, needs_gcc, network

pytestmark = needs_gcc
TOLERANCE = 1e-5  # sums of another order


def same_as_onnxruntime(model: Path, folder: Path) -> Compiled:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    given = {
        spec.name: rng.standard_normal([dim if isinstance(dim, int) else 1 for dim in spec.shape]).astype("float32")
        for spec in session.get_inputs()
    }
    compiled = Compiled(network(model), folder)
    for found, expected in zip(compiled(*given.values()), session.run(None, given), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))
    return compiled


def test_bundled_network(tmp_path):
    compiled = same_as_onnxruntime(cifarnet_path(), tmp_path)
    assert compiled.net.graph.outputs == ("logits",), "as the model has it, though a layer has the name, too"
    # Two images of 64 channels at once, and no more: the first layer's, and what pooling leaves of it.
    assert compiled.net.memory.arena_bytes == 4 * (32 * 32 + 16 * 16) * 64


def test_classifier(tmp_path):
    same_as_onnxruntime(save(classifier(), tmp_path), tmp_path)


def test_an_output_that_is_an_input(tmp_path):
    same_as_onnxruntime(save(two_by_two(), tmp_path), tmp_path)


def test_an_output_that_is_another(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu"), helper.make_node("Identity", ["y"], ["z"], "same")]
    same_as_onnxruntime(save(make_model(nodes, {"x": [1, 6]}, {"y": [1, 6], "z": [1, 6]}), tmp_path), tmp_path)


def convolutions():
    """Strides, dilation, uneven pads, groups, a residual, channels that fill no block; two outputs."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"], "a", pads=[1, 2, 0, 1], strides=[2, 1]),
        node("LeakyRelu", ["a"], ["b"], "b", alpha=0.1),
        node("Conv", ["b", "w2"], ["c"], "c", pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("Add", ["b", "c"], ["d"], "d"),
        node("Relu", ["d"], ["e"], "e"),
        node("Conv", ["e", "w3"], ["f"], "f", group=6, pads=[1, 1, 1, 1], strides=[1, 2]),
        node("Conv", ["e", "w4"], ["g"], "g", group=2, strides=[1, 2], pads=[0, 1, 0, 0]),
        node("Concat", ["f", "g"], ["h"], "h", axis=1),
        node("LRN", ["h"], ["i"], "i", size=3, alpha=0.01, beta=0.5),
        node("AveragePool", ["i"], ["j"], "j", kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 1, 1]),
        node("Flatten", ["j"], ["k"], "k"),
        node("Gemm", ["k", "w5", "b5"], ["l"], "l", transB=1),
        node("Softmax", ["l"], ["y"], "y"),
    ]
    weights = weights_of(w1=(6, 3, 3, 4), w2=(6, 6, 3, 3), w3=(6, 1, 3, 3), w4=(10, 3, 1, 2), w5=(7, 96), b5=(7,))
    return make_model(nodes, {"x": [1, 3, 9, 11]}, {"y": [1, 7], "j": [1, 16, 2, 3]}, weights)


def test_convolutions_of_every_kind(tmp_path):
    same_as_onnxruntime(save(convolutions(), tmp_path), tmp_path)


def test_operators_without_c_code_are_named_all_at_once(tmp_path):
    nodes = [
        helper.make_node("Erf", ["x"], ["a"], "first"),
        helper.make_node("CumSum", ["a", "axis"], ["b"], "second"),
        helper.make_node("Erf", ["b"], ["y"], "third"),
    ]
    model = make_model(nodes, {"x": ["N", 5]}, {"y": ["N", 5]}, {"axis": np.array(1, "int64")})
    with pytest.raises(ModelError) as caught:
        network(save(model, tmp_path))
    assert "cumsum: second; erf: first, third" in str(caught.value)
