"""The dense kernel: clause 11 of ``docs/algorithm.md``, one FMA chain over (KH, KW, C) whatever the tile."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from kernel_harness import GEOMETRIES, HAS_FMA, Layer, close, run, run_vm, sample_input, sample_tensors
from tvm.target import Target, codegen

from adr_tvm._tvm import cpu_target
from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.reference import conv2d, conv2d_chain
from adr_tvm.schedules.conv_schedule import ConvSchedule, default_conv_schedule
from adr_tvm.schedules.narrow_conv2d import is_narrow
from adr_tvm.schedules.processor import SLOW_L3, fetches_ahead
from adr_tvm.schedules.register_tile import AVX2, AVX512, NEON, SSE, RegisterTile, gemm_tile, isa_of
from adr_tvm.schedules.tuned import conv_schedule

ACTIVATIONS = {
    "linear": Activation(),
    "relu": Activation.relu(),
    "relu6": Activation.relu6(),
    "leaky_relu": Activation("leaky_relu", slope=0.1),
    "clip": Activation("clip", low=-0.5, high=0.25),
}
needs_fma = pytest.mark.skipif(not HAS_FMA, reason="without FMA every product rounds on its own")


def _agrees(layer, batch, seed=0):
    """Run a layer, compare it with the reference and return its output."""
    geometry, tensors = layer.geometry, sample_tensors(layer, seed)
    x = sample_input(geometry, batch, seed)
    y = run(layer, tensors, x).y
    close(y, conv2d(x, tensors.w, tensors.bias, geometry, layer.activation))
    if HAS_FMA:
        chain = conv2d_chain(x, tensors.w, tensors.bias, geometry, layer.activation)
        np.testing.assert_array_equal(y, chain)
    return y


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(name):
    _agrees(Layer(GEOMETRIES[name]), batch=2)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    y = _agrees(Layer(GEOMETRIES["3x3"], activation=ACTIVATIONS[name]), batch=1)
    assert ACTIVATIONS[name].low <= y.min() and y.max() <= ACTIVATIONS[name].high


@pytest.mark.parametrize("M", [1, 3, 10, 37, 64, 65])
def test_the_tile_never_changes_a_byte(M):
    geometry = ConvGeometry(5, 5, 7, 3, 3, M, padding=(1, 1, 1, 1))
    tiles = {gemm_tile(isa, M) for isa in (AVX512, AVX2, NEON, SSE)} | {RegisterTile(1, 8), RegisterTile(5, 32)}
    outputs = {_agrees(Layer(geometry, tile=tile), batch=2).tobytes() for tile in tiles}
    assert len(outputs) == 1


@pytest.mark.parametrize(
    "geometry",
    [
        ConvGeometry(6, 5, 40, 3, 3, 70, padding=(1, 1, 1, 1)),
        ConvGeometry(6, 5, 33, 3, 3, 5, padding=(2, 1, 1, 2), dilation=(1, 2)),
        ConvGeometry(5, 5, 90, 1, 1, 37),
        ConvGeometry(7, 6, 90, 1, 1, 37, strides=(2, 2)),
        ConvGeometry(64, 64, 65, 1, 1, 20),
        dense_geometry(5, 900, 3),
    ],
    ids=["3x3", "dilated", "1x1", "1x1_stride2", "1x1_large", "dense"],
)
def test_no_schedule_changes_a_byte(geometry):
    tensors, x = sample_tensors(Layer(geometry)), sample_input(geometry, 2)
    expected = _agrees(Layer(geometry), batch=2)
    for tile in (RegisterTile(3, 16), RegisterTile(9, 48)):
        for schedule in (
            ConvSchedule(tile, 1, 20),
            ConvSchedule(tile, 1, 20, fetch=True),
            ConvSchedule(tile, 2, 64, groups=3, fetch=True),
            ConvSchedule(tile, 3, 1000, groups=2, parallel=False),
        ):
            np.testing.assert_array_equal(run(Layer(geometry, schedule=schedule), tensors, x).y, expected)


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize(
    "geometry",
    [
        ConvGeometry(7, 150, 20, 3, 5, 1, padding=(1, 2, 1, 2)),
        ConvGeometry(9, 40, 3, 9, 9, 1, padding=(4, 4, 4, 4)),
        ConvGeometry(13, 70, 17, 2, 3, 1, strides=(2, 1), padding=(0, 3, 1, 0), dilation=(2, 3)),
    ],
    ids=["3x5", "9x9", "dilated"],
)
def test_few_output_channels(geometry, M):
    geometry = replace(geometry, M=M)
    assert is_narrow(AVX512, geometry)
    _agrees(Layer(geometry, activation=Activation.relu()), batch=2)


def test_every_default_schedule_fits_the_registers_and_covers_the_work():
    for isa in (AVX512, AVX2, NEON, SSE):
        for rows_side, C, k, M in itertools.product((1, 7, 14, 55), (3, 64, 1024), (1, 3), (1, 10, 48, 1000)):
            geometry = ConvGeometry(rows_side, rows_side, C, k, k, M, padding=(k // 2,) * 4)
            for batch in (None, 1, 8):
                schedule = default_conv_schedule(isa, geometry, batch)
                vectors = schedule.tile.NR // isa.lanes
                assert schedule.tile.MR * vectors + vectors < isa.registers
                assert 1 <= schedule.groups <= -(-M // schedule.tile.NR)


def test_what_fetches_ahead():
    known = codegen.llvm_get_cpu_archlist(Target("llvm"))
    for name in SLOW_L3:
        target = cpu_target(name)
        assert fetches_ahead(target) and isa_of(target) == AVX512 and name in known
        assert conv_schedule(target, GEOMETRIES["3x3"], 1).fetch
    for name in ("znver5", "haswell"):
        assert not fetches_ahead(cpu_target(name)) and not conv_schedule(cpu_target(name), GEOMETRIES["3x3"], 1).fetch
    assert not fetches_ahead(Target("llvm"))


@pytest.mark.parametrize("name", ["3x3", "one_row"])
def test_the_batch_hint_never_changes_a_byte(name):
    geometry = GEOMETRIES[name]
    tensors, x = sample_tensors(Layer(geometry)), sample_input(geometry, 7)
    together = run(Layer(geometry), tensors, x).y
    np.testing.assert_array_equal(run(Layer(geometry, batch=7), tensors, x).y, together)
    np.testing.assert_array_equal(run(Layer(geometry, batch=2), tensors, x[3:5]).y, together[3:5])
    for i in (0, 6):
        np.testing.assert_array_equal(run(Layer(geometry, batch=1), tensors, x[i : i + 1]).y, together[i : i + 1])
    for batch in (1, 3):
        np.testing.assert_array_equal(run(Layer(geometry), tensors, x[:batch]).y, together[:batch])


@needs_fma
@pytest.mark.skipif(not codegen.target_has_features("avx2", cpu_target()), reason="this machine has no AVX2")
def test_code_for_another_processor_gives_the_same_bytes():
    geometry = GEOMETRIES["asymmetric"]
    tensors, x = sample_tensors(Layer(geometry)), sample_input(geometry, 2)
    here, haswell = (run(Layer(geometry, mcpu=mcpu), tensors, x).y for mcpu in (None, "haswell"))
    np.testing.assert_array_equal(here, haswell)


@pytest.mark.parametrize(("rank", "tokens"), [(2, 1), (3, 6)])
def test_dense_layers(rank, tokens):
    layer = Layer(dense_geometry(tokens, 50, 37), activation=Activation.relu(), rank=rank)
    for batch in (1, 5):
        _agrees(layer, batch)


def test_one_row_of_one_entry():
    _agrees(Layer(dense_geometry(1, 1, 1)), batch=1)


@pytest.mark.parametrize("name", ["linear", "relu"])
def test_non_finite_inputs_reach_only_the_outputs_that_read_them(name):
    geometry = GEOMETRIES["dilation2"]
    layer = Layer(geometry, activation=ACTIVATIONS[name])
    tensors, x = sample_tensors(layer), sample_input(geometry, 2)
    clean = run(layer, tensors, x).y
    x[0, 4, 3, 2], x[1, 0, 0, 5] = np.nan, np.inf
    found = run(layer, tensors, x).y
    reads = ~np.isfinite(conv2d(x, tensors.w, tensors.bias, geometry))
    np.testing.assert_array_equal(found[~reads], clean[~reads])
    if name == "linear":
        assert not np.isfinite(found[reads]).any() and 0 < reads.sum() < reads.size


@pytest.mark.parametrize(
    "layer",
    [Layer(GEOMETRIES["3x3"]), Layer(dense_geometry(1, 30, 37), rank=2), Layer(dense_geometry(4, 30, 5), rank=3)],
    ids=["conv2d", "dense2", "dense3"],
)
@pytest.mark.parametrize("parameters", [False, True], ids=["constants", "arguments"])
def test_the_compiled_function_runs_these_kernels(layer, parameters):
    tensors = sample_tensors(layer)
    for batch in (1, 3):
        x = sample_input(layer.geometry, batch)
        expected = run(layer, tensors, x).y
        np.testing.assert_array_equal(run_vm(layer, tensors, x, parameters).y, expected)
