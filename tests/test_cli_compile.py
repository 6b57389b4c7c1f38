"""``adr-compile`` where all is well: listing, compiling with and without data, plans, timings, goals, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_graphs import classifier, image_to_image

import adr_tvm
from adr_tvm.cli.compile import main, make_parser, options_of
from adr_tvm.deploy.bundle import BUNDLE_FILES
from adr_tvm.options import METRIC_NAMES, CompileOptions
from adr_tvm.report.results import NetworkResult
from adr_tvm.settings import ReuseSetting

EXACT = ReuseSetting(granularity="row", hash="exact", L=1, H=1)
SAMPLES = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A classifier, and data for it whose images repeat inside."""
    path = tmp_path_factory.mktemp("compile")
    (path / "net.onnx").write_bytes(classifier().SerializeToString())
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.standard_normal((SAMPLES, 3, 2, 2), np.float32), 6, axis=2), 6, axis=3)
    np.savez(path / "c.npz", x=images, y=rng.integers(0, 5, SAMPLES))
    return path


@pytest.fixture(scope="module")
def bundle(folder) -> Path:
    """Compiled with calibration data."""
    out = folder / "calibrated"
    assert main([f"{folder}/net.onnx", "-o", str(out), "--calib", f"{folder}/c.npz", "--labels-name", "y", "-q"]) == 0
    return out


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = main([str(each) for each in argv])
    return code, *capsys.readouterr()


def test_dry_run(folder, capsys):
    before = sorted(folder.rglob("*"))
    code, out, err = run(capsys, folder / "net.onnx", "--dry-run", "--skip", "^fc$")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["layer", "op", "geometry", "MACs", "candidate"]
    rows = {line.split()[0]: line for line in lines[1:-1]}
    assert " ".join(rows["conv1"].split()) == "conv1 conv2d 12x12x3 -> 8, 3x3/2 7.78 k yes"
    assert "6x6x8 -> 8, 3x2/1, 2 groups" in rows["conv2"] and "no: grouped convolution" in rows["conv2"]
    assert "72 -> 5" in rows["fc"] and rows["fc"].endswith("no: skipped by --skip ^fc$")
    assert lines[-1].startswith("net: 1 of 3 layers is a candidate, ")
    assert sorted(folder.rglob("*")) == before


def test_dry_run_of_a_network_without_layers(tmp_path, capsys):
    from onnx import helper
    from onnx_graphs import make_model

    model = make_model([helper.make_node("Relu", ["x"], ["y"], "r")], {"x": ["N", 4]}, {"y": ["N", 4]})
    (tmp_path / "r.onnx").write_bytes(model.SerializeToString())
    assert run(capsys, tmp_path / "r.onnx", "--dry-run") == (0, "r: 0 of 0 layers are candidates\n", "")


def test_patterns_without_a_layer_are_told(folder, capsys):
    code, _, err = run(capsys, folder / "net.onnx", "--dry-run", "--only", "conv", "--skip", "nothing")
    assert code == 0
    assert err == "warning: --skip nothing matches no layer; --dry-run lists their names\n"


def test_input_shapes(tmp_path, capsys):
    from onnx import helper
    from onnx_graphs import make_model, weights_of

    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    model = make_model([node], {"x": ["N", 3, "H", "W"]}, {"y": ["N", 4, "P", "Q"]}, weights_of(w=(4, 3, 3, 3)))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    code, out, _ = run(capsys, tmp_path / "m.onnx", "--dry-run", "--input-shapes", "x:N,3,10,12")
    assert code == 0 and "10x12x3 -> 4, 3x3/1" in out


def test_calibrated(bundle, folder):
    assert sorted(path.name for path in bundle.iterdir()) == sorted(BUNDLE_FILES)
    result = NetworkResult.load(bundle)
    assert result.metric == "top1" and result.target == "cpu" and result.max_abs_error < 1e-5
    assert [layer.layer for layer in result.layers] == ["conv1", "conv2", "fc"]
    assert not any("no calibration data" in note for note in result.notes)
    assert not list(folder.glob(".calibrated*"))


