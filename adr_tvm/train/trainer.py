"""The training loop: steps, stages, evaluation, checkpoints.

All that the next step depends on is in the checkpoint, or follows from the seed and the number of the step: a run that
was interrupted at any point goes on from its last checkpoint to the same curve, byte for byte. A stage is entered
(times measured, planes fitted, code compiled) before its first step; what was measured is checkpointed at once, so that
no decision is taken twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adr_tvm.data.training_data import TrainingData
from adr_tvm.errors import TrainingDivergedError
from adr_tvm.progress import Step as ProgressStep
from adr_tvm.progress import get_log, progress
from adr_tvm.report.formats import percent
from adr_tvm.train import phases
from adr_tvm.train.augmentation import Preparation
from adr_tvm.train.batches import Batch, Batches
from adr_tvm.train.checkpoint import BEST, LAST, Progress, check_same_run, load_checkpoint, save_checkpoint
from adr_tvm.train.engine import Engine, Evaluator, PlannedEngine, Step
from adr_tvm.train.fingerprint import fingerprint
from adr_tvm.train.loss_scaling import ScalingRule
from adr_tvm.train.options import TrainOptions
from adr_tvm.train.planned import make_controller, strategy_text
from adr_tvm.train.run_log import RunLog
from adr_tvm.train.stage import Stage, stage_text
from adr_tvm.train.stopping import StopRequest
from adr_tvm.train.variants import Variants

Rate = Callable[[int], float]
PARAMETERS = "parameters/"
ALARM = 1.5
"""A loss above this share of that of guessing is the sign of a run about to diverge: then the state is kept before each
step, so that it can be seen where the first NaN or Inf came up."""


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        steps: taken.
        accuracy, best_accuracy: on the test part, last and best; None where the run ended before an evaluation. Of
            fine-tuning: with reuse.
        stage: what each layer did last.
        seconds: by phase.
        images_per_second: over all steps, waiting for data included.
        before: of fine-tuning, accuracies before the first step by ``reuse`` and ``dense``; else empty.
        dense_accuracy: of fine-tuning, the last one without reuse.
    """

    steps: int
    accuracy: float | None
    best_accuracy: float | None
    stage: Stage
    seconds: Mapping[str, float]
    images_per_second: float
    before: Mapping[str, float] = field(default_factory=dict)
    dense_accuracy: float | None = None


