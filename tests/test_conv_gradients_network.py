"""Relax's differentiation of a small network of our convolutions and dense layers, against torch's."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from relax_modules import operators
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import cpu_target, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.build import build_module
from adr_tvm.gradients import register_all

register_all()

SHAPES = {
    "w1": (5, 5, 3, 16),
    "b1": (16,),
    "w2": (3, 3, 4, 24),  # four groups
    "b2": (24,),
    "w3": (3, 3, 24, 20),
    "b3": (20,),
    "w4": (4 * 4 * 20, 10),
    "b4": (10,),
}


def network() -> tvm.IRModule:
    """Two images 16x16x3 -> conv 5x5/2, grouped 3x3, 3x3/2, dense; loss = sum of (output * target)."""
    x, target = relax.Var("x", tensor_type([2, 16, 16, 3])), relax.Var("target", tensor_type([2, 10]))
    p = {name: relax.Var(name, tensor_type(shape)) for name, shape in SHAPES.items()}
    bb = relax.BlockBuilder()
    with bb.function("main", [x, target, *p.values()]):
        with bb.dataflow():
            relu, leaky = Activation.relu(), Activation("leaky_relu", slope=0.1)
            y = bb.emit(
                ops.conv2d(x, p["w1"], p["b1"], name="1", strides=(2, 2), padding=(2, 2, 2, 2), activation=relu)
            )
            y = bb.emit(ops.conv2d(y, p["w2"], p["b2"], name="2", padding=(1, 1, 1, 1), groups=4, activation=leaky))
            y = bb.emit(ops.conv2d(y, p["w3"], p["b3"], name="3", strides=(2, 2), padding=(1, 1, 1, 1)))
            y = bb.emit(relax.op.reshape(y, relax.ShapeExpr([2, 320])))
            y = bb.emit(ops.dense(y, p["w4"], p["b4"], name="4", activation=Activation.relu6()))
            loss = bb.emit_output(bb.emit(relax.op.sum(relax.op.multiply(y, target))))
        bb.emit_func_output(loss)
    return bb.get()


def adjoint(require: list[str]) -> tvm.IRModule:
    """The network with ``main_adjoint``, which returns the gradients of some parameters."""
    mod = network()
    wanted = [v for v in mod["main"].params if v.name in require]
    return relax.transform.Gradient("main", wanted)(mod)


def torch_gradients(x, target, parameters):
    t = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in parameters.items()}
    conv = torch.nn.functional.conv2d

    def weight(name):
        return t[name].permute(3, 2, 0, 1)

    y = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    t = {"x": y, **t}
    y = torch.relu(conv(y.permute(0, 3, 1, 2), weight("w1"), t["b1"], stride=2, padding=2))
    y = torch.nn.functional.leaky_relu(conv(y, weight("w2"), t["b2"], padding=1, groups=4), 0.1)
    y = conv(y, weight("w3"), t["b3"], stride=2, padding=1)
    y = torch.nn.functional.relu6(y.permute(0, 2, 3, 1).reshape(2, 320) @ t["w4"] + t["b4"])
    (y * torch.tensor(target)).sum().backward()
    return {name: v.grad.numpy() for name, v in t.items()}


def sample():
    rng = np.random.default_rng(0)
    parameters = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype("float32")
        for name, shape in SHAPES.items()
    }
    return (
        rng.standard_normal((2, 16, 16, 3), np.float32),
        rng.standard_normal((2, 10), np.float32),
        parameters,
    )


def test_a_network_against_torch():
    x, target, parameters = sample()
    names = ["x", *SHAPES]
    vm = relax.VirtualMachine(build_module(adjoint(names), cpu_target()), tvm.cpu())
    _, found = vm["main_adjoint"](*map(tvm.runtime.tensor, (x, target, *parameters.values())))
    wanted = torch_gradients(x, target, parameters)
    for name, gradient in zip(names, found, strict=True):
        # Sums of up to some hundred products of order 1 in fp32, through four layers.
        scale = float(np.abs(wanted[name]).max())
        np.testing.assert_allclose(gradient.numpy(), wanted[name], rtol=0, atol=2e-6 * scale, err_msg=name)


def test_the_gradient_of_the_data_is_not_computed_unless_asked_for():
    mod = relax.transform.DeadCodeElimination()(adjoint(list(SHAPES)))
    found = operators(mod, "main_adjoint")
    assert found.count("adr.conv2d_weight_grad") == 4
    assert found.count("adr.conv2d_input_grad") == 3
