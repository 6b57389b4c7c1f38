"""``report.html``: one file that says layer by layer what was done, what it brought, and why not more.

The page needs nothing from outside: styles, plots (SVG) and the few lines of script that sort the table are
in it. Whatever comes from the model is escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from adr_tvm import __version__
from adr_tvm.jsonfile import write_bytes
from adr_tvm.report import charts, formats
from adr_tvm.report.predictions import predictions, verdict
from adr_tvm.report.results import LayerResult, NetworkResult

REPORT_PAGE = "report.html"
SHORT_NAME = 34


@dataclass(frozen=True)
class Tile:
    """A number that is worth a large font; ``tone`` is "good", "bad" or "" and colours it."""

    title: str
    value: str
    detail: str
    tone: str = ""


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: shares in percent of the longest bar, and the text at its end."""

    name: str
    first: float | None
    second: float | None
    text: str


@dataclass(frozen=True)
class ReasonGroup:
    """Layers that stay dense for one reason."""

    reason: str
    layers: list[str]


def write_report(result: NetworkResult, folder: str | Path) -> Path:
    """Write ``report.html`` into ``folder``; returns its path.

    Raises:
        UsageError: the file cannot be written.
    """
    path = Path(folder) / REPORT_PAGE
    write_bytes(path, render_report(result).encode("utf-8"))
    return path


