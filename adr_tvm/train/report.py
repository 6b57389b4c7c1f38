"""``report.html`` of a training run: curves of loss, accuracy and r_c, the stages, and where the time went.

Made from ``metrics.jsonl`` alone, after every epoch, so that a run can be watched. Needs nothing from outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adr_tvm import __version__
from adr_tvm.jsonfile import write_bytes
from adr_tvm.report import curves as area
from adr_tvm.report import formats
from adr_tvm.report.curves import COLOURS, Curves, Series, curves
from adr_tvm.report.html import REPORT_PAGE, Tile, short, template
from adr_tvm.train.history import History, StageRecord, gather
from adr_tvm.train.metrics_log import METRICS_FILE, read_metrics
from adr_tvm.train.phases import PHASES

_PHASE_TEXT = {
    "step": "steps: forward, backward, update",
    "data": "waiting for data",
    "planes": "fitting hash planes",
    "evaluate": "evaluation",
    "checkpoint": "checkpoints",
    "compile": "waiting for a stage's code",
    "measure": "measuring what pays",
}


@dataclass(frozen=True)
class Span:
    """What a layer did in a stage: place and width in percent of the run; ``fineness`` 0 (dense) to 4."""

    left: float
    width: float
    text: str
    fineness: int


@dataclass(frozen=True)
class Share:
    """A phase of the time: seconds, and percent of all."""

    name: str
    seconds: float
    percent: float


def write_training_report(folder: Path) -> Path:
    """Write ``report.html`` of the run in ``folder``; returns its path.

    Raises:
        DataError: the metrics log cannot be read.
        UsageError: the file cannot be written.
    """
    path = folder / REPORT_PAGE
    write_bytes(path, render_training_report(gather(read_metrics(folder / METRICS_FILE))).encode("utf-8"))
    return path


def render_training_report(history: History) -> str:
    """The page as HTML; equal histories give equal pages."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        milliseconds=formats.milliseconds, number=formats.number, percent=formats.percent, short=short
    )
    return environment.from_string(template("training.html.j2")).render(
        history=history,
        style=template("page.css"),
        version=__version__,
        title=f"{history.start.get('network', 'network')}: training",
        lead=_lead(history),
        tiles=_tiles(history),
        plots=_plots(history),
        area=area,
        timeline=_timeline(history),
        stages=_stage_rows(history),
        measured=_measured_rows(history),
        shares=_shares(history),
        facts=_facts(history),
    )


def _lead(history: History) -> str:
    steps, epochs = history.last_step, len(history.epochs)
    text = f"{steps} of {history.start.get('steps', steps)} steps, {epochs} epoch{'' if epochs == 1 else 's'}"
    options = history.start.get("options", {})
    reuse = f"reuse: {options.get('reuse', '')}"
    if history.tuned:
        plan = options.get("plan") or f"found with --max-drop {options.get('max_drop')}"
        reuse = f"fine-tuned under a plan ({plan}); accuracies are with reuse unless they say dense"
    return f"{text}, on {history.start.get('data', '')}; {reuse}"


def _tiles(history: History) -> list[Tile]:
    tiles = []
    if history.tuned:
        before = history.start["before"]
        detail = f"with reuse; dense {formats.percent(before['dense'])}"
        tiles.append(Tile("Before fine-tuning", formats.percent(before["reuse"]), detail))
    if history.epochs:
        last = history.epochs[-1]
        best = max(history.epochs, key=lambda each: each["test_accuracy"])
        detail = f"training {formats.percent(last['accuracy'])}"
        if history.tuned:
            detail = f"with reuse; dense {formats.percent(last['dense_accuracy'])}; {detail}"
        tiles.append(Tile("Test accuracy", formats.percent(last["test_accuracy"]), detail))
        tiles.append(Tile("Best", formats.percent(best["test_accuracy"]), f"epoch {best['epoch']}"))
        goal = math.floor(20 * last["test_accuracy"]) / 20
        if goal > 0 and (seconds := history.time_to(goal)) is not None:
            tiles.append(Tile(f"Time to {formats.percent(goal)}", f"{formats.number(seconds)} s", "of training steps"))
        tiles.append(Tile("Images a second", formats.number(last["images_per_second"]), "in the last epoch"))
    if history.stages:
        count = len(history.stages)
        tiles.append(Tile("Stage", str(count), _stage_words(history.stages[-1])))
    return tiles


def _stage_words(stage: StageRecord) -> str:
    reusing = sum(reuse is not None for reuse in stage.layers.values())
    return (
        f"{reusing} layer{'' if reusing == 1 else 's'} reuse{'s' if reusing == 1 else ''}" if reusing else "all dense"
    )


