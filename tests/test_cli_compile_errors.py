"""``adr-compile`` and bad input: the documented exit code, one line on stderr, no traceback, nothing written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import classifier, make_model, weights_of

from adr_tvm.cli.compile import main
from adr_tvm.plan import ReusePlan, uniform_plan
from adr_tvm.settings import ReuseSetting

EXACT = ReuseSetting(granularity="row", hash="exact", L=1, H=1)


@pytest.fixture
def model(tmp_path) -> Path:
    """A small classifier, input x [N, 3, 12, 12]."""
    path = tmp_path / "net.onnx"
    path.write_bytes(classifier().SerializeToString())
    return path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(tmp_path, capsys):
    """Run the command and check that it is refused in order."""

    def check(code: int, *words: str, argv: list[object]) -> str:
        before = snapshot(tmp_path)
        try:
            found = main([*map(str, argv), "-q"])
        except SystemExit as end:
            found = end.code
        out, err = capsys.readouterr()
        assert found == code, err
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("adr-compile: "), err
        for word in words:
            assert word in err, err
        assert snapshot(tmp_path) == before
        return err

    return check


def save(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    path = folder / "bad.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def one_node(operator: str, opset: int = 13, domain: str = "") -> onnx.ModelProto:
    node = helper.make_node(operator, ["x"], ["y"], "the_node", domain=domain)
    return make_model([node], {"x": ["N", 4]}, {"y": ["N", 4]}, opset=opset)


class TestModel:
    def test_missing(self, refused, tmp_path):
        refused(3, "none.onnx", "no such file", argv=[tmp_path / "none.onnx"])

    def test_not_onnx(self, refused, tmp_path):
        refused(3, "bad.onnx", "not an ONNX model", argv=[save(tmp_path, b"hello, this is text")])

    @pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
    def test_truncated(self, refused, tmp_path, part):
        data = classifier().SerializeToString()
        refused(3, "bad.onnx", argv=[save(tmp_path, data[: int(len(data) * part)])])

    def test_invalid_graph(self, refused, tmp_path):
        node = helper.make_node("Relu", ["nowhere"], ["y"], "relu")
        path = save(tmp_path, make_model([node], {"x": [1]}, {"y": [1]}))
        refused(3, "not a valid ONNX model", "nowhere", argv=[path])

    @pytest.mark.parametrize("opset", [6, 99])
    def test_opset(self, refused, tmp_path, opset):
        refused(3, f"opset {opset}", "from 7 to 23", argv=[save(tmp_path, one_node("Relu", opset))])

    def test_unsupported_operators_are_named_at_once(self, refused, tmp_path):
        nodes = [helper.make_node("NonZero", ["x"], ["i"], "first"), helper.make_node("Det", ["x"], ["y"], "second")]
        path = save(tmp_path, make_model(nodes, {"x": [3, 3]}, {"y": []}))
        refused(3, "unsupported operators", "'second'", "Det", argv=[path])

    def test_free_dimension(self, refused, tmp_path):
        weights = weights_of(w=(4, 3, 3, 3))
        node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
        path = save(tmp_path, make_model([node], {"x": ["N", 3, "H", "W"]}, {"y": ["N", 4, "P", "Q"]}, weights))
        refused(3, "'H'", "--input-shapes x:1,3,224,224", argv=[path])

    def test_external_data(self, refused, tmp_path):
        def stored(location: str) -> Path:
            proto = classifier()
            tensor = next(t for t in proto.graph.initializer if t.name == "w1")
            onnx.external_data_helper.set_external_data(tensor, location)
            tensor.ClearField("raw_data")
            return save(tmp_path, proto)

        refused(3, "'w.bin' is missing", argv=[stored("w.bin")])
        outside = tmp_path.parent / "outside.bin"
        outside.write_bytes(bytes(8 * 27 * 4))
        refused(3, "not inside the model's folder", argv=[stored("../outside.bin")])
        refused(3, "not inside the model's folder", argv=[stored(str(outside))])
        (tmp_path / "link.bin").symlink_to(outside)
        refused(3, "outside the model's folder", argv=[stored("link.bin")])


class TestCalibration:
    images = np.zeros((4, 3, 12, 12), np.float32)

    @pytest.fixture
    def data(self, refused, model, tmp_path):
        """Refuse calibration arrays."""

        def check(code: int, *words: str, options: tuple[str, ...] = (), **arrays: np.ndarray) -> None:
            np.savez(tmp_path / "c.npz", **arrays)
            refused(code, *words, argv=[model, "--calib", tmp_path / "c.npz", *options])

        return check

    def test_name(self, data):
        data(3, "has no array 'x'", "a, b", a=self.images, b=self.images)

    def test_shape(self, data):
        data(3, "input 'x'", "dimension 1 is 12, expected 3", x=self.images.transpose(0, 2, 3, 1))

    def test_type(self, data):
        data(3, "is uint8, the model takes float32", x=self.images.astype("uint8"))

    def test_nan(self, data):
        images = self.images.copy()
        images[2, 0, 0, 0] = np.nan
        data(3, "sample 2 holds NaN or Inf", x=images)

    def test_pickle(self, data):
        data(3, "pickled", x=np.array([{}, {}], object))

    def test_labels(self, data):
        labels = ("--labels-name", "y")
        data(3, "the labels have shape [3], expected [4]", options=labels, x=self.images, y=np.zeros(3, int))
        data(3, "no labels 'y'", options=labels, x=self.images)

    def test_too_few(self, data):
        data(3, "one sample", x=self.images[:1])

    def test_metric(self, refused, tmp_path):
        weights = weights_of(w=(4, 3, 3, 3))
        node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
        path = save(tmp_path, make_model([node], {"x": ["N", 3, 12, 12]}, {"y": ["N", 4, 10, 10]}, weights))
        np.savez(tmp_path / "c.npz", x=self.images)
        argv = [path, "--calib", tmp_path / "c.npz", "--metric", "agreement"]
        refused(3, "metric agreement needs outputs [N, classes]", argv=argv)

    def test_missing(self, refused, model, tmp_path):
        refused(3, "none.npz", "do not exist", argv=[model, "--calib", tmp_path / "none.npz"])

    def test_not_an_archive(self, refused, model, tmp_path):
        (tmp_path / "c.npz").write_bytes(b"no archive")
        refused(3, "not an .npz file", argv=[model, "--calib", tmp_path / "c.npz"])

    def test_batch_size(self, refused, tmp_path):
        path = save(tmp_path, classifier(batch=2))
        np.savez(tmp_path / "c.npz", x=self.images)
        refused(2, "fixed to batches of 2", argv=[path, "--calib", tmp_path / "c.npz", "--batch-size", 4])


class TestPlan:
    @staticmethod
    def saved(folder: Path, model: Path, layers: list[str], setting: ReuseSetting = EXACT, **planes) -> Path:
        from adr_tvm.frontend.onnx_model import check_model

        plan = uniform_plan(
            layers,
            setting,
            reason="forced",
            model_sha256=check_model(model).sha256,
            target="cpu",
            seed=0,
            metric="agreement",
        )
        return plan.with_planes(planes).save(folder / "plan")

    def test_of_another_model(self, refused, model, tmp_path):
        other = save(tmp_path, classifier(batch=3))
        plan = self.saved(tmp_path, other, ["conv1"])
        refused(3, "the plan is for the model with SHA-256", argv=[model, "--plan", plan])

    def test_of_another_version(self, refused, model, tmp_path):
        plan = self.saved(tmp_path, model, ["conv1"])
        plan.write_text(plan.read_text().replace('"version": 1', '"version": 2', 1))
        refused(3, "format version 2, this program reads up to 1", argv=[model, "--plan", plan])

    def test_unknown_layer(self, refused, model, tmp_path):
        plan = self.saved(tmp_path, model, ["conv1", "conv9"])
        refused(3, "the model does not have: 'conv9'", argv=[model, "--plan", plan])

    def test_layer_that_cannot_reuse(self, refused, model, tmp_path):
        plan = self.saved(tmp_path, model, ["conv2"])
        refused(3, "'conv2' cannot reuse: grouped convolution", argv=[model, "--plan", plan])

    def test_planes_that_do_not_fit(self, refused, model, tmp_path):
        from adr_tvm.planes_file import LayerPlanes

        planes = LayerPlanes(np.zeros((5, 3, 4), np.float32), np.zeros((5, 4), np.float32))
        plan = self.saved(tmp_path, model, ["conv1"], ReuseSetting(L=3, H=4), conv1=planes)
        refused(3, "conv1", "(5, 3, 4)", "(1, 3, 4)", argv=[model, "--plan", plan])

    def test_missing_and_damaged(self, refused, model, tmp_path):
        refused(3, "cannot read", argv=[model, "--plan", tmp_path / "none.json"])
        (tmp_path / "plan.json").write_text("{")
        refused(3, "not valid JSON", argv=[model, "--plan", tmp_path / "plan.json"])
        refused(3, "not valid JSON", argv=[model, "--timings", tmp_path / "plan.json"])


class TestOutput:
    def test_under_a_file(self, refused, model):
        refused(2, "cannot write", argv=[model, "-o", model / "out"])

    def test_a_file(self, refused, model):
        refused(2, "cannot write", argv=[model, "-o", model])

    def test_folder_of_other_files(self, refused, model, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        refused(2, "not empty and not a bundle", argv=[model, "-o", tmp_path / "out"])

    def test_dump_folder(self, refused, model):
        refused(2, "--dump-ir: cannot write", argv=[model, "--dry-run", "--dump-ir", model / "dump"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--target gpu", ("--target 'gpu' is not known; there is cpu",)),
        ("--max-drop 1.5", ("--max-drop is 1.5, expected 0 to 1",)),
        ("--max-drop nan", ("--max-drop",)),
        ("--H 21", ("--H is 21, expected 1 to 20",)),
        ("--H 0", ("--H is 0",)),
        ("--L 0", ("--L is 0",)),
        ("--H many", ("--H", "'many'")),
        ("--threads 0", ("--threads is 0",)),
        ("--seed -1", ("--seed is -1",)),
        ("--time-budget 0", ("--time-budget is 0",)),
        ("--time-budget inf", ("--time-budget is inf",)),
        ("--min-speedup -2", ("--min-speedup is -2",)),
        ("--min-psnr nan", ("--min-psnr is nan",)),
        ("--metric f1", ("--metric is 'f1', expected one of auto, top1",)),
        ("--granularity tile", ("--granularity is 'tile', expected one of segment",)),
        ("--hash sha1", ("--hash is 'sha1'",)),
        ("--scope stream", ("--scope is 'stream', expected one of image, batch",)),
        ("--skip (", ("--skip '(' is not a regular expression",)),
        ("--only [", ("--only '[' is not a regular expression",)),
        ("--metric top1", ("--metric top1 needs class labels",)),
        ("--metric nmse --min-psnr 40", ("--min-psnr is for --metric psnr",)),
        ("--max-drop 0.1 --min-psnr 40", ("--max-drop and --min-psnr",)),
        ("--plan p.json --lossless", ("--lossless cannot go with --plan",)),
        ("--plan p.json --H 8 --skip a", ("--H and --skip cannot go with --plan",)),
        ("--lossless --hash pca", ("--hash pca cannot go with --lossless",)),
        ("--hash exact --H 4", ("--H cannot go with --hash exact",)),
        ("--granularity row --L 4", ("--L cannot go with --granularity row",)),
        ("--hash learned", ("--hash learned needs planes",)),
        ("--H 8", ("--H cannot be used without calibration data",)),
        ("--labels-name y", ("--labels-name cannot be used without calibration data",)),
        ("--input-shapes x", ("--input-shapes 'x': expected NAME:DIM",)),
        ("--no-such-option", ("--no-such-option",)),
        ("--dry", ("--dry",)),
    ],
)
def test_options(refused, model, options, words):
    refused(2, *words, argv=[model, *options.split()])


def test_no_model(refused):
    refused(2, "MODEL.onnx", argv=[])


def test_missing_linker(refused, model, monkeypatch):
    from tvm.support import cc

    monkeypatch.setattr(cc, "get_cc", lambda: None)
    refused(5, "no C++ compiler", "apt install g++", argv=[model])


def test_internal_errors_show_no_traceback(refused, model, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyError("surprise\nin two lines")

    monkeypatch.setattr(ReusePlan, "save", fail)
    refused(1, "internal error: KeyError", "-v for the traceback", argv=[model])


@pytest.mark.parametrize(("words", "number"), [("calibration samples", signal.SIGINT), ("within", signal.SIGTERM)])
def test_interrupt(model, tmp_path, words, number):
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).standard_normal((64, 3, 12, 12), np.float32))
    before = snapshot(tmp_path)
    command = [sys.executable, "-m", "adr_tvm.cli.compile", str(model), "--calib", str(tmp_path / "c.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as run:
        assert run.stderr is not None and run.stdout is not None
        for line in run.stderr:
            if words in line:
                break
        run.send_signal(number)
        rest, out = run.stderr.read(), run.stdout.read()
    assert run.returncode == 130, rest
    assert rest.splitlines()[-1] == "adr-compile: error: interrupted" and "Traceback" not in rest
    assert out == ""
    assert snapshot(tmp_path) == before
