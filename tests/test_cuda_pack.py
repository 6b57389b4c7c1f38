"""The pack for a machine with a GPU, and its runner: a dry run on this machine's processor, and the scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from adr_tvm.geometry import ConvGeometry
from adr_tvm.models.chain import build_chain, he_normal
from adr_tvm.settings import ReuseSetting
from benchmarks import cuda_pack
from benchmarks.cuda_pack import block_of
from benchmarks.cuda_runner import Results, Runner, difference, layer_input, read_results, tables

BENCHMARKS = Path(cuda_pack.__file__).parent
STEP = "cifarnet-step-bf16"
SHAPES = {"conv1.weight": (6, 3, 3, 3), "conv1.bias": (6,), "logits.weight": (4, 6 * 16), "logits.bias": (4,)}
LAYERS = [
    ("Conv", "conv1", {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}),
    ("Relu", "relu1", {}),
    ("Flatten", "flatten", {"axis": 1}),
    ("Gemm", "logits", {"transB": 1}),
]
LAYER = ConvGeometry(9, 8, 16, 3, 3, 12, padding=(1, 1, 1, 1))
PIXEL = ReuseSetting("pixel", L=16, H=4, hash="gaussian")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_pack, "LAYERS", {"small": LAYER})
        patch.setattr(cuda_pack, "settings_of", lambda g: {"row exact": cuda_pack.LOSSLESS, "pixel": PIXEL})
        patch.setattr(cuda_pack, "STEP_BATCH", 4)
        path = folder / "small.onnx"
        onnx.save(build_chain("small", LAYERS, he_normal(SHAPES, 0), (3, 8, 8), 4), path)
        patch.setattr(cuda_pack, "cifarnet_path", lambda: path)
        made = ["--cpu", "--batch", "2", "--network", "none", "--step", STEP]
        assert cuda_pack.main([str(folder), *made]) == 0
    return folder


@pytest.mark.parametrize("name", ["cuda.sh", "cuda_pack.sh"])
def test_scripts_are_bash(name):
    subprocess.run(["bash", "-n", str(BENCHMARKS / name)], check=True)
    done = subprocess.run(["bash", str(BENCHMARKS / name)], capture_output=True, text=True)
    assert done.returncode == 2 and f"benchmarks/{name} PACK" in done.stderr


def test_a_dry_run(pack, tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "TVM_NUM_THREADS": "1"}
    command = ["bash", str(pack / "cuda.sh"), str(pack), str(tmp_path / "results"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "results" / "results.jsonl")
    checks = {each["entry"]: each for each in results if each["kind"] == "check"}
    layer = ["dense", "row_exact", "pixel"]
    assert list(checks)[:5] == [*layer, "loss", "logits"] and len(checks) == 5 + len(SHAPES)
    assert all(each["passed"] and each["same_bytes"] for each in checks.values())
    assert checks["row_exact"]["lossless"] and 0 < checks["row_exact"]["r_c"] < 0.5
    assert {each["entry"] for each in results if each["kind"] == "time"} == {*layer, "step"}
    phases = {each["entry"]: each["seconds"] for each in results if each["kind"] == "phases"}
    assert all("adr_conv2d" in kernel for kernel in phases["dense"]) and len(phases["pixel"]) > 1
    assert {each["name"] for each in results if each["kind"] == "ceiling"} == {"copy", "gemm"}
    assert results[-1] == {"kind": "end", "complete": True, "failed": 0}
    assert "row_exact" in done.stdout and "GB/s" in done.stdout and "no PyTorch with CUDA" in done.stdout


def test_a_wrong_result_is_found(pack, tmp_path):
    expected = np.load(pack / "small" / "expected_dense.npy")
    np.save(pack / "small" / "expected_dense.npy", expected + np.float32(0.1))
    try:
        failed = Runner(pack, Results(tmp_path / "a.jsonl"), "cpu", 60).run()
    finally:
        np.save(pack / "small" / "expected_dense.npy", expected)
    assert failed == 1
    assert failures(tmp_path / "a.jsonl") == ["dense"]


def failures(results):
    return [e["entry"] for e in read_results(results) if e["kind"] == "check" and not e["passed"]]


def test_a_wrong_gradient_is_found(pack, tmp_path):
    path = pack / STEP / "expected.npz"
    with np.load(path) as arrays:
        expected = dict(arrays)
    name = next(key for key in expected if key.endswith("_momentum"))
    np.savez(path, **{**expected, name: 1.1 * expected[name]})
    try:
        assert Runner(pack, Results(tmp_path / "a.jsonl"), "cpu", 60).run() == 1
    finally:
        np.savez(path, **expected)
    assert failures(tmp_path / "a.jsonl") == [name]


def test_nothing_begins_after_the_end(pack, tmp_path):
    assert Runner(pack, Results(tmp_path / "a.jsonl"), "cpu", 0).run() == 0
    results = read_results(tmp_path / "a.jsonl")
    assert {each["kind"] for each in results} == {"machine", "skipped", "end"} and not results[-1]["complete"]
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"kind": "time", "na')  # cut off
    assert read_results(tmp_path / "a.jsonl") == results
    items = json.loads((pack / "manifest.json").read_text())["items"]
    assert "check small: no time left" in tables(results, items)


def test_inputs_repeat_as_asked():
    for geometry in cuda_pack.LAYERS.values():
        rows, columns = block_of(geometry)
        assert 0.02 < geometry.KH * geometry.KW / (rows * columns) < 0.2
    x = layer_input([2, 5, 4, 3], [2, 3], 1)
    assert x.shape == (2, 5, 4, 3) and len(np.unique(x.reshape(-1, 3), axis=0)) == 2 * 3 * 2
    assert np.array_equal(x, layer_input([2, 5, 4, 3], [2, 3], 1))
    assert difference(np.array([[1.0], [2.0]]), np.array([[1.0], [2.1]])) == (pytest.approx(0.1 / 2.1), 0.5)
    assert difference(np.array([[np.nan]]), np.array([[1.0]])) == (float("inf"), 0.0)