class Trainer:
    """Trains a network in a folder: ``last.safetensors``, ``best.safetensors``, ``metrics.jsonl``.

    Args:
        engine: the network.
        data: what it is trained on.
        preparation: of the images.
        options: of the run.
        folder: takes the files.
        rate: from the steps of the run and of an epoch to the learning rate of a step (from 0).
        after_epoch: called when an epoch's checkpoint was written.
        tuned: the engine once more, if it trains under a plan: that says what every layer does, nothing is measured.

    Attributes:
        state: of the network.

    Raises:
        DataError: there is less than a batch of data; a checkpoint to resume from is missing or damaged.
        UsageError: the checkpoint is of another run.
    """

    def __init__(
        self,
        engine: Engine,
        data: TrainingData,
        preparation: Preparation,
        options: TrainOptions,
        folder: Path,
        rate: Callable[[int, int], Rate],
        after_epoch: Callable[[], None] | None = None,
        tuned: PlannedEngine | None = None,
    ) -> None:
        self._engine, self._data, self._preparation = engine, data, preparation
        self._options, self._folder = options, folder
        self._batches = Batches(data.train, preparation, options.batch, options.seed)
        self._steps_per_epoch = self._batches.steps_per_epoch
        self._total = options.epochs * self._steps_per_epoch
        self._rate = rate(self._total, self._steps_per_epoch)
        self._tuned = tuned
        self._after_epoch = after_epoch or (lambda: None)
        self.state = engine.initial_state()
        self._progress = Progress(network=engine.sha256, data=fingerprint(data), options=options.curve())
        if options.resume:
            self._load()
        resumed = self._progress.controller if options.resume else None
        given = None if tuned is None else tuned.stage
        self._controller = make_controller(engine.candidates, options, self._total, resumed, given)
        self._progress.controller = self._controller.state
        self._phases = phases.Phases(self._progress.seconds)
        self._evaluators: dict[bool, Evaluator] = {}
        self._alarmed = False

    def run(self) -> Trained:
        """Train to the end; calling it again goes on with nothing.

        Raises:
            TrainingDivergedError: the loss or a parameter became NaN or Inf.
            KeyboardInterrupt: after Ctrl-C; a checkpoint was written.
            DataError: an image cannot be read.
            UsageError: a file cannot be written.
        """
        now, options = self._progress, self._options
        stop = self._total if options.max_steps is None else min(self._total, options.max_steps)
        get_log().info("%s; %d steps an epoch", strategy_text(options, self._controller), self._steps_per_epoch)
        with (
            RunLog(self._folder, now.log_bytes, options.epochs) as self._log,
            StopRequest() as self._request,
            Variants(self._engine, self._controller.ladders, options.compile_ahead) as self._variants,
            self._batches.ahead(now.step, stop) as ahead,
            self._engine.feed(ahead) as fed,
        ):
            if now.log_bytes == 0:
                self._evaluate_before()
                self._log_start()
            self._step: Step | None = None
            self._waiting = iter(fed)
            while now.step < stop:
                epoch = now.step // self._steps_per_epoch
                self._run_epoch(epoch, min(stop, (epoch + 1) * self._steps_per_epoch))
        spent = sum(self._phases.seconds.get(phase, 0.0) for phase in (phases.STEP, phases.DATA))
        return Trained(
            now.step,
            now.accuracy,
            now.best_accuracy,
            self._controller.stage,
            self._phases.rounded(),
            now.step * options.batch / spent if spent else 0.0,
            now.before,
            now.dense_accuracy,
        )

    def _run_epoch(self, epoch: int, end: int) -> None:
        """The steps up to ``end``, and the evaluation if that ends the epoch."""
        now, every = self._progress, self._options.checkpoint_every
        with progress(f"epoch {epoch + 1}/{self._options.epochs}", self._steps_per_epoch) as bar:
            bar.advance(now.step - epoch * self._steps_per_epoch, stage_text(self._controller.stage))
            while now.step < end:
                if self._request.asked:
                    self._save()
                    get_log().warning("stopped after step %d; --resume goes on from there", now.step)
                    raise KeyboardInterrupt
                self._take_step(bar)
                if every is not None and now.step % every == 0 and now.step < end:
                    self._save()
        if end == (epoch + 1) * self._steps_per_epoch:
            self._end_epoch(epoch)
        else:
            self._save()

    def _take_step(self, bar: ProgressStep) -> None:
        now = self._progress
        with self._phases.timed(phases.DATA):
            batch = next(self._waiting)
        seconds = self._phases.last
        entering = self._controller.state.switches[-1][0] == now.step
        if entering and self._options.measure and self._tuned is None:
            self._measure(batch)
        every = self._options.refresh_planes
        if entering or (every > 0 and now.step % every == 0):
            self._make_planes(batch)
        if entering or self._step is None:
            with self._phases.timed(phases.COMPILE):
                self._step = self._variants.get(self._controller.stage)
            self._variants.prepare(self._controller.upcoming())
        if entering:
            self._log.stage(now.step, self._controller)
        stage, rate = self._controller.stage, self._rate(now.step)
        before = self.state.arrays() if self._alarmed else None
        with self._phases.timed(phases.STEP):
            result = self._step.run(self.state, batch.given, batch.labels, rate)
        seconds += self._phases.last
        known = math.isfinite(result.loss)
        if not known and not result.skipped:
            raise self._diverged(f"the loss became {result.loss} in step {now.step + 1}", before, batch)
        if result.skipped and result.scale == ScalingRule().least:
            raise self._diverged(
                f"gradients overflow at every scale of the loss, in step {now.step + 1}", before, batch
            )
        self._alarmed = result.loss > ALARM * math.log(self._engine.classes)
        now.step += 1
        if known:
            now.loss_sum += result.loss
        else:
            now.unknown += 1
        now.correct += result.correct
        now.busy += seconds
        self._log.step(now.step, batch, result, rate, stage, seconds, bar)
        self._controller.observe(result.loss if known else None)

    def _measure(self, batch: Batch) -> None:
        """Time the stage's candidates until those that are left pay, and keep what was measured."""
        found = False
        while layers := self._controller.unmeasured():
            found = True
            self._make_planes(batch)
            with self._phases.timed(phases.MEASURE):
                times = self._engine.measure(self.state, self._controller.stage, layers, batch.x)
            for layer, each in times.items():
                get_log().info("%s: %.3f ms dense, %.3f ms with reuse", layer, 1e3 * each.dense, 1e3 * each.reuse)
            for layer in self._controller.record(times):
                get_log().info("%s: not faster here, so it does without", layer)
        if found:
            self._save()

    def _make_planes(self, batch: Batch) -> None:
        stage = self._controller.stage
        if any(reuse is not None for reuse in stage.values()):
            with self._phases.timed(phases.PLANES):
                self._engine.make_planes(self.state, stage, batch.x, self._options.seed)

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate, log, and write a checkpoint; the best one twice."""
        now = self._progress
        with self._phases.timed(phases.EVALUATE):
            test_loss, accuracy = self._evaluate()
            now.dense_accuracy = None if self._tuned is None else self._evaluate(dense=True)[1]
        if not math.isfinite(test_loss):
            raise self._diverged(f"the test loss is {test_loss} after step {now.step}")
        images = self._steps_per_epoch * self._options.batch
        self._log.epoch(
            now.step,
            epoch + 1,
            (now.loss_sum / max(1, self._steps_per_epoch - now.unknown), now.correct / images),
            (test_loss, accuracy),
            images / max(1e-9, now.busy),
            self._phases.rounded(),
            now.dense_accuracy,
        )
        now.loss_sum, now.correct, now.busy, now.unknown = 0.0, 0, 0.0, 0
        best = now.best_accuracy is None or accuracy > now.best_accuracy
        now.accuracy, now.best_accuracy = accuracy, accuracy if best else now.best_accuracy
        self._save(best)
        self._after_epoch()

    def _evaluate_before(self) -> None:
        """What fine-tuning starts from."""
        if self._tuned is None:
            return
        with self._phases.timed(phases.EVALUATE):
            self._progress.before = {
                "reuse": self._evaluate()[1],
                "dense": self._evaluate(dense=True)[1],
            }
        reuse, dense = (percent(accuracy) for accuracy in self._progress.before.values())
        get_log().info("before fine-tuning: test accuracy with reuse %s, dense %s", reuse, dense)

    def _evaluate(self, dense: bool = False) -> tuple[float, float]:
        """Mean loss and accuracy on the test part; ``dense``: without reuse, of a network under a plan."""
        samples, size = self._data.test, self._options.batch
        count = len(samples.labels)
        if dense not in self._evaluators:
            self._evaluators[dense] = (
                self._tuned.dense_evaluator(size) if dense and self._tuned else self._engine.evaluator(size)
            )
        total, right = 0.0, 0
        for start in range(0, count, size):
            indices = np.arange(start, min(start + size, count))
            x = self._preparation.testing(samples.read(indices))
            loss, correct = self._evaluators[dense].run(self.state, x, samples.labels[indices])
            total, right = total + loss, right + correct
        return total / count, right / count

    def _save(self, best: bool = False) -> None:
        """Write a checkpoint, unless a parameter is not finite: the last one on disk is always good."""
        arrays = self.state.arrays()
        if nonfinite_parameters(arrays):
            raise self._diverged(f"after step {self._progress.step}")
        with self._phases.timed(phases.CHECKPOINT):
            self._progress.log_bytes = self._log.flush()
            self._progress.seconds = dict(self._phases.seconds)
            save_checkpoint(self._folder / LAST, arrays, self._progress)
            if best:
                save_checkpoint(self._folder / BEST, arrays, self._progress)

    def _load(self) -> None:
        path = self._folder / LAST
        arrays, found = load_checkpoint(path)
        check_same_run(path, found, self._progress.network, self._progress.data, self._progress.options)
        self.state.load(arrays)
        self._progress = found
        get_log().info("going on from step %d of %s", found.step, path)

    def _diverged(
        self, what: str, before: Mapping[str, np.ndarray] | None = None, batch: Batch | None = None
    ) -> TrainingDivergedError:
        """What happened, the first layer concerned, and what is left.

        Args:
            before: the state before the step on ``batch``, if it was kept.
        """
        last = self._folder / LAST
        bad = nonfinite_parameters(self.state.arrays())
        where = f"{len(bad)} parameters hold NaN or Inf, the first is {bad[0]}" if bad else "all parameters are finite"
        if before is not None and batch is not None:
            self.state.load(before)
            if (layer := self._engine.first_nonfinite(self.state, batch.x)) is not None:
                where = f"the first layer whose input holds NaN or Inf is {layer}"
        kept = f"the last good checkpoint is {last}" if last.is_file() else "there is no checkpoint yet"
        return TrainingDivergedError(f"{what}: {where}; {kept}; a lower --lr or --warmup may help")

    def _log_start(self) -> None:
        self._log.start(
            self._controller,
            network=self._engine.name,
            data=self._data.source,
            options=self._options.curve(),
            steps=self._total,
            steps_per_epoch=self._steps_per_epoch,
            images=[len(part.labels) for part in (self._data.train, self._data.test)],
            **({"before": self._progress.before} if self._tuned else {}),
        )


def nonfinite_parameters(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the parameters of a state that hold NaN or Inf, in its order, which is the network's."""
    return [
        path.removeprefix(PARAMETERS)
        for path, value in arrays.items()
        if path.startswith(PARAMETERS) and not np.isfinite(value).all()
    ]
