"""Runs of ``adr-train`` on an emulated GPU, and in mixed precision: there, or with rounding emulated on a processor."""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext
from functools import partial

import numpy as np
import onnx
import pytest
import training_fakes as fakes
import tvm
from cuda_emulator import emulated_cuda

import adr_tvm.build
import adr_tvm.cuda.present as present
from adr_tvm.cli.train import main
from adr_tvm.cuda.present import PresentGpu
from adr_tvm.errors import MissingDependencyError, UsageError
from adr_tvm.models.chain import build_chain, he_normal
from adr_tvm.targets import ARCHITECTURES, NEWEST
from adr_tvm.train import loss_scaling
from adr_tvm.train.checkpoint import load_checkpoint
from adr_tvm.train.options import TrainOptions
from adr_tvm.train.recipe import compiled_engine
from adr_tvm.train.training_target import training_entry

SHAPES = {
    "conv1.weight": (8, 3, 3, 3),
    "bn1.scale": (8,),
    "bn1.bias": (8,),
    "bn1.mean": (8,),
    "bn1.variance": (8,),
    "logits.weight": (4, 8 * 16),
    "logits.bias": (4,),
}
LAYERS = [
    ("Conv", "conv1", {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}),
    ("BatchNormalization", "bn1", {}),
    ("Relu", "relu1", {}),
    ("Flatten", "flatten", {"axis": 1}),
    ("Gemm", "logits", {"transB": 1}),
]


@pytest.fixture
def files(tmp_path):
    """A network of 8x8 images and 64 of them for training."""
    weights = he_normal(SHAPES, 0)
    onnx.save(build_chain("small", LAYERS, weights, (3, 8, 8), 4), tmp_path / "small.onnx")
    plain = {name: value for name, value in weights.items() if "bn1" not in name}
    layers = [each for each in LAYERS if each[1] != "bn1"]
    onnx.save(build_chain("plain", layers, plain, (3, 8, 8), 4), tmp_path / "plain.onnx")
    made, parts = fakes.data(96), {}
    for name, part in (("train", made.train), ("test", made.test)):
        parts |= {f"x_{name}": part.images, f"y_{name}": part.labels}
    np.savez(tmp_path / "d.npz", **parts)
    return tmp_path


def adr_train(files, out, *more, network="small"):
    basic = ["--data", str(files / "d.npz"), "--out", str(files / out), "--batch", "16", "--lr", "0.02"]
    return main([str(files / f"{network}.onnx"), *basic, *more])


def steps(files, out):
    events = map(json.loads, (files / out / "metrics.jsonl").read_text().splitlines())
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in each.items() if k not in times} for each in events if each["event"] == "step"]


def same_run(files, one, other):
    first, second = (load_checkpoint(files / name / "last.safetensors")[0] for name in (one, other))
    assert first.keys() == second.keys()
    for path, expected in first.items():
        np.testing.assert_array_equal(second[path], expected, err_msg=path)
    assert steps(files, one) == steps(files, other)
    assert (files / one / "model.onnx").read_bytes() == (files / other / "model.onnx").read_bytes()


