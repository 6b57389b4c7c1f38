"""Gradients of a convolution: ours through the whole pipeline, torch's, and modules that call them."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from tvm import relax

from adr_tvm._tvm import cpu_target, tensor_type
from adr_tvm.build import build_module
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import register_all
from adr_tvm.gradients.conv2d import conv2d_input_grad, conv2d_weight_grad

register_all()


def gradient_module(geometry: ConvGeometry, batch: int, groups: int = 1) -> tvm.IRModule:
    """``main(x, w, dz) -> (dw, dx)``; the geometry is that of one group."""
    g = geometry
    shapes = (
        [batch, g.H, g.W, g.C * groups],
        [g.KH, g.KW, g.C, g.M * groups],
        [batch, g.OH, g.OW, g.M * groups],
    )
    x, w, dz = (relax.Var(name, tensor_type(shape)) for name, shape in zip(("x", "w", "dz"), shapes, strict=True))
    common = {"strides": g.strides, "padding": g.padding, "dilation": g.dilation, "groups": groups}
    bb = relax.BlockBuilder()
    with bb.function("main", [x, w, dz]):
        with bb.dataflow():
            dw = bb.emit(conv2d_weight_grad(x, dz, kernel=(g.KH, g.KW), **common))
            dx = bb.emit(conv2d_input_grad(dz, w, input=(g.H, g.W), **common))
            both = bb.emit_output(relax.Tuple([dw, dx]))
        bb.emit_func_output(both)
    return bb.get()


def sample(geometry: ConvGeometry, batch: int, groups: int = 1, seed: int = 0) -> list[np.ndarray]:
    """x, w and dz of order 1."""
    g, rng = geometry, np.random.default_rng(seed)
    shapes = (
        (batch, g.H, g.W, g.C * groups),
        (g.KH, g.KW, g.C, g.M * groups),
        (batch, g.OH, g.OW, g.M * groups),
    )
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def run_module(mod: tvm.IRModule, *arrays: np.ndarray) -> list[np.ndarray]:
    """What ``main`` returns, compiled for this machine."""
    vm = relax.VirtualMachine(build_module(mod, cpu_target()), tvm.cpu())
    return [t.numpy() for t in vm["main"](*map(tvm.runtime.tensor, arrays))]


def gradients(geometry: ConvGeometry, x: np.ndarray, w: np.ndarray, dz: np.ndarray, groups: int = 1):
    """(dw, dx) of this project."""
    return run_module(gradient_module(geometry, len(x), groups), x, w, dz)


def expected(geometry: ConvGeometry, x: np.ndarray, w: np.ndarray, dz: np.ndarray, groups: int = 1):
    """(dw, dx) of torch, in float64."""
    g = geometry
    top, left, bottom, right = g.padding
    xt = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    wt = torch.tensor(w, dtype=torch.float64).permute(3, 2, 0, 1).requires_grad_()
    padded = torch.nn.functional.pad(xt, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(padded, wt, stride=g.strides, dilation=g.dilation, groups=groups)
    y.backward(torch.tensor(dz, dtype=torch.float64).permute(0, 3, 1, 2))
    assert xt.grad is not None and wt.grad is not None
    return wt.grad.permute(2, 3, 1, 0).numpy(), xt.grad.permute(0, 2, 3, 1).numpy()


def check(geometry: ConvGeometry, batch: int, groups: int = 1, seed: int = 0) -> None:
    """Ours against torch."""
    arrays = sample(geometry, batch, groups, seed)
    for found, wanted in zip(gradients(geometry, *arrays, groups), expected(geometry, *arrays, groups), strict=True):
        assert found.shape == wanted.shape
        # Sums of n products of order 1 in fp32: about n roundings of 6e-8 relative to a sum of order sqrt(n).
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))
