"""Results on disk, the HTML report and the terminal table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from adr_tvm.errors import DataError, ModelError, UsageError
from adr_tvm.report.charts import scatter
from adr_tvm.report.formats import milliseconds, multiply_adds, number, percent, setting_text, summary_line
from adr_tvm.report.html import render_report, write_report
from adr_tvm.report.predictions import predictions, verdict
from adr_tvm.report.results import Candidate, LayerResult, NetworkResult, Timings
from adr_tvm.report.terminal import print_result
from adr_tvm.settings import ReuseSetting

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m[red]"
VOID = {"meta", "br", "img", "link"}


def make_layer(index: int, reuse: bool, name: str | None = None) -> LayerResult:
    dense = 0.4 + 0.37 * (index * 7 % 11)
    candidates = [
        Candidate(
            ReuseSetting(L=length, H=bits),
            time_ms=dense * (0.2 + 0.05 * bits + 0.8 / length),
            error=0.4 * 2.0 ** -(bits + 16 / length) * (1 + index % 3),
            r_c=min(1.0, 0.004 * 2 ** (bits / 2)),
            chosen=reuse and (length, bits) == (16, 8),
            pareto=length == 16 or bits == 6,
        )
        for length in (8, 16, 32)
        for bits in (6, 8, 10, 12)
    ]
    return LayerResult(
        layer=name or f"/features/features.{index}/Conv",
        op="conv2d",
        geometry="56x56x64 -> 64, 3x3/1",
        decision="reuse" if reuse else "dense",
        setting=ReuseSetting(max_clusters=900) if reuse else None,
        reason="0.41 ms faster inside the network, 0.2 % of the budget"
        if reuse
        else ("no setting was 5 % faster" if index % 3 else "first layer: NMSE above 0.4 at every setting"),
        macs_dense=115_605_504 + index,
        macs_reuse=9_305_000 if reuse else None,
        time_dense_ms=dense,
        time_reuse_ms=dense * 0.4 if reuse else None,
        predicted_ms=dense * 0.37 if reuse else None,
        clusters=690.5 if reuse else None,
        vectors=12544,
        r_c=0.055 if reuse else 0.41,
        nmse_layer=0.0123 if reuse else None,
        output_error=0.00214,
        candidates=candidates,
    )


def make_result(count: int, reused: int, name: str | None = None) -> NetworkResult:
    return NetworkResult(
        model=name or "cifarnet",
        model_sha256="ab" * 32,
        target="llvm -mcpu=icelake-server",
        cpu="Some CPU @ 2.90 GHz",
        threads=2,
        seed=0,
        metric="agreement",
        budget=0.01,
        drop=0.002,
        bound=0.008,
        n_images=500,
        images_needed=230,
        dense_ms=2.31,
        reuse_ms=1.12 if reused else 2.31,
        onnxruntime_ms=2.05,
        max_abs_error=3.1e-7,
        layers=[
            make_layer(index, index % max(1, count // max(reused, 1)) == 0 and reused > 0, name)
            for index in range(count)
        ],
        notes=[
            "Results do not depend on the other images of a batch.",
            name or "Calibration had 1000 images.",
        ],
    )


def without_measurements(result: NetworkResult) -> NetworkResult:
    empty = dict.fromkeys(
        (
            "time_dense_ms",
            "time_reuse_ms",
            "predicted_ms",
            "clusters",
            "r_c",
            "nmse_layer",
            "output_error",
            "macs_reuse",
        )
    )
    layers = [replace(layer, **empty, vectors=None, candidates=[]) for layer in result.layers]
    return replace(
        result,
        dense_ms=None,
        reuse_ms=None,
        onnxruntime_ms=None,
        drop=None,
        bound=None,
        max_abs_error=None,
        layers=layers,
    )


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


PAGES = {
    "one layer": make_result(1, 1),
    "sixty layers": make_result(60, 12),
    "all dense": make_result(8, 0),
    "nothing measured": without_measurements(make_result(8, 2)),
    "no layers": make_result(0, 0),
    "hostile": make_result(3, 1, HOSTILE),
}


@pytest.mark.parametrize("result", PAGES.values(), ids=PAGES.keys())
def test_page_is_well_formed_and_self_contained(result):
    text = render_report(result)
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "http://" not in text and "https://" not in text
    assert text == render_report(result)


def test_page_has_every_layer_and_plot():
    text = render_report(PAGES["sixty layers"])
    page = Page(text)
    assert page.tags.count("figure") == 60
    assert text.count('class="layer"') == 61  # sixty rows and the heading
    assert text.count('class="chosen"') == 12 + 1  # and the key of the plots
    assert summary_line(PAGES["sixty layers"]) in "".join(page.texts)


def test_page_has_what_was_predicted():
    """The dense kernel and every candidate with a prediction; nothing where none was made."""
    layer = make_layer(0, True)
    candidates = [replace(each, predicted_ms=2 * each.time_ms) for each in layer.candidates[:3]] + layer.candidates[3:]
    layer = replace(layer, candidates=candidates, predicted_dense_ms=4 * layer.time_dense_ms)
    result = replace(make_result(1, 1), layers=[layer], cost_model="fitted to a clock", cost_model_sha256="cd" * 32)
    assert [each.ratio for each in predictions(result)] == pytest.approx([4, 2, 2, 2])
    assert verdict(predictions(result)).startswith("4 kernels: predicted times are 2 of the measured in the median")
    text = render_report(result)
    assert "Predicted against measured" in text and "fitted to a clock" in text and "cdcdcdcdcdcdcdcd…" in text
    assert "Predicted against measured" not in render_report(make_result(2, 1))
    assert verdict([]) == ""


def test_hostile_names_are_text():
    page = Page(render_report(PAGES["hostile"]))
    assert any(HOSTILE in text for text in page.texts)


def test_write_report(tmp_path):
    path = write_report(PAGES["one layer"], tmp_path / "new")
    assert path.read_text(encoding="utf-8") == render_report(PAGES["one layer"])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        write_report(PAGES["one layer"], tmp_path / "file")


def test_scatter_with_zero_error_and_single_point():
    layer = make_layer(0, True)
    exact = Candidate(ReuseSetting(granularity="row", hash="exact"), 0.3, 0.0, 1.0, chosen=True, pareto=True)
    chart = scatter(replace(layer, candidates=[exact]))
    assert chart.points[0].y <= 168 and chart.front == ""
    assert [tick.text for tick in chart.y_ticks][-1] == "0"
    for unknown in (None, float("nan"), float("inf")):
        assert scatter(replace(layer, candidates=[replace(exact, error=unknown)])) is None


def test_summary_line():
    assert summary_line(make_result(5, 1)) == (
        "cifarnet: 2.31 ms dense -> 1.12 ms (2.06x), agreement drop 0.2 % (90 % bound 0.8 % <= 1 %), "
        "1 of 5 layers reused"
    )
    assert summary_line(make_result(5, 0)) == "cifarnet: 2.31 ms dense, 0 of 5 layers reused"
    psnr = replace(make_result(1, 1), metric="psnr", budget=40.0, drop=41.25, bound=39.5)
    assert "PSNR 41.2 dB (90 % bound 39.5 dB < 40 dB), 1 of 1 layer reused" in summary_line(psnr)
    nmse = replace(make_result(2, 1), metric="nmse", budget=None, drop=0.00321, bound=None)
    assert "NMSE 0.00321, 1 of 2" in summary_line(nmse)
    assert summary_line(PAGES["nothing measured"]) == "cifarnet: not timed, 2 of 8 layers reused"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (milliseconds(123.4), "123"),
        (milliseconds(1.005), "1.00"),
        (milliseconds(0.00042), "0.00042"),
        (milliseconds(None), "-"),
        (number(3.14159e-7), "3.14e-07"),
        (number(12544.0), "12544"),
        (number(float("inf")), "inf"),
        (percent(0.5), "50 %"),
        (percent(0.00123), "0.123 %"),
        (multiply_adds(115_605_504), "116 M"),
        (multiply_adds(999), "999"),
    ],
)
def test_numbers(text, expected):
    assert text == expected


def test_setting_text():
    assert setting_text(ReuseSetting()) == "pixel L=16 H=8 pca"
    assert setting_text(ReuseSetting("row", hash="exact")) == "row exact"
    assert setting_text(ReuseSetting("segment", scope="batch", gain=True)) == "segment L=16 H=8 pca scope=batch gain"


def test_terminal_plain(capsys):
    print_result(make_result(3, 1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["layer", "op", "geometry"]
    assert len({line.index("conv2d") for line in lines[1:4]}) == 1
    assert lines[-1] == summary_line(make_result(3, 1))
    assert "\x1b" not in "".join(lines)


def test_terminal_plain_hides_unknown_columns_and_control_characters(capsys):
    print_result(without_measurements(make_result(2, 1, HOSTILE)))
    text = capsys.readouterr().out
    assert "dense ms" not in text and "\x1b" not in text
    print_result(make_result(0, 0))
    assert "0 of 0 layers" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 160])
def test_terminal_colour(capsys, monkeypatch, width):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    print_result(make_result(3, 1, HOSTILE))
    text = capsys.readouterr().out
    assert "\x1b[" in text and "\x1b[31m[red]" not in text
    table = re.sub(r"\x1b\[[0-9;]*m", "", text).split("note:")[0]
    assert max(map(len, table.splitlines())) <= width
    assert ("geometry" in table) == (width == 160)


def test_result_round_trip(tmp_path):
    result = replace(make_result(5, 2), images_needed=None)
    path = result.save(tmp_path)
    assert NetworkResult.load(path) == NetworkResult.load(tmp_path) == result
    first = path.read_bytes()
    result.save(tmp_path)
    assert path.read_bytes() == first and first.endswith(b"}\n")


def test_result_writes_null_for_what_is_not_finite(tmp_path):
    result = replace(make_result(1, 1), drop=float("nan"), bound=float("inf"))
    assert NetworkResult.load(result.save(tmp_path)) == replace(result, drop=None, bound=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2"),
        ({"version": "1"}, "no format version"),
        ({"threads": "2"}, "threads: Input should be a valid integer"),
        ({"extra": 1}, "extra: Unexpected keyword argument"),
        ({"layers": [{}]}, "layers.0.layer"),
    ],
)
def test_bad_result(tmp_path, change, message):
    path = make_result(1, 1).save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        NetworkResult.load(path)


def test_timings(tmp_path):
    timings = Timings()
    for key, seconds in (("conv2|pixel L=16", 0.1 + 0.2), ("conv1|dense", 3), ("a", 1e-7)):
        timings.put(key, seconds)
    timings.save(tmp_path / "timings.json")
    text = (tmp_path / "timings.json").read_text()
    assert list(json.loads(text)) == ["a", "conv1|dense", "conv2|pixel L=16"]
    loaded = Timings.load(tmp_path / "timings.json")
    assert loaded.get("conv2|pixel L=16") == 0.1 + 0.2 and loaded.get("none") is None and len(loaded) == 3
    with pytest.raises(ValueError, match="nan"):
        timings.put("x", float("nan"))


@pytest.mark.parametrize(
    "text", ["[1]", '{"a": "1"}', '{"a": -1}', '{"a": NaN}', '{"a": 1e999}', '{"a":1,"a":2}', "{", "[" * 9999]
)
def test_bad_timings(tmp_path, text):
    (tmp_path / "timings.json").write_text(text)
    with pytest.raises(DataError) as caught:
        Timings.load(tmp_path / "timings.json")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
