"""A training step compiled for AArch64 and run under emulation computes what it computes here."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import tvm
from tvm import relax

from adr_tvm._tvm import cpu_target, tensor_type
from adr_tvm.build import build_module
from adr_tvm.gradients import register_all
from adr_tvm.models.chain import build_chain, he_normal
from adr_tvm.passes import pipeline
from adr_tvm.passes.append_updates import CONTROL_NAME, STEP, Update
from adr_tvm.settings import ReuseSetting
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import SGD, AdamW
from adr_tvm.train.stage import LayerReuse
from tests import aarch64

BATCH = 3
SHAPES = {
    "conv1.weight": (8, 3, 3, 3),
    "bn1.scale": (8,),
    "bn1.bias": (8,),
    "bn1.mean": (8,),
    "bn1.variance": (8,),
    "conv2.weight": (12, 8, 3, 3),
    "conv2.bias": (12,),
    "conv3.weight": (12, 1, 3, 3),
    "conv3.bias": (12,),
    "fc1.weight": (16, 12 * 3 * 3),
    "fc1.bias": (16,),
    "logits.weight": (5, 16),
    "logits.bias": (5,),
}
LAYERS = [
    ("Conv", "conv1", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("BatchNormalization", "bn1", {"epsilon": 1e-3, "momentum": 0.8}),
    ("Relu", "relu1", {}),
    ("MaxPool", "pool1", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("LRN", "norm1", {"size": 5, "alpha": 0.5, "beta": 0.75, "bias": 2.0}),
    ("Conv", "conv2", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("Relu", "relu2", {}),
    ("Conv", "conv3", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": 12}),
    ("LeakyRelu", "relu3", {"alpha": 0.1}),
    ("AveragePool", "pool2", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Flatten", "flatten", {"axis": 1}),
    ("Gemm", "fc1", {"transB": 1}),
    ("Relu", "relu4", {}),
    ("Dropout", "drop", {"ratio": 0.4}),
    ("Gemm", "logits", {"transB": 1}),
]
STAGES = {
    "dense": ({}, SGD(momentum=0.9, nesterov=True, weight_decay=1e-3)),
    "reuse": (
        {
            "conv2": LayerReuse(ReuseSetting("pixel", L=8, H=6, hash="gaussian", scope="batch"), "averaged"),
            "fc1": LayerReuse(ReuseSetting("segment", L=12, H=5, hash="gaussian", scope="batch"), "straight-through"),
        },
        AdamW(weight_decay=1e-2),
    ),
}

needs_emulator = pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing()))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "network.onnx"
    onnx.save(build_chain("network", LAYERS, he_normal(SHAPES, seed=1), (3, 12, 12), 5), path)
    return path


def compiled_step(path, target, stage, optimizer):
    """(the network, names and types of the parameters of ``step``, executable)."""
    register_all()
    network = TrainingNetwork(path, target)
    variables = network.variables()
    updates = [
        Update(variables[name].name, optimizer.kernel(math.prod(shape)), tuple(optimizer.slots))
        for name, shape in network.parameters.items()
    ]
    passes = pipeline.train(stage, 0.1, [v.name for v in variables.values()], updates)
    mod = pipeline.run(passes, network.with_batch(BATCH), target)
    return network, list(mod[STEP].params), build_module(mod, target)


def arguments(network, params):
    """A value for each parameter of ``step``."""
    rng = np.random.default_rng(0)
    initial = network.initial_parameters()
    weights = {var.name: initial[name] for name, var in network.variables().items()}
    values = []
    for var in params:
        shape, dtype = [int(d) for d in var.ty.shape], str(var.ty.dtype)
        if var.name in weights:
            value = weights[var.name]
        elif var.name == "labels":
            value = rng.integers(0, 5, shape)
        elif dtype == "int64":
            value = np.array([1 << 33 | 5])
        elif var.name == CONTROL_NAME:
            value = np.array([0.01, 3, 1, 1])
        elif "_" in var.name:
            value = np.abs(0.01 * rng.standard_normal(shape))  # the optimizer's state
        else:
            value = rng.standard_normal(shape)
        values.append(np.ascontiguousarray(value, dtype))
    return values


def flat(result):
    if isinstance(result, tvm.runtime.Tensor):
        return [result.numpy()]
    return [array for field in result for array in flat(field)]


@needs_emulator
@pytest.mark.parametrize("name", STAGES)
def test_a_step_gives_what_it_gives_here(name, model, tmp_path):
    """Loss, logits, statistics, counts, updated weights and state.

    The vectors of the two machines have other widths, so sums round differently; both are fp32: 1e-5 of the largest.
    """
    stage, optimizer = STAGES[name]
    network, params, here = compiled_step(model, cpu_target(), stage, optimizer)
    values = arguments(network, params)
    tensors = [tvm.runtime.tensor(value) for value in values]
    expected = flat(relax.VirtualMachine(here, tvm.cpu())[STEP](*tensors))
    _, _, there = compiled_step(model, aarch64.target(), stage, optimizer)
    left, found = aarch64.Emulated(there, tmp_path)(STEP, values)
    assert len(found) == len(expected) > len(network.parameters)
    wanted = [*(tensor.numpy() for tensor in tensors), *expected]
    for ours, theirs in zip(wanted, [*left, *found], strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * max(1.0, float(np.abs(ours).max())))
    assert any(not np.array_equal(a, b) for a, b in zip(left, values, strict=True))  # something was learned


def test_kernels_without_a_place_in_a_chain_compile_too():
    """Code for AArch64 of the gradients that the network above does not need."""
    register_all()
    op = relax.op
    images = relax.Var("x", tensor_type([2, 6, 6, 20]))
    weight = relax.Var("w", tensor_type([20, 8, 3, 3]))
    bb = relax.BlockBuilder()
    with bb.function("main", [images, weight]):
        with bb.dataflow():
            larger = bb.emit(op.image.resize2d(images, (9, 12), layout="NHWC", method="linear"))
            wide = bb.emit(
                op.nn.conv2d_transpose(
                    larger, weight, strides=(2, 2), padding=(1, 1), data_layout="NHWC", kernel_layout="IOHW"
                )
            )
            normal = bb.emit(
                op.nn.group_norm(
                    wide, relax.const(np.ones(8, "f4")), relax.const(np.zeros(8, "f4")), 4, channel_axis=3, axes=[1, 2]
                )
            )
            active = bb.emit(op.nn.gelu(normal))
            loss = bb.emit_output(op.sum(op.max(active, [3])))
        bb.emit_func_output(loss)
    mod = relax.transform.Gradient("main")(bb.get())
    assert build_module(relax.transform.DeadCodeElimination()(mod), aarch64.target()) is not None
