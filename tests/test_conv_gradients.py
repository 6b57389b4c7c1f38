"""Gradients of convolutions and dense layers against torch: many geometries, threads, schedules, other processors."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from conv_gradients import check, gradient_module, gradients, run_module, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import GEOMETRIES
from test_kernel_properties import SEARCH, geometries
from tvm import relax
from tvm.target import Target

from adr_tvm._tvm import calls, cpu_target, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.build import build_module
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.gradients.conv2d import conv2d_input_grad, conv2d_weight_grad
from adr_tvm.gradients.epilogue import epilogue_grad
from adr_tvm.passes.fuse_epilogue_gradient import FuseEpilogueGradient
from adr_tvm.schedules.register_tile import AVX2, AVX512, NEON, SSE, RegisterTile, isa_of
from adr_tvm.schedules.tuned import KernelShape
from adr_tvm.schedules.weight_gradient_schedule import (
    default_weight_gradient_schedule,
    layout_of,
    parts_of,
    vector_lanes,
    weight_gradient_tiles,
)
from adr_tvm.tuning.needed import needed_kernels
from adr_tvm.tuning.trial import Trial
from adr_tvm.tuning.weight_gradient import WeightGradientTask

CORTEX_A72 = Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "mattr": ["+neon"]})
TARGET = cpu_target()
# Several parts, chunks, groups of channels and phases; as a batch and as one image.
THREADED = {
    "batch": (ConvGeometry(15, 14, 140, 3, 3, 150, padding=(1, 1, 1, 1)), 11, 1),
    "image": (ConvGeometry(71, 64, 20, 3, 3, 24, padding=(1, 1, 1, 1)), 1, 1),
    "first": (ConvGeometry(33, 40, 3, 5, 5, 20, padding=(2, 2, 2, 2)), 3, 1),
    "dense": (dense_geometry(1, 700, 130), 9, 1),
    "groups": (ConvGeometry(20, 20, 8, 3, 3, 6, padding=(1, 1, 1, 1)), 3, 2),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_against_torch(name):
    check(GEOMETRIES[name], batch=2)


@pytest.mark.parametrize(
    ("group", "groups"),
    [
        (ConvGeometry(7, 6, 3, 3, 3, 5, padding=(1, 1, 1, 1)), 4),
        (ConvGeometry(9, 8, 1, 3, 3, 1, strides=(2, 2), padding=(1, 1, 1, 1)), 20),
        (ConvGeometry(9, 8, 2, 3, 2, 4, strides=(1, 2), padding=(0, 1, 2, 0), dilation=(2, 1)), 3),
    ],
)
def test_groups(group, groups):
    check(group, batch=3, groups=groups)


@pytest.mark.parametrize(("rows", "K", "M"), [(1, 5, 3), (7, 40, 37), (32, 20, 64), (3, 2, 1)])
def test_dense_layers_of_few_rows(rows, K, M):
    check(dense_geometry(1, K, M), batch=rows)


@settings(max_examples=8, **SEARCH)
@given(geometries(), st.integers(1, 3), st.integers(0, 2**16))
def test_any_geometry(geometry, batch, seed):
    check(geometry, batch, seed=seed)


@pytest.mark.parametrize("name", THREADED)
def test_larger_than_a_chunk(name):
    check(*THREADED[name])


ACTIVATIONS = {
    "linear": (Activation(), lambda z: z),
    "relu": (Activation.relu(), torch.relu),
    "relu6": (Activation.relu6(), torch.nn.functional.relu6),
    "hardtanh": (Activation("clip", -1, 1), torch.nn.functional.hardtanh),
    "leaky_relu": (Activation("leaky_relu", slope=0.1), lambda z: torch.nn.functional.leaky_relu(z, 0.1)),
}


@pytest.mark.parametrize("shape", [(3, 5, 7, 10), (31, 100), (5, 1), (2, 700, 200)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_epilogue(name, shape):
    activation, function = ACTIVATIONS[name]
    z, dy = (3 * np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in (0, 1))
    edges = [0.0, -0.0, 6.0, -1.0, 1.0]
    z.flat[: len(edges)] = edges
    expected = torch.tensor(z, requires_grad=True)
    function(expected).backward(torch.tensor(dy))
    dz, dbias = run_module(epilogue_module(shape, activation), activation.apply(z), dy)
    np.testing.assert_array_equal(dz, expected.grad.numpy())
    sums = dz.reshape(-1, shape[-1]).sum(axis=0, dtype=np.float64)
    np.testing.assert_allclose(dbias, sums, rtol=0, atol=1e-5 * max(1.0, np.abs(sums).max()))


def test_epilogue_hides_no_nan_and_refuses_what_it_cannot_tell():
    y, dy = np.array([[np.nan, 1.0, 0.0]], np.float32), np.array([[np.nan, np.inf, np.inf]], np.float32)
    dz, _ = run_module(epilogue_module((1, 3), Activation.relu()), y, dy)
    np.testing.assert_array_equal(dz, [[np.nan, np.inf, 0.0]])
    with pytest.raises(ValueError, match="slope"):
        epilogue_module((1, 3), Activation("leaky_relu", slope=-0.5))


def epilogue_module(shape, activation) -> tvm.IRModule:
    """``main(y, dy) -> (dz, dbias)``."""
    y, dy = (relax.Var(name, tensor_type(shape)) for name in ("y", "dy"))
    bb = relax.BlockBuilder()
    call = epilogue_grad(y, dy, activation)
    with bb.function("main", [y, dy]):
        with bb.dataflow():
            both = bb.emit_output(bb.emit(call))
        bb.emit_func_output(both)
    return bb.get()


def test_shapes_that_do_not_fit_are_refused():
    x, dz = relax.Var("x", tensor_type([1, 8, 8, 3])), relax.Var("dz", tensor_type([1, 8, 8, 4]))
    with pytest.raises(Exception, match="output 6x6"):
        relax.BlockBuilder().normalize(conv2d_weight_grad(x, dz, kernel=(3, 3)))


@pytest.fixture(scope="module")
def digests() -> dict[int, list[str]]:
    """What this file prints with 1, 2 and 3 threads."""
    processes = {
        threads: subprocess.Popen(
            [sys.executable, Path(__file__)],
            env=os.environ | {"TVM_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in (1, 2, 3)
    }
    outputs = {threads: process.communicate(timeout=900)[0] for threads, process in processes.items()}
    assert all(process.returncode == 0 for process in processes.values())
    return {threads: output.splitlines() for threads, output in outputs.items()}


def test_the_number_of_threads_never_changes_a_byte(digests):
    assert digests[1] == digests[2] == digests[3]
    assert len(set(digests[1])) == len(THREADED) + 1
    assert parts_of(*THREADED["batch"][:2]).count > 1 and parts_of(*THREADED["image"][:2]).bands > 1


def _print_digests() -> None:
    for geometry, batch, groups in THREADED.values():
        found = gradients(geometry, *sample(geometry, batch, groups), groups)
        print(hashlib.sha256(b"".join(a.tobytes() for a in found)).hexdigest())
    shape = (9, 70, 200)
    y, dy = (np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in (0, 1))
    print(hashlib.sha256(run_module(epilogue_module(shape, Activation.relu()), y, dy)[1].tobytes()).hexdigest())


@pytest.mark.parametrize("isa", [AVX512, AVX2, NEON, SSE], ids=lambda isa: isa.name)
@pytest.mark.parametrize("channels", [(1, 1), (3, 7), (64, 64), (512, 10)])
def test_default_schedules_fit_the_gradient_and_the_registers(isa, channels):
    geometry = ConvGeometry(9, 9, channels[0], 3, 3, channels[1], padding=(1, 1, 1, 1))
    tile = default_weight_gradient_schedule(isa, geometry, 4).tile
    rows, lanes = layout_of(geometry, 4).rows, vector_lanes(isa, geometry.M)
    assert tile in weight_gradient_tiles(isa, rows, geometry.M, lanes)
    assert rows >= tile.MR and tile.NR <= geometry.M


def test_schedules_are_found_and_write_the_same_bytes():
    geometry, batch = ConvGeometry(9, 10, 40, 3, 3, 72, padding=(1, 1, 1, 1)), 3
    kernels = needed_kernels(gradient_module(geometry, batch), TARGET)
    mine = KernelShape("weight_gradient", geometry, batch)
    assert kernels[mine] == 1 and [k.kind for k in kernels if k != mine] == ["conv2d"]
    task = WeightGradientTask(mine, TARGET, 1)
    candidates = task.candidates(1)
    default = task.default()
    assert default in candidates and all(task.accepts(s) for s in candidates)
    assert not task.accepts(dataclasses.replace(default, tile=RegisterTile(99, 16, 16)))
    assert not task.accepts(dataclasses.replace(default, pixels=1 << 20))
    lanes = isa_of(TARGET).lanes
    others = [
        dataclasses.replace(default, tile=RegisterTile(3, lanes, lanes), pixels=100, tiles=2, blocks=3, pack_x=True),
        dataclasses.replace(default, pixels=20, pack_dz=not default.pack_dz),
    ]
    first = Trial(task, default, TARGET, 0)
    for schedule in others:
        assert task.accepts(schedule)
        assert Trial(task, schedule, TARGET, 0).agrees(first)


def test_a_batch_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="batch"):
        WeightGradientTask(KernelShape("weight_gradient", GEOMETRIES["3x3"], None), TARGET, 1)


@pytest.mark.parametrize("name", ["3x3", "5x5_stride2", "1x1"])
def test_code_for_arm(name, tmp_path):
    library = build_module(gradient_module(GEOMETRIES[name], 2), CORTEX_A72)
    assert _object_for_arm(library, tmp_path)


def test_code_of_epilogue_and_dense_layer_for_arm(tmp_path):
    library = build_module(epilogue_module((3, 100), Activation.relu()), CORTEX_A72)
    assert _object_for_arm(library, tmp_path)
    assert _object_for_arm(build_module(gradient_module(dense_geometry(1, 40, 30), 5), CORTEX_A72), tmp_path)


def _object_for_arm(library, folder) -> bool:
    """Whether a library has object code that ELF's header says is for AArch64."""
    made = folder / "kernels.o"
    library.mod.imports[0].write_to_file(str(made), "o")
    return made.read_bytes()[18:20] == (183).to_bytes(2, "little")


