"""Instruction counts under emulation: exact, complete, and told apart by phase and layer."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from bundles import REUSE, classifier, images, make_bundle

from adr_tvm.errors import MissingDependencyError
from benchmarks.emulation.count import Emulator
from benchmarks.emulation.phases import PHASES, LibraryMap
from benchmarks.instructions import main
from tests import aarch64

needs_emulator = pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing()))
MACS = {"conv1": 64 * 36 * 16, "conv2": 64 * 144 * 8, "fc": 8 * 5}


@needs_emulator
def test_a_network_with_a_plan(tmp_path):
    model = make_bundle(tmp_path / "net", classifier(), REUSE)
    x, out = tmp_path / "x.npy", tmp_path / "found.json"
    np.save(x, images(2)[1:])
    argv = [model, "--input", x, "--plan", tmp_path / "net", "--runtime-dir", aarch64.runtime(), "--layers"]
    assert main([str(each) for each in [*argv, "--json", out]]) == 0
    found = json.loads(out.read_text())
    rows = {(row["layer"], row["entry"]): row for row in found["rows"]}
    assert len(rows) == 2 * (1 + len(MACS))
    for row in rows.values():
        assert sum(row["phases"].values()) == row["instructions"] and set(row["phases"]) <= set(PHASES)
    for layer, macs in MACS.items():
        products = rows[layer, "dense"]["phases"]["GEMM"]
        assert products > macs / 4, "four multiply-adds to an instruction"
        assert not {"hash", "cluster", "scatter"} & set(rows[layer, "dense"]["phases"])
    assert rows["conv2", "dense"]["phases"]["GEMM"] < 2 * MACS["conv2"] / 4
    assert {"hash", "cluster", "GEMM", "scatter"} <= set(rows["conv2", "reuse"]["phases"])
    assert {"cluster", "GEMM"} <= set(rows["conv1", "reuse"]["phases"])
    for entry in ("dense", "reuse"):
        layers = sum(rows[layer, entry]["phases"]["GEMM"] for layer in MACS)
        assert layers == pytest.approx(rows["", entry]["phases"]["GEMM"], rel=0.01)
    assert [size["entry"] for size in found["sizes"]] == ["dense", "reuse"]
    for size in found["sizes"]:
        assert (
            size["weights"] >= 4 * (16 * 36 + 8 * 144 + 40) and size["memory"] >= 64 * 16 * 4 and size["code"] > 10000
        )


@needs_emulator
def test_counts_repeat_and_results_are_right(tmp_path):
    from tvm.support import cc

    from adr_tvm.build import build_module, canonical_module
    from adr_tvm.frontend.onnx_model import check_model

    model = tmp_path / "net.onnx"
    onnx.save(classifier(), model)
    mod = canonical_module(check_model(model, {}), aarch64.target())
    library = tmp_path / "net.so"
    build_module(mod, aarch64.target()).export_library(str(library), fcompile=cc.cross_compiler(aarch64.COMPILER))
    emulator = Emulator(tmp_path, aarch64.runtime())
    first, again = (emulator.count(library, "main", [images(1)]) for _ in range(2))
    assert first == again and first.total > sum(MACS.values()) / 4
    assert emulator.count(library, "main", [images(2)]).total > 1.9 * first.total - 50_000
    places = LibraryMap(library)
    assert {places.function(address) for address in range(0, library.stat().st_size, 64)} >= {"adr_conv2d"}


def test_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(MissingDependencyError, match=r"libtvm_runtime|not installed"):
        Emulator(tmp_path, tmp_path)
    monkeypatch.setattr("benchmarks.emulation.count.EMULATOR", "no-such-emulator")
    with pytest.raises(MissingDependencyError, match="is not installed: apt install"):
        Emulator(tmp_path, tmp_path)


def test_options(tmp_path, capsys):
    assert main(["net.onnx"]) == 2 and "needs its inputs: --input" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.zeros(1))
    assert main(["net.onnx", "--input", str(tmp_path / "x.npy"), "--target", "cpu"]) in (2, 3)
    assert main(["net.onnx", "--input", str(tmp_path / "none.npy")]) == 3
