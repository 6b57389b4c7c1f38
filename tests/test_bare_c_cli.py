"""``adr-compile --emit c``: a folder of C that runs here and on an emulated board; limits of memory, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from bundles import REUSE, classifier, images, make_bundle
from onnx import helper
from onnx_graphs import make_model, save

import adr_tvm
from adr_tvm.cli.compile import byte_count, main
from tests import mps2

needs_board = pytest.mark.skipif(mps2.missing() is not None, reason=str(mps2.missing()))
TARGETS = ("run", "run-cortex-m4", "run-cortex-m7")
TOLERANCE = 1e-5  # sums of another order


def emit(model: Path, folder: Path, *options: object) -> int:
    argv = [model, "-o", folder, "--target", "cortex-m4", "--emit", "c", "-q", *options]
    return main([str(each) for each in argv])


@pytest.fixture(scope="module")
def reusing(tmp_path_factory):
    """(bare C, library) of a network with a lossless layer and a `pixel` layer."""
    folder = tmp_path_factory.mktemp("bare") / "net"
    model = make_bundle(folder, classifier(), REUSE)
    assert emit(model, folder.with_name("c"), "--plan", folder / "plan.json") == 0
    return folder.with_name("c"), folder


@needs_board
def test_the_board_gives_what_the_library_gives(reusing):
    bare, library = reusing
    compiled = adr_tvm.load(library)
    given = images(3)  # the first is noise: too many clusters, so both layers run dense
    expected, stats = [], []
    for x in given:
        y = compiled(x[None])
        expected.append(y)
    for target in TARGETS:
        found, counts = mps2.run(bare, given, target)
        for y, reference in zip(found, expected, strict=True):
            np.testing.assert_allclose(y, reference[0], rtol=0, atol=TOLERANCE * float(np.abs(reference).max()))
        assert counts[0, :, 1].tolist() == [0, 0] and counts[1:, :, 1].all()
        stats.append(counts)
    np.testing.assert_array_equal(stats[1], stats[2])
    assert 0 < stats[0][1, 1, 0] <= 40


@needs_board
def test_what_the_folder_says(reusing):
    bare, _ = reusing
    manifest = json.loads((bare / "model.json").read_text())
    assert manifest["target"] == "cortex-m4" and manifest["reuse_layers"] == ["conv1", "conv2"]
    header = (bare / "model.h").read_text()
    assert f"#define MODEL_ARENA_BYTES {manifest['bytes']['arena']}\n" in header
    assert "#define MODEL_REUSE_LAYERS 2\n/* 0: conv1 */\n/* 1: conv2 */\n" in header
    result = json.loads((bare / "report.json").read_text())
    assert result["predicted"] and result["target"] == "cortex-m4" and result["threads"] == 1
    assert any(f"code {manifest['bytes']['code']})" in note for note in result["notes"])


@needs_board
def test_limits(tmp_path, capsys):
    model = save(classifier(), tmp_path)
    assert emit(model, tmp_path / "c", "--max-ram", "1K", "--max-flash", "2K") == 4
    said = capsys.readouterr().err
    # conv1's 8 x 8 x 16 and conv2's 8 x 8 x 8 results at once; the input of 4 x 8 x 8 and 5 results are the caller's.
    assert "needs 7188 bytes of RAM (arena 6144, inputs and outputs 1044), --max-ram allows 1024" in said
    assert "conv2 (6144 bytes alive)" in said and "what would help: --dtype int8" in said
    assert "--max-flash allows 2048" in said and "conv2 (4640 bytes)" in said
    assert (tmp_path / "c" / "model.c").is_file()
    assert emit(model, tmp_path / "c", "--max-ram", "7188", "--max-flash", "64K") == 0  # replaces the folder


@needs_board
def test_without_calibration_all_is_dense(tmp_path):
    model = save(classifier(), tmp_path)
    assert emit(model, tmp_path / "c") == 0
    x = images(2)
    expected = onnxruntime.InferenceSession(str(model)).run(None, {"x": x})[0]
    found, counts = mps2.run(tmp_path / "c", x, "run-cortex-m7")
    assert counts.size == 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


@needs_board
def test_without_a_target(tmp_path, capsys):
    model = save(classifier(), tmp_path)
    assert main([str(model), "-o", str(tmp_path / "c"), "--emit", "c"]) == 0
    said = capsys.readouterr().out
    assert "sizes and times are those of a cortex-m4" in " ".join(said.split())
    assert json.loads((tmp_path / "c" / "model.json").read_text())["target"] == "cortex-m4"
    assert emit(model, tmp_path / "named") == 0
    assert (tmp_path / "c" / "model.c").read_bytes() == (tmp_path / "named" / "model.c").read_bytes()


def test_a_missing_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert emit(save(classifier(), tmp_path), tmp_path / "c") == 5
    assert "apt install gcc-arm-none-eabi libnewlib-arm-none-eabi" in capsys.readouterr().err


@needs_board
def test_operators_without_c_code(tmp_path, capsys):
    nodes = [helper.make_node("Erf", ["x"], ["a"], "first"), helper.make_node("Cos", ["a"], ["y"], "second")]
    assert emit(save(make_model(nodes, {"x": [1, 5]}, {"y": [1, 5]}), tmp_path), tmp_path / "c") == 3
    said = capsys.readouterr().err
    assert "cos: second; erf: first" in said and not (tmp_path / "c").exists()


def test_byte_counts():
    assert [byte_count(text) for text in ("1", "64K", "64k", "2M")] == [1, 65536, 65536, 2097152]
    for text in ("", "K", "-1", "1.5K", "64KB", "0x10"):
        with pytest.raises(Exception, match="no number of bytes"):
            byte_count(text)
