"""Runs single operators for tests with CUDA kernels, emulated (``cuda_emulator``); see ``kernel_harness``."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import tvm
from cuda_emulator import emulated_cuda, thread_order
from kernel_harness import (
    Guarded,
    Layer,
    Player,
    Run,
    Tensors,
    as_run,
    check,
    close,
    input_shape,
    layer_module,
)
from tvm import tirx

from adr_tvm._tvm import cuda_target
from adr_tvm.hashing.vectors import neuron_vectors
from adr_tvm.passes import pipeline
from adr_tvm.passes.lower_operators import LowerOperators
from adr_tvm.passes.lower_precision import LowerPrecision
from adr_tvm.precision import PRECISIONS
from adr_tvm.reference import reuse_conv2d, reuse_conv2d_given_ids, rounding_band, same_ids
from adr_tvm.reference_ids import number

TARGET = cuda_target("sm_75")
TARGETS_OF = {name: cuda_target(precision.architecture) for name, precision in PRECISIONS.items()}
OBJECT_HEADER = 24  # bytes of a TVM object before what it holds
CUDA_DEVICE, BFLOAT = 2, 4  # kDLCUDA, kDLBfloat
CONFIG = {"tirx.disable_cse_tir": True}


class GuardedOnCuda(Guarded):
    """An array that the kernels take for one on the device."""

    @property
    def tensor(self) -> tvm.runtime.Tensor:
        bfloat16 = str(self.array.dtype) == "bfloat16"  # which NumPy has no word for
        tensor = tvm.runtime.from_dlpack(self.array.view(np.uint16) if bfloat16 else self.array)
        # The DLTensor: address, type and number of the device, dimensions, element type.
        place = tensor.__chandle__() + OBJECT_HEADER
        assert ctypes.c_uint64.from_address(place).value == self.array.ctypes.data
        ctypes.c_int32.from_address(place + 8).value = CUDA_DEVICE
        if bfloat16:
            ctypes.c_uint8.from_address(place + 20).value = BFLOAT
        return tensor


class CudaPlayer(Player):
    """Plays a lowered function with emulated kernels."""

    memory = GuardedOnCuda


_lowered: dict[tuple[Layer, str | None], tuple[Tensors, tvm.IRModule, dict[str, dict[str, object]]]] = {}


def _compiled(layer: Layer, tensors: Tensors, dtype: str | None) -> tuple[tvm.IRModule, dict[str, dict[str, object]]]:
    """The lowered module and its kernels, compiled together."""
    known = _lowered.get((layer, dtype))
    if known is None or known[0] is not tensors:
        module = layer_module(layer, tensors, parameters=False)
        lower = [] if dtype is None else [LowerPrecision(PRECISIONS[dtype])]
        target = TARGET if dtype is None else TARGETS_OF[dtype]
        mod = pipeline.run([*lower, LowerOperators(target)], module, target)
        kernels = {
            gv.name_hint: func.with_attr("global_symbol", gv.name_hint)
            for gv, func in mod.functions_items()
            if isinstance(func, tirx.PrimFunc)
        }
        with target, tvm.transform.PassContext(config=CONFIG):
            built = tvm.compile(tvm.IRModule(kernels), target)
        _lowered[layer, dtype] = tensors, mod, {name: {"main": built[name]} for name in kernels}
    return _lowered[layer, dtype][1:]


def run_cuda(layer: Layer, tensors: Tensors, x: np.ndarray, order: int = 0, dtype: str | None = None) -> Run:
    """Run a layer kernel by kernel on x [B, H, W, C].

    Args:
        layer, tensors, x: what to run.
        order: of the threads of a block.
        dtype: one of ``PRECISIONS``; None: fp32.
    """
    with emulated_cuda(), thread_order(order):
        mod, kernels = _compiled(layer, tensors, dtype)
        player = CudaPlayer(kernels, mod["main"], x.reshape(input_shape(layer, len(x))))
    return as_run(layer, len(x), player.result, player.kernels)


def check_cuda_vectors(layer: Layer, tensors: Tensors, x: np.ndarray, order: int = 0) -> Run:
    """Run a reuse layer of ``pixel`` or ``segment`` and compare ids, counts, centroids, gains and values."""
    name = layer.setting.granularity

    def runner(layer: Layer, tensors: Tensors, x: np.ndarray) -> Run:
        result = run_cuda(layer, tensors, x, order)
        kernels = result.kernels
        gains = kernels[f"{name}_gains"][0] if layer.setting.gain else None
        counts = kernels[f"{name}_match"][0]
        kernels[f"{name}_cluster"] = [kernels[f"{name}_ids"][-1], gains, kernels[f"{name}_means"][0], counts]
        return result

    return check(layer, tensors, x, runner)[0]


def ids_of(layer: Layer, x: np.ndarray, result: Run) -> np.ndarray:
    """The ids [U, 1, N] that the kernels found, as in ``ReuseResult.ids``."""
    lead = result.kernels["row_match"][0]
    finite = np.isfinite(neuron_vectors(x, layer.geometry, layer.setting)).all(axis=(1, 2)).reshape(lead.shape)
    rows = np.broadcast_to(np.arange(lead.shape[1]), lead.shape)
    assert (lead <= rows).all() and (lead[~finite] == rows[~finite]).all()
    ids = np.full(lead.shape, -2, np.int32)
    for u in range(len(lead)):
        assert (lead[u, lead[u]] == lead[u]).all(), "a representative stands for itself"
        ids[u, finite[u]] = number(lead[u, finite[u]])
    return ids[:, None]


def check_cuda(layer: Layer, tensors: Tensors, x: np.ndarray, order: int = 0) -> Run:
    """Run a reuse layer and compare ids, counts, lists, centroids and values with the reference."""
    g, setting = layer.geometry, layer.setting
    result = run_cuda(layer, tensors, x, order)
    arguments = (x, tensors.w, tensors.bias, g, setting)
    expected = reuse_conv2d(*arguments, tensors.planes, tensors.thresholds, layer.activation)
    ids = ids_of(layer, x, result)
    if setting.hash == "exact":
        np.testing.assert_array_equal(ids, expected.ids)
    else:
        band = rounding_band(x, g, setting, tensors.planes, tensors.mu, tensors.thresholds)
        assert same_ids(expected.ids, ids, band, setting)
    given = reuse_conv2d_given_ids(*arguments, ids, layer.activation)
    np.testing.assert_array_equal(result.stats, np.stack([given.clusters.sum(axis=1), given.reused], axis=1))
    close(result.y, given.y)
    _check_lists(layer, result, given, ids)
    return result


def _check_lists(layer: Layer, result: Run, given, ids: np.ndarray) -> None:
    work, source, shared, (listed, numbered) = result.kernels["row_list"]
    lead, N = result.kernels["row_guard"][0], ids.shape[2]
    own = np.flatnonzero((lead == np.arange(N)).reshape(-1))
    np.testing.assert_array_equal(work[:listed], own)
    if layer.setting.hash == "exact":
        assert numbered == 0 and (source[:listed] == -1).all()
        return
    np.testing.assert_array_equal(source[:listed][source[:listed] >= 0], np.arange(numbered))
    np.testing.assert_array_equal(shared[:numbered], work[:listed][source[:listed] >= 0])
    g, means = layer.geometry, result.kernels["row_means"][0]
    for c, row in enumerate(shared[:numbered]):
        expected = given.centroids[row // N][0][ids[row // N, 0, row % N]]
        close(means[c], expected.reshape(g.C, g.KH * g.KW).T.reshape(-1))


@functools.cache
def dense_of(layer: Layer) -> Layer:
    """The same layer without reuse."""
    return Layer(layer.geometry, None, layer.activation, layer.batch, rank=layer.rank)
