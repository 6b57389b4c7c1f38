"""Tuning: what is searched, measured, kept and used. Times come from the schedule, not from a clock."""

from __future__ import annotations

import dataclasses
import json
import logging
import statistics
import time

import numpy as np
import pytest
import tvm
from kernel_harness import GEOMETRIES
from onnx_graphs import conv_mean_dense, save
from tvm import relax

from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_module
from adr_tvm.cli.compile import main
from adr_tvm.deploy.processor import processor_name
from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.options import CompileOptions
from adr_tvm.plan import uniform_plan
from adr_tvm.progress import get_log
from adr_tvm.schedules.conv_schedule import ConvSchedule, default_conv_schedule
from adr_tvm.schedules.register_tile import AVX2, AVX512, NEON, SSE, RegisterTile, isa_of
from adr_tvm.schedules.tuned import KernelShape, conv_schedule, reuse_schedule, tuned_schedules
from adr_tvm.settings import ReuseSetting
from adr_tvm.tuning import choice, search, tuner
from adr_tvm.tuning.conv_cost import conv_cost
from adr_tvm.tuning.conv_space import conv_schedules, fits_registers
from adr_tvm.tuning.database import TuningDatabase, target_machine
from adr_tvm.tuning.dense_conv import DenseConvTask
from adr_tvm.tuning.guesses import Guesses
from adr_tvm.tuning.needed import needed_kernels
from adr_tvm.tuning.race import Clock, race, runs_in_turn
from adr_tvm.tuning.reuse_conv import ReuseConvTask
from adr_tvm.tuning.search import WORTH, search_schedule
from adr_tvm.tuning.trial import Trial
from adr_tvm.tuning.tuner import tune_network

TARGET = cpu_target()
MACHINE = target_machine(TARGET, 1)
CONV = dataclasses.replace(GEOMETRIES["3x3"], M=40)
TASK = DenseConvTask(KernelShape("conv2d", CONV, 1), TARGET, 1)
# Of the kernels of TASK and of the network, with and without reuse of conv1.
CONV1, FC = ConvGeometry(8, 8, 16, 3, 3, 32, padding=(1, 1, 1, 1)), dense_geometry(1, 32, 5)
REUSE = ReuseSetting("pixel", L=16, hash="exact", max_clusters=200)
DEFAULTS = [
    TASK.default(),
    reuse_schedule(TARGET, CONV1, REUSE, 1),
    *(conv_schedule(TARGET, g, 1) for g in (CONV1, FC)),
]


class PaperTrial:
    """A trial that was never compiled; schedules in ``wrong`` compute other bytes."""

    wrong: tuple = ()

    def __init__(self, task, schedule, target, around):
        self.schedule = schedule

    def __call__(self):
        raise AssertionError("nothing runs on paper")

    def agrees(self, other):
        return self.schedule not in self.wrong


class PaperWatch:
    """Seconds by schedule; counts the schedules that it was asked about."""

    def __init__(self, seconds):
        self._seconds, self.asked = seconds, {}

    def seconds(self, run, count):
        self.asked[run.schedule] = self.asked.get(run.schedule, 0) + 1
        return self._seconds(run.schedule)


def prefers(schedule) -> float:
    """Defaults are slow; of the others the fewer columns or rows of a tile, the faster."""
    if schedule in DEFAULTS:
        return 2.0
    return 1.0 + 0.01 * (schedule.tile.MR if isinstance(schedule, ConvSchedule) else schedule.columns)


@pytest.fixture
def on_paper(monkeypatch):
    monkeypatch.setattr(search, "Trial", PaperTrial)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(get_log(), "propagate", True)
    caplog.set_level(logging.INFO, "adr_tvm")
    return caplog


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """conv1 [1, 16, 8, 8] -> 32 channels, their mean, fc -> 5."""
    return save(conv_mean_dense((1, 16, 8, 8), channels=32, outputs=5), tmp_path_factory.mktemp("tuning"))


@pytest.fixture(scope="module")
def network(model):
    return LoadedNetwork(model, CompileOptions())


def search_on_paper(seconds, trials=10, **options):
    watch = PaperWatch(seconds)
    return search_schedule(TASK, TARGET, trials, watch, 1, 1 << 20, **options), watch


