"""Tiles of the GEMM kernels of a GPU: which are tried, that they change no byte, whose records a compile run takes."""

from __future__ import annotations

import dataclasses
import json
import logging
from contextlib import nullcontext

import numpy as np
import pytest
import tvm
from cuda_emulator import emulated_cuda
from onnx import helper
from onnx_graphs import conv_mean_dense, make_model, save, weights_of
from tvm import relax

from adr_tvm import build
from adr_tvm._tvm import CUDA_CONFIG, cuda_target
from adr_tvm.build import build_plan, code_objects_of
from adr_tvm.cli.compile import main
from adr_tvm.compiler import compile_model
from adr_tvm.cuda import code_objects, present
from adr_tvm.cuda.present import PresentGpu
from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.options import CompileOptions
from adr_tvm.passes import pipeline
from adr_tvm.plan import uniform_plan
from adr_tvm.planner import cuda_clock
from adr_tvm.planner.cuda_clock import CudaClock
from adr_tvm.precision import PRECISIONS
from adr_tvm.progress import get_log
from adr_tvm.schedules.cuda import tensor_tile, thread_tile
from adr_tvm.schedules.cuda.tensor_tile import TensorTile
from adr_tvm.schedules.cuda.thread_tile import ThreadTile
from adr_tvm.schedules.cuda.tuned_tile import gemm_shape, thread_gemm_tile
from adr_tvm.schedules.tuned import tuned_schedules
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, with_architectures
from adr_tvm.tuning import cuda_trial, plan
from adr_tvm.tuning.cuda_machine import gpu_machine
from adr_tvm.tuning.cuda_space import fits_tensor_tile, fits_thread_tile, tensor_tiles, thread_tiles
from adr_tvm.tuning.cuda_trial import CudaTrial, CudaWatch
from adr_tvm.tuning.database import TuningDatabase
from adr_tvm.tuning.families import FAMILIES
from adr_tvm.tuning.needed import needed_kernels
from adr_tvm.tuning.record import Machine, TuningRecord
from adr_tvm.tuning.trial import kernel_module
from adr_tvm.tuning.tuner import tune_network

T4, H200 = Machine("Tesla T4", "sm_75", 1), Machine("NVIDIA H200", "sm_90", 1)
TARGET = cuda_target("sm_80")
EXACT, SIGNS = ReuseSetting("row", L=1, H=1, hash="exact"), ReuseSetting("row", H=4)
WHOLE, ENTRIES = (ConvGeometry(7, 6, C, 3, 3, 20, padding=(1,) * 4) for C in (16, 3))
LARGE = ConvGeometry(56, 56, 64, 3, 3, 128, padding=(1,) * 4)
needs_compiler = pytest.mark.skipif(not code_objects.has_compiler(), reason="no NVRTC and no nvcc")


def task_of(geometry, batch, dtype=None, setting=None, images=1):
    kernel = gemm_shape(geometry, batch, PRECISIONS.get(dtype), setting)
    return FAMILIES[kernel.kind](kernel, TARGET, images)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(get_log(), "propagate", True)
    caplog.set_level(logging.INFO, "adr_tvm")
    return caplog


@pytest.fixture
def without_code(monkeypatch):
    """TVM's source is not made into code objects: the emulator takes it."""
    for module in (build, cuda_clock, cuda_trial):
        monkeypatch.setattr(module, "code_objects_of", lambda entry: nullcontext())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """conv1 [2, 8, 6, 6] -> 16 channels, their mean, fc -> 5."""
    return save(conv_mean_dense((2, 8, 6, 6), channels=16, outputs=5), tmp_path_factory.mktemp("cuda_tuning"))


def plan_of(network, setting):
    named = {"model_sha256": network.checked.sha256, "target": "t4", "seed": 0, "metric": "none"}
    return uniform_plan(["conv1"], setting, reason="forced", **named)


class PaperTrial:
    """A trial that was never compiled."""

    def __init__(self, task, schedule, target, around):
        self.schedule = schedule

    def agrees(self, other):
        return True


class PaperWatch:
    """Estimates are slow; of the others the fewer rows of a block, the faster."""

    def __init__(self, estimates):
        self._estimates = estimates

    def seconds(self, run, count):
        return 2.0 if run.schedule in self._estimates else 1.0 + 0.001 * run.schedule.BM


