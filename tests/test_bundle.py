"""The bundle folder: its manifest, and that a folder is replaced as a whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from adr_tvm.data.tensor_spec import TensorSpec
from adr_tvm.deploy.bundle import MANIFEST_FILE, Manifest, ReuseLayer, staged
from adr_tvm.deploy.processor import missing_extensions, vector_extensions
from adr_tvm.errors import ModelError, UsageError

MANIFEST = Manifest(
    model="net.onnx",
    model_sha256="a" * 64,
    target="cpu",
    cpu="znver5",
    cpu_features=["avx2", "fma"],
    library_sha256="b" * 64,
    weights_sha256="c" * 64,
    inputs=[TensorSpec("x", ("N", 3, 8, 8), "float32")],
    outputs=[TensorSpec("y", ("N", 10), "float32")],
    reuse_layers=[ReuseLayer("conv1", 64, "image", None), ReuseLayer("conv2", 128, "batch", 7)],
    lossless=False,
    tvm_version="0.27",
)


def write_bundle(folder, text="first"):
    with staged(folder) as staging:
        MANIFEST.save(staging)
        (staging / "model.so").write_text(text)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_manifest_round_trip(tmp_path):
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2, this program reads up to 1"),
        ({"version": None}, "no format version"),
        ({"lossless": "no"}, "lossless"),
        ({"extra": 1}, "extra"),
        ({"inputs": [{"name": "x", "shape": [1.5], "dtype": "float32"}]}, "inputs.0.shape"),
        (
            {"reuse_layers": [{"layer": "c", "vectors": 1, "scope": "all", "max_clusters": None}]},
            "reuse_layers.0.scope",
        ),
    ],
)
def test_bad_manifest(tmp_path, change, message):
    path = MANIFEST.save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        Manifest.load(tmp_path)


def test_missing_manifest(tmp_path):
    with pytest.raises(ModelError, match="not a bundle, it has no"):
        Manifest.load(tmp_path)
    with pytest.raises(ModelError, match="not a folder"):
        Manifest.load(tmp_path / "nowhere")


def test_damaged_manifest(tmp_path):
    path = MANIFEST.save(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ModelError, match="not valid JSON"):
        Manifest.load(tmp_path)


def test_staged_makes_the_folder_and_leaves_nothing_beside_it(tmp_path):
    write_bundle(tmp_path / "deep" / "out")
    assert entries(tmp_path / "deep") == ["out"]
    assert entries(tmp_path / "deep" / "out") == ["bundle.json", "model.so"]


def test_staged_replaces_an_earlier_bundle(tmp_path):
    write_bundle(tmp_path / "out")
    write_bundle(tmp_path / "out", "second")
    assert (tmp_path / "out" / "model.so").read_text() == "second"
    assert entries(tmp_path) == ["out"]


def test_staged_fills_an_empty_folder_and_follows_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_bundle(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert entries(tmp_path / "real") == ["bundle.json", "model.so"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_staged_after_an_error_leaves_all_as_it_was(tmp_path, error):
    write_bundle(tmp_path / "out")
    for folder in ("out", "new"):
        with pytest.raises(error), staged(tmp_path / folder) as staging:
            (staging / "model.so").write_text("half")
            raise error
    assert (tmp_path / "out" / "model.so").read_text() == "first"
    assert entries(tmp_path) == ["out"]


def test_staged_refuses_what_is_not_a_bundle(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="not empty and not a bundle"):
        write_bundle(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(UsageError, match="not empty and not a bundle"):
        write_bundle(tmp_path)
    assert entries(tmp_path) == ["bundle.json", "thesis.tex"]


def test_staged_refuses_a_bundle_with_other_files(tmp_path):
    write_bundle(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'notes.txt', which is no part of a bundle"):
        write_bundle(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_staged_refuses_files_that_appear_meanwhile(tmp_path):
    with pytest.raises(UsageError, match="not empty and not a bundle"), staged(tmp_path / "out") as staging:
        MANIFEST.save(staging)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
    assert entries(tmp_path) == ["out"]


def test_staged_refuses_what_cannot_be_written_before_any_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match="cannot write"), staged(folder):
            pytest.fail("work was done")


def test_staged_refuses_unknown_files(tmp_path):
    with pytest.raises(ValueError, match=r"scratch.o is not a file of a bundle"), staged(tmp_path / "out") as staging:
        (staging / "scratch.o").write_text("x")
    assert entries(tmp_path) == []


def test_extensions_are_named_alike():
    assert vector_extensions(["avx512_vnni", "sse4_1", "fma", "avx2"]) == ["avx2", "avx512vnni", "fma"]
    assert vector_extensions(["avx512vnni", "sse4.1", "bmi", "fma"]) == ["avx512vnni", "fma"]
    assert missing_extensions([]) == []


def test_saved_shapes_are_tuples_again(tmp_path):
    changed = replace(MANIFEST, inputs=[TensorSpec("x", (1, 3), "uint8")])
    changed.save(tmp_path)
    assert Manifest.load(tmp_path).inputs[0].shape == (1, 3)
