"""Small bundles for tests: a network with two reuse layers, and one that reuses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnx_graphs import make_model, weights_of

from adr_tvm.deploy import bundle
from adr_tvm.deploy.linux_bundle import LinuxParts
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, TargetEntry

REUSE = {
    "conv1": ReuseSetting("row", hash="exact"),
    "conv2": ReuseSetting("pixel", L=8, H=6, hash="gaussian", max_clusters=40),
}


def classifier() -> onnx.ModelProto:
    """Two convolutions on x [N, 4, 8, 8], then pooling and a dense layer: y [N, 5]."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "fc", transB=1),
    ]
    weights = weights_of(w1=(16, 4, 3, 3), w2=(8, 16, 3, 3), w3=(5, 8))
    return make_model(nodes, {"x": ["N", 4, 8, 8]}, {"y": ["N", 5]}, weights)


def two_by_two() -> onnx.ModelProto:
    """Inputs a and b [N, 6], outputs a + b and a itself as [N, 2, 3]; nothing to reuse."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"], "add"),
        helper.make_node("Reshape", ["a", "shape"], ["view"], "reshape"),
    ]
    weights = {"shape": np.array([0, 2, 3], "int64")}
    return make_model(nodes, {"a": ["N", 6], "b": ["N", 6]}, {"sum": ["N", 6], "view": ["N", 2, 3]}, weights)


def images(count: int) -> np.ndarray:
    """Inputs x [count, 4, 8, 8] of the classifier whose pixels repeat; image 0 is noise, where none do."""
    rng = np.random.default_rng(1)
    flat = rng.integers(0, 3, size=(count, 4, 8, 8)).astype("float32")
    flat[:, :, 2:] = 1
    flat[0] = rng.standard_normal((4, 8, 8))
    return flat


def make_bundle(
    folder: Path,
    model: onnx.ModelProto,
    settings: Mapping[str, ReuseSetting],
    entry: TargetEntry = TARGETS["cpu"],
    linux: LinuxParts | None = None,
) -> Path:
    """Compile a model into ``folder`` with gaussian planes; the ONNX file lies beside it. Returns that file.

    Args:
        entry: what to compile for.
        linux: what to make a Linux bundle with; None makes none.
    """
    from adr_tvm._tvm import cpu_target
    from adr_tvm.build import build_plan, canonical_module
    from adr_tvm.frontend.onnx_model import check_model
    from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
    from adr_tvm.plan import LayerPlan, ReusePlan
    from adr_tvm.planes_file import LayerPlanes

    path = folder.with_suffix(".onnx")
    onnx.save(model, path)
    target, checked = entry.make(None) if entry.foreign else cpu_target(), check_model(path)
    mod = canonical_module(checked, target)
    rng, layers, planes = np.random.default_rng(0), {}, {}
    for found in find_candidates(mod["main"], "main", CandidateRules()):
        setting, g = settings.get(found.layer), found.geometry
        layers[found.layer] = LayerPlan(found.layer, "reuse" if setting else "dense", setting, "for a test")
        if setting is not None and g is not None and setting.hash != "exact":
            normal = rng.standard_normal((g.segments(setting), g.vector_length(setting), setting.H)).astype("float32")
            planes[found.layer] = LayerPlanes(normal, 0.3 * normal.sum(axis=1))
    plan = ReusePlan(checked.sha256, "cpu", 0, "agreement", None, layers, planes)
    with bundle.staged(folder) as staging:
        bundle.write_bundle(staging, build_plan(mod, plan, target), checked, plan, mod, target, entry, linux)
    return path
