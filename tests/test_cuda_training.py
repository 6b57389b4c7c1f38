"""A training step for CUDA, emulated, against the same step for processors."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from cuda_emulator import ORDERS, emulated_cuda, thread_order
from cuda_harness import TARGET
from kernel_harness import GEOMETRIES, close, sample_input
from onnx import helper
from onnx_graphs import make_model, save, weights_of
from tvm import relax

from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_module, code_objects_of
from adr_tvm.cuda import code_objects as code
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.append_updates import STEP
from adr_tvm.passes.lowering_cuda_gradients import transposed_geometry
from adr_tvm.reference_gradients import reuse_conv2d_gradients
from adr_tvm.schedules import dropout
from adr_tvm.schedules.cuda import dropout as cuda_dropout
from adr_tvm.schedules.cuda import weight_gradient as kernels
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, with_architectures
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import SGD, Adam, AdamW
from adr_tvm.train.step import step_module
from tests.test_cuda_kernels import compiled, on_device

BATCH, CLASSES = 4, 5


def network():
    """Convolutions with strides and without, one by groups, batch norm, LRN, both poolings, a dense layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], epsilon=1e-3),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("LRN", ["d"], ["e"], size=3, alpha=0.3, beta=0.75, bias=1.0),
        helper.make_node("Conv", ["e", "w2", "b2"], ["f"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Conv", ["g", "w3", "b3"], ["h"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["h"], ["i"], kernel_shape=[2, 2], strides=[1, 1]),
        helper.make_node("Flatten", ["i"], ["j"]),
        helper.make_node("Gemm", ["j", "w4", "b4"], ["y"], transB=1),
    ]
    weights = weights_of(
        w1=(8, 3, 3, 3), w2=(6, 8, 3, 3), b2=(6,), w3=(6, 3, 3, 3), b3=(6,), w4=(CLASSES, 24), b4=(CLASSES,)
    )
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    weights |= {"scale": ones, "shift": zeros, "mean": zeros, "var": ones}
    return make_model(nodes, {"x": ["N", 3, 12, 12]}, {"y": ["N", CLASSES]}, weights)


def run_step(path, target, device, optimizer, orders=(0,)):
    """(loss, logits, mean, variance) of a step, and the parameters and slots that it changed, for orders of threads."""
    net = TrainingNetwork(path, target)
    mod = step_module(net, {}, optimizer, BATCH, label_smoothing=0.1)
    machine = relax.VirtualMachine(build_module(mod, target), device)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    given = {"labels": labels, "control": np.array([0.1, 3, 1, 1], np.float32)}
    names = [var.name for var in mod[STEP].params]
    given[names[0]] = rng.standard_normal((BATCH, 3, 12, 12)).astype(np.float32)
    initial = net.initial_parameters()
    given |= {f"running{i}": rng.standard_normal(8).astype(np.float32) for i in range(2)}
    for name, variable in net.variables().items():
        given[variable.name] = initial[name]
        for slot in optimizer.slots:
            given[f"{variable.name}_{slot}"] = rng.standard_normal(net.parameters[name]).astype("float32")
    for order in orders:
        tensors = {name: tvm.runtime.tensor(given[name], device) for name in names}
        with thread_order(order):
            out = machine[STEP](*tensors.values())
        changed = {name: tensors[name].numpy() for name in names if name not in ("labels", "control", names[0])}
        yield [each.numpy() for each in list(out)[:4]], changed


def test_a_step(tmp_path):
    """Loss, logits, statistics, parameters and the optimizer's state; the same bytes in every order of threads."""
    path, optimizer = save(network(), tmp_path), SGD(momentum=0.9, nesterov=True, weight_decay=1e-2)
    ((expected, after),) = run_step(path, cpu_target(), tvm.cpu(), optimizer)
    with emulated_cuda():
        (found, changed), (_, again) = run_step(path, TARGET, tvm.cuda(), optimizer, ORDERS[:2])
    assert all(again[name].tobytes() == changed[name].tobytes() for name in changed)
    assert len(found) == 4
    for a, b in zip(found, expected, strict=True):
        close(a, b)
    assert changed.keys() == after.keys() and len(after) == 20
    for name in after:
        close(changed[name], after[name], 3e-5)


@pytest.mark.parametrize("optimizer", [SGD(), Adam(weight_decay=0.1), AdamW()], ids=["sgd", "adam", "adamw"])
def test_updates(optimizer):
    """Those of processors, to the last bit but what double precision's power leaves open."""
    rng, size = np.random.default_rng(0), 300
    arrays = [np.abs(rng.standard_normal(size)).astype(np.float32) for _ in range(len(optimizer.slots) + 2)]
    arrays += [np.array([0.1, 3, 0.25, 1], np.float32)]
    expected = [tvm.runtime.tensor(array) for array in arrays]
    tvm.compile(optimizer.kernel(size).with_attr("global_symbol", "main"), cpu_target())["main"](*expected)
    with emulated_cuda():
        found = on_device(*arrays)
        compiled(optimizer.kernel(size, gpu=True))(*found)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=3e-8)
    assert not np.array_equal(found[0].numpy(), arrays[0])


