"""Training runs with the compiled network: reuse in the loop, interruption, batch norm, export."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from training_fakes import data

from adr_tvm._tvm import cpu_target
from adr_tvm.cli.train import main
from adr_tvm.errors import ModelError, UsageError
from adr_tvm.models.chain import build_chain, he_normal
from adr_tvm.settings import ReuseSetting
from adr_tvm.train.checkpoint import load_checkpoint
from adr_tvm.train.compiled_engine import CompiledEngine
from adr_tvm.train.optimizers import SGD
from adr_tvm.train.options import TrainOptions
from adr_tvm.train.run import train_model
from adr_tvm.train.stage import LayerReuse

SHAPES = {
    "conv1.weight": (16, 3, 3, 3),
    "conv1.bias": (16,),
    "conv2.weight": (32, 16, 3, 3),
    "bn2.scale": (32,),
    "bn2.bias": (32,),
    "bn2.mean": (32,),
    "bn2.variance": (32,),
    "logits.weight": (4, 32 * 16),
    "logits.bias": (4,),
}
PADDED = {"kernel_shape": [3, 3], "pads": [1] * 4}
LAYERS = [
    ("Conv", "conv1", PADDED),
    ("Relu", "relu1", {}),
    ("Conv", "conv2", PADDED),
    ("BatchNormalization", "bn2", {}),
    ("Relu", "relu2", {}),
    ("MaxPool", "pool2", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Flatten", "flatten", {"axis": 1}),
    ("Gemm", "logits", {"transB": 1}),
]
COARSE = LayerReuse(ReuseSetting("pixel", 16, 6, "pca", "batch"))
STREAM = replace(COARSE, stream=True)


def small(tail=LAYERS[-1:]):
    """A network of 8x8 images in four classes."""
    return build_chain("small", [*LAYERS[:-1], *tail], he_normal(SHAPES, 0), (3, 8, 8), 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.onnx"
    onnx.save(small(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The quadrants of ``training_fakes`` as a file."""
    path, found = tmp_path_factory.mktemp("data") / "quadrants.npz", data(240)
    parts = {}
    for name, part in (("train", found.train), ("test", found.test)):
        parts |= {f"x_{name}": part.images, f"y_{name}": part.labels}
    np.savez(path, **parts)
    return path


@pytest.fixture(scope="module")
def engine(path):
    return CompiledEngine(path, SGD(momentum=0.9), 16, cpu_target())


def options(**changes):
    return TrainOptions(**{"batch": 16, "epochs": 2, "lr": 0.02, "measure": False, "compile_ahead": False} | changes)