@pytest.mark.parametrize("isa", [AVX512, AVX2, NEON, SSE], ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    "geometry",
    [
        CONV,
        ConvGeometry(14, 14, 512, 3, 3, 512, padding=(1,) * 4),
        dense_geometry(1, 2048, 1000),
        dense_geometry(7, 5, 3),
    ],
    ids=["3x3", "deep", "dense", "tokens"],
)
def test_space(isa, geometry):
    schedules = conv_schedules(isa, geometry, geometry.rows)
    assert len(set(schedules)) == len(schedules) > 1
    assert all(fits_registers(s.tile, isa) and geometry.rows >= s.tile.MR for s in schedules)
    default = default_conv_schedule(isa, geometry, 1)
    assert fits_registers(default.tile, isa)
    costs = [conv_cost(s, isa, geometry, geometry.rows, threads) for s in [default, *schedules] for threads in (1, 2)]
    assert all(np.isfinite(cost) and cost > 0 for cost in costs)
    assert any(s.fetch for s in schedules)


def test_a_free_batch_keeps_threads_and_small_tiles_out():
    free = DenseConvTask(KernelShape("conv2d", dense_geometry(1, 64, 64), None), TARGET, 1)
    assert list(free.candidates(1)) == [free.default()]
    conv = DenseConvTask(KernelShape("conv2d", CONV, None), TARGET, 4)
    assert all(s.parallel for s in conv.candidates(1)) and conv.images == 4
    assert any(not s.parallel for s in TASK.candidates(1))


def test_cost_model_prefers_less_work():
    tile = RegisterTile(8, 32, 16)
    whole, wasteful = ConvSchedule(tile, 4, 512, 1), ConvSchedule(tile, 4, 512, 4)
    geometry = ConvGeometry(8, 8, 64, 3, 3, 128, padding=(1,) * 4)
    assert conv_cost(whole, AVX512, geometry, 64, 1) < conv_cost(wasteful, AVX512, geometry, 64, 1)
    assert conv_cost(whole, AVX512, geometry, 64, 8) > conv_cost(wasteful, AVX512, geometry, 64, 8)


def test_guesses_learn_from_what_was_measured():
    tile = RegisterTile(4, 16, 16)
    default = ConvSchedule(tile, 9, 64)
    schedules = [ConvSchedule(tile, panels, k_step) for k_step in (128, 256) for panels in (1, 2, 3, 4)]
    guesses = Guesses({default: 1.1} | {s: 1.0 if s.k_step == 128 else 1.05 for s in schedules})
    guesses.learn(default, 1.0)
    tried = []
    for _ in schedules:
        schedule = guesses.next()
        tried.append(schedule.k_step)
        guesses.learn(schedule, 2.0 if schedule.k_step == 128 else 1.0)
    assert tried == [128, 256, 256, 256, 256, 128, 128, 128], "one bad surprise is enough"
    assert guesses.next() is None


def test_guesses_drop_what_cannot_be_used():
    one, two = (ConvSchedule(RegisterTile(4, 16, 16), panels) for panels in (1, 2))
    guesses = Guesses({one: 1.0, two: 2.0})
    guesses.learn(guesses.next(), None)
    assert guesses.next() == two and one in guesses and ConvSchedule(RegisterTile(2, 16, 16), 1) not in guesses


def test_the_fastest_schedule_is_found(on_paper):
    found, watch = search_on_paper(prefers)
    lowest = min(s.tile.MR for s in watch.asked if s not in DEFAULTS)
    assert found.measured == 10 and len(watch.asked) == 11
    assert lowest == found.schedule.tile.MR
    assert found.speedup == pytest.approx(2 / (1 + 0.01 * lowest))
    assert found.default_seconds == 2


def test_turns():
    slow, fast = PaperTrial(None, "slow", None, 0), PaperTrial(None, "fast", None, 0)
    watch = PaperWatch({"slow": 0.5, "fast": 0.0001}.get)
    assert runs_in_turn(watch, slow) == 1 and runs_in_turn(watch, fast) == 10
    assert race(watch, slow, fast, 3, 1) == [(0.5, 0.0001)] * 3
    ran = []
    assert Clock(1).seconds(lambda: ran.append(1), 3) > 0 and len(ran) == 3
    assert Clock(2).seconds(lambda: time.sleep(0.01), 1) >= 0.01 > Clock(1).seconds(lambda: time.sleep(0.01), 1)