@pytest.mark.parametrize("geometry", [LARGE, dataclasses.replace(LARGE, C=3), dense_geometry(1, 4096, 1000)], ids=str)
def test_space(geometry):
    rows = 8 * geometry.rows
    tiles = thread_tiles(geometry, rows)
    assert len(tiles) > 50 and all(np.isfinite(cost) and cost > 0 for cost in tiles.values())
    assert {tile.BK for tile in tiles} >= {8, 16, 32} and all(tile.shared_bytes <= 48 << 10 for tile in tiles)
    for precision in PRECISIONS.values():
        found = tensor_tiles(geometry, rows, precision)
        assert len(found) > 50 and {tile.stages for tile in found} >= {2, 3, 4}
        assert {tile.UK for tile in found} == {4, 8} and all(tile.threads <= 512 for tile in found)


def test_estimated_tiles_are_accepted():
    for geometry, known in ((WHOLE, tensor_tile.TILES), (ENTRIES, tensor_tile.ENTRY_TILES)):
        assert all(fits_thread_tile(tile, geometry) for tile in thread_tile.TILES)
        assert all(fits_tensor_tile(tile, geometry, p) for tile in known for p in PRECISIONS.values())


@pytest.mark.parametrize(
    "tile",
    [
        ThreadTile(0, 0, 0, 0, 0),
        ThreadTile(128, 128, 8, 0, 8),
        ThreadTile(128, 128, 8, 16, 16),  # more sums than registers
        ThreadTile(1 << 20, 128, 8, 8, 8),
        ThreadTile(256, 256, 64, 8, 8),  # more than shared memory
        ThreadTile(128, 128, 6, 8, 8),
        ThreadTile(96, 128, 8, 3, 8),
        TensorTile(128, 128, 0, 32, 4, 3),
        TensorTile(128, 128, 64, 32, 4, 1),  # nothing would ever be on its way
        TensorTile(128, 128, 64, 32, 3, 3),
        TensorTile(128, 128, 128, 128, 4, 3),
        TensorTile(256, 256, 64, 64, 8, 4),
        TensorTile(120, 128, 60, 32, 4, 3),
    ],
    ids=str,
)
def test_tiles_that_make_no_sense(tile):
    if isinstance(tile, ThreadTile):
        assert not fits_thread_tile(tile, LARGE)
    else:
        assert not any(fits_tensor_tile(tile, LARGE, precision) for precision in PRECISIONS.values())


def test_a_free_batch():
    free = task_of(dense_geometry(1, 64, 64), None)
    assert list(free.candidates(1)) == [free.default()]
    conv = task_of(WHOLE, None, images=4)
    assert conv.images == 4 and len(conv.candidates(1)) > 1 and conv.name.startswith("4 x")


@pytest.mark.parametrize(
    ("geometry", "dtype", "setting", "tile"),
    [
        (WHOLE, None, SIGNS, ThreadTile(64, 32, 16, 4, 4)),
        (ENTRIES, None, None, ThreadTile(64, 16, 32, 4, 2)),
        (WHOLE, "bf16", SIGNS, TensorTile(64, 16, 32, 16, 4, 2)),
        (ENTRIES, "fp16", None, TensorTile(32, 32, 16, 32, 4, 6)),
        (WHOLE, "tf32", EXACT, TensorTile(16, 32, 16, 16, 8, 5)),
    ],
    ids=["fp32-signs", "fp32", "bf16-signs", "fp16", "tf32-exact"],
)
def test_no_tile_changes_a_byte(geometry, dtype, setting, tile, without_code):
    """Under emulation, as a GPU would be timed: runs of a turn take copies of the weights one after the other."""
    task = task_of(geometry, 2, dtype, setting)
    assert tile != task.default() and task.accepts(tile)
    with emulated_cuda():
        default, trial = (CudaTrial(TARGETS["a100"], task, t, TARGET, 1 << 16) for t in (task.default(), tile))
        assert trial.agrees(default)
        assert 0 < CudaWatch().seconds(trial, 2) < 60 and trial.agrees(default)
        (y,) = (np.asarray(each, np.float32).reshape(task.rows, -1) for each in default.outputs())
        written = np.ones(task.rows, bool) if setting is None else np.arange(task.rows) % 8 == 0
        assert (y[~written] == -1).all() and (y[written] >= 0).all() and y.max() > 1
        bias = trial._tensors[2]
        bias.copyfrom(bias.numpy() + 1)
        assert not trial.agrees(default)


