"""Ids carried through a network: found once, used by every lossless layer behind, with the same bits as dense."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from onnx import helper
from onnx_graphs import make_model
from tvm import relax

from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_plan, canonical_module
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.passes import pipeline
from adr_tvm.passes.fuse_lrn import FuseLrn
from adr_tvm.passes.lower_operators import LowerOperators
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.plan import uniform_plan
from adr_tvm.settings import ReuseSetting

TARGET = cpu_target()
SIDE = 24


def _network(tmp_path, scope: str, *, batch: int | str = "N", skip: tuple[str, ...] = ()):
    """conv 3x3/2, max pool, LRN, 1x1, (1x1 beside 3x3), concat, leaky ReLU, 3x3; all lossless but ``skip``."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "b": (4, 8, 1, 1), "c": (8, 4, 1, 1), "d": (8, 4, 3, 3), "e": (6, 16, 3, 3)}
    weights = {f"{k}w": rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    conv = helper.make_node
    nodes = [
        conv("Conv", ["x", "aw"], ["a0"], "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        conv("Relu", ["a0"], ["a1"], "a_relu"),
        conv("MaxPool", ["a1"], ["p"], "pool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
        conv("LRN", ["p"], ["l"], "lrn", size=3, alpha=0.1),
        conv("Conv", ["l", "bw"], ["b"], "b"),
        conv("Conv", ["b", "cw"], ["c"], "c"),
        conv("Conv", ["b", "dw"], ["d"], "d", pads=[1, 1, 1, 1]),
        conv("Concat", ["c", "d"], ["cd"], "concat", axis=1),
        conv("LeakyRelu", ["cd"], ["r"], "leaky", alpha=0.1),
        conv("Conv", ["r", "ew"], ["y"], "e", pads=[1, 1, 1, 1]),
    ]
    model = make_model(nodes, {"x": [batch, 3, SIDE, SIDE]}, {"y": [batch, 6, SIDE // 2, SIDE // 2]}, weights)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    checked = check_model(path)
    mod = canonical_module(checked, TARGET)
    layers = [c.layer for c in find_candidates(mod["main"], "main", CandidateRules()) if c.layer not in skip]
    setting = ReuseSetting(granularity="row", hash="exact", L=1, H=1, scope=scope)  # type: ignore[arg-type]
    plan = uniform_plan(
        layers, setting, reason="test", model_sha256=checked.sha256, target="cpu", seed=0, metric="none"
    )
    return mod, plan


def _images(count: int) -> np.ndarray:
    """A blank page with a mark on it; one NaN."""
    x = np.full((count, 3, SIDE, SIDE), 0.5, np.float32)
    x[:, :, 3:6, 4:10] = np.random.default_rng(1).standard_normal((count, 3, 3, 6))
    x[0, 1, 20, 19] = np.nan
    return x


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("skip", [(), ("b",)])
def test_same_bits_as_dense(tmp_path, scope, skip):
    mod, plan = _network(tmp_path, scope, skip=skip)
    machine = relax.VirtualMachine(build_plan(mod, plan, TARGET), tvm.cpu())
    for count in (1, 3):
        x = tvm.runtime.tensor(_images(count))
        y, stats = machine["main_counts"](x)
        reused = [s.numpy()[:, 1].all() for s in stats]
        # Behind a layer that is not lossless data are looked at again, and by then hardly repeat.
        assert reused[0] if skip else all(reused)
        np.testing.assert_array_equal(y.numpy().view(np.int32), machine["dense"](x).numpy().view(np.int32))


def test_data_are_hashed_once(tmp_path):
    mod, plan = _network(tmp_path, "image")
    rewritten = FuseLrn()(pipeline.run(pipeline.rewrite(plan), mod, TARGET))
    script = LowerOperators(TARGET)(rewritten).script(show_meta=False)
    body = script[script.index("def main(") :].partition("def main_counts(")[0]
    assert body.count("cls.adr_row_cluster") == 1
    # The windows of the pool and of the two 3x3 convolutions; 1x1 convolutions take the ids as they are.
    assert body.count("cls.adr_row_combine") == 3
    assert body.count("cls.adr_expand") == 1, "only what the network returns"


def test_images_without_repeats_run_dense_throughout(tmp_path):
    mod, plan = _network(tmp_path, "image", batch=2)
    machine = relax.VirtualMachine(build_plan(mod, plan, TARGET), tvm.cpu())
    x = tvm.runtime.tensor(np.random.default_rng(2).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32))
    y, stats = machine["main_counts"](x)
    assert not any(s.numpy()[:, 1].any() for s in stats)
    np.testing.assert_array_equal(y.numpy().view(np.int32), machine["dense"](x).numpy().view(np.int32))
