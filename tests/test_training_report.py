"""The HTML report of a training run: what the log says is on the page, and nothing comes from outside."""

from __future__ import annotations

import re

import pytest

from adr_tvm.report.curves import BOTTOM, LEFT, MOST_POINTS, RIGHT, TOP, Series, curves
from adr_tvm.settings import ReuseSetting
from adr_tvm.train.history import gather
from adr_tvm.train.live import MOST_LAYERS, Smoothed, live_note
from adr_tvm.train.report import render_training_report
from adr_tvm.train.stage import LayerReuse, reuse_record, stage_text

EVIL = "conv</script><b>&"
COARSE = LayerReuse(ReuseSetting("pixel", 16, 8, scope="batch"))
FINE = COARSE.with_bits(12)


def events(steps: int = 40):
    """A run of two stages: coarse up to half, then fine with one layer dense."""
    ladder = [{"reuse": reuse_record(each), "cost": 0.2 + 0.1 * index} for index, each in enumerate((COARSE, FINE))]
    yield {
        "event": "start", "network": "net", "data": "d.npz", "options": {"reuse": "adaptive", "lr": 0.1, "only": []},
        "layers": {EVIL: ladder, "conv2": ladder}, "steps": 80, "steps_per_epoch": 20, "images": [160, 32],
    }  # fmt: skip
    for step in range(steps):
        if step in (0, steps // 2):
            stage = {EVIL: COARSE, "conv2": COARSE} if step == 0 else {EVIL: None, "conv2": FINE}
            measured = {"conv2": {"0": [0.004, 0.001]}, EVIL: {"0": [0.004, 0.002], "1": [0.004, 0.005]}}
            layers = {layer: reuse_record(reuse) for layer, reuse in stage.items()}
            yield {"event": "stage", "step": step, "level": 0, "layers": layers, "measured": measured}
        now = {layer: {"L": 16, "H": reuse.setting.H, "r_c": 0.02} for layer, reuse in stage.items() if reuse}
        yield {
            "event": "step", "step": step + 1, "epoch": step // 20 + 1, "loss": 2 / (1 + step), "accuracy": step / 40,
            "lr": 0.1, "images_per_second": 900.0, "seconds": 0.01 if step < 20 else 0.02, "layers": now,
        }  # fmt: skip
        if (step + 1) % 20 == 0:
            yield {
                "event": "epoch", "step": step + 1, "epoch": (step + 1) // 20, "loss": 1.0, "accuracy": 0.5,
                "test_loss": 0.9, "test_accuracy": 0.4 + 0.01 * step, "images_per_second": 901.0,
                "seconds": {"step": 0.3 * (step + 1), "data": 1.0, "evaluate": 3.0},
            }  # fmt: skip


def test_history():
    history = gather(events())
    first, second = history.stages
    assert (first.start, first.end, second.start, second.end) == (0, 20, 20, 40)
    assert (first.step_seconds, second.step_seconds) == (0.01, 0.02)
    assert second.ratio("conv2") == pytest.approx(0.02) and second.ratio(EVIL) is None
    assert history.time_to(0.5) == pytest.approx(7.0) and history.time_to(0.9) is None


def test_clusters_that_persist():
    told = list(events())
    assert "taken over" not in render_training_report(gather(told))
    for event in told:
        if event["event"] == "step" and "conv2" in event["layers"]:
            event["layers"]["conv2"]["streamed"] = 0.9
    history = gather(told)
    assert history.stages[1].share_streamed("conv2") == pytest.approx(0.9)
    page = render_training_report(history)
    assert "Clusters taken over from earlier batches" in page and "90 % of clusters taken over" in page


def test_page_tells_the_run():
    page = render_training_report(gather(events()))
    for words in (
        "40 of 80 steps, 2 epochs, on d.npz; reuse: adaptive",
        "79 %",  # the last test accuracy
        "pixel L=16 H=8 averaged",
        "pixel L=16 H=12 averaged",
        "Remaining ratio r_c",
        "1.25",  # reuse over dense of the layer that does not pay
        "waiting for data",
    ):
        assert words in page, words
    assert page == render_training_report(gather(events()))


def test_page_is_self_contained_and_escaped():
    page = render_training_report(gather(events()))
    assert EVIL not in page and "conv&lt;/script&gt;" in page
    assert not re.search(r"(?:src|href)=|@import|url\(|<script", page)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_page_of_a_run_that_only_began(count):
    page = render_training_report(gather(list(events())[:count]))
    assert "training</h1>" in page


def test_curves_lie_in_the_plot_and_are_thinned():
    count = 5 * MOST_POINTS
    plot = curves("loss", [Series("a", range(count), [float(i % 7) for i in range(count)])], count, marks=[0, 100])
    points = [tuple(map(float, pair.split(","))) for pair in plot.lines[0].points.split()]
    assert len(points) == MOST_POINTS and len(plot.marks) == 1
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in points)
    flat = curves("x", [Series("a", [1, 2], [0.0, 0.0])], 2)
    assert flat is not None and curves("x", [], 1) is None
    assert curves("r_c", [Series("a", [1, 2], [0.0, 0.01])], 2, log=True).lines[0].points.count(",") == 1


def test_live_note():
    note = live_note(1.2345, 0.5, 1234.5, {"conv1": None, "conv2": COARSE}, {"conv2": 0.0131}, {})
    assert note == "loss 1.234, accuracy 50.0 %, 1234 images/s, conv2 L=16 H=8 r_c 1.31 %"
    many = {f"c{index}": COARSE for index in range(MOST_LAYERS + 2)}
    assert "2 more, mean r_c 2 %" in live_note(1, 1, 1, many, dict.fromkeys(many, 0.02), {})
    assert "c0 L=16 H=8 r_c 2 %, 97 % taken over" in live_note(1, 1, 1, many, {"c0": 0.02}, {"c0": 0.97})
    assert stage_text({"a": None}) == "all layers dense"
    smoothed = Smoothed(0.5)
    assert [smoothed.add(1.0), smoothed.add(4.0)] == pytest.approx([1.0, 3.0])