def test_a_network_with_tuned_tiles(model, tmp_path, without_code, log):
    """Records are of a GPU and a data type; kernels get their tiles, and the network computes the same bytes."""
    network = LoadedNetwork(model, CompileOptions(target="t4"))
    chosen = plan_of(network, EXACT)
    rewritten = pipeline.run(pipeline.rewrite(chosen), network.mod, network.target)
    kernels = needed_kernels(rewritten, network.target)
    assert {(k.kind, k.setting) for k in kernels} == {("cuda_gemm", None), ("cuda_gemm", EXACT)} and len(kernels) == 3
    half = needed_kernels(network.mod, network.target, precision=PRECISIONS["fp16"])
    assert {k.kind for k in half} == {"cuda_gemm_fp16"} and {k.batch for k in half} == {2}
    path = tmp_path / "db.jsonl"
    estimates = [FAMILIES[k.kind](k, network.target, 1).default() for k in kernels]
    on_paper = {"watch": PaperWatch(estimates), "make_trial": PaperTrial}
    records = tune_network(rewritten, network.target, TuningDatabase(path, T4), 8, **on_paper)
    assert len(records) == 3 and all(record.schedule is not None for record in records)
    assert json.loads(path.read_text().splitlines()[0])["machine"] == {"cpu": "Tesla T4", "mcpu": "sm_75", "threads": 1}
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)

    def run(database):
        with emulated_cuda() as sources, tuned_schedules(database):
            machine = relax.VirtualMachine(build_plan(network.mod, chosen, network.target), tvm.cuda())
            given = tvm.runtime.tensor(x, tvm.cuda())
            return "".join(sources), [machine[entry](given).numpy().tobytes() for entry in ("main", "dense")]

    code, expected = run(None)
    tuned_code, found = run(TuningDatabase(path, T4))
    assert found == expected and tuned_code != code

    def tiles(database):
        with tuned_schedules(database), network.target:
            return [thread_gemm_tile(k.geometry, k.batch, k.setting) for k in kernels]

    assert set(tiles(TuningDatabase(path, T4))).isdisjoint(estimates)
    assert tiles(TuningDatabase(path, H200)) == estimates
    assert "3 of 3 records are of another processor than this NVIDIA H200" in log.text
    line = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(line | {"schedule": {"BM": 128, "BN": 128, "BK": 7, "TM": 8, "TN": 8}}))
    assert tiles(TuningDatabase(path, T4)) == estimates and "does not suit the kernel" in log.text


def line_of(machine, geometry=WHOLE):
    tile = {"BM": 16, "BN": 16, "BK": 16, "TM": 1, "TN": 1}
    return json.dumps(
        dataclasses.asdict(TuningRecord(machine, "cuda_gemm", geometry, 2, None, 2, tile, 1.5, 1.0, 1.5, 8, 8, "1"))
    )


def test_whose_records_are_taken(tmp_path, monkeypatch):
    """Those of the GPU at hand; without one the target says of which."""
    h100, path = Machine("NVIDIA H100 80GB HBM3", "sm_90", 1), tmp_path / "db.jsonl"
    path.write_text("\n".join(map(line_of, (T4, h100, H200, Machine("a processor", "znver4", 2)))))
    monkeypatch.setattr(present, "present_gpu", lambda: None)
    monkeypatch.setattr("adr_tvm.tuning.cuda_machine.present_gpu", lambda: present.present_gpu())
    assert [gpu_machine(TARGETS[name], path) for name in ("t4", "h100", "h200")] == [T4, h100, H200]
    assert gpu_machine(with_architectures(TARGETS["cuda"], "sm_75"), path) == T4
    with pytest.raises(UsageError, match=r"several GPUs for target cuda \(NVIDIA H100 80GB HBM3 \(sm_90\), NVIDIA H20"):
        gpu_machine(with_architectures(TARGETS["cuda"], "sm_90"), path)
    assert gpu_machine(TARGETS["a100"], path).cpu == "NVIDIA A100", "nothing is known of it"
    assert gpu_machine(TARGETS["h200"], None).mcpu == gpu_machine(TARGETS["h200"], tmp_path / "none").mcpu == "sm_90"
    monkeypatch.setattr(present, "present_gpu", lambda: PresentGpu("NVIDIA H200 NVL", "sm_90"))
    assert gpu_machine(TARGETS["h200"], path) == Machine("NVIDIA H200 NVL", "sm_90", 1)
    assert gpu_machine(TARGETS["t4"], path) == T4, "whose code this GPU does not run"


