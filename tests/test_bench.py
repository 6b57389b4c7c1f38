"""``adr-bench``: the structure of its results and its errors; never its times."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from bundles import REUSE, classifier, images, make_bundle

from adr_tvm.bench import fit_machine
from adr_tvm.bench import run as bench_module
from adr_tvm.bench.fit_machine import Case
from adr_tvm.bench.results import BenchResult, engine_times, speedup
from adr_tvm.bench.worker import _larger, _take_turns
from adr_tvm.cli.bench import main
from adr_tvm.errors import ModelError
from adr_tvm.geometry import dense_geometry
from adr_tvm.jsonfile import read_json
from adr_tvm.settings import ReuseSetting

COUNT = 10


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bundle, model and data; the fixture is their folder."""
    folder = tmp_path_factory.mktemp("bench")
    make_bundle(folder / "out", classifier(), REUSE)
    x = images(COUNT)
    np.savez(folder / "data.npz", x=x, y=np.arange(COUNT) % 5)
    np.savez(folder / "plain.npz", x=x)
    np.savez(folder / "small.npz", x=x[:1])
    np.savez(folder / "wrong.npz", x=x[:, :2])
    return folder


def arguments(files, *more, data="plain.npz", quiet=True):
    fixed = [files / "out", "--model", files / "out.onnx", "--input", files / data, "--runs", "1", "--threads", "1"]
    return [str(each) for each in [*fixed, *more, *(["-q"] if quiet else [])]]


def test_everything(files, tmp_path, capfd):
    """All engines, labels, quantisation, JSON."""
    out = tmp_path / "result.json"
    calib = files / "data.npz"
    against = "onnxruntime,onnxruntime-int8,dense"
    more = ["--labels-name", "y", "--calib", calib, "--against", against, "--batch", "3", "--json", out, "--runs", "10"]
    assert main(arguments(files, *more, data="data.npz")) == 0
    result = read_json(out, BenchResult, 1, ModelError)
    names = ["adr", "onnxruntime", "onnxruntime-int8", "dense"]
    assert (result.model, result.batch, result.runs, result.metric, result.samples) == (
        "out.onnx",
        3,
        10,
        "top1",
        COUNT,
    )
    assert {"adr_tvm", "tvm", "onnxruntime", "python"} <= set(result.versions)
    assert result.processor
    assert [at.threads for at in result.times] == [1]
    for engine, name in zip(result.times[0].engines, names, strict=True):
        assert engine.engine == name
        assert len(engine.times_ms) == 10
        assert engine.median_ms == pytest.approx(np.median(engine.times_ms))
        assert (engine.speedup is None) == (name == "adr")
        if engine.speedup:
            assert engine.speedup.low <= engine.speedup.ratio <= engine.speedup.high
    accuracy = {each.engine: each for each in result.accuracy}
    assert list(accuracy) == names
    assert accuracy["onnxruntime"].max_relative_difference == accuracy["onnxruntime"].drop == 0
    assert accuracy["dense"].max_relative_difference < 1e-5
    assert accuracy["adr"].max_relative_difference > 1e-4
    assert 0 < accuracy["onnxruntime-int8"].max_relative_difference < 0.2
    shown = capfd.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["threads", "engine", "median", "ms", "speedup", "95", "%", "rel.", "diff", "top1"]
    assert [line.split()[1] for line in lines[1:5]] == names
    assert lines[5].startswith("out.onnx, batch 3, 1 thread: ")
    assert len(lines) == 6
    assert shown.err == ""
    assert "\x1b" not in shown.out


def test_one_sample_without_labels(files, capfd):
    assert main(arguments(files, "--against", "dense", data="small.npz", quiet=False)) == 0
    shown = capfd.readouterr()
    assert shown.out.splitlines()[0].endswith("agreement")
    assert [line.split()[1] for line in shown.out.splitlines()[1:3]] == ["adr", "dense"]
    assert "[1/1] measuring, threads: 1" in shown.err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--threads", "0"], 2, "0 threads asked for"),
        (["--threads", "9999"], 2, "9999 threads asked for"),
        (["--threads", "1,1"], 2, "--threads names one thing twice"),
        (["--threads", "two"], 2, "'two' is not a list of whole numbers"),
        (["--against", "tensorrt"], 2, "--against 'tensorrt' is not known; there is onnxruntime"),
        (["--against", "onnxruntime-int8"], 2, "needs data to quantise with: add --calib"),
        (["--runs", "0"], 2, "--runs is 0"),
        (["--batch", "-1"], 2, "--batch is -1"),
        (["--metric", "f1"], 2, "--metric is 'f1'"),
        (["--metric", "top1"], 2, "metric top1 needs labels"),
        (["--json", "/nowhere/at/all.json"], 2, "--json /nowhere/at/all.json cannot be written"),
        (["--batch", "50"], 3, "holds 10 samples, --batch asks for 50"),
        (["--labels-name", "z"], 3, "'z'"),
        (["--input", "wrong.npz"], 3, "dimension 1 is 2, expected 4"),
        (["--input", "missing.npz"], 3, "missing.npz do not exist"),
        (["--model", "missing.onnx"], 3, "missing.onnx"),
    ],
)
def test_errors_are_one_line(files, monkeypatch, capfd, more, code, message):
    monkeypatch.chdir(files)
    try:
        found = main(arguments(files, *more))
    except SystemExit as error:  # argparse's own
        found = error.code
    shown = capfd.readouterr()
    assert found == code
    assert message in shown.err
    assert shown.err.startswith("adr-bench: error: ")
    assert (shown.err.count("\n"), shown.out) == (1, "")


