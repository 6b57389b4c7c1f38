"""A training step in mixed precision for CUDA, emulated, against the same step for processors, which rounds in fp32."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from cuda_emulator import ORDERS, emulated_cuda, thread_order
from cuda_harness import CONFIG, TARGETS_OF
from kernel_harness import GEOMETRIES, close, sample_input
from onnx import helper
from onnx_graphs import make_model, save, weights_of

from adr_tvm._tvm import cpu_target, device_of
from adr_tvm.build import build_module, code_objects_of
from adr_tvm.cuda import code_objects as code
from adr_tvm.precision import PRECISIONS
from adr_tvm.reference_gradients import reuse_conv2d_gradients
from adr_tvm.schedules.cuda import weight_gradient as kernels
from adr_tvm.schedules.cuda.tensor_weight_gradient import ROWS, tensor_weight_gradient
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, with_architectures
from adr_tvm.train.loss_scaling import LossScaling
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import SGD
from adr_tvm.train.state import TrainingState
from adr_tvm.train.step import TrainingStep, step_module
from tests.test_cuda_kernels import on_device

BATCH, CLASSES = 4, 5


def small_network():
    """All kernels that a data type changes: no image gradient, one of tensor cores, one with strides, a dense layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2", "b2"], ["d"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    weights = weights_of(w1=(8, 3, 3, 3), w2=(6, 8, 3, 3), b2=(6,), w3=(CLASSES, 54), b3=(CLASSES,))
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    weights |= {"scale": ones, "shift": zeros, "mean": zeros, "var": ones}
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, {"y": ["N", CLASSES]}, weights)


def mixed_step(path, target, name):
    """(step, its state) in a data type."""
    net, optimizer = TrainingNetwork(path, target), SGD(momentum=0.9)
    scaling = LossScaling.begin() if name == "fp16" else None
    initial = net.initial_parameters(), optimizer.slots, net.statistics()
    state = TrainingState(*initial, device_of(target), scaling)
    return TrainingStep(net, {}, optimizer, BATCH, precision=PRECISIONS[name]), state


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_step_in_mixed_precision(tmp_path, name):
    """Two steps of processors that round likewise, whose sums have another order: what that turns to the other side of
    a rounding is a few of many terms, far below what rounding itself changes. An overflow changes nothing."""
    path, rng = save(small_network(), tmp_path), np.random.default_rng(0)
    batches = [rng.standard_normal((BATCH, 3, 6, 6)).astype(np.float32) for _ in range(2)]
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    step, state = mixed_step(path, cpu_target(), name)
    losses = [step.run(state, x, labels, 0.1).loss for x in batches]
    with emulated_cuda() as sources:
        on_gpu, found = mixed_step(path, TARGETS_OF[name], name)
        results = [on_gpu.run(found, x, labels, 0.1) for x in batches]
        arrays = found.arrays()
        if name == "fp16":
            assert [each.scale for each in results] == [65536, 65536] and not results[0].skipped
            check_overflow(on_gpu, found, batches[0], labels)
    assert [each.loss for each in results] == pytest.approx(losses, rel=1e-4)
    assert any("adr_multiply" in source for source in sources), "nothing ran on tensor cores"
    for path, expected in state.arrays().items():
        if path.startswith(("parameters", "slots", "statistics")):
            assert np.abs(arrays[path] - expected).max() <= 1e-4 * np.abs(expected).max(), path


def check_overflow(step, state, x, labels):
    """Gradients beyond fp16 leave parameters, optimizer and running statistics as they are; the next step goes on."""
    before = state.arrays()
    state.scaling.scale = 2.0**60
    result = step.run(state, x, labels, 0.1)
    assert result.skipped and result.scale == 2.0**60 and np.isfinite(result.loss)
    after = state.arrays()
    assert (after["loss_scaling"] == [2.0**59, 0, 1]).all() and after["count"] == before["count"] + 1
    for path in before.keys() - {"count", "loss_scaling"}:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    state.scaling.scale = 1024.0
    assert not step.run(state, x, labels, 0.1).skipped
    assert not np.array_equal(state.arrays()["parameters/w2"], before["parameters/w2"])


@pytest.mark.parametrize(("name", "dtype"), [("asymmetric", "bf16"), ("5x5_stride2", "fp16")])
def test_weight_gradients_on_tensor_cores(name, dtype, monkeypatch):
    """The same in 16 bits, the same bytes in every order of threads; products of 16 bits are exact in fp32."""
    monkeypatch.setattr(kernels, "LEAST_ROWS", 48)
    g, precision = GEOMETRIES[name], PRECISIONS[dtype]
    dz = np.random.default_rng(0).standard_normal((3, g.OH, g.OW, g.M)).astype(np.float32)
    given = [precision.rounded(array) for array in (sample_input(g, 3), dz)]
    x, dz = (array.astype(np.float32) for array in given)
    alone = np.broadcast_to(np.arange(3 * g.rows), (1, 1, 3 * g.rows)).astype(np.int32)  # a cluster for each row
    zeros = np.zeros((g.KH, g.KW, g.C, g.M), np.float32)
    expected = reuse_conv2d_gradients(x, zeros, dz, g, ReuseSetting("row", scope="batch"), alone).w
    parts, _ = kernels.parts_of(g, 3, ROWS)
    found = []
    with emulated_cuda():
        with TARGETS_OF[dtype], tvm.transform.PassContext(config=CONFIG):
            func = tensor_weight_gradient.__wrapped__(g, 3, precision).with_attr("global_symbol", "main")
            run = tvm.compile(func, TARGETS_OF[dtype])["main"]
        for order in ORDERS[:2]:
            tensors = [tvm.runtime.empty(array.shape, precision.storage, tvm.cuda()) for array in given]
            for tensor, array in zip(tensors, given, strict=True):
                tensor.copyfrom(array)
            (sums,) = on_device(np.full((parts, g.K, g.M), np.nan, np.float32))
            with thread_order(order):
                run(*tensors, sums)
            found.append(sums.numpy())
    assert parts > 1 and found[0].tobytes() == found[1].tobytes()
    close(found[0].sum(axis=0).reshape(zeros.shape), expected)


@pytest.mark.skipif(not code.has_compiler(), reason="no NVRTC and no nvcc")
def test_a_step_compiles(tmp_path):
    """What tensor cores need, of which an emulator sees nothing, and no register too many."""
    target, precision = TARGETS_OF["fp16"], PRECISIONS["fp16"]
    net = TrainingNetwork(save(small_network(), tmp_path), target)
    mod = step_module(net, {}, SGD(), BATCH, precision=precision)
    with code_objects_of(with_architectures(TARGETS["cuda"], "sm_90")) as used:
        build_module(mod, target, precision=precision)
    gradients = [each for each in used if each.kernel.startswith("adr_weight_gradient")]
    assert gradients and all(each.registers <= 128 for each in gradients)
    assert all(each.spills == 0 for each in used), used