def test_a_compile_run_on_a_gpu(model, tmp_path, without_code, monkeypatch, log):
    """Dense kernels are tuned, then those of the plan; nothing runs on the GPU, its times are made up."""
    for place in ("adr_tvm.cuda.present", "adr_tvm.tuning.cuda_machine", "adr_tvm.tuning.plan"):
        monkeypatch.setattr(f"{place}.present_gpu", lambda: PresentGpu("Tesla T4", "sm_75"))
    monkeypatch.setattr("adr_tvm.deploy.bundle.write_bundle", lambda *given: None)
    monkeypatch.setattr(CudaClock, "_timed", lambda self, x, kernels: {name: [1.0] for name in kernels})
    monkeypatch.setattr(CudaClock, "_entries", lambda self, plan, x, entries: {name: [1.0] for name in entries})
    monkeypatch.setattr("adr_tvm.planner.cuda_clock.tvm.cuda", lambda: None)
    monkeypatch.setattr("adr_tvm.compiler._library", lambda network, outcome: None)
    network = LoadedNetwork(model, CompileOptions(target="t4"))
    rewritten = pipeline.run(pipeline.rewrite(plan_of(network, EXACT)), network.mod, network.target)
    kernels = needed_kernels(rewritten, network.target, precision=PRECISIONS["fp16"])
    estimates = [FAMILIES[k.kind](k, network.target, 1).default() for k in kernels]
    monkeypatch.setattr(plan, "tuning_on_gpu", lambda entry: (PaperWatch(estimates), PaperTrial))
    given, path = plan_of(network, EXACT).save(tmp_path / "given"), tmp_path / "db.jsonl"
    named = {"target": "t4", "plan": given, "tune": 4, "tuning_db": path, "dtype": "fp16"}
    result = compile_model(model, tmp_path / "out", CompileOptions(**named)).result
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kind = "cuda_gemm_fp16"
    assert [(r["kind"], r["setting"] is None) for r in records] == [(kind, True), (kind, True), (kind, False)]
    assert all(r["machine"]["cpu"] == "Tesla T4" for r in records)
    speedups = {layer.layer: layer.tuned_speedup for layer in result.layers}
    assert speedups == {"conv1": records[2]["speedup"], "fc": records[1]["speedup"]}
    assert any("2 of 2 layers run tuned schedules (from db.jsonl), found on Tesla T4" in note for note in result.notes)
    assert not result.predicted


def test_tuning_needs_a_gpu(model, monkeypatch, capsys):
    monkeypatch.setattr(present, "present_gpu", lambda: None)
    assert main([str(model), "--target", "h200", "--tune", "4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tune cannot go with target h200" in line and "--tuning-db" in line
    assert main([str(model), "--target", "h200", "--tuning-db", "none.jsonl"]) == 2
    assert "does not exist" in capsys.readouterr().err


@needs_compiler
def test_a_database_made_elsewhere(tmp_path, capsys, monkeypatch):
    """Compiled without a GPU with what was tuned on one; the report says which layers have it."""
    monkeypatch.setattr(present, "present_gpu", lambda: None)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    made = make_model(nodes, {"x": [2, 8, 6, 6]}, {"y": [2, 8, 6, 6]}, weights_of(w=(8, 8, 1, 1)))
    model = save(made, tmp_path)
    path, out = tmp_path / "db.jsonl", tmp_path / "out"
    path.write_text("\n".join(line_of(m, ConvGeometry(6, 6, 8, 1, 1, 8)) for m in (H200, T4)))
    assert main([str(model), "--target", "h200", "--tuning-db", str(path), "-o", str(out), "-q"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert [layer["tuned_speedup"] for layer in report["layers"]] == [1.5]
    assert any("1 of 1 layer run" in note and "found on NVIDIA H200" in note for note in report["notes"])


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "setting", "tile"),
    [(None, None, ThreadTile(128, 32, 32, 4, 8)), ("bf16", SIGNS, TensorTile(128, 64, 128, 16, 8, 2))],
    ids=["fp32", "bf16"],
)
def test_a_tile_as_machine_code(dtype, setting, tile):
    task = task_of(LARGE, 32, dtype, setting)
    assert tile in task.candidates(1)
    entry, context = with_architectures(TARGETS["cuda"], "sm_80"), tvm.transform.PassContext(config=CUDA_CONFIG)
    with code_objects_of(entry) as used, TARGET, context:
        tvm.compile(kernel_module(task.function(tile)), TARGET)
    (found,) = used
    assert found.spills == 0 and found.registers <= 255 and found.shared == tile.shared_bytes
