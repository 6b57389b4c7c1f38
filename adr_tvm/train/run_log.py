"""What a run says of itself: events to the metrics log, a line an epoch to the log, a note a step to the bar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adr_tvm.progress import Step as ProgressStep
from adr_tvm.progress import get_log
from adr_tvm.report.formats import percent, significant
from adr_tvm.train.batches import Batch
from adr_tvm.train.controller import Controller
from adr_tvm.train.engine import StepResult
from adr_tvm.train.live import Smoothed, live_note
from adr_tvm.train.metrics_log import METRICS_FILE, MetricsLog
from adr_tvm.train.stage import Stage, reuse_record, stage_text


class RunLog(MetricsLog):
    """The metrics log of a run, which also speaks to the terminal.

    Args:
        folder: of the run.
        keep: bytes of the file to keep.
        epochs: of the run.
    """

    def __init__(self, folder: Path, keep: int, epochs: int) -> None:
        super().__init__(folder / METRICS_FILE, keep)
        self._epochs = epochs
        self._loss, self._accuracy, self._seconds = Smoothed(), Smoothed(), Smoothed()
        self._shown = math.nan

    def start(self, controller: Controller, **facts: Any) -> None:
        """The run begins."""
        layers = {
            layer: [{"reuse": reuse_record(each.reuse), "cost": each.cost} for each in ladder]
            for layer, ladder in controller.ladders.items()
        }
        self.write("start", **facts, layers=layers)

    def stage(self, step: int, controller: Controller) -> None:
        """A stage begins with the step after ``step``."""
        stage = controller.stage
        self.write(
            "stage",
            step=step,
            level=controller.level,
            layers={layer: reuse_record(reuse) for layer, reuse in stage.items()},
            measured=controller.state.times,
        )
        get_log().info("after step %d: %s", step, stage_text(stage))

    def step(
        self,
        step: int,
        batch: Batch,
        result: StepResult,
        rate: float,
        stage: Stage,
        seconds: float,
        bar: ProgressStep,
    ) -> None:
        """A step was taken, in ``seconds`` with the waiting for its batch."""
        images = len(batch.labels)
        ratios = {layer: found / max(1, vectors) for layer, (found, vectors) in result.clusters.items()}
        shares = {layer: found / max(1, result.clusters[layer][0]) for layer, found in result.streamed.items()}
        self.write(
            "step",
            step=step,
            epoch=batch.epoch + 1,
            loss=result.loss if math.isfinite(result.loss) else None,
            accuracy=result.correct / images,
            lr=rate,
            images_per_second=round(images / max(1e-9, seconds), 2),
            seconds=round(seconds, 6),
            **({} if result.scale is None else {"scale": result.scale, "skipped": result.skipped}),
            layers={
                layer: {
                    "L": reuse.setting.L,
                    "H": reuse.setting.H,
                    "r_c": round(ratios[layer], 6),
                    **({"streamed": round(shares[layer], 6)} if layer in shares else {}),
                }
                for layer, reuse in stage.items()
                if reuse is not None and layer in ratios
            },
        )
        if math.isfinite(result.loss):
            self._shown = self._loss.add(result.loss)
        accuracy = self._accuracy.add(result.correct / images)
        speed = images / max(1e-9, self._seconds.add(seconds))
        bar.advance(1, live_note(self._shown, accuracy, speed, stage, ratios, shares, result.scale))

    def epoch(
        self,
        step: int,
        epoch: int,
        training: tuple[float, float],
        testing: tuple[float, float],
        images_per_second: float,
        seconds: Mapping[str, float],
        dense: float | None = None,
    ) -> None:
        """An epoch (from 1) ended; ``training``, ``testing``: mean loss and accuracy; ``seconds`` by phase so far;
        ``dense``: test accuracy without reuse, where ``testing`` is with it."""
        self.write(
            "epoch",
            step=step,
            epoch=epoch,
            loss=training[0],
            accuracy=training[1],
            test_loss=testing[0],
            test_accuracy=testing[1],
            images_per_second=round(images_per_second, 2),
            seconds=dict(seconds),
            **({} if dense is None else {"dense_accuracy": dense}),
        )
        get_log().info(
            "epoch %d/%d: loss %.3f, accuracy %s; test loss %.3f, accuracy %s; %s images/s",
            epoch,
            self._epochs,
            training[0],
            percent(training[1]),
            testing[0],
            percent(testing[1]) + ("" if dense is None else f" with reuse, {percent(dense)} dense"),
            significant(images_per_second),
        )