def render_report(result: NetworkResult) -> str:
    """The page as HTML; equal results give equal pages."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        factor=formats.factor,
        milliseconds=formats.milliseconds,
        multiply_adds=formats.multiply_adds,
        number=formats.number,
        percent=formats.percent,
        setting=formats.setting_text,
        short=short,
    )
    plots = [(layer, plot) for layer in result.layers if (plot := charts.scatter(layer)) is not None]
    return environment.from_string(template("report.html.j2")).render(
        result=result,
        style=template("page.css"),
        summary=formats.summary_line(result),
        version=__version__,
        tiles=_tiles(result),
        facts=_facts(result),
        time_bars=_time_bars(result.layers),
        ratio_bars=_ratio_bars(result.layers),
        plots=sorted(plots, key=lambda plot: plot[0].decision == "dense"),
        area=charts,
        predictions=(predicted := predictions(result)),
        verdict=verdict(predicted),
        reasons=_reasons(result.layers),
    )


def template(name: str) -> str:
    """A file of ``templates``."""
    return resources.files("adr_tvm.report").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def short(name: str) -> str:
    """The two ends of a long name: the start says where, the end says which."""
    return name if len(name) <= SHORT_NAME else f"{name[: SHORT_NAME // 3]}…{name[-SHORT_NAME * 2 // 3 :]}"


def _tiles(result: NetworkResult) -> list[Tile]:
    tiles = []
    if result.speedup is not None:
        times = f"{formats.milliseconds(result.dense_ms)} → {formats.milliseconds(result.reuse_ms)} ms"
        predicted = "Predicted speedup" if result.predicted else "Speedup"
        tiles.append(Tile(f"{predicted} over dense", formats.factor(result.speedup), times))
    if result.onnxruntime_ms is not None and result.reuse_ms:
        ratio = formats.factor(result.onnxruntime_ms / result.reuse_ms)
        tiles.append(Tile("Over ONNX Runtime", ratio, f"{formats.milliseconds(result.onnxruntime_ms)} ms"))
    if result.drop is not None:
        name = formats.metric_name(result.metric)
        bound = formats.metric_value(result.metric, result.bound)
        budget = formats.metric_value(result.metric, result.budget)
        details = ([f"90 % bound {bound}"] if result.bound is not None else []) + (
            [f"budget {budget}"] if result.budget is not None else []
        )
        tone = {True: "good", False: "bad", None: ""}[formats.within_budget(result)]
        tiles.append(
            Tile(
                name[0].upper() + name[1:],
                formats.metric_value(result.metric, result.drop),
                ", ".join(details),
                tone,
            )
        )
    tiles.append(Tile("Layers reused", f"{len(result.reused)} of {len(result.layers)}", _macs_text(result)))
    return tiles


def _macs_text(result: NetworkResult) -> str:
    dense = sum(layer.macs_dense for layer in result.layers)
    left = 0
    for layer in result.layers:
        macs = layer.macs_reuse if layer.decision == "reuse" else layer.macs_dense
        if macs is None:
            return ""
        left += macs
    if not dense:
        return ""
    return f"{formats.percent(left / dense)} of the multiply-adds left"


def _facts(result: NetworkResult) -> list[tuple[str, str]]:
    """Rows of the network table; those that are not known are left out."""
    metric = result.metric
    name = formats.metric_name(metric)
    rows = [
        ("Model", result.model),
        ("SHA-256", f"{result.model_sha256[:16]}…"),
        ("Target", result.target),
        ("CPU", result.cpu),
        ("Threads", str(result.threads)),
        ("Seed", str(result.seed)),
        ("Cost model", result.cost_model),
        ("Its SHA-256", f"{result.cost_model_sha256[:16]}…" if result.cost_model_sha256 else ""),
        ("Times", "predicted, not measured" if result.predicted else ""),
        ("Dense", _with_unit(result.dense_ms)),
        ("As compiled", _with_unit(result.reuse_ms)),
        ("ONNX Runtime", _with_unit(result.onnxruntime_ms)),
        ("Dense vs ONNX Runtime", _relative_error(result.max_abs_error)),
        (name[0].upper() + name[1:], formats.metric_value(metric, result.drop)),
        ("90 % bound", formats.metric_value(metric, result.bound)),
        ("Budget", formats.metric_value(metric, result.budget)),
        ("Held-back images", str(result.n_images) if result.n_images else ""),
        (
            "Images the budget needs",
            formats.MISSING if result.images_needed is None else str(result.images_needed),
        ),
    ]
    return [(title, value) for title, value in rows if value not in ("", formats.MISSING)]


def _with_unit(time_ms: float | None) -> str:
    return "" if time_ms is None else f"{formats.milliseconds(time_ms)} ms"


def _relative_error(error: float | None) -> str:
    return "" if error is None else f"{formats.number(error)} relative error"


def _time_bars(layers: list[LayerResult]) -> list[Bar]:
    times = [(layer, layer.time_dense_ms, layer.time_reuse_ms) for layer in layers]
    timed = [(layer, dense, reuse) for layer, dense, reuse in times if dense is not None]
    longest = max((max(dense, reuse or 0.0) for _, dense, reuse in timed), default=0.0) or 1.0
    bars = []
    for layer, dense, reuse in timed:
        text, second = formats.milliseconds(dense), None
        if layer.decision == "reuse" and reuse is not None:
            second = _share(reuse, longest)
            text += f" → {formats.milliseconds(reuse)} ms ({formats.factor(layer.speedup)})"
        else:
            text += " ms"
        bars.append(Bar(layer.layer, _share(dense, longest), second, text))
    return bars


def _ratio_bars(layers: list[LayerResult]) -> list[Bar]:
    bars = []
    for layer in layers:
        if layer.r_c is not None:
            share, reused = _share(layer.r_c, 1.0), layer.decision == "reuse"
            text = formats.percent(layer.r_c)
            bars.append(Bar(layer.layer, None if reused else share, share if reused else None, text))
    return bars


def _share(value: float, whole: float) -> float:
    return round(max(0.0, min(100.0, 100.0 * value / whole)), 2)


def _reasons(layers: list[LayerResult]) -> list[ReasonGroup]:
    groups: dict[str, list[str]] = {}
    for layer in layers:
        if layer.decision == "dense":
            groups.setdefault(layer.reason, []).append(layer.layer)
    return [ReasonGroup(reason, names) for reason, names in groups.items()]
