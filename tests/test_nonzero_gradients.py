"""Gradients that skip zeros have the bits of the dense kernels, whatever dZ looks like."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from conv_gradients import gradient_module, run_module, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import GEOMETRIES
from test_kernel_properties import SEARCH, geometries
from tvm import relax

from adr_tvm._tvm import calls, cpu_target, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.build import build_module
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import nonzero
from adr_tvm.gradients.conv2d import conv2d_weight_grad
from adr_tvm.gradients.epilogue import epilogue_grad
from adr_tvm.models.cifarnet import build_cifarnet
from adr_tvm.passes.fuse_epilogue_gradient import FuseEpilogueGradient
from adr_tvm.passes.skip_zeros import SkipZeros
from adr_tvm.schedules.nonzero_lists import nonzero_lists
from adr_tvm.schedules.nonzero_weight_gradient import can_skip_zeros
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import SGD
from adr_tvm.train.state import TrainingState
from adr_tvm.train.step import TrainingStep

WIDE = ConvGeometry(9, 11, 140, 3, 2, 70, padding=(1, 0, 1, 1))  # several blocks of channels
EVEN = ConvGeometry(8, 8, 16, 3, 3, 24, padding=(1, 1, 1, 1))


def with_zeros(dz: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """dz of which only a share is left, some zeros negative."""
    rng = np.random.default_rng(seed)
    zeros = np.where(rng.random(dz.shape) < 0.5, np.float32(0), np.float32(-0.0))
    return np.where(rng.random(dz.shape) < share, dz, zeros)


def check(geometry: ConvGeometry, batch: int, share: float, seed: int = 0) -> None:
    """Both gradients with and without skipping."""
    x, w, dz = sample(geometry, batch, seed=seed)
    dz = with_zeros(dz, share, seed)
    mod = gradient_module(geometry, batch)
    skipping = SkipZeros()(mod)
    assert len(calls(skipping["main"], nonzero.NONZEROS)) == int(can_skip_zeros(geometry, batch))
    for found, wanted in zip(run_module(skipping, x, w, dz), run_module(mod, x, w, dz), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["stride_over_kernel", "5x5_stride2", "asymmetric", "dilation2", "wide_padding"])
def test_geometries(name):
    check(GEOMETRIES[name], 3, 0.15)


@pytest.mark.parametrize(("geometry", "share"), [(WIDE, 0.1), (EVEN, 0.0), (EVEN, 0.6)])
def test_any_share_of_zeros(geometry, share):
    """0.6 is more than is listed: then the dense kernels run."""
    check(geometry, 5, share)


@settings(max_examples=5, **SEARCH)
@given(geometries(), st.integers(2, 4), st.sampled_from([0.02, 0.2, 0.25]), st.integers(0, 2**16))
def test_any_geometry(geometry, batch, share, seed):
    check(geometry, batch, share, seed)


def test_lists_that_are_exactly_full_or_one_short():
    """In one image there are as many entries as are listed at most, then one more."""
    capacity = nonzero_lists(EVEN, 2).capacity
    x, w, dz = sample(EVEN, 2)
    mod = gradient_module(EVEN, 2)
    machines = [relax.VirtualMachine(build_module(m, cpu_target()), tvm.cpu()) for m in (mod, SkipZeros()(mod))]
    for entries in (capacity, capacity + 1):
        some = np.zeros_like(dz)
        some[1].flat[-entries:] = dz[1].flat[-entries:]
        wanted, found = ([t.numpy() for t in m["main"](*map(tvm.runtime.tensor, (x, w, some)))] for m in machines)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
        assert np.abs(wanted[0]).max() > 0


def test_nan_is_no_zero():
    x, w, dz = sample(EVEN, 2)
    dz = with_zeros(dz, 0.1)
    dz[1, 3, 4, 5] = np.nan
    dw, dx = run_module(SkipZeros()(gradient_module(EVEN, 2)), x, w, dz)
    assert np.isnan(dw[..., 5]).any() and np.isnan(dx[1, 3, 4]).all() and np.isfinite(dx[0]).all()


@pytest.mark.parametrize("activation", [Activation.relu(), Activation.relu6(), Activation("leaky_relu", slope=0.1)])
@pytest.mark.parametrize(("share", "M"), [(0.1, 24), (0.1, 7), (0.9, 24)])
def test_a_layer_whose_dz_is_not_written(activation, share, M):
    """The weight gradient of a first layer, with its bias gradient, from the output and its gradient."""
    g, batch = ConvGeometry(13, 9, 3, 5, 5, M, padding=(2, 2, 2, 2)), 6
    x, _, dy = sample(g, batch)
    y = activation.apply(3 * sample(g, batch, seed=1)[2])
    dy = with_zeros(dy, share)
    variables = [relax.Var(name, tensor_type(array.shape)) for name, array in (("x", x), ("y", y), ("dy", dy))]
    bb = relax.BlockBuilder()
    with bb.function("main", variables):
        with bb.dataflow():
            both = bb.emit(epilogue_grad(variables[1], variables[2], activation))
            dz, dbias = (bb.emit(relax.TupleGetItem(both, i)) for i in (0, 1))
            dw = bb.emit(conv2d_weight_grad(variables[0], dz, kernel=(5, 5), padding=g.padding))
            result = bb.emit_output(relax.Tuple([dw, dbias]))
        bb.emit_func_output(result)
    fused = FuseEpilogueGradient()(bb.get())
    skipping = SkipZeros()(fused)
    assert calls(skipping["main"], nonzero.EPILOGUE_NONZEROS)
    for found, wanted in zip(run_module(skipping, x, y, dy), run_module(fused, x, y, dy), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_training_has_the_same_bits(tmp_path):
    """CifarNet, both convolutions: all parameters after some steps."""
    path, batch = tmp_path / "cifarnet.onnx", 8
    onnx.save(build_cifarnet(seed=3), path)
    network, optimizer = TrainingNetwork(path, cpu_target()), SGD(momentum=0.9)
    found = []
    for skip_zeros in (False, True):
        state = TrainingState(network.initial_parameters(), optimizer.slots, {})
        step = TrainingStep(network, {}, optimizer, batch, skip_zeros=skip_zeros)
        rng = np.random.default_rng(0)
        for _ in range(3):
            x = rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)
            step.run(state, x, rng.integers(0, 10, batch).astype(np.int32), 0.01)
        found.append({name: tensor.numpy() for name, tensor in state.parameters.items()})
    for name, wanted in found[0].items():
        np.testing.assert_array_equal(found[1][name], wanted, err_msg=name)


def _digest() -> str:
    """SHA-256 of both gradients of a layer that several tasks share."""
    x, w, dz = sample(WIDE, 11)
    found = hashlib.sha256()
    for array in run_module(SkipZeros()(gradient_module(WIDE, 11)), x, w, with_zeros(dz, 0.1)):
        found.update(array.tobytes())
    return found.hexdigest()


def test_the_number_of_threads_never_changes_a_byte():
    runs = [
        subprocess.run(
            [sys.executable, Path(__file__)],
            env=os.environ | {"TVM_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for threads in ("1", "3")
    ]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) > 60


if __name__ == "__main__":
    print(_digest())
