"""MarkCandidates and ObserveCandidates: which layers may be rewritten, why not, and what goes into them."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from relax_modules import bind, evaluate, floats, machine, operators
from tvm.script import ir as I
from tvm.script import relax as R

from adr_tvm.passes.fuse_epilogue import FuseEpilogue
from adr_tvm.passes.mark_candidates import CandidateRules, MarkCandidates, find_candidates
from adr_tvm.passes.observe_candidates import ObserveCandidates


@I.ir_module
class Network:
    @R.function
    def main(
        x: R.Tensor((2, 5, 6, 4), "float32"),
        w1: R.Tensor((3, 3, 4, 4), "float32"),
        w2: R.Tensor((3, 3, 1, 4), "float32"),
        w3: R.Tensor((3, 3, 2, 4), "float32"),
        w4: R.Tensor((4, 3), "float32"),
        w5: R.Tensor((4, 3), "float32"),
    ):
        with R.dataflow():
            a = R.nn.conv2d(x, w1, padding=1, data_layout="NHWC", kernel_layout="HWIO")
            b = R.nn.conv2d(a, w2, padding=1, groups=4, data_layout="NHWC", kernel_layout="HWIO")
            c = R.nn.conv2d(b, w3, padding=1, groups=2, data_layout="NHWC", kernel_layout="HWIO")
            d = R.reshape(c, (2, 30, 4))
            e = R.matmul(d, w4)
            f = R.matmul(d, w5)
            g = R.permute_dims(f, [0, 2, 1])
            h = R.matmul(e, g)
            R.output(h)
        return h


WEIGHTS = {"w1": floats(3, 3, 4, 4), "w2": floats(3, 3, 1, 4), "w3": floats(3, 3, 2, 4), "w4": floats(4, 3)}


def marks(mod, **rules) -> dict[str, str]:
    return dict(MarkCandidates(CandidateRules(**rules))(mod).attrs["adr.candidates"])


@pytest.fixture(scope="module")
def fused():
    return FuseEpilogue()(bind(Network, **WEIGHTS))


def test_reasons(fused):
    found = marks(fused)
    assert list(found) == [f"main/op_{i}" for i in range(6)], "indices count every convolution and matrix product"
    expected = ["", "depthwise", "grouped", "", "weights are not constant: bind the parameters", "ranks 3 and 3"]
    for reason, words in zip(found.values(), expected, strict=True):
        assert words in reason and bool(words) == bool(reason)


def test_names_do_not_depend_on_how_much_is_converted(fused):
    before = find_candidates(Network["main"], "main", CandidateRules())
    after = find_candidates(fused["main"], "main", CandidateRules())
    assert [c.layer for c in before] == [c.layer for c in after]
    assert [c.kind for c in before] == [c.kind for c in after]
    assert "FuseEpilogue" in before[0].reason


def test_two_runs_of_fuse_epilogue_change_nothing(fused):
    assert marks(FuseEpilogue()(fused)) == marks(fused)


def test_candidates_carry_their_geometry(fused):
    first, *_ = find_candidates(fused["main"], "main", CandidateRules())
    assert (first.geometry.K, first.geometry.M, first.geometry.rows) == (36, 4, 30)


def test_half_precision():
    @I.ir_module
    class Half:
        @R.function
        def main(x: R.Tensor((2, 4), "float16"), w: R.Tensor((4, 3), "float16")):
            with R.dataflow():
                y = R.matmul(x, w)
                R.output(y)
            return y

    assert marks(FuseEpilogue()(Half)) == {"main/op_0": "dtype float16, only float32 is supported"}


@pytest.mark.parametrize(
    ("rules", "forbidden"),
    [
        ({"skip": ["op_3"]}, {"main/op_3": "skipped by --skip op_3"}),
        ({"only": ["op_3"]}, {"main/op_0": "not named by --only"}),
        ({"only": ["op_0", "op_3$"]}, {}),
        ({"only": ["op_"], "skip": ["^main/op_0$"]}, {"main/op_0": "skipped by --skip ^main/op_0$"}),
        ({"skip": ["nothing"]}, {}),
    ],
)
def test_rules(fused, rules, forbidden):
    found = marks(fused, **rules)
    assert {layer: found[layer] for layer in ("main/op_0", "main/op_3") if found[layer]} == forbidden
    assert "depthwise" in found["main/op_1"], "a reason of the layer's own is told first"


def test_observed_inputs(fused):
    mod = ObserveCandidates(["main/op_3", "main/op_0"])(fused)
    assert operators(mod) == operators(mod, "observe")
    x, w5 = floats(2, 5, 6, 4), floats(4, 3)
    result, inputs = machine(mod)["observe"](tvm.runtime.tensor(x), tvm.runtime.tensor(w5))
    np.testing.assert_array_equal(result.numpy(), evaluate(fused, x, w5))
    assert [tuple(t.shape) for t in inputs] == [(2, 30, 4), (2, 5, 6, 4)]
    np.testing.assert_array_equal(inputs[1].numpy(), x)


def test_observing_a_layer_that_is_not_there(fused):
    with pytest.raises(Exception, match="nowhere"):
        ObserveCandidates(["nowhere"])(fused)
