"""The training loop around a network that only pretends: resuming, stages, checkpoints, failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import training_fakes as fakes

from adr_tvm.errors import DataError, TrainingDivergedError, UsageError
from adr_tvm.train.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from adr_tvm.train.metrics_log import METRICS_FILE, MetricsLog, read_metrics
from adr_tvm.train.options import TrainOptions
from adr_tvm.train.trainer import Trainer

ADAPTIVE = TrainOptions(
    reuse="adaptive", stages="16x8,16x10,8x12,dense", epochs=5, batch=8, lr=0.002, window=4, improvement=0.3,
    smoothing=0.5, refresh_planes=3, augment=True, checkpoint_every=3,
)  # fmt: skip
TIMES = ("seconds", "images_per_second", "measured")


class Stop(Exception):
    """As if the process had been killed."""


def train(folder: Path, options: TrainOptions = ADAPTIVE, engine: fakes.Engine | None = None):
    engine = engine or fakes.Engine(slow=("conv1",))
    trainer = Trainer(engine, fakes.data(), fakes.preparation(), options, folder, fakes.decay)
    return trainer, trainer.run()


def resumed(options: TrainOptions) -> TrainOptions:
    return replace(options, resume=True)


def events(folder: Path) -> list[dict]:
    """The log without what is measured in seconds."""
    return [{k: v for k, v in each.items() if k not in TIMES} for each in read_metrics(folder / METRICS_FILE)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer, result = train(folder)
    return trainer.state.arrays(), events(folder), result


def test_learns_and_says_so(whole):
    _, log, result = whole
    assert result.steps == 40 and result.accuracy > 0.7 and result.best_accuracy >= result.accuracy
    assert [each["event"] for each in log[:3]] == ["start", "stage", "step"]
    steps = [each for each in log if each["event"] == "step"]
    assert [each["step"] for each in steps] == list(range(1, 41))
    assert steps[0]["layers"] == {"conv2": {"L": 16, "H": 8, "r_c": 0.25}}  # conv1 measured slower
    assert [each["epoch"] for each in log if each["event"] == "epoch"] == [1, 2, 3, 4, 5]
    stages = [each for each in log if each["event"] == "stage"]
    assert len(stages) > 2 and stages[0]["layers"]["conv1"] is None
    assert set(result.seconds) >= {"step", "data", "planes", "compile", "measure", "evaluate", "checkpoint"}


@pytest.mark.parametrize("step", range(1, 41))
def test_killed_after_any_step_resumes_to_the_same_run(whole, tmp_path, step):
    arrays, log, result = whole
    engine = fakes.Engine(slow=("conv1",))

    def die(done: int) -> None:
        if done == step:
            raise Stop

    engine.after_step = die
    with pytest.raises(Stop):
        train(tmp_path, engine=engine)
    options = resumed(ADAPTIVE) if (tmp_path / LAST).exists() else ADAPTIVE
    trainer, again = train(tmp_path, options)
    for path, expected in arrays.items():
        np.testing.assert_array_equal(trainer.state.arrays()[path], expected, err_msg=path)
    assert events(tmp_path) == log
    assert (again.accuracy, again.best_accuracy) == (result.accuracy, result.best_accuracy)


def test_killed_outright_resumes_to_the_same_run(whole, tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nimport test_trainer as t, training_fakes as fakes\n"
        "engine = fakes.Engine(slow=('conv1',))\n"
        "engine.after_step = lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == 14 else None\n"
        "t.train(Path(sys.argv[1]), engine=engine)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent, check=False)
    assert done.returncode == -signal.SIGKILL
    trainer, _ = train(tmp_path, resumed(ADAPTIVE))
    np.testing.assert_array_equal(trainer.state.weight, whole[0]["parameters/weight"])
    assert events(tmp_path) == whole[1]


def test_interrupted_in_between_keeps_a_checkpoint(whole, tmp_path):
    engine = fakes.Engine(slow=("conv1",))
    engine.after_step = lambda done: os.kill(os.getpid(), signal.SIGINT) if done == 14 else None
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, engine=engine)
    assert load_checkpoint(tmp_path / LAST)[1].step == 14
    trainer, _ = train(tmp_path, resumed(ADAPTIVE))
    np.testing.assert_array_equal(trainer.state.weight, whole[0]["parameters/weight"])
    assert events(tmp_path) == whole[1]


def test_what_was_measured_is_not_measured_again(tmp_path):
    train(tmp_path, engine=(first := fakes.Engine(slow=("conv1",))))
    assert first.measured > 1
    train(tmp_path, resumed(ADAPTIVE), second := fakes.Engine(slow=("conv1",)))
    assert second.measured == 0 and second.steps == 0


def test_bits_change_without_compiling(tmp_path):
    train(tmp_path, engine=(engine := fakes.Engine()))
    assert sorted(engine.compiled) == sorted(set(engine.compiled))
    assert len(engine.compiled) == 3  # 16x8 and 16x10 are one, then 8x12, then dense


@pytest.mark.parametrize("ahead", [False, True])
def test_compiling_ahead_changes_nothing(whole, tmp_path, ahead):
    trainer, _ = train(tmp_path, replace(ADAPTIVE, compile_ahead=ahead))
    np.testing.assert_array_equal(trainer.state.weight, whole[0]["parameters/weight"])


def test_max_steps_stops_in_the_middle_and_goes_on(whole, tmp_path):
    with pytest.raises(UsageError, match="max-steps"):
        train(tmp_path / "no", replace(ADAPTIVE, max_steps=0))
    _, result = train(tmp_path, replace(ADAPTIVE, max_steps=13))
    assert result.steps == 13
    trainer, _ = train(tmp_path, resumed(ADAPTIVE))
    np.testing.assert_array_equal(trainer.state.weight, whole[0]["parameters/weight"])


def test_nan_stops_with_step_parameter_and_checkpoint(tmp_path):
    with pytest.raises(TrainingDivergedError) as caught:
        train(tmp_path, engine=fakes.Engine(fail_at=17))
    assert "step 17" in str(caught.value) and "weight" in str(caught.value) and LAST in str(caught.value)
    arrays, progress = load_checkpoint(tmp_path / LAST)
    assert progress.step == 16 and np.isfinite(arrays["parameters/weight"]).all()


def test_nan_names_the_layer_where_the_loss_blew_up_before(tmp_path):
    engine = fakes.Engine(fail_at=17)
    trainer = Trainer(engine, fakes.data(), fakes.preparation(), ADAPTIVE, tmp_path, fakes.decay)

    def blow_up(done: int) -> None:
        if done == 15:
            trainer.state.weight *= 1e5

    engine.after_step = blow_up
    with pytest.raises(TrainingDivergedError, match="step 17: the first layer whose input holds NaN or Inf is conv2"):
        trainer.run()


def test_parameters_that_are_not_finite_never_reach_the_disk(tmp_path):
    engine = fakes.Engine()
    trainer = Trainer(engine, fakes.data(), fakes.preparation(), ADAPTIVE, tmp_path, fakes.decay)

    def spoil(done: int) -> None:
        if done == 9:
            trainer.state.weight[0, 0] = np.inf

    engine.after_step = spoil
    with pytest.raises(TrainingDivergedError, match=r"after step 9: 1 parameters hold NaN or Inf, the first is weight"):
        trainer.run()
    assert load_checkpoint(tmp_path / LAST)[1].step == 8


class Overflowing(fakes.Engine):
    """``overflows``: steps that are skipped, with or without a loss that is known."""

    def __init__(self, overflows: dict[int, float], scale: float = 64.0) -> None:
        super().__init__()
        self.overflows, self.scale = overflows, scale

    def compile(self, stage):
        step, run = (made := super().compile(stage)), made.run

        def skipping(state, x, labels, rate):
            kept = state.arrays()
            result = run(state, x, labels, rate)
            loss = self.overflows.get(self.steps)
            if loss is None:
                return replace(result, scale=self.scale)
            state.load(kept)
            return replace(result, loss=loss, scale=self.scale, skipped=True)

        step.run = skipping
        return step


def test_a_skipped_step_does_not_stop_the_run(tmp_path):
    """NaN counts as a step without a loss, a finite one as any other; stages still begin where they should."""
    _, result = train(tmp_path, engine=Overflowing({3: float("nan"), 9: float("inf"), 10: 0.5}))
    log = events(tmp_path)
    steps = [each for each in log if each["event"] == "step"]
    assert result.steps == len(steps) == 40
    assert [each["step"] for each in steps if each["skipped"]] == [3, 9, 10]
    assert [each["loss"] for each in steps if each["skipped"]] == [None, None, 0.5]
    first = next(each for each in log if each["event"] == "epoch")
    assert first["loss"] == pytest.approx(np.mean([each["loss"] for each in steps[:8] if each["step"] != 3]))
    assert [each["event"] for each in log].count("stage") > 2


def test_skipped_steps_resume_to_the_same_run(tmp_path):
    overflows = {3: float("nan"), 13: float("nan")}
    whole, _ = train(tmp_path / "whole", engine=Overflowing(overflows))
    train(tmp_path / "parts", replace(ADAPTIVE, max_steps=11), Overflowing(overflows))
    later = Overflowing({step - 11: loss for step, loss in overflows.items()})
    parts, _ = train(tmp_path / "parts", resumed(ADAPTIVE), later)
    np.testing.assert_array_equal(parts.state.weight, whole.state.weight)
    assert events(tmp_path / "parts") == events(tmp_path / "whole")


def test_overflow_at_the_least_scale_is_divergence(tmp_path):
    with pytest.raises(TrainingDivergedError, match="at every scale of the loss, in step 5"):
        train(tmp_path, engine=Overflowing({5: 1.0}, scale=1.0))
    with pytest.raises(TrainingDivergedError, match="the loss became nan in step 17"):
        train(tmp_path / "nan", engine=fakes.Engine(fail_at=17))


def test_best_is_kept(tmp_path):
    _, result = train(tmp_path)
    assert load_checkpoint(tmp_path / BEST)[1].best_accuracy == result.best_accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.1}, r"--lr \(was 0\.002, now 0\.1\)"), ({"seed": 3, "window": 9}, "--seed.*--window|--window.*--seed")],
)
def test_other_options_are_named(tmp_path, options, message):
    train(tmp_path, replace(ADAPTIVE, epochs=1))
    with pytest.raises(UsageError, match=message):
        train(tmp_path, replace(ADAPTIVE, epochs=1, resume=True, **options))


def test_other_network_and_data_are_named(tmp_path):
    train(tmp_path)
    with pytest.raises(UsageError, match="another network"):
        train(tmp_path, resumed(ADAPTIVE), fakes.Engine(sha256="0" * 64))
    with pytest.raises(UsageError, match="another data set"):
        Trainer(fakes.Engine(), fakes.data(seed=1), fakes.preparation(), resumed(ADAPTIVE), tmp_path, fakes.decay)


def test_less_than_a_batch(tmp_path):
    with pytest.raises(DataError, match="64 training images are less than a batch of 65"):
        train(tmp_path, TrainOptions(batch=65))


# --- files --------------------------------------------------------------------------------------------


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "flipped": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "text": b"not a checkpoint at all, but long enough for a header",
        "metadata": content.replace(b'\\"step\\": 8', b'\\"step\\": x'),
    }[how]
    assert changed != content
    path.write_bytes(changed)


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "text", "metadata"])
def test_damaged_checkpoint_is_named(tmp_path, how):
    train(tmp_path, replace(ADAPTIVE, epochs=1))
    damaged(tmp_path / LAST, how)
    with pytest.raises(DataError, match=LAST):
        load_checkpoint(tmp_path / LAST)


def test_missing_or_foreign_checkpoint(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(DataError, match="without --resume"):
        train(tmp_path, resumed(ADAPTIVE))
    save_file({"a": np.zeros(3)}, tmp_path / LAST)
    with pytest.raises(DataError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / LAST)


def test_checkpoint_is_plain_safetensors(tmp_path):
    from safetensors.numpy import load_file

    from adr_tvm.train.checkpoint import Progress

    arrays = {
        "parameters/w": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "count": np.array([3]),
        "none": np.zeros((0, 4), np.float32),
    }
    save_checkpoint(tmp_path / "x.safetensors", arrays, Progress(step=5))
    for read in (load_file(tmp_path / "x.safetensors"), load_checkpoint(tmp_path / "x.safetensors")[0]):
        for name, expected in arrays.items():
            np.testing.assert_array_equal(read[name], expected)
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


def test_unwritable_checkpoint(tmp_path):
    from adr_tvm.train.checkpoint import Progress

    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / LAST, {}, Progress())


def test_log_is_cut_where_the_checkpoint_was_made(tmp_path):
    path = tmp_path / METRICS_FILE
    with MetricsLog(path) as log:
        log.write("a", x=1)
        kept = log.flush()
        log.write("b", x=2)
    with MetricsLog(path, kept) as log:
        log.write("c", x=3)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["a", "c"]
    path.write_text(path.read_text() + '{"event": "unfin')
    assert [each["event"] for each in read_metrics(path)] == ["a", "c"]
    with pytest.raises(DataError, match="not of this run"):
        MetricsLog(path, 10_000)
    path.write_text("hello\n")
    with pytest.raises(DataError, match="line 1"):
        list(read_metrics(path))