def test_bundle_runs_as_onnxruntime_does(bundle, folder):
    import onnxruntime

    x = np.load(folder / "c.npz")["x"][:5]
    expected = onnxruntime.InferenceSession(str(folder / "net.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(adr_tvm.load(bundle).dense(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_without_calibration_a_line_says_what_it_would_add(tmp_path, folder, capsys):
    model = tmp_path / "net.onnx"
    model.write_bytes((folder / "net.onnx").read_bytes())
    code, out, err = run(capsys, model)
    assert code == 0
    assert "with --calib layers may also reuse approximately" in err
    assert "with --calib layers may also reuse approximately" in out
    assert (tmp_path / "net-adr" / "bundle.json").is_file()
    settings = [layer.setting for layer in NetworkResult.load(tmp_path / "net-adr").layers]
    assert all(setting is None or setting.lossless for setting in settings)


def test_plan_round_trip(folder, tmp_path, capsys):
    from adr_tvm.frontend.onnx_model import check_model
    from adr_tvm.plan import uniform_plan

    sha256 = check_model(folder / "net.onnx").sha256
    named = {"model_sha256": sha256, "target": "cpu", "seed": 0, "metric": "agreement"}
    plan = uniform_plan(["conv1"], EXACT, reason="forced", **named).save(tmp_path / "given")
    code, out, _ = run(capsys, folder / "net.onnx", "-o", tmp_path / "out", "--plan", plan, "--calib", folder / "c.npz")
    assert code == 0 and "1 of 3 layers reused" in out
    assert (tmp_path / "out" / "plan.json").read_bytes() == plan.read_bytes()
    x = np.load(folder / "c.npz")["x"]
    model = adr_tvm.load(tmp_path / "out")
    np.testing.assert_array_equal(model(x), model.dense(x))
    _, counts = model.run_with_counts(x)
    assert counts["conv1"].reused.all() and counts["conv1"].r_c < 0.5


def test_timings_repeat_a_search(bundle, folder, tmp_path, capsys):
    data = ("--calib", folder / "c.npz", "--labels-name", "y")
    code, _, _ = run(capsys, folder / "net.onnx", "-o", tmp_path / "o", *data, "--timings", bundle / "timings.json")
    assert code == 0
    for name in ("plan.json", "planes.npz", "timings.json"):
        assert (tmp_path / "o" / name).read_bytes() == (bundle / name).read_bytes()


def test_missed_goal_writes_the_best(folder, tmp_path, capsys):
    code, out, err = run(capsys, folder / "net.onnx", "-o", tmp_path / "o", "--min-speedup", 1000, "--lossless", "-q")
    assert code == 4
    assert "layers reused" in out
    assert "--min-speedup asks for 1000x; the best found is in" in err
    assert adr_tvm.load(tmp_path / "o").dense(np.zeros((1, 3, 12, 12), np.float32)).shape == (1, 5)


def test_dump_ir(folder, tmp_path, capsys):
    dump = tmp_path / "dump"
    dump.mkdir()
    (dump / "00-Old.py").write_text("# from tvm.script import ir as I\n")
    (dump / "mine.py").write_text("print('not a dump')\n")
    for _ in range(2):
        assert run(capsys, folder / "net.onnx", "--dry-run", "--dump-ir", dump)[0] == 0
        names = sorted(path.name for path in dump.iterdir())
        assert names[0] == "00-FoldBatchNorm.py" and names[-2].endswith("-MarkCandidates.py") and names[-1] == "mine.py"
    assert run(capsys, folder / "net.onnx", "--dump-ir", dump, "-o", tmp_path / "o", "--lossless", "-q")[0] == 0
    names = [path.name.partition("-")[2] for path in sorted(dump.iterdir())]
    assert {"AdaptiveDeepReuse.py", "LowerOperators.py", "VMShapeLower.py"} <= set(names)


def test_library_call_with_several_batches_fixed_by_the_model(tmp_path):
    """The batch is 2 and the data do not divide by it: no incomplete batch may reach the kernels."""
    path = tmp_path / "image.onnx"
    path.write_bytes(image_to_image(batch=2).SerializeToString())
    data = np.random.default_rng(0).standard_normal((9, 3, 8, 8), np.float32)
    options = adr_tvm.CompileOptions(min_psnr=30.0, dump_ir=None)
    compiled = adr_tvm.compile_model(path, options=options, calibration=data)
    assert compiled.folder == tmp_path / "image-adr"
    assert compiled.result.metric == "psnr" and compiled.result.budget == 30.0
    assert list(compiled.plan.layers) == [layer.layer for layer in compiled.result.layers]


def test_version_and_help_import_nothing_heavy():
    code = (
        "import sys\nfrom adr_tvm.cli.compile import main\n"
        "try:\n    main([sys.argv[1]])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'tvm', 'numpy', 'onnx', 'onnxruntime', 'rich', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for flag, words in (("--version", f"adr-compile {adr_tvm.__version__}"), ("--help", "exit codes:")):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def test_help_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(len(line) for line in make_parser().format_help().splitlines()) <= 80


def test_options_are_the_command_lines():
    given = options_of(make_parser().parse_args(["m.onnx"]))
    assert given == CompileOptions()
    argv = "m.onnx --skip a --skip b --only c --H 4 --max-drop 0.02 --input-shapes x:N,3 --input-shapes y:1"
    given = options_of(make_parser().parse_args(argv.split()))
    assert (given.skip, given.only, given.H, given.max_drop) == (["a", "b"], ["c"], 4, 0.02)
    assert given.input_shapes == {"x": ("N", 3), "y": (1,)}


def test_metric_names_are_those_of_the_metrics():
    from adr_tvm.metrics.metrics import METRICS

    assert set(METRIC_NAMES) == {"auto", *METRICS}


def test_library_names():
    for name in ("compile_model", "CompileOptions", "ReusePlan", "AdaptiveDeepReuse", "ReuseSetting", "load"):
        assert getattr(adr_tvm, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = adr_tvm.nothing


def test_report_is_json_without_nan(bundle):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((bundle / "report.json").read_text(), parse_constant=refuse)
