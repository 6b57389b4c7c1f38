"""Reuse in training for CUDA, emulated, against the references (``docs/algorithm.md``, B1 to B8 and B10)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from cuda_emulator import ORDERS, emulated_cuda, thread_order
from cuda_harness import TARGET
from kernel_harness import GEOMETRIES, Layer, close, sample_input, sample_tensors
from onnx import helper
from onnx_graphs import make_model, save, weights_of
from reuse_gradients import check, ids_of, run_dense
from tvm import relax

from adr_tvm._tvm import cpu_target, static_shape
from adr_tvm.activation import Activation
from adr_tvm.build import build_module, code_objects_of
from adr_tvm.cuda import code_objects as code
from adr_tvm.geometry import dense_geometry
from adr_tvm.passes.append_updates import STEP
from adr_tvm.reference import reuse_conv2d_given_ids
from adr_tvm.schedules.cuda import cluster_pieces
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, with_architectures
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import SGD
from adr_tvm.train.stage import LayerReuse
from adr_tvm.train.step import step_module

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


def network():
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"], name="c2", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["y"], name="d3", transB=1),
    ]
    weights = weights_of(w1=(8, 3, 3, 3), w2=(6, 8, 3, 3), b2=(6,), w3=(5, 96), b3=(5,))
    return make_model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]}, weights)


STAGE = {
    "c1": LayerReuse(ReuseSetting("segment", L=9, H=3, hash="gaussian")),
    "c2": LayerReuse(ReuseSetting("pixel", L=4, H=4, hash="gaussian", scope="batch")),
    "d3": LayerReuse(ReuseSetting("pixel", L=12, H=1, hash="gaussian", scope="batch"), "straight-through"),
}


def run_step(path, target, device, orders=(0,)):
    """Loss, logits and counts of clusters of a step, and the tensors that it changes, for orders of threads."""
    mod = step_module(TrainingNetwork(path, target), STAGE, SGD(momentum=0.9), 4)
    machine, rng = relax.VirtualMachine(build_module(mod, target), device), np.random.default_rng(0)
    given = {var.name: rng.standard_normal(static_shape(var)).astype(np.float32) / 2 for var in mod[STEP].params}
    given |= {"labels": np.arange(4, dtype=np.int32), "control": np.array([0.1, 3, 1, 1], np.float32)}
    for order in orders:
        tensors = {var.name: tvm.runtime.tensor(given[var.name], device) for var in mod[STEP].params}
        with thread_order(order):
            out = machine[STEP](*tensors.values())
        yield (
            [each.numpy() for each in list(out)[: 2 + len(STAGE)]],
            {name: tensor.numpy() for name, tensor in tensors.items()},
        )


def test_a_step(tmp_path):
    """What a step finds out, parameters and momenta against the step of processors."""
    path = save(network(), tmp_path)
    ((expected, after),) = run_step(path, cpu_target(), tvm.cpu())
    with emulated_cuda():
        (found, changed), (_, again) = run_step(path, TARGET, tvm.cuda(), ORDERS[:2])
    assert [each.shape for each in found[2:]] == [(4, 2), (1, 2), (1, 2)]
    for a, b in [*zip(found, expected, strict=True), *((changed[name], after[name]) for name in after)]:
        close(a, b, 3e-5)
    assert all(again[name].tobytes() == changed[name].tobytes() for name in changed)


def test_clusters_that_persist_are_refused(tmp_path):
    stage = {"c2": replace(STAGE["c2"], stream=True)}
    mod = step_module(TrainingNetwork(save(network(), tmp_path), TARGET), stage, SGD(), 4)
    with pytest.raises(ValueError, match="c2: clusters that persist over batches have no kernels for CUDA"):
        build_module(mod, TARGET)


@pytest.mark.skipif(not code.has_compiler(), reason="no NVRTC and no nvcc")
def test_a_step_compiles(tmp_path):
    """Without spills, and with shared memory that every architecture has, where layers are narrow too."""
    mod = step_module(TrainingNetwork(save(network(), tmp_path), TARGET), STAGE, SGD(), 4)
    with code_objects_of(with_architectures(TARGETS["cuda"], "sm_75,sm_90")) as used:
        build_module(mod, TARGET)
    sums = [each for each in used if each.kernel.startswith("adr_cluster_sums")]
    assert {each.architecture for each in sums} == {"sm_75", "sm_90"}
    assert all(each.spills == 0 for each in used), used