def test_fit_machine(monkeypatch, tmp_path, capfd):
    """The table, the speeds and the file; never the times. Two kernels stand for all."""
    few = [Case(dense_geometry(8, 16, 16)), Case(dense_geometry(8, 16, 16), ReuseSetting(L=8, H=4), 4)]
    monkeypatch.setattr(fit_machine, "cases", lambda: few)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["--fit-machine", "--json", str(tmp_path / "fit.json")]) == 0
    shown = capfd.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["kernel", "measured", "ms", "predicted", "ms", "error"]
    assert lines[1].startswith("8x16 -> 16: dense") and lines[2].startswith(
        "8x16 -> 16: pixel L=8 H=4 pca, 4 prototypes"
    )
    assert lines[-1].count("median error") == 1 and str(tmp_path / "adr_tvm") in lines[-1]
    assert "measuring kernels" in shown.err
    (path,) = (tmp_path / "adr_tvm").iterdir()
    assert path.read_bytes() == (tmp_path / "fit.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: OUT, --model, --input"),
        (["out", "--input", "x.npz"], "the following arguments are required: --model"),
        (["out", "--fit-machine", "--runs", "3"], "OUT and --runs cannot go with --fit-machine"),
        (["--fit-machine", "--threads", "1,2"], "one number of threads at a time"),
        (["--fit-machine", "--threads", "9999"], "9999 threads asked for"),
    ],
)
def test_what_goes_together(arguments, message, capfd):
    assert main(arguments) == 2
    shown = capfd.readouterr()
    assert message in shown.err and (shown.err.count("\n"), shown.out) == (1, "")


def test_another_model(files, tmp_path, capfd):
    other = tmp_path / "other.onnx"
    other.write_bytes((files / "out.onnx").read_bytes() + b"\x32\x00")  # an empty field more
    assert main(arguments(files, "--model", other)) == 3
    assert "was compiled from another model (out.onnx" in capfd.readouterr().err


def test_no_bundle(files, capfd):
    assert main([str(files), *arguments(files)[1:]]) == 3
    assert "is not a bundle" in capfd.readouterr().err


def test_internal_errors_are_one_line_too(files, monkeypatch, capfd):
    monkeypatch.setattr(bench_module, "bench", lambda options: 1 / 0)
    monkeypatch.delenv("ADR_DEBUG", raising=False)
    assert main(arguments(files)) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("adr-bench: error: internal error: ZeroDivisionError: division by zero")
    assert shown.count("\n") == 1
    monkeypatch.setenv("ADR_DEBUG", "1")
    assert main(arguments(files)) == 1
    assert "Traceback" in capfd.readouterr().err


def test_killed_worker_is_told(files, monkeypatch, capfd):
    killed = subprocess.CompletedProcess([], -signal.SIGKILL)
    monkeypatch.setattr(bench_module.subprocess, "run", lambda *_, **__: killed)
    assert main(arguments(files)) == 1
    assert "the process that measures with 1 threads was killed by signal 9" in capfd.readouterr().err


def test_interrupt(files):
    command = [sys.executable, "-m", "adr_tvm.cli.bench", *arguments(files, "--runs", "500", quiet=False)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert "measuring" in line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "adr-bench: error: interrupted"


def test_help_is_fast():
    code = "import sys, adr_tvm.cli.bench as b; b.make_parser().format_help(); assert 'numpy' not in sys.modules"
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=900).returncode == 0
    assert time.monotonic() - start < 5  # 0.15 s alone; the test machine may be busy


def test_no_engine_gains_by_its_place(monkeypatch):
    """Each timed run comes right after an untimed one of the same engine, at each place equally often."""
    calls, clock = [], itertools.count(step=0.002)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda _: calls.append("pause"))
    engines = {name: lambda feed, name=name: calls.append((name, feed["x"][0])) for name in ("adr", "dense", "other")}
    feeds = [{"x": np.array([index])} for index in range(2)] + [{"x": np.zeros(3)}]  # the last fills no batch
    times = _take_turns(engines, feeds, mock.Mock(batch=1, runs=12, threads=1))
    assert {name: len(each) for name, each in times.items()} == dict.fromkeys(engines, 12)
    turns = [list(run) for paused, run in itertools.groupby(calls, lambda call: call == "pause") if not paused]
    assert len(turns) == 36 and all(len(turn) >= 2 and len(set(turn)) == 1 for turn in turns)
    assert [turn[0][1] for turn in turns] == [0, 0, 0, 1, 1, 1] * 6
    for place in range(3):
        assert Counter(turn[0][0] for turn in turns[place::3]) == dict.fromkeys(engines, 4)


def test_speedup_resamples_rounds():
    ours = [1.0, 10.0] * 5 + [1.0]  # the rounds differ by far more than the engines
    found = speedup([2 * time for time in ours], ours)
    assert found.low == found.ratio == found.high == 2
    assert speedup([3.0] * 9, [1.0] * 9).low is None
    assert [each.speedup is None for each in engine_times({"adr": ours, "dense": ours})] == [True, False]


def test_largest_difference():
    nan, inf = np.nan, np.inf
    assert _larger((0, 0), np.array([1.0, nan, inf]), np.array([3.0, nan, inf])) == (2, inf)
    assert np.isnan(_larger((0, 0), np.array([nan]), np.array([3.0]))[0])
    assert _larger((5, 1), np.array([1.0]), np.array([3.0])) == (5, 3)