def test_the_worst_are_timed_once(on_paper):
    default = TASK.default()
    _, watch = search_on_paper(lambda s: 1.0 if s == default else 2.0)
    assert {count for s, count in watch.asked.items() if s != default} == {1}


@pytest.mark.parametrize("gain", [1.0, WORTH - 0.005])
def test_the_default_stays_where_little_is_gained(on_paper, gain):
    default = TASK.default()
    found, _ = search_on_paper(lambda s: gain if s == default else 1.0)
    assert found.schedule is None and found.speedup == 1.0 and found.measured == 10


def test_noise_is_not_a_gain(on_paper):
    """Schedules whose median is 5 % faster, but in too few rounds to be sure."""
    default, turn = TASK.default(), iter(range(10**6))
    pattern = [0.94] * 9 + [1.2] * 8

    def seconds(schedule):
        return 1.0 if schedule == default else pattern[next(turn) % len(pattern)]

    assert statistics.median(pattern) == 0.94
    assert search_on_paper(seconds)[0].schedule is None


def test_other_bytes_are_never_taken(on_paper, monkeypatch):
    fastest = search_on_paper(prefers)[0].schedule
    monkeypatch.setattr(PaperTrial, "wrong", (fastest,))
    found, _ = search_on_paper(prefers)
    assert found.wrong == [fastest] and found.schedule not in (fastest, None) and found.measured == 9


def test_a_search_begins_with_what_was_found_before(on_paper):
    first = search_on_paper(prefers)[0].schedule
    found, watch = search_on_paper(prefers, trials=1, first=first)
    assert set(watch.asked) == {TASK.default(), first} and found.schedule == first


def test_kernels_of_all_schedules_write_the_same_bytes():
    default = Trial(TASK, TASK.default(), TARGET, 1 << 20)
    some = [s for s in TASK.candidates(1) if s.groups > 1 and s.k_step < CONV.K and s.tile != default.schedule.tile]
    trial = Trial(TASK, some[0], TARGET, 0)
    assert trial.agrees(default)
    assert np.abs(trial.outputs()[0]).max() > 1
    broken = Trial(TASK, TASK.default(), TARGET, 0)
    x, weights, bias, y = broken._calls[0]
    broken._calls = [[x, weights, tvm.runtime.tensor(bias.numpy() + 1), y]]
    assert not broken.agrees(default)


def test_reuse_kernels_of_all_schedules_write_the_same_bytes():
    geometry = ConvGeometry(6, 6, 8, 2, 2, 32)
    setting = ReuseSetting("pixel", L=4, H=3)
    task = ReuseConvTask(KernelShape("reuse", geometry, 2, setting), TARGET, 1)
    candidates = task.candidates(1)
    default, lanes = task.default(), isa_of(TARGET).lanes
    assert default in candidates and len(candidates) > 4
    assert all(task.accepts(s) and s.channels % lanes == 0 for s in candidates)
    assert not task.accepts(dataclasses.replace(default, columns=64))
    other = next(s for s in candidates if s.columns != default.columns and s.bands > 1)
    first, second = (Trial(task, s, TARGET, 0) for s in (default, other))
    assert second.agrees(first)
    clusters, reuses = task.arguments(default).inputs[-1].sum(axis=0)
    assert 2 * 2 < clusters <= 2 * 2 * 2**3 and reuses == 2, "several in each of two segments of two images"


def test_a_network_is_tuned_once(network, tmp_path, on_paper, log):
    path = tmp_path / "db.jsonl"
    kernels = needed_kernels(network.mod, TARGET)
    assert [k.kind for k in kernels] == ["conv2d"] * len(kernels) and len(kernels) == 2
    records = tune_network(network.mod, TARGET, TuningDatabase(path, MACHINE), 3, watch=PaperWatch(prefers))
    assert {r.kernel for r in records} == set(kernels)
    assert records[0].geometry == CONV1, "the kernel with the most work comes first"
    assert records[0].schedule is not None and records[0].gflops_after > records[0].gflops_before
    assert "GFLOP/s" in log.text and "x)" in log.text
    again = TuningDatabase(path, MACHINE)
    assert [again.find(r.kernel) for r in records] == records
    idle = PaperWatch(prefers)
    assert tune_network(network.mod, TARGET, again, 3, watch=idle) == [] and not idle.asked
    assert "2 of 2 kernels were tuned before" in log.text
    more = tune_network(network.mod, TARGET, again, 4, watch=idle)
    assert [r.trials for r in more] == [4, 4]
    assert len(path.read_text().splitlines()) == 4, "lines are only ever appended"


