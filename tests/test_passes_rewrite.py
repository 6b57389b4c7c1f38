"""AdaptiveDeepReuse on a module of one's own, and the entries around it: DenseEntry, ExposeCounts."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from relax_modules import TARGET, bind, bound, floats, operators
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from adr_tvm import ops
from adr_tvm.build import build_module
from adr_tvm.passes.adaptive_deep_reuse import AdaptiveDeepReuse
from adr_tvm.passes.dense_entry import DenseEntry
from adr_tvm.passes.expose_counts import ExposeCounts, counted_layers
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planes_file import LayerPlanes
from adr_tvm.settings import ReuseSetting

LOSSLESS = ReuseSetting("row", hash="exact", L=1, H=1)
HASHED = ReuseSetting("pixel", L=4, H=5, hash="gaussian", max_clusters=100)


@I.ir_module
class Module:
    """A network as a compiler engineer has it: NCHW, no names, weights bound to ``main``."""

    @R.function
    def main(
        x: R.Tensor((2, 3, 8, 6), "float32"),
        w1: R.Tensor((8, 3, 3, 3), "float32"),
        w2: R.Tensor((5, 8, 1, 1), "float32"),
        w3: R.Tensor((6, 7), "float32"),
    ):
        with R.dataflow():
            a = R.nn.conv2d(x, w1, padding=1)
            b = R.nn.relu(a)
            c = R.nn.conv2d(b, w2)
            d = R.mean(c, axis=[1])
            e = R.matmul(d, w3)
            R.output(e)
        return e


def plan(**settings: ReuseSetting) -> ReusePlan:
    layers = {f"main/{op}": LayerPlan(f"main/{op}", "reuse", s, "asked for") for op, s in settings.items()}
    normal = floats(2, 4, 5)
    planes = {layer: LayerPlanes(normal, normal.sum(axis=1)) for layer in layers}
    return ReusePlan("0" * 64, "cpu", 0, "none", None, layers, planes)


@pytest.fixture(scope="module")
def module():
    return bind(Module, w1=floats(8, 3, 3, 3), w2=floats(5, 8, 1, 1), w3=floats(6, 7))


def patterned() -> np.ndarray:
    x = floats(2, 3, 8, 6)
    x[:, :, 1:] = 1
    return x


def test_layers_are_found_by_index(module):
    after = AdaptiveDeepReuse(plan(op_1=HASHED, op_2=LOSSLESS))(module)
    assert [op for op in operators(after) if op.startswith("adr.")] == [
        "adr.conv2d",
        "adr.reuse_conv2d",
        "adr.reuse_dense",
    ]
    conv, dense = (bound(after, f"adr.reuse_{kind}")[0] for kind in ("conv2d", "dense"))
    assert (ops.layer_name(conv), ops.setting_of(conv)) == ("main/op_1", HASHED)
    assert (ops.layer_name(dense), ops.setting_of(dense)) == ("main/op_2", LOSSLESS)
    assert after["main"].ret_ty == module["main"].ret_ty


def test_a_plan_without_layers_changes_no_values(module):
    after = AdaptiveDeepReuse(plan())(module)
    assert not any(op.startswith("adr.reuse") for op in operators(after))


def test_planes_that_do_not_fit(module):
    with pytest.raises(Exception, match=r"main/op_0.*\[S, L, H\] = \(1, 3, 5\)"):
        AdaptiveDeepReuse(plan(op_0=HASHED))(module)


def test_only_the_named_function_is_rewritten(module):
    mod = module.clone()
    mod["other"] = relax.utils.copy_with_new_vars(module["main"]).with_attr("global_symbol", "other")
    after = AdaptiveDeepReuse(plan(op_1=HASHED), function="main")(mod)
    assert bound(after, "adr.reuse_conv2d") and not bound(after, "adr.reuse_conv2d", "other")


def test_no_reuse_no_counts(module):
    dense = AdaptiveDeepReuse(plan())(module)
    tvm.ir.assert_structural_equal(ExposeCounts()(dense), dense)


def test_entries(module):
    """main reuses, dense does not, main_counts tells; lossless and dense agree bit by bit."""
    mod = DenseEntry()(AdaptiveDeepReuse(plan())(module))
    mod = AdaptiveDeepReuse(plan(op_0=LOSSLESS, op_2=LOSSLESS), function="main")(mod)
    assert counted_layers(mod) == ["main/op_0", "main/op_2"]
    assert not any(op.startswith("adr.reuse") for op in operators(mod, "dense"))
    mod = ExposeCounts()(mod)
    machine = relax.VirtualMachine(build_module(mod, TARGET), tvm.cpu())
    x = tvm.runtime.tensor(patterned())
    y, counts = machine["main_counts"](x)
    dense = machine["dense"](x).numpy()
    np.testing.assert_array_equal(machine["main"](x).numpy(), dense)
    np.testing.assert_array_equal(y.numpy(), dense)
    conv, fc = (c.numpy() for c in counts)
    assert conv.shape == fc.shape == (2, 2)
    distinct = [len({row.tobytes() for row in windows(image)}) for image in patterned()]
    assert conv[:, 0].tolist() == distinct and conv[:, 1].tolist() == [1, 1]


def windows(image: np.ndarray) -> np.ndarray:
    """The 3x3 windows of an image [C, H, W], padded by 1."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    return (
        np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).transpose(1, 2, 0, 3, 4).reshape(48, 27)
    )