def test_fp16_overflows_recovers_learns_and_resumes(files, monkeypatch, capsys):
    """A scale far too high at first: steps are skipped until it fits; interrupted meanwhile, the run is the same."""
    rule = loss_scaling.ScalingRule(start=2.0**40, grow_after=6, most=2.0**40)
    begin = loss_scaling.LossScaling.begin
    monkeypatch.setattr(loss_scaling.LossScaling, "begin", classmethod(lambda cls: begin.__func__(cls, rule)))
    amp = ("--amp", "fp16", "--epochs", "12")
    assert adr_train(files, "whole", *amp) == 0
    _out, err = capsys.readouterr()
    assert "loss scale" in err
    log = steps(files, "whole")
    skipped = [each["step"] for each in log if each["skipped"]]
    assert skipped[:3] == [1, 2, 3] and 10 < len(skipped) < 30
    assert [each["scale"] for each in log[:3]] == [2.0**40, 2.0**39, 2.0**38]
    scales = [each["scale"] for each in log]
    assert any(b == 2 * a for a, b in itertools.pairwise(scales)), "it never grew again"
    assert np.mean([each["loss"] for each in log[-4:]]) < 0.8 * log[0]["loss"]
    assert adr_train(files, "parts", *amp, "--max-steps", "7") == 0
    assert adr_train(files, "parts", *amp, "--resume") == 0
    same_run(files, "whole", "parts")
    assert adr_train(files, "parts", "--amp", "bf16", "--epochs", "12", "--resume") == 2
    assert "--amp (was fp16, now bf16)" in capsys.readouterr().err


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is emulated; what is compiled for it stays CUDA C."""
    monkeypatch.setattr(present, "present_gpu", lambda: PresentGpu("Emulated", "sm_80"))
    monkeypatch.setattr(adr_tvm.build, "code_objects_of", lambda entry: nullcontext())
    with emulated_cuda():
        yield


def test_a_run_on_a_gpu_with_prefetched_batches(files, gpu, capsys):
    """The curve of processors but for the order of sums; the same without prefetching, and when it was interrupted."""
    amp, train = ("--epochs", "2", "--amp", "fp16"), partial(adr_train, files, network="plain")
    assert train("cpu", *amp) == 0
    on_gpu = (*amp, "--target", "cuda")
    assert train("gpu", *on_gpu, "--pin-memory") == 0
    first, second = steps(files, "cpu"), steps(files, "gpu")
    assert [each["loss"] for each in second] == pytest.approx([each["loss"] for each in first], rel=1e-3)
    assert train("parts", *on_gpu, "--max-steps", "3") == 0
    assert train("parts", *on_gpu, "--pin-memory", "--resume") == 0
    same_run(files, "gpu", "parts")
    assert train("parts", *amp, "--resume") == 2
    assert "--target (was cuda, now None)" in capsys.readouterr().err


def test_a_run_with_reuse_on_a_gpu(files, gpu):
    """The curve of processors: planes fitted, counts of clusters, gradients from sums over them."""
    reuse = ("--epochs", "1", "--reuse", "fixed", "--stages", "8x4", "--no-measure")
    assert adr_train(files, "cpu", *reuse) == 0
    assert adr_train(files, "gpu", *reuse, "--target", "cuda") == 0
    first, second = steps(files, "cpu"), steps(files, "gpu")
    assert [each["loss"] for each in second] == pytest.approx([each["loss"] for each in first], rel=1e-3)
    assert first[0]["layers"] and first[0]["layers"] == second[0]["layers"], "the first step finds the same clusters"


def test_layers_are_looked_into_on_a_gpu(files, gpu):
    """What a run does when the loss becomes NaN, and what hash planes are fitted to."""
    options = TrainOptions(target="cuda", batch=16)
    engine = compiled_engine(files / "small.onnx", options, "small")
    state, x = engine.initial_state(), np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    assert state.parameters["conv1.weight"].device == tvm.cuda()
    np.testing.assert_array_equal(engine.layer_inputs(state, x)["conv1"], x.transpose(0, 2, 3, 1))
    assert engine.first_nonfinite(state, x) is None
    arrays = state.arrays()
    arrays["parameters/bn1.bias"][:] = np.inf
    state.load(arrays)
    assert engine.first_nonfinite(state, x) == "logits"
    x[3, 1, 0, 0] = np.nan
    assert engine.first_nonfinite(state, x) == "conv1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "rpi4"}, "rpi4 is another machine"),
        ({"target": "gpu"}, "--target 'gpu' is not known"),
        ({"amp": "fp8"}, "--amp is 'fp8', expected one of fp16, bf16"),
        ({"pin_memory": True}, "--pin-memory is for GPUs"),
        ({"target": "cpu", "pin_memory": True}, "--pin-memory is for GPUs"),
        ({"target": "h200", "reuse": "adaptive+stream"}, r"--reuse adaptive\+stream cannot go with --target h200"),
        ({"target": "cuda", "plan": "p"}, "--plan or --max-drop cannot go with --target cuda"),
        (
            {"target": "cuda", "reuse": "fixed", "table": "int8", "skip_zeros": True},
            "--table int8 and --skip-zeros cannot",
        ),
        ({"amp": "bf16", "reuse": "fixed"}, "--amp trains dense"),
        ({"amp": "bf16", "max_drop": 0.1}, "--amp trains dense"),
    ],
)
def test_options_that_cannot_go_together(given, message):
    with pytest.raises(UsageError, match=message):
        TrainOptions(**given)


def test_no_gpu_is_exit_code_5(files, monkeypatch, capsys):
    def missing(driver_needed=False):
        raise MissingDependencyError("no NVIDIA driver: libcuda.so.1 is not there")

    monkeypatch.setattr(present, "present_gpu", lambda: None)
    monkeypatch.setattr("adr_tvm.cuda.tvm_runtime.load_cuda_runtime", missing)
    assert adr_train(files, "run", "--target", "cuda") == 5
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "adr-train: error: no NVIDIA driver: libcuda.so.1 is not there"
    assert not (files / "run").exists()


def test_a_run_on_a_gpu_with_reuse(files, gpu):
    """Planes, ids and gradients on the GPU; whether reuse pays is measured. The curve is near that of processors."""
    reuse = ("--epochs", "1", "--reuse", "adaptive", "--stages", "4x4,4x5:forward-only,dense", "--window", "1")
    reuse = (*reuse, "--smoothing", "0", "--improvement", "0.9", "--no-compile-ahead")
    assert adr_train(files, "cpu", *reuse, "--no-measure") == 0
    assert adr_train(files, "gpu", *reuse, "--no-measure", "--target", "cuda") == 0
    first, second = steps(files, "cpu"), steps(files, "gpu")
    assert [each["layers"].keys() for each in first] == [each["layers"].keys() for each in second]
    stages = [json.loads(line) for line in (files / "gpu" / "metrics.jsonl").read_text().splitlines()]
    assert sum(each["event"] == "stage" for each in stages) == 2
    assert [each["loss"] for each in second] == pytest.approx([each["loss"] for each in first], rel=1e-3)
    assert adr_train(files, "measured", *reuse, "--target", "cuda", "--max-steps", "2") == 0


@pytest.mark.parametrize(
    ("there", "name", "amp", "message"),
    [
        ("sm_80", "h200", None, "--target h200 is sm_90; this machine's GPU, Some GPU, is sm_80: use --target cuda"),
        ("sm_75", "cuda", "bf16", "--amp bf16 needs sm_80 or newer; .* is sm_75: use --amp fp16"),
        ("sm_70", "cuda", None, "--target cuda needs sm_75 or newer; .* is sm_70"),
    ],
)
def test_a_gpu_that_does_not_fit(monkeypatch, there, name, amp, message):
    monkeypatch.setattr(present, "present_gpu", lambda: PresentGpu("Some GPU", there))
    with pytest.raises(UsageError, match=message):
        training_entry(name, amp)


def test_the_gpu_at_hand_decides_the_architecture(monkeypatch):
    for there, name, architectures, ptx in (
        ("sm_75", "t4", ("sm_75",), None),
        ("sm_87", "jetson-orin", ("sm_87",), None),
        ("sm_89", "cuda", ("sm_89",), None),
        ("sm_100", "cuda", ARCHITECTURES[-1:], NEWEST),
    ):
        monkeypatch.setattr(present, "present_gpu", lambda there=there: PresentGpu("Some GPU", there))
        entry = training_entry(name)
        assert entry.gpu is not None and (entry.gpu.architectures, entry.gpu.ptx) == (architectures, ptx)
        assert entry.triple is None, "the processor is this machine's"
    assert training_entry(None).name == training_entry("cpu").name == "cpu"