def test_an_interrupt_keeps_what_was_found(network, tmp_path, on_paper, log):
    path, fc = tmp_path / "db.jsonl", conv_schedule(TARGET, FC, 1)

    def seconds(schedule):
        if schedule == fc:
            raise KeyboardInterrupt
        return prefers(schedule)

    with pytest.raises(KeyboardInterrupt):
        tune_network(network.mod, TARGET, TuningDatabase(path, MACHINE), 2, watch=PaperWatch(seconds))
    assert f"interrupted: 1 of 2 kernels are tuned and kept in {path}" in log.text
    database = TuningDatabase(path, MACHINE)
    assert len(database) == 1
    rest = tune_network(network.mod, TARGET, database, 2, watch=PaperWatch(prefers))
    assert [r.geometry for r in rest] == [FC]


def record_of(network, on=MACHINE, trials=3):
    database = TuningDatabase(None, on)
    tune_network(network.mod, TARGET, database, trials, watch=PaperWatch(prefers))
    return next(r for k in needed_kernels(network.mod, TARGET) if (r := database.find(k)) and r.schedule)


def line_of(record, **changes) -> str:
    return json.dumps(dataclasses.asdict(record) | changes)


def test_database_lines(network, tmp_path, on_paper, log):
    record = record_of(network)
    other_cpu = dataclasses.asdict(MACHINE) | {"cpu": "another"}
    other_threads = dataclasses.asdict(MACHINE) | {"threads": 2}
    path = tmp_path / "db.jsonl"
    path.write_text(
        "\n".join(
            [
                line_of(record, speedup=1.5),
                "no json",
                line_of(record, machine=other_cpu, speedup=3.0),
                line_of(record, version=99),
                "",
                line_of(record, speedup=-1.0),
                line_of(record, batch="8"),
                line_of(record, machine=other_cpu, speedup=4.0),
                line_of(record, machine=other_threads, speedup=5.0),
                line_of(record, speedup=1.25),
                line_of(record)[:40],
            ]
        )
    )
    database = TuningDatabase(path, MACHINE)
    assert database.find(record.kernel).speedup == 1.25 and len(database) == 1
    warnings = [r.getMessage() for r in log.records if r.levelname == "WARNING"]
    assert [w.split("line ")[1].split()[0] for w in warnings if "line " in w] == ["2", "4", "6", "7", "11"]
    assert "format version 99" in log.text
    ignored = [w for w in warnings if "another processor" in w]
    assert len(ignored) == 1 and "2 of 11 records" in ignored[0]
    database.add(dataclasses.replace(record, speedup=1.75))
    assert path.read_text().splitlines()[10] == line_of(record)[:40], "a cut line is closed, not continued"
    assert TuningDatabase(path, MACHINE).find(record.kernel).speedup == 1.75
    assert TuningDatabase(path, dataclasses.replace(MACHINE, threads=2)).find(record.kernel).speedup == 5.0


def test_many_damaged_lines_are_summed_up(tmp_path, log):
    path = tmp_path / "db.jsonl"
    path.write_bytes(b"\xff\n" * 20)
    assert len(TuningDatabase(path, MACHINE)) == 0
    assert sum("passed over" in r.getMessage() for r in log.records) == 6
    assert "15 more lines" in log.text


@pytest.mark.parametrize(
    "schedule",
    [
        {"tile": {"MR": 100, "NR": 16, "lanes": 16}, "panels": 1, "k_step": 8, "groups": 1, "parallel": True},
        {"tile": {"MR": 4, "NR": 0, "lanes": 0}, "panels": 1, "k_step": 8, "groups": 1, "parallel": True},
        {"tile": {"MR": 4, "NR": 16, "lanes": 16}, "panels": 1 << 40, "k_step": 8, "groups": 1, "parallel": True},
        {"tile": {"MR": 4, "NR": 16, "lanes": 16}, "panels": 0, "k_step": 8, "groups": 1, "parallel": True},
        {"rows": 4},
    ],
)
def test_schedules_that_make_no_sense_are_not_used(network, tmp_path, on_paper, log, schedule):
    record = record_of(network)
    path = tmp_path / "db.jsonl"
    path.write_text(line_of(record, schedule=schedule))
    database = TuningDatabase(path, MACHINE)
    with tuned_schedules(database):
        chosen = [conv_schedule(TARGET, record.geometry, record.batch) for _ in range(3)]
    assert chosen == [conv_schedule(TARGET, record.geometry, record.batch)] * 3
    assert sum("cannot be used" in r.getMessage() for r in log.records) == 1