if __name__ == "__main__":
    _print_digests()


FUSED = {
    "first layer": (ConvGeometry(17, 18, 3, 5, 5, 64, padding=(2, 2, 2, 2)), 1),
    "strides, several bands": (ConvGeometry(70, 61, 3, 3, 3, 32, strides=(2, 2), padding=(1, 1, 1, 1)), 1),
    "channels of no whole block": (ConvGeometry(9, 8, 4, 3, 3, 70), 1),
    "groups": (ConvGeometry(9, 8, 4, 3, 3, 8), 2),
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(
    "activation", [Activation("clip", low=0.0), Activation("leaky_relu", slope=0.25)], ids=["relu", "leaky"]
)
def test_weight_gradient_with_the_epilogues(name, activation):
    """One operator gives the bytes of the two that it stands for; the bias gradient is summed in another order."""
    geometry, groups = FUSED[name]
    g, batch = geometry, 3
    shapes = ([batch, g.H, g.W, g.C * groups], *[[batch, g.OH, g.OW, g.M * groups]] * 2)
    x, y, dy = (relax.Var(n, tensor_type(shape)) for n, shape in zip(("x", "y", "dy"), shapes, strict=True))
    bb = relax.BlockBuilder()
    with bb.function("main", [x, y, dy]):
        with bb.dataflow():
            both = bb.emit(epilogue_grad(y, dy, activation))
            dz, dbias = (bb.emit(relax.TupleGetItem(both, i)) for i in (0, 1))
            common = {"strides": g.strides, "padding": g.padding, "groups": groups}
            dw = bb.emit(conv2d_weight_grad(x, dz, kernel=(g.KH, g.KW), **common))
            result = bb.emit_output(relax.Tuple([dw, dbias]))
        bb.emit_func_output(result)
    mod = bb.get()
    fused = FuseEpilogueGradient()(mod)
    assert [
        call.op.name for call in calls(fused["main"], "relax.adr.epilogue_weight_grad", "relax.adr.epilogue_grad")
    ] == ["relax.adr.epilogue_weight_grad"]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    (dw, dbias), (same, close) = run_module(fused, *arrays), run_module(mod, *arrays)
    np.testing.assert_array_equal(dw, same)
    np.testing.assert_allclose(dbias, close, rtol=0, atol=1e-6 * np.abs(arrays[2]).sum((0, 1, 2)).max())


def test_a_gradient_with_other_readers_stays():
    """The input gradient of a later layer reads dz too."""
    image, weight = tensor_type([2, 6, 6, 8]), tensor_type([3, 3, 8, 8])
    x, y, dy, w = (relax.Var(n, ty) for n, ty in (("x", image), ("y", image), ("dy", image), ("w", weight)))
    bb = relax.BlockBuilder()
    with bb.function("main", [x, y, dy, w]):
        with bb.dataflow():
            both = bb.emit(epilogue_grad(y, dy, Activation("clip", low=0.0)))
            dz = bb.emit(relax.TupleGetItem(both, 0))
            dw = bb.emit(conv2d_weight_grad(x, dz, kernel=(3, 3), padding=(1, 1, 1, 1)))
            dx = bb.emit(conv2d_input_grad(dz, w, input=(6, 6), padding=(1, 1, 1, 1)))
            result = bb.emit_output(relax.Tuple([dw, dx]))
        bb.emit_func_output(result)
    assert not calls(FuseEpilogueGradient()(bb.get())["main"], "relax.adr.epilogue_weight_grad")