def test_reuse_learns(engine):
    """The loss falls with reuse forward and backward, and clusters are counted."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 3, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 16).astype(np.int32)
    state = engine.initial_state()
    stage = {"conv1": None, "conv2": COARSE, "logits": None}
    engine.make_planes(state, stage, x, seed=0)
    step = engine.compile(stage)
    results = [step.run(state, x, labels, 0.02) for _ in range(12)]
    assert results[-1].loss < 0.5 * results[0].loss
    found, vectors = results[0].clusters["conv2"]
    assert vectors == 16 * 64 and 8 <= found <= 2**6 + 1
    assert set(results[0].clusters) == {"conv2"}
    times = engine.measure(state, stage, ["conv2"], x, labels)
    assert times.keys() == {"conv2"} and min(times["conv2"].dense, times["conv2"].reuse) > 0


def test_fewer_bits_need_no_other_step(engine):
    """A step compiled for 8 bits, given planes of 6, does what one compiled for 6 does."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((16, 3, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 16).astype(np.int32)
    losses = []
    for bits in (6, 8):
        state = engine.initial_state()
        engine.make_planes(state, {"conv2": COARSE}, x, seed=0)
        step = engine.compile({"conv2": COARSE.with_bits(bits)})
        losses.append([step.run(state, x, labels, 0.02).loss for _ in range(3)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("strategy", ["adaptive", "adaptive+stream"])
def test_a_run_with_reuse_resumes_to_the_same_curve(path, images, tmp_path, strategy):
    """Stopped after 13 of 20 steps and resumed: the same parameters, batch norm statistics and log as in one go."""
    reuse = {"stages": "16x4,16x6,dense", "only": ["conv2"], "last_stage_by": 0.7, "window": 5, "reuse": strategy}
    whole = train_model(path, images, tmp_path / "whole", options(**reuse))
    with pytest.raises(KeyboardInterrupt):
        train_model(path, images, tmp_path / "parts", options(**reuse), interrupting(13))
    train_model(path, images, tmp_path / "parts", options(**reuse, resume=True))
    one, other = ((tmp_path / name / "model.onnx").read_bytes() for name in ("whole", "parts"))
    assert one == other
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    curves = [[json.loads(line)["loss"] for line in log if "loss" in line] for log in logs]
    assert curves[0] == curves[1] and len(curves[0]) >= 20
    assert whole.trained is not None


def interrupting(step):
    """An engine whose run is interrupted after a step."""

    def make(file, chosen, name):
        from adr_tvm.train.recipe import compiled_engine

        engine = compiled_engine(file, chosen, name)
        compile_stage, count = engine.compile, [0]

        def compiled(stage):
            made = compile_stage(stage)
            run = made.run

            def counted(*arguments):
                if count[0] == step:
                    raise KeyboardInterrupt
                count[0] += 1
                return run(*arguments)

            made.run = counted
            return made

        engine.compile = compiled
        return engine

    return make


def test_the_trained_file_infers_as_the_evaluator(path, images, tmp_path):
    """Batch norm and all: ONNX Runtime on ``model.onnx`` gives the accuracy that the run reports."""
    import onnxruntime

    from adr_tvm.data.training_data import open_training_data

    result = train_model(path, images, tmp_path / "run", options(epochs=4))
    samples = open_training_data(images)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (samples.mean, samples.std))
    x = (samples.test.images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std
    session = onnxruntime.InferenceSession(str(tmp_path / "run" / "model.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"x": np.ascontiguousarray(x)})[0]
    accuracy = float((logits.argmax(1) == samples.test.labels).mean())
    assert accuracy == pytest.approx(result.trained.accuracy)
    assert accuracy > 0.9


def test_clusters_persist_until_planes_are_fitted_again(engine):
    """The first step is as without; the next finds most clusters again; fitting planes empties the table."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((16, 3, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 16).astype(np.int32)
    stage, plain, state = {"conv2": STREAM}, engine.initial_state(), engine.initial_state()
    for each in (plain, state):
        engine.make_planes(each, stage, x, seed=0)
    without, step = engine.compile({"conv2": COARSE}), engine.compile(stage)
    one, other = (compiled.run(each, x, labels, 0.02) for compiled, each in ((without, plain), (step, state)))
    assert (one.loss, one.clusters, one.streamed) == (other.loss, other.clusters, {}) and other.streamed == {"conv2": 0}
    arrays = state.arrays()
    for path, value in plain.arrays().items():
        np.testing.assert_array_equal(arrays[path], value, err_msg=path)
    assert set(arrays) - set(plain.arrays()) == {f"streams/{part}/conv2" for part in ("centroids", "keys", "used")}
    found = step.run(state, x, labels, 0.02)
    assert 0.9 * found.clusters["conv2"][0] < found.streamed["conv2"] <= found.clusters["conv2"][0]
    assert found.loss != without.run(plain, x, labels, 0.02).loss
    copied = engine.initial_state()
    copied.load(state.arrays())
    assert step.run(copied, x, labels, 0.02) == step.run(state, x, labels, 0.02)
    engine.make_planes(state, stage, x, seed=1)
    assert step.run(state, x, labels, 0.02).streamed == {"conv2": 0}
    times = engine.measure(state, stage, ["conv2"], x, labels)
    assert times.keys() == {"conv2"} and min(times["conv2"].dense, times["conv2"].reuse) > 0


def test_streams_from_the_command_line(path, images, tmp_path, capsys):
    basic = [str(path), "--data", str(images), "--out", str(tmp_path / "run"), "--batch", "16", "--epochs", "2"]
    basic += ["--no-compile-ahead", "--no-measure", "--lr", "0.02", "--only", "conv2", "--stages", "16x4,16x6"]
    stream = [*basic, "--reuse", "adaptive+stream", "--refresh-planes", "6", "--stream-slots", "40"]
    assert main([*stream, "--last-stage-by", "0.5"]) == 0
    assert "conv2 pixel L=16 H=6 averaged stream" in capsys.readouterr().out
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [event["layers"]["conv2"]["streamed"] for event in events if event["event"] == "step"]
    empty = [index for index, share in enumerate(shares) if share == 0]
    assert empty == [0, 6, 10, 12, 18], "planes are fitted every six steps, and as the second stage begins"
    assert all(share > 0.5 for index, share in enumerate(shares) if index not in empty)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors")[0]["streams/used/conv2"].shape == (1, 40)
    for flag, value in (("--scope", "image"), ("--granularity", "row")):
        assert main([*stream, flag, value]) == 2
        assert f"--reuse adaptive+stream needs {flag} " in capsys.readouterr().err


def test_streams_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="scope=image"):
        LayerReuse(ReuseSetting("pixel", 16, 6), stream=True)
    with pytest.raises(UsageError, match=r"--stages: granularity=row .* only pixel and segment"):
        TrainOptions(reuse="adaptive+stream", stages="row/1x8")


def test_operators_without_a_gradient_are_named_at_once(tmp_path):
    odd = [("Ceil", "ceil", {}), ("Sign", "sign", {}), *LAYERS[-1:]]
    onnx.save(small(odd), tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=r"ceil.*sign"):
        CompiledEngine(tmp_path / "odd.onnx", SGD(), 16, cpu_target())