def test_a_tuned_network_computes_the_same_bytes(network):
    x = np.random.default_rng(0).standard_normal((1, 16, 8, 8), np.float32)

    def outputs(database):
        with tuned_schedules(database):
            machine = relax.VirtualMachine(build_module(network.mod, TARGET), tvm.cpu())
        return machine["main"](tvm.runtime.tensor(x)).numpy().tobytes()

    database = TuningDatabase(None, MACHINE)
    records = tune_network(network.mod, TARGET, database, 1, watch=PaperWatch(lambda s: 1.0))
    assert all(r.schedule is None for r in records)
    dense = outputs(database)
    for record in records:
        tall = RegisterTile(5 if record.geometry.rows > 1 else 1, isa_of(TARGET).lanes, isa_of(TARGET).lanes)
        schedule = ConvSchedule(tile=tall, panels=2, k_step=8)
        assert schedule != conv_schedule(TARGET, record.geometry, record.batch)
        database.add(dataclasses.replace(record, schedule=dataclasses.asdict(schedule), speedup=1.5))
        with tuned_schedules(database):
            assert conv_schedule(TARGET, record.geometry, record.batch) == schedule
        assert conv_schedule(TARGET, record.geometry, record.batch) != schedule, "only inside the block"
    assert outputs(database) == dense


def test_command_line(model, network, tmp_path, monkeypatch, capsys, on_paper):
    """The dense kernels are tuned, then those that the plan brings; a later run takes them from the file."""
    monkeypatch.setattr(tuner, "Clock", lambda threads: PaperWatch(prefers))
    path, out = tmp_path / "deep" / "db.jsonl", tmp_path / "out"
    named = {"model_sha256": network.checked.sha256, "target": "cpu", "seed": 0, "metric": "none"}
    plan = uniform_plan(["conv1"], REUSE, reason="forced", **named).save(tmp_path / "given")
    arguments = [str(model), "-o", str(out), "--tuning-db", str(path)]
    assert main([*arguments, "--plan", str(plan), "--tune", "40"]) == 0
    text = capsys.readouterr()
    assert "tuning kernels" in text.err and "GFLOP/s" in text.err
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["kind"] for r in records] == ["conv2d", "conv2d", "reuse"]
    dense, _, scatter = (r["speedup"] for r in records)
    assert dense > 1 and scatter > 1 and records[2]["setting"]["max_clusters"] is None
    assert tuned_layers(out)["conv1"] == scatter and set(tuned_layers(out)) == {"conv1", "fc"}
    assert "tuned schedules (from db.jsonl)" in text.out and " tuned " in text.out.splitlines()[0]
    assert main([*arguments, "-q"]) == 0
    assert tuned_layers(out)["conv1"] == dense
    assert f"tuned {dense:.2f}x" in (out / "report.html").read_text()
    assert len(path.read_text().splitlines()) == 3, "without --tune nothing is tuned"


def tuned_layers(folder) -> dict[str, float | None]:
    report = json.loads((folder / "report.json").read_text())
    return {layer["layer"]: layer["tuned_speedup"] for layer in report["layers"]}


def test_which_database(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = choice.open_database(None, 2, MACHINE)
    assert made.path == choice.default_database(processor_name()) and made.path.parent == tmp_path / "adr_tvm"
    assert made.path.name.startswith("tuning-") and made.path.exists()
    assert choice.open_database(None, None, MACHINE) is None, "a cache decides nothing by itself"
    with pytest.raises(UsageError, match="does not exist"):
        choice.open_database(tmp_path / "none.jsonl", None, MACHINE)
    with pytest.raises(UsageError, match="cannot write"):
        choice.open_database(made.path / "below.jsonl", 2, MACHINE)
    with pytest.raises(UsageError, match="--tune is 0"):
        CompileOptions(tune=0)
