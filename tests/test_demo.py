"""The demonstration: what it compares on what, and one real run of the smallest size."""

from pathlib import Path

import numpy as np
import pytest

from adr_tvm import compiler, demo
from adr_tvm.bench import run as bench
from adr_tvm.demo import DemoOptions
from adr_tvm.errors import UsageError
from adr_tvm.models.bundled import cifar10_sample


def test_the_parts_share_no_image(tmp_path: Path) -> None:
    arrays = []
    for path in demo._write_split(tmp_path, 768):
        with np.load(path) as part:
            arrays.append((part["x"], part["labels"]))
    images = np.concatenate([x for x, _ in arrays])
    assert [len(x) for x, _ in arrays] == [len(labels) for _, labels in arrays] == [768, 256]
    assert len({image.tobytes() for image in images}) == len({image.tobytes() for image in cifar10_sample()[0]})


def test_calibration_goes_to_the_compiler_and_the_rest_to_the_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    class Stop(Exception):
        pass

    def compile_model(model, out, options, calibration):
        seen.update(out=out, options=options, calibration=calibration)
        return compiler.CompileResult(Path(out), plan=None, result=None)

    def measure(options):
        seen.update(bench=options)
        raise Stop

    monkeypatch.setattr(compiler, "compile_model", compile_model)
    monkeypatch.setattr("adr_tvm.report.terminal.print_result", lambda result: None)
    monkeypatch.setattr(bench, "bench", measure)
    with pytest.raises(Stop):
        demo.demo(DemoOptions(out=tmp_path / "out", images=12))
    assert seen["out"] == tmp_path / "out"
    assert (seen["options"].labels_name, seen["options"].max_drop) == ("labels", demo.MAX_DROP)
    assert seen["bench"].bundle == tmp_path / "out"
    assert set(seen["bench"].against) == {"onnxruntime", "onnxruntime-int8", "dense"}
    assert seen["bench"].calibration == seen["calibration"] != seen["bench"].samples


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a bundle"):
        demo.demo(DemoOptions(out=tmp_path, images=12))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_wrong_budget_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--max-drop", "7", "--out", str(tmp_path / "out")]) == 2
    assert "--max-drop is 7.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.demo(DemoOptions(out=tmp_path / "out", images=12, runs=1, time_budget=1))
    text = capsys.readouterr().out
    for words in ("conv2", "onnxruntime-int8", str(tmp_path / "out" / "report.html")):
        assert words in text
    assert (tmp_path / "out" / "report.html").is_file()
