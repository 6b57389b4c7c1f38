"""ConvTransposeToConv: every phase, against ONNX Runtime, through the whole pipeline."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import tvm
from onnx import helper
from onnx_graphs import make_model, save, weights_of
from relax_modules import TARGET, bound, close, evaluate, floats, operators
from tvm.script import ir as I
from tvm.script import relax as R

from adr_tvm.build import canonical_module
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.passes.conv_transpose_to_conv import ConvTransposeToConv, phase_weights

CASES = {
    "k3s2p1": dict(kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)),
    "k4s2": dict(kernel=(4, 4), strides=(2, 2), pads=(1, 1, 1, 1)),
    "stride over kernel": dict(kernel=(2, 2), strides=(3, 3), pads=(0, 0, 0, 0)),
    "asymmetric": dict(kernel=(3, 4), strides=(2, 1), pads=(0, 2, 1, 0)),
    "rows that reach no output": dict(kernel=(2, 3), strides=(1, 2), pads=(2, 3, 3, 4)),
}
STAY = {
    "groups": dict(kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), group=2),
    "dilation": dict(kernel=(2, 3), strides=(1, 2), pads=(0, 1, 1, 0), dilations=(2, 2)),
}


def upsampling(kernel, **attrs):
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], "up", **attrs)
    groups = attrs.get("group", 1)
    weights = weights_of(w=(4, 6 // groups, *kernel)) | {"b": floats(6)}
    return make_model([node], {"x": ["N", 4, 7, 6]}, {"y": [None] * 4}, weights)


def compiled(model, folder) -> tvm.IRModule:
    return canonical_module(check_model(save(model, folder)), TARGET)


@pytest.mark.parametrize("case", [*CASES, *STAY])
def test_values(case, tmp_path):
    model = upsampling(**(CASES | STAY)[case])
    mod = compiled(model, tmp_path)
    assert ("adr.conv2d" in operators(mod)) == (case in CASES)
    x = floats(2, 4, 7, 6)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    close(evaluate(mod, x), session.run(None, {"x": x})[0])


def test_it_is_a_candidate_under_its_name(tmp_path):
    mod = compiled(upsampling(**CASES["k4s2"]), tmp_path)
    assert dict(mod.attrs["adr.candidates"]) == {"up": ""}


def test_no_multiply_meets_an_inserted_zero():
    """4x4 at stride 2: four phases of 2x2 taps, as many multiply-adds as there are non-zero products."""
    w = floats(3, 5, 4, 4)
    phases = phase_weights(w, (2, 2))
    assert phases.shape == (2, 2, 3, 20)
    np.testing.assert_array_equal(np.sort(phases.ravel()), np.sort(w.ravel()))


def test_other_layouts_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 5), "float32"), w: R.Tensor((4, 3, 2, 2), "float32")):
            with R.dataflow():
                y = R.nn.conv2d_transpose(x, w, strides=[2, 2])
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(ConvTransposeToConv()(Before), Before)


def test_weights_that_are_parameters_go_back_to_nchw():
    """TVM lowers no other layout."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 4), "float32"), w: R.Tensor((4, 3, 2, 2), "float32")):
            with R.dataflow():
                y = R.nn.conv2d_transpose(x, w, strides=[2, 2], data_layout="NHWC", kernel_layout="IOHW")
                R.output(y)
            return y

    after = ConvTransposeToConv()(Before)
    assert operators(after) == ["permute_dims", "nn.conv2d_transpose", "permute_dims"]
    assert str(bound(after, "nn.conv2d_transpose")[0].attrs.data_layout) == "NCHW"
    assert evaluate(after, floats(1, 5, 5, 4), floats(4, 3, 2, 2)).shape == (1, 10, 10, 3)
