"""Gradients of Relax operators against torch: ours through the whole pipeline, torch's in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import tvm
from tvm import relax

from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_module
from adr_tvm.gradients import register_all

register_all()

Build = Callable[..., relax.Expr]


def differentiated(build: Build, arrays: Sequence[np.ndarray], integer: Sequence[int] = ()) -> tvm.IRModule:
    """``main_adjoint(arguments, weights) -> ((loss,), gradients)`` of loss = sum of weights * build(bb, arguments).

    Args:
        build: emits the operator under test; its result may be scalar.
        arrays: sample arguments.
        integer: arguments that have no gradient.
    """
    names = [relax.Var(f"a{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arrays)]
    bb = relax.BlockBuilder()
    with bb.function("main", names):
        with bb.dataflow():
            y = bb.emit(build(bb, *names))
            shape = [int(d) for d in y.ty.shape]
            product = bb.emit(relax.op.multiply(y, relax.const(weights(shape))))
            loss = bb.emit_output(relax.op.sum(product))
        bb.emit_func_output(loss)
    mod = bb.get()
    by = [v for i, v in enumerate(mod["main"].params) if i not in integer]
    mod = relax.transform.Gradient("main", require_grads=by)(mod)
    return relax.transform.DeadCodeElimination()(mod)


def weights(shape: Sequence[int]) -> np.ndarray:
    """What the entries of a result are multiplied with before they are summed, of order 1."""
    return np.random.default_rng(99).standard_normal(tuple(shape)).astype(np.float32)


def run(mod: tvm.IRModule, arrays: Sequence[np.ndarray], entry: str = "main_adjoint", target=None):
    """(loss, gradients) of a differentiated module."""
    vm = relax.VirtualMachine(build_module(mod, target or cpu_target()), tvm.cpu())
    loss, gradients = vm[entry](*map(tvm.runtime.tensor, arrays))
    return float(loss.numpy()), [g.numpy() for g in gradients]


def expected(function: Callable[..., torch.Tensor], arrays: Sequence[np.ndarray], integer: Sequence[int] = ()):
    """(loss, gradients) of torch in float64."""
    tensors = [
        torch.tensor(a) if i in integer else torch.tensor(a, dtype=torch.float64, requires_grad=True)
        for i, a in enumerate(arrays)
    ]
    y = function(*tensors)
    loss = (y * torch.tensor(weights(y.shape), dtype=torch.float64)).sum()
    loss.backward()
    return loss.item(), [t.grad.numpy() for i, t in enumerate(tensors) if i not in integer]


def check(
    build: Build,
    function: Callable[..., torch.Tensor],
    arrays: Sequence[np.ndarray],
    integer: Sequence[int] = (),
    tolerance: float = 2e-6,
) -> None:
    """Ours against torch, relative to the largest entry of each gradient.

    A gradient is a sum of a few products of order 1 in fp32, or its operator says otherwise.
    """
    loss, gradients = run(differentiated(build, arrays, integer), arrays)
    wanted_loss, wanted = expected(function, arrays, integer)
    # One running fp32 sum of n products of order 1 loses n roundings of it.
    assert abs(loss - wanted_loss) <= 1e-4 * max(np.sqrt(sum(a.size for a in arrays)), abs(wanted_loss))
    for found, want in zip(gradients, wanted, strict=True):
        assert found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=0, atol=tolerance * max(1e-3, float(np.abs(want).max())))


def nchw(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function of NCHW images applied to an NHWC one."""
    return lambda x, *more: function(x.permute(0, 3, 1, 2), *more).permute(0, 2, 3, 1)


def sample(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
