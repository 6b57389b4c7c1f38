"""The benchmarks of memory and compile time: what they measure, on a tiny network."""

from __future__ import annotations

import numpy as np
import pytest
from bundles import classifier, images
from onnx_graphs import save

from benchmarks import compile_time, memory
from benchmarks.dense import compile_dense
from benchmarks.memory import Usage
from benchmarks.networks import Network
from benchmarks.processes import in_process

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def which(tmp_path_factory):
    path = save(classifier(), tmp_path_factory.mktemp("costs"))
    return Network("tiny", path, images(1), "x")


def test_usage_tells_what_stays_from_what_is_used_for_a_while():
    def load():
        kept = np.ones(64 * MIB, np.uint8)
        return lambda: int(kept[0]) + int(np.ones(32 * MIB, np.uint8)[0])

    np.ones(200 * MIB, np.uint8)  # a peak before the baseline does not count
    found = memory.usage(load)
    assert found.loaded == pytest.approx(64, abs=4)
    assert found.peak == pytest.approx(96, abs=6)


def test_memory_of_both_engines(which, tmp_path):
    bundle = compile_dense(which, tmp_path / "bundle")
    ours = in_process(memory.measure_ours, 1, which, bundle, 1)
    other = in_process(memory.measure_onnxruntime, 1, which, 1)
    for each in (ours, other):
        assert 0 < each.loaded <= each.peak < 200
    row = memory.Row("tiny", 1, ours, other, ours.peak / other.peak)
    first, last = memory.table([row])
    assert first[:2] == ["tiny", "1"]
    assert last[-1] == first[-1] == f"{row.ratio:.2f}"


def test_memory_table_averages_each_number_of_threads():
    rows = [memory.Row("a", n, Usage(1, 2), Usage(1, 4), ratio) for n, ratio in ((1, 0.5), (1, 2.0), (2, 0.5))]
    assert [cells[-1] for cells in memory.table(rows)][-2:] == ["1.00", "0.50"]


def test_phases_of_compiling(which, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_time, "_import_time", lambda: 2.0)
    row = compile_time.measure(which, tmp_path)
    phases = [row.front_end, row.kernels, row.memory, row.llvm, row.link]
    assert min(*phases, row.load, row.onnxruntime) > 0
    assert row.sum == pytest.approx(sum(phases))
    assert row.kernels_parsed >= 3
    (cells,) = compile_time.table([row])
    assert len(cells) == len(compile_time.COMMAND.headings)
    assert cells[:3] == ["tiny", str(row.kernels_parsed), "2.00"]


def test_import_is_timed_in_a_fresh_process():
    assert 0.1 < compile_time._import_time() < 300
