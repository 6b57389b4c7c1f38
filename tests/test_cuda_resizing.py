"""Gradients of resizing for CUDA, emulated."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from cuda_emulator import emulated_cuda
from cuda_harness import TARGET
from kernel_harness import close
from tvm import relax

from adr_tvm._tvm import tensor_type
from adr_tvm.build import build_module
from adr_tvm.gradients import register_all, resize


@pytest.mark.parametrize(
    ("size", "out", "how"),
    [((5, 4), (10, 7), ("linear", "half_pixel", "")), ((6, 5), (3, 8), ("nearest_neighbor", "asymmetric", "floor"))],
)
def test_gradients(size, out, how):
    """dX = A_H^T dY A_W."""
    register_all()
    dy = np.random.default_rng(0).standard_normal((2, *out, 3)).astype(np.float32)
    readings = [resize.reading(*axis, *how) for axis in zip(size, out, strict=True)]
    tables = [relax.const(table) for reading in readings for table in resize.gathering(reading)]
    bb, given = relax.BlockBuilder(), relax.Var("dy", tensor_type(dy.shape))
    with bb.function("main", [given]):
        bb.emit_func_output(bb.emit(relax.Call(tvm.ir.Op.get(resize.RESIZE_GRAD), [given, *tables])))
    with emulated_cuda():
        machine = relax.VirtualMachine(build_module(bb.get(), TARGET), tvm.cuda())
        found = machine["main"](tvm.runtime.tensor(dy, tvm.cuda()))
    close(found.numpy(), np.einsum("yp,byxc,xq->bpqc", readings[0], dy, readings[1]))
