"""The speed benchmarks: their statistics, what they measure (never how fast), their tables, plots and errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import onnx
import pytest
from bundles import classifier, images
from onnx_graphs import conv, save
from onnx_graphs import image_to_image as many_operators

from adr_tvm.errors import DataError, UsageError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.planes import analyse
from adr_tvm.hashing.vectors import neuron_vectors
from adr_tvm.models.cifar10 import normalise
from adr_tvm.settings import TABLES, ReuseSetting
from benchmarks import (
    ceilings,
    dense,
    dense_layers,
    growth,
    insert_tables,
    layer_cases,
    machine,
    paired,
    plans,
    reuse_gradients,
    reuse_layers,
    training_step,
)
from benchmarks.activations import InnerTensors, distinct, onnx_layers
from benchmarks.ceilings import Ceilings, Level
from benchmarks.command import Command
from benchmarks.networks import of_shape
from benchmarks.no_data import NoData
from benchmarks.paired import Ratio, geometric_mean, paired_ratio, rounds_for, take_turns
from benchmarks.plan_cases import MAKERS, PlanCase, Sources, plan_case
from benchmarks.plan_compile import _keeps
from benchmarks.processes import in_process
from benchmarks.reuse_layers import BASE, Job, around_base, combinations, nmse
from benchmarks.reuse_roof import reuse_roof
from benchmarks.synthetic import PROTOTYPES, Prototype, convolution, smooth_image

COMMANDS = [
    module.COMMAND
    for module in (dense, dense_layers, growth, machine, plans, reuse_gradients, reuse_layers, training_step)
]
CEILINGS = Ceilings(1, 100.0, [Level("L1", 1000, 200.0, 250.0), Level("DRAM", None, 20.0, 15.0)])


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Threads need not come to rest where times do not matter."""
    monkeypatch.setattr(paired, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(paired, "TURN_SECONDS", 1e-9)
    monkeypatch.setattr("adr_tvm.timing.WARM_UP_SECONDS", 0.0)


def exit_code(command: Command, *arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        command.main(list(arguments))
    return stopped.value.code


# Statistics


def test_the_interval_covers_the_true_ratio_of_drifting_times():
    """Nine in ten or more of the 95 % intervals; a drift common to both engines costs nothing."""
    covered, widths = 0, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        drift = np.linspace(1, 3, 31)
        ours, theirs = (drift * scale * rng.lognormal(0, 0.05, 31) for scale in (0.8, 1.0))
        ratio = paired_ratio(ours.tolist(), theirs.tolist(), seed)
        assert ratio.low <= ratio.median <= ratio.high
        covered += ratio.low <= 0.8 <= ratio.high
        widths.append(ratio.high - ratio.low)
    assert 180 <= covered < 200
    assert np.median(widths) < 0.06


def test_a_ratio_without_noise():
    assert paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == Ratio(2.0, 2.0, 2.0)
    assert str(Ratio(1.234, 1.1, 1.357)) == "1.23 [1.10, 1.36]"


@pytest.mark.parametrize(("times", "reference"), [([1.0], [1.0, 2.0]), ([], [])])
def test_times_that_are_no_pairs(times, reference):
    with pytest.raises(ValueError, match="paired times"):
        paired_ratio(times, reference)


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1)
    assert geometric_mean([1.0, 10.0, 100.0]) == pytest.approx(10)


def test_engines_take_turns_in_changing_order():
    order: list[str] = []
    at: list[int] = []
    times = take_turns({name: (lambda name=name: order.append(name)) for name in "abc"}, 6, at.append)
    assert at == list(range(6))
    assert {name: len(values) for name, values in times.items()} == {"a": 6, "b": 6, "c": 6}
    turns = order[3:]  # the first runs of all are not timed
    assert {tuple(dict.fromkeys(turns[6 * r : 6 * r + 6])) for r in range(6)} > {("a", "c", "b")}


def test_a_short_run_is_repeated_in_its_turn(monkeypatch):
    calls = []
    clock = iter(np.arange(0, 100, 0.001))
    monkeypatch.setattr(paired, "TURN_SECONDS", 0.005)
    monkeypatch.setattr(paired.time, "perf_counter", lambda: next(clock))
    assert paired._turn(lambda: calls.append(1)) == pytest.approx(1.0)
    assert len(calls) == 5


def test_rounds_are_odd_and_bounded():
    assert rounds_for({"a": lambda: None}, 1e-6, least=9) == 9
    assert rounds_for({"a": lambda: None}, 1e6, most=100) == 99


# The machine


def test_ceilings_of_this_machine(monkeypatch):
    monkeypatch.setattr(ceilings, "FMA_STEPS", 1000)
    monkeypatch.setattr(ceilings, "STREAM_BYTES", 1 << 16)
    monkeypatch.setattr(ceilings, "DRAM_BYTES", 1 << 16)
    monkeypatch.setattr(ceilings, "cache_sizes", lambda: {"L1": 1 << 13, "L2": 1 << 14, "L3": 1 << 15})
    found = ceilings.measure_ceilings(1, 1e-3)
    assert found.gflops > 0.1
    assert [level.name for level in found.levels] == ["L1", "L2", "L3", "DRAM"]
    assert all(level.read > 0 and level.triad > 0 for level in found.levels)
    assert found.levels[-1].bytes is None
    (first, *_) = machine.table([found])
    assert first[0] == "L1, 8 KiB"


def test_the_peak_kernel_does_what_it_counts():
    import tvm

    from adr_tvm._tvm import cpu_target
    from benchmarks.ceiling_kernels import CHAINS, STREAMS, fma_kernel, read_kernel, triad_kernel

    def run(function, *arrays):
        tensors = [tvm.runtime.tensor(np.asarray(array, np.float32)) for array in arrays]
        tvm.compile(function, cpu_target())[str(function.attrs["global_symbol"])](*tensors)
        return tensors[-1].numpy()

    y = run(fma_kernel(2, 4, 3), [[2.0] * 4, [1.0] * 4], np.zeros((2, CHAINS, 4)))
    expected = 8 * np.arange(CHAINS, dtype=np.float32) + 7  # c -> 2 c + 1, three times
    np.testing.assert_array_equal(y, np.broadcast_to(expected[:, None], y.shape))
    shape = (2, 3, STREAMS, 4)
    b, c = np.arange(np.prod(shape)).reshape(shape), np.ones(shape)
    np.testing.assert_array_equal(run(triad_kernel(2, 4, 3, 5), b, c, np.zeros(shape)), b + 4)
    data = np.arange(2 * 3 * CHAINS * 4).reshape(2, 3, CHAINS, 4)
    np.testing.assert_array_equal(run(read_kernel(2, 4, 3, 1), data, np.zeros((2, CHAINS, 4)))[0], data[0, 2])


def test_the_roof_is_the_slower_of_peak_and_memory():
    assert CEILINGS.level(1000).name == "L1"
    assert CEILINGS.level(1001).name == "DRAM"
    assert CEILINGS.roof(1e9, 800) == pytest.approx(0.01)  # 100 GFLOP/s
    assert CEILINGS.roof(1e6, 2e9) == pytest.approx(0.1)  # 20 GB/s


# Dense layers


def test_layers_with_the_tensors_they_get(tmp_path):
    path, x = save(classifier(), tmp_path), images(2)
    layers = onnx_layers(path, x)
    assert [layer.node.name for layer in layers] == ["conv1", "conv2", "fc"]
    np.testing.assert_array_equal(layers[0].x, x)
    whole = InnerTensors(onnx.load(path), ["c2", "y"])(x)
    single = onnx.load(save(layers[1].model(), tmp_path))
    np.testing.assert_allclose(InnerTensors(single, ["y"])(layers[1].x)["y"], whole["c2"], rtol=1e-6)
    assert layers[1].operations(whole["c2"]) == 2 * 2 * 64 * 8 * 16 * 9
    assert layers[2].operations(whole["y"]) == 2 * 2 * 5 * 8
    assert layers[1].shape_text(whole["c2"]) == "2 x 8x8x16 -> 8, 3x3/1"
    assert layers[2].shape_text(whole["y"]) == "2x8 -> 5"


def test_equal_layers_are_one(tmp_path):
    layers = onnx_layers(save(classifier(), tmp_path), images(1))
    again = replace(layers[0], x=layers[0].x + 1)
    other = replace(layers[0], x=layers[0].x[:, :, 1:])
    assert [count for _, count in distinct([*layers, again, other])] == [2, 1, 1, 1]


def test_a_transposed_convolution_counts_its_inputs(tmp_path):
    layers = onnx_layers(save(many_operators(1), tmp_path), np.zeros((1, 3, 8, 8), np.float32))
    up = next(layer for layer in layers if layer.node.op_type == "ConvTranspose")
    assert up.operations(np.zeros((1, 3, 16, 16))) == 2 * up.x.size * 3 * 4 * 4
    assert up.shape_text(np.zeros((1, 3, 16, 16))).endswith("-> 3, 4x4/2 up")


def test_a_dense_layer_is_measured(tmp_path):
    layer = onnx_layers(save(classifier(), tmp_path), images(1))[1]
    row = dense_layers._measure_layer("tiny", layer, 3, tmp_path, CEILINGS, 1e-3)
    assert row.error < 1e-6
    assert row.kernel_ms is not None and row.kernel_ratio is not None
    assert min(row.ours_ms, row.kernel_ms, row.onnxruntime_ms, row.ratio.low, row.peak, row.roof) > 0
    assert row.bytes == 4 * (8 * 16 * 9 + 16 * 64 + 8 * 64)
    assert row.peak == pytest.approx(row.gflop / 100 / (row.kernel_ms / 1e3))
    (line, total) = dense_layers.table([row])
    assert len(line) == len(total) == len(dense_layers.HEADINGS)
    assert total[3] == "3"
    assert float(total[5]) == pytest.approx(3 * row.ours_ms, rel=1e-2)


# Reuse


@pytest.fixture(scope="module")
def conv2() -> layer_cases.LayerCase:
    """A layer of the bundled CifarNet."""
    from adr_tvm.models.bundled import cifarnet_path

    (case,) = layer_cases.layers_of("cifarnet-b1", cifarnet_path(), NoData(), ["conv2"], photo=3)
    return case


def test_planes_do_not_see_the_measured_image(conv2):
    assert len(conv2.others) == layer_cases.FIT_PHOTOS
    assert not any(np.array_equal(conv2.x, x) for x in conv2.others)
    assert conv2.x.shape == (1, 16, 16, 64)


def test_a_reuse_layer_is_measured(conv2):
    settings = [ReuseSetting("pixel", L=16, H=6), reuse_layers.EXACT_ROWS]
    approximate, exact = reuse_layers._measure_layer(conv2, settings, CEILINGS, 1e-3)
    r_c, _ = analyse(neuron_vectors(conv2.x, conv2.geometry, settings[0]), conv2.planes(settings[0]))
    assert approximate.r_c == pytest.approx(r_c, abs=0.01)  # vectors within rounding of a plane may differ
    assert 0.05 < approximate.nmse < 1
    assert exact.nmse == 0
    assert approximate.clusters == pytest.approx(approximate.r_c * 256)
    assert approximate.speedup.median > 0
    assert approximate.roof > 0
    assert approximate.dense_gflops == pytest.approx(2 * conv2.geometry.macs / approximate.dense_ms / 1e6)
    lines = reuse_layers.table([approximate, exact])
    assert {len(line) for line in lines} == {len(reuse_layers.HEADINGS)}
    assert [line[3] for line in lines] == ["pixel L=16 H=6 pca float32", "row exact float32"]


def test_the_roof_of_reuse():
    """Hash and products at 100 GFLOP/s, the gather at that of the level that a segment's table fits in."""
    g = ConvGeometry(10, 10, 32, 3, 3, 8, padding=(1, 1, 1, 1))
    macs = 100 * 32 * 8 + 10 * 16 * 9 * 8
    small = reuse_roof(g, ReuseSetting("pixel", L=16, H=8, table="int8"), 10, CEILINGS)
    assert small == pytest.approx(2 * macs / 100e9 + 100 * 2 * 9 * 8 / 200e9)
    large = reuse_roof(g, ReuseSetting("pixel", L=16, H=8), 10, CEILINGS)
    assert large == pytest.approx(2 * macs / 100e9 + 100 * 2 * 9 * 8 * 4 / 20e9)
    rows = reuse_roof(g, reuse_layers.EXACT_ROWS, 20, CEILINGS)
    assert rows == pytest.approx(2 * 20 * 288 * 8 / 100e9 + 100 * 8 * 4 / 200e9)


def test_layers_and_photos_that_do_not_exist():
    from adr_tvm.models.bundled import cifarnet_path

    with pytest.raises(UsageError, match=r"no layer 'conv9'.*conv1, conv2"):
        list(layer_cases.layers_of("cifarnet-b1", cifarnet_path(), NoData(), ["conv9"], 0))
    with pytest.raises(UsageError, match="1024 inputs"):
        list(layer_cases.layers_of("cifarnet-b1", cifarnet_path(), NoData(), [], 5000))
    with pytest.raises(UsageError, match="no synthetic layer"):
        list(reuse_layers._cases(Job("synthetic", ["1x1"], {}, 0, 1, 1.0), NoData(), Path()))


def test_settings_around_the_usual_one_differ_in_one_thing():
    settings = around_base()
    assert len(set(settings)) == len(settings)
    assert {setting.table for setting in settings} == set(TABLES)
    assert settings[0] == BASE


def test_combinations_leave_out_what_makes_no_sense():
    found = combinations(BASE, {"granularity": ["pixel", "row"], "table": ["float32", "int8"]})
    assert [(each.granularity, each.table) for each in found] == [
        ("pixel", "float32"),
        ("pixel", "int8"),
        ("row", "float32"),
    ]
    with pytest.raises(UsageError, match="int8"):
        combinations(BASE, {"granularity": ["row"], "table": ["int8"]})


def test_synthetic_layers():
    assert len({prototype.name for prototype in PROTOTYPES}) == len(PROTOTYPES)
    image = smooth_image(16, 5)
    assert image.shape == (1, 16, 16, 5) and image.dtype == np.float32
    assert image.min() == 0 < image.max() < 2.2
    np.testing.assert_array_equal(image, smooth_image(16, 5))
    case = layer_cases.synthetic_layer(Prototype(8, 16, 4, 6))
    assert (case.geometry.H, case.geometry.C, case.geometry.M, case.geometry.padding) == (8, 16, 4, (1, 1, 1, 1))
    onnx.checker.check_model(convolution(case.prototype), full_check=True)
    job = Job("synthetic", [], {"H": [4, 5]}, 0, 1, 1.0)
    assert [(each.H, each.hash) for each in reuse_layers._settings(job, case)] == [(4, "gaussian"), (5, "gaussian")]


def test_nmse_is_relative_to_the_spread_of_channels():
    r = np.array([[[[0.0, 10.0], [2.0, 10.0]]]], np.float32)
    assert nmse(r, r) == 0
    assert nmse(r + 1, r) == pytest.approx(4 / 2)


# Whole networks


def test_a_model_of_another_size(tmp_path):
    path = save(conv(shape=("N", 3, 8, 8)), tmp_path)
    assert of_shape(path, (4, 3, 8, 8), tmp_path) == path
    larger = of_shape(path, (2, 3, 16, 12), tmp_path)
    x = np.ones((2, 3, 16, 12), np.float32)
    assert InnerTensors(onnx.load(larger), ["y"])(x)["y"].shape == (2, 4, 14, 10)


PLAN, LOSSLESS = "plan, top1 drop <= 90 %, 95 %", "plan, lossless"
OTHERS = ["dense", "onnxruntime", "onnxruntime-int8"]


@pytest.fixture(scope="module")
def plan_rows(tmp_path_factory) -> dict[str, list[plans.Row]]:
    """A tiny network under a plan that was searched for and under a lossless one; in this process."""
    import tvm

    path = save(classifier(), tmp_path_factory.mktemp("plans"))
    x, labels = images(24), np.arange(24) % 5
    unseen = images(9)[1:], np.arange(8) % 5
    cases = {
        PLAN: PlanCase("planned", path, (x, labels), unseen, "top1", (0.9, 0.95), 4),
        LOSSLESS: PlanCase("lossless", path, None, (unseen[0], None), "nmse", (0.0,), 4, {"lossless": True}),
    }
    with mock.patch.object(plans, "in_process", lambda work, _, *arguments: work(*arguments)):
        threads = [int(tvm.runtime.num_threads())]
        return {name: plans.run_case(case, threads, 1e-3, 5.0) for name, case in cases.items()}


@pytest.mark.parametrize("plan", [PLAN, LOSSLESS])
def test_plans_beside_other_engines(plan_rows, plan):
    rows = plan_rows[plan]
    assert [row.engine for row in rows] == [plan, *OTHERS]
    for row in rows:
        assert {row.engine, *row.speedups} == {plan, *OTHERS}
        assert (row.batch, row.samples) == (4, 8)
        assert (row.reused is None) == (row.budgets is None) == (row.engine != plan)
    assert rows[0].speedups["dense"].median == pytest.approx(
        1 / rows[1].speedups[plan].median
    )  # the rounds are odd in number
    assert {len(line) for line in plans.table(rows)} == {len(plans.HEADINGS)}


def test_the_metric_of_each_engine(plan_rows):
    top1, error = ({row.engine: row for row in plan_rows[plan]} for plan in (PLAN, LOSSLESS))
    assert top1["onnxruntime"].drop == 0
    assert top1["dense"].value == top1["onnxruntime"].value
    assert error[LOSSLESS].bits_of_dense and error["dense"].bits_of_dense
    assert not error["onnxruntime-int8"].bits_of_dense
    assert error[LOSSLESS].value < 1e-10 < error["onnxruntime-int8"].value < 0.6  # where weights have 7 bits


def test_plots_of_plans(plan_rows, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plots import prepare_folder

    prepare_folder(tmp_path / "plots")
    files = plans.plot([row for rows in plan_rows.values() for row in rows], tmp_path / "plots")
    assert [path.name for path in files] == ["plans-planned.png", "plans-lossless.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)


def test_the_bundled_network_needs_no_data_folder():
    case = plan_case("cifarnet", Sources(NoData()))
    (x, labels), (unseen, unseen_labels) = case.planning, case.unseen
    assert (len(x), len(unseen)) == (len(labels), len(unseen_labels)) == (768, 256)
    with pytest.raises(UsageError, match="--data DIR"):
        plan_case("resnet20", Sources(NoData()))


def test_planning_never_sees_what_it_is_judged_on():
    """CIFAR-10 in both forms, and everything that is halved."""
    whole = np.arange(10_000)

    class Fake(NoData):
        def cifar10(self, first, last):
            return whole[first:last], whole[first:last]

        def photos(self, size):
            return whole[:50]

    sources = Sources(Fake())
    (x, labels), (unseen, _) = sources.cifar(lambda each: each)
    assert len(x) == 4000 and len(unseen) == 5000
    assert not set(x) & set(unseen)
    np.testing.assert_array_equal(x, labels)
    (x, _), (unseen, _) = sources.photos((1, 1), lambda each: each)
    assert sorted([*x, *unseen]) == list(range(50))


def test_plans_from_training_images(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 32, 32, 3), np.uint8), rng.integers(0, 10, 30)
    np.savez(tmp_path / "cifar.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    case = plan_case("cifarnet-batch-scope", Sources(NoData(), tmp_path / "cifar.npz"))
    np.testing.assert_array_equal(case.planning[1], y[:20])
    np.testing.assert_array_equal(case.unseen[1], y[20:])
    np.testing.assert_array_equal(case.unseen[0], normalise(x[20:]))
    assert case.options == {"scope": "batch"}
    with pytest.raises(DataError, match="--cifar-train"):
        plan_case("cifarnet", Sources(NoData(), tmp_path / "none.tgz"))


def test_a_tighter_budget_that_is_kept_has_the_same_plan():
    def compiled(reused, bound, metric="top1"):
        plan, result = SimpleNamespace(reused=reused), SimpleNamespace(bound=bound, metric=metric)
        return SimpleNamespace(plan=plan, result=result)

    assert _keeps(compiled({}, None), 0.0)
    assert _keeps(compiled({"conv": BASE}, 0.01), 0.01)
    assert not _keeps(compiled({"conv": BASE}, 0.01), 0.005)
    assert not _keeps(compiled({"conv": BASE}, None), 0.5)
    assert _keeps(compiled({"conv": BASE}, 41.0, "psnr"), 40.0)
    assert not _keeps(compiled({"conv": BASE}, 39.0, "psnr"), 40.0)


def test_growth_over_shapes(tmp_path):
    path = save(conv(shape=("N", 32, 8, 8), weight=(16, 32, 3, 3)), tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 32, 10, 10)).astype(np.float32)
    model = of_shape(path, x.shape, tmp_path)
    planes = growth.HashPlanes(
        np.random.default_rng(1).standard_normal((2, 16, 8)).astype(np.float32),
        np.zeros((2, 8), np.float32),
        np.zeros((2, 16), np.float32),
    )
    row = growth.measure_shape("squeezenet", model, x, {"conv": planes}, 1, 1e-3)
    assert (row.batch, row.side, row.layers, row.rounds) == (2, 10, 1, 5)
    r_c, _ = analyse(x.transpose(0, 2, 3, 1).reshape(200, 2, 16), planes, units=2)
    assert row.r_c == pytest.approx(r_c, abs=0.01)
    assert min(row.dense_ratio.low, row.reuse_ratio.low) > 0
    assert len(growth.table([row])[0]) == len(growth.HEADINGS)


def test_a_plot_of_growth(tmp_path):
    pytest.importorskip("matplotlib")
    row = growth.Row("squeezenet", 1, "batch", 1, 224, 8, 0.1, 4.0, 3.0, 5.0, Ratio(1, 1, 1), Ratio(1, 1, 1), 9)
    (path,) = growth.plot([row, replace(row, grows="side", side=64)], tmp_path)
    assert path.name == "growth-squeezenet-1.png" and path.stat().st_size > 5000


def test_what_grows():
    assert growth.shapes(growth.NETWORKS["squeezenet"], [1, 4], [64]) == [
        ("batch", 1, 224),
        ("batch", 4, 224),
        ("side", 1, 64),
    ]


# Documentation


def test_tables_go_into_a_document(tmp_path):
    (tmp_path / "a.txt").write_text("$ command\nname  ms\nx     1\ny     2\n")
    text = "A\n<!-- a.txt -->\n```\nold\n```\nB\n<!-- a.txt: y -->\n```\n```\n<!-- b.txt -->\n```\nkept\n```\n"
    found, names = insert_tables.insert(text, tmp_path)
    assert names == ["a.txt", "a.txt"]
    assert found == (
        "A\n<!-- a.txt -->\n```\n$ command\nname  ms\nx     1\ny     2\n```\nB\n"
        "<!-- a.txt: y -->\n```\n$ command\nname  ms\ny     2\n```\n<!-- b.txt -->\n```\nkept\n```\n"
    )
    assert insert_tables.insert(found, tmp_path) == (found, names)
    document = tmp_path / "document.md"
    document.write_text(text)
    assert insert_tables.main([str(tmp_path), str(document)]) == 0
    assert document.read_text() == found
    assert insert_tables.main([str(tmp_path / "none"), str(document)]) == 2


def test_the_script_makes_what_the_document_shows():
    root = Path(insert_tables.__file__).parents[1]
    steps = re.findall(r"^step (\w+) (\w+)", (root / "benchmarks" / "all.sh").read_text(), re.MULTILINE)
    shown = re.findall(r"<!-- (\w+)\.txt", (root / "docs" / "performance.md").read_text())
    assert set(shown) <= {name for name, _ in steps}
    assert {module for _, module in steps} >= {command.name for command in COMMANDS}


def test_training_layers_and_their_phases():
    layer = reuse_gradients.TrainedLayer(ConvGeometry(6, 6, 16, 3, 3, 8, padding=(1, 1, 1, 1)), 4)
    row = reuse_gradients.measure_layer("small", layer, ReuseSetting("pixel", L=8, H=4, scope="batch"), 1, 1e-3)
    assert 0 < row.r_c <= 2 * 17 / (2 * 36 * 4)
    assert all(row.phases[phase] > 0 for phase in reuse_gradients.PHASES)
    (line,) = reuse_gradients.table([row])
    assert len(line) == len(reuse_gradients.HEADINGS)


# Commands


def test_a_whole_command(tmp_path, capfd):
    """The bundled network, in a process of its own."""
    arguments = ["--network", "cifarnet-b1", "--threads", "1", "--seconds", "0.01", "-q"]
    assert exit_code(dense.COMMAND, *arguments, "--json", str(tmp_path / "dense.json")) == 0
    written = json.loads((tmp_path / "dense.json").read_text())
    (row,) = written["rows"]
    assert (written["benchmark"], row["network"], row["threads"]) == ("dense", "cifarnet-b1", 1)
    assert row["error"] < 1e-5
    assert {"processor", "cores", "packages", "load"} <= written["machine"].keys()
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()] == ["network", "cifarnet-b1", "geometric"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_and_errors(command, tmp_path, capsys):
    assert exit_code(command, "--help") == 0
    assert f"python -m benchmarks.{command.name}" in capsys.readouterr().out
    for arguments, words in (
        (["--seconds", "0"], "--seconds is 0"),
        (["--threads", "4096"], "4096 threads"),
        (["--json", str(tmp_path / "no" / "file.json")], "cannot be written"),
        (["--data", str(tmp_path / "none")], "not a folder"),
    ):
        assert exit_code(command, *arguments) in (2, 3)
        assert words in capsys.readouterr().err


def test_what_needs_data_says_so(capsys):
    assert exit_code(dense.COMMAND, "--network", "resnet20-b1", "--threads", "1") == 2
    assert "--data DIR is needed" in capsys.readouterr().err


def test_every_case_of_plans_can_be_chosen(capsys):
    assert exit_code(plans.COMMAND, "--network", "nothing") == 2
    text = capsys.readouterr().err
    assert all(name in text for name in MAKERS)


def test_a_process_has_its_own_number_of_threads():
    assert in_process(_threads_of_process, 1) == "1"


def _threads_of_process() -> str:
    import os

    return os.environ["TVM_NUM_THREADS"]