def _plots(history: History) -> list[Curves]:
    epochs = [each["step"] for each in history.epochs]
    marks, last = [stage.start for stage in history.stages], history.last_step
    layers = list(dict.fromkeys(layer for each in history.steps for layer in each["layers"]))

    def of(name: str, key: str, colour: int) -> Series:
        told = [each for each in history.steps if each.get(key) is not None]
        return Series(name, [each["step"] for each in told], [each[key] for each in told], colour)

    def tested(key: str, name: str = "test", colour: int = 1) -> Series:
        return Series(name, epochs, [each[key] for each in history.epochs], colour, dots=True)

    accuracies = [
        of("training", "accuracy", 0),
        tested("test_accuracy", "test, with reuse" if history.tuned else "test"),
    ]
    if history.tuned:
        accuracies.append(tested("dense_accuracy", "test, dense", 2))

    def by_layer(key: str) -> list[Series]:
        found = []
        for index, layer in enumerate(layers):
            told = [each for each in history.steps if key in each["layers"].get(layer, {})]
            values = [each["layers"][layer][key] for each in told]
            found.append(Series(layer, [each["step"] for each in told], values, index % COLOURS))
        return found

    found = [
        curves("Loss", [of("training", "loss", 0), tested("test_loss")], last, marks),
        curves("Accuracy", accuracies, last, marks, top=1.0),
        curves("Remaining ratio r_c", by_layer("r_c"), last, marks, log=True),
        curves("Clusters taken over from earlier batches", by_layer("streamed"), last, marks, top=1.0),
        curves("Images a second", [of("training", "images_per_second", 0)], last, marks),
        curves("Learning rate", [of("training", "lr", 0)], last, marks),
        curves("Scale of the loss", [of("training", "scale", 0)], last, marks, log=True),
    ]
    return [each for each in found if each is not None]


def _timeline(history: History) -> list[tuple[str, list[Span]]]:
    """For each layer that ever reuses what it did over the run."""
    if not history.stages or not history.last_step:
        return []
    rows = []
    whole = history.last_step
    for layer in history.stages[0].layers:
        kinds = [text for stage in history.stages if (text := _reuse_words(stage.layers.get(layer))) != "dense"]
        order = {text: index for index, text in enumerate(dict.fromkeys(kinds))}
        spans = []
        for stage in history.stages:
            text = _reuse_words(stage.layers.get(layer))
            fineness = 0 if text == "dense" else 1 + round(3 * order[text] / max(1, len(order) - 1))
            left, width = 100 * stage.start / whole, 100 * (stage.end - stage.start) / whole
            spans.append(Span(round(left, 3), round(width, 3), text, fineness))
        if kinds:
            rows.append((layer, spans))
    return rows


def _reuse_words(reuse: dict[str, Any] | None) -> str:
    if reuse is None:
        return "dense"
    setting = reuse["setting"]
    words = f"{setting['granularity']} L={setting['L']} H={setting['H']} {reuse['input_gradient']}"
    words += " stream" if reuse["stream"] else ""
    return f"{words}, backward only" if reuse["backward_only"] else words


def _stage_rows(history: History) -> list[dict[str, Any]]:
    return [
        {
            "number": index,
            "start": stage.start,
            "steps": stage.end - stage.start,
            "step_ms": None if stage.step_seconds is None else 1e3 * stage.step_seconds,
            "loss": stage.last_loss,
            "layers": [
                (layer, _reuse_words(reuse), stage.ratio(layer), stage.share_streamed(layer))
                for layer, reuse in stage.layers.items()
                if reuse is not None
            ],
        }
        for index, stage in enumerate(history.stages, 1)
    ]


def _measured_rows(history: History) -> list[dict[str, Any]]:
    ladders = history.start.get("layers", {})
    return [
        {
            "layer": layer,
            "reuse": _reuse_words(ladders[layer][int(position)]["reuse"]),
            "cost": ladders[layer][int(position)]["cost"],
            "dense_ms": 1e3 * dense,
            "reuse_ms": 1e3 * reuse,
            "ratio": reuse / dense,
        }
        for layer, found in history.measured.items()
        for position, (dense, reuse) in found.items()
    ]


def _shares(history: History) -> list[Share]:
    seconds = history.seconds
    whole = sum(seconds.values()) or 1.0
    return [
        Share(_PHASE_TEXT[phase], seconds[phase], round(100 * seconds[phase] / whole, 2))
        for phase in PHASES
        if phase in seconds
    ]


def _facts(history: History) -> list[tuple[str, str]]:
    options = history.start.get("options", {})
    return [(name.replace("_", " "), str(value)) for name, value in options.items() if value not in (None, [], "")]