def test_dropout():
    """The mask of processors, bit by bit."""
    x, seed = np.random.default_rng(0).standard_normal(300).astype(np.float32), np.array([(7 << 32) + 3], np.int64)
    expected = tvm.runtime.tensor(np.zeros(300, np.float32))
    make = dropout.dropout(300, 0.3, 2).with_attr("global_symbol", "main")
    tvm.compile(make, cpu_target())["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(seed), expected)
    with emulated_cuda():
        *given, found = on_device(x, seed, np.full(300, np.nan, np.float32))
        compiled(cuda_dropout.dropout(300, 0.3, 2))(*given, found)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    assert 50 < (found.numpy() == 0).sum() < 130


@pytest.mark.parametrize("name", ["3x3", "asymmetric", "5x5_stride2"])
def test_weight_gradients_in_parts(name, monkeypatch):
    """Several parts, whose last is short; rows, entries and channels that fill no tile."""
    monkeypatch.setattr(kernels, "LEAST_ROWS", 48)
    g = GEOMETRIES[name]
    x, rng = sample_input(g, 3), np.random.default_rng(0)
    dz = rng.standard_normal((3, g.OH, g.OW, g.M)).astype(np.float32)
    w = np.zeros((g.KH, g.KW, g.C, g.M), np.float32)
    alone = np.broadcast_to(np.arange(3 * g.rows), (1, 1, 3 * g.rows)).astype(np.int32)  # a cluster for each row
    setting = ReuseSetting("row", scope="batch")
    expected = reuse_conv2d_gradients(x, w, dz, g, setting, alone).w
    parts, _ = kernels.parts_of(g, 3)
    assert parts > 1 or g.rows < 32
    with emulated_cuda():
        *given, sums, dw = on_device(
            x, dz, np.full((parts, g.K, g.M), np.nan, np.float32), np.full(w.shape, np.nan, np.float32)
        )
        compiled(kernels.weight_gradient.__wrapped__(g, 3))(*given, sums)
        compiled(kernels.sum_parts(parts, w.shape))(sums, dw)
    close(dw.numpy(), expected)


def test_input_gradients_are_convolutions_without_strides():
    g = ConvGeometry(9, 8, 4, 3, 3, 6, padding=(1, 1, 1, 1), dilation=(2, 2))
    turned = transposed_geometry(g)
    assert (turned.OH, turned.OW, turned.C, turned.M) == (9, 8, 6, 4) and turned.padding == (3, 3, 3, 3)
    assert transposed_geometry(GEOMETRIES["5x5_stride2"]) is None
    assert transposed_geometry(GEOMETRIES["wide_padding"]) is None, "more padding than the window has taps"


@pytest.mark.skipif(not code.has_compiler(), reason="no NVRTC and no nvcc")
def test_a_step_compiles(tmp_path):
    net = TrainingNetwork(save(network(), tmp_path), TARGET)
    mod = step_module(net, {}, SGD(), BATCH)
    with code_objects_of(with_architectures(TARGETS["cuda"], "sm_80")) as used:
        build_module(mod, TARGET)
    (gradient, *_) = [each for each in used if each.kernel.startswith("adr_weight_gradient")]
    assert gradient.spills == gradient.stack == 0 and gradient.registers <= 128
    assert all(each.spills == 0 for each in used), used
