"""The plan on disk: round trip, reproducible bytes, and refusal of whatever does not fit.

``ADR_REGENERATE=1 pytest tests/test_plan.py`` writes the golden plan anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adr_tvm.errors import ModelError, UsageError
from adr_tvm.plan import LayerPlan, ReusePlan, installed_tvm_version, uniform_plan
from adr_tvm.planes_file import LayerPlanes
from adr_tvm.settings import ReuseSetting

GOLDEN = Path(__file__).parent / "golden" / "plan.json"
MODEL = hashlib.sha256(b"model").hexdigest()
NAME = "/features/3/Conv"


def make_planes(segments=2, length=16, bits=8):
    count = segments * length * bits
    planes = (np.arange(count, dtype=np.float32) / count - 0.5).reshape(segments, length, bits)
    thresholds = np.linspace(-1, 1, segments * bits, dtype=np.float32).reshape(segments, bits)
    thresholds[0, -1] = np.inf
    return LayerPlanes(planes, thresholds)


def make_plan() -> ReusePlan:
    layers = [
        LayerPlan("conv1", "dense", None, "no setting was 5 % faster"),
        LayerPlan(
            NAME,
            "reuse",
            ReuseSetting(gain=True, max_clusters=412, table="bfloat16"),
            "0.41 ms faster, NMSE 0.002 at the output",
        ),
        LayerPlan("größe/<fc>", "reuse", ReuseSetting("row", hash="exact"), "lossless, and faster on the probe"),
        LayerPlan("row", "reuse", ReuseSetting("row", H=4, hash="gaussian", scope="batch"), "forced"),
    ]
    return ReusePlan(
        model_sha256=MODEL,
        target="llvm -mcpu=icelake-server",
        seed=7,
        metric="agreement",
        budget=0.01,
        layers={layer.layer: layer for layer in layers},
        planes={NAME: make_planes(), "row": make_planes(1, 40, 4)},
        threads=2,
        tvm_version="0.27.0",
        adr_version="0.1.0",
    )


def rewrite(folder: Path, change) -> None:
    content = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "plan.json").write_text(json.dumps(content), encoding="utf-8")


def rewrite_planes(folder: Path, members: dict[str, np.ndarray], write=np.savez, **options) -> None:
    """Put other planes, with the right SHA-256, in place."""
    buffer = io.BytesIO()
    write(buffer, **members, **options)
    (folder / "planes.npz").write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    rewrite(folder, lambda content: content.update(planes_sha256=digest))


def members() -> dict[str, np.ndarray]:
    plan = make_plan()
    return {
        f"{position}.{kind}": getattr(plan.planes[name], kind)
        for position, name in ((1, NAME), (3, "row"))
        for kind in ("planes", "thresholds")
    }


def test_round_trip(tmp_path):
    plan = make_plan()
    path = plan.save(tmp_path / "new" / "plan")
    for loaded in (ReusePlan.load(path), ReusePlan.load(str(path.parent))):
        assert loaded == plan
        assert list(loaded.layers) == list(plan.layers)
        assert list(loaded.planes) == [NAME, "row"]
        for name, planes in plan.planes.items():
            assert np.array_equal(loaded.planes[name].planes, planes.planes)
            assert np.array_equal(loaded.planes[name].thresholds, planes.thresholds)


def test_same_bytes(tmp_path):
    make_plan().save(tmp_path / "a")
    ReusePlan.load(tmp_path / "a").save(tmp_path / "b")
    for name in ("plan.json", "planes.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with zipfile.ZipFile(tmp_path / "a" / "planes.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_golden(tmp_path):
    text = make_plan().save(tmp_path).read_bytes()
    if os.environ.get("ADR_REGENERATE") == "1":
        GOLDEN.write_bytes(text)
    assert text == GOLDEN.read_bytes()
    assert text.endswith(b"}\n")


def test_a_plan_from_before_threads_were_told(tmp_path):
    make_plan().save(tmp_path)
    rewrite(tmp_path, lambda plan: plan.pop("threads"))
    assert ReusePlan.load(tmp_path).threads == 0


def test_a_plan_from_before_product_tables_had_types(tmp_path):
    make_plan().save(tmp_path)
    rewrite(tmp_path, lambda plan: plan["layers"][1]["setting"].pop("table"))
    assert ReusePlan.load(tmp_path).reused[NAME].table == "float32"


def test_all_dense_and_exact_plans_need_no_planes(tmp_path):
    plan = replace(make_plan(), planes={}, layers={"a": LayerPlan("a", "dense", None, "smaller than the hash")})
    assert ReusePlan.load(plan.save(tmp_path)) == plan
    exact = uniform_plan(
        ["a", "b"],
        ReuseSetting("row", hash="exact"),
        reason="lossless",
        model_sha256=MODEL,
        target="llvm",
        seed=0,
        metric="nmse",
    )
    assert ReusePlan.load(exact.save(tmp_path)) == exact


def test_uniform_plan(tmp_path):
    setting = ReuseSetting(L=16, H=8)
    plan = uniform_plan(
        ["b", "a"],
        setting,
        reason="forced by --L 16 --H 8",
        model_sha256=MODEL,
        target="llvm",
        seed=1,
        metric="agreement",
    )
    assert plan.reused == {"b": setting, "a": setting} and list(plan.layers) == ["b", "a"]
    assert plan.tvm_version == installed_tvm_version() and plan.budget is None
    with pytest.raises(ModelError, match="layer 'b' has no hash planes"):
        plan.save(tmp_path)
    plan.with_planes({"a": make_planes(), "b": make_planes()}).save(tmp_path)
    assert ReusePlan.load(tmp_path) == plan


def test_check_model():
    plan = make_plan()
    assert plan.check_model(MODEL, tvm_version="0.27.0") == []
    (note,) = plan.check_model(MODEL, tvm_version="0.28.0")
    assert "0.27.0" in note and "0.28.0" in note
    with pytest.raises(ModelError, match=f"{MODEL[:12]}.*000000000000") as caught:
        plan.check_model("0" * 64)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "dense", None, " "), "no reason"),
        (("", "dense", None, "x"), "no name"),
        (("a", "reuse", None, "x"), "setting"),
        (("a", "dense", ReuseSetting(), "x"), "setting"),
    ],
)
def test_layer_plan_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerPlan(*arguments)


def test_plan_refuses_a_layer_under_another_name():
    with pytest.raises(ValueError, match="filed under 'b'"):
        replace(make_plan(), layers={"b": LayerPlan("a", "dense", None, "x")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.update(version=2), "format version 2.*reads up to 1"),
        (lambda plan: plan.update(version=True), "no format version"),
        (lambda plan: plan.pop("version"), "no format version"),
        (lambda plan: plan.update(seed="7"), "seed"),
        (lambda plan: plan.update(color="red"), "color"),
        (lambda plan: plan.pop("target"), "target"),
        (lambda plan: plan.update(model_sha256="AB" * 32), "not a SHA-256"),
        (lambda plan: plan["layers"].append(plan["layers"][0]), "two entries for one layer"),
        (lambda plan: plan["layers"][0].update(reason=""), "layers.0.*no reason"),
        (lambda plan: plan["layers"][0].update(decision="maybe"), "layers.0.decision"),
        (lambda plan: plan["layers"][1].update(setting=None), "layers.1.*setting"),
        (lambda plan: plan["layers"][1]["setting"].update(H=8.5), "layers.1.setting.H"),
        (lambda plan: plan["layers"][1]["setting"].update(H=99), "layers.1.setting.*H is 99"),
        (lambda plan: plan["layers"][1]["setting"].update(bits=8), "layers.1.setting.bits"),
        (lambda plan: plan["layers"][1]["setting"].update(table="int4"), "layers.1.setting.table"),
        (lambda plan: plan["layers"][2]["setting"].update(table="int8"), "layers.2.setting.*table=int8 is for pixel"),
        (lambda plan: plan["layers"][1]["setting"].update(L=8), "does not fit L=8"),
        (lambda plan: plan["layers"][1]["setting"].update(H=9), "does not fit L=16, H=9"),
        (lambda plan: plan["layers"].insert(0, plan["layers"].pop()), "has no 0.planes for layer 'row'"),
        (lambda plan: plan.update(planes_sha256="0" * 64), "does not belong to this plan"),
    ],
)
def test_bad_plan_json(tmp_path, change, message):
    make_plan().save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ModelError, match=message) as caught:
        ReusePlan.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1, "version": 1}',
        '{"version": NaN}',
        "[" * 99999,
        '{"version": 1}',
    ],
)
def test_not_a_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        ReusePlan.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(ModelError, match="cannot read"):
        ReusePlan.load(tmp_path)
    make_plan().save(tmp_path)
    (tmp_path / "planes.npz").unlink()
    with pytest.raises(ModelError, match=r"cannot read .*planes.npz"):
        ReusePlan.load(tmp_path)


def test_planes_of_another_plan(tmp_path):
    make_plan().save(tmp_path)
    data = bytearray((tmp_path / "planes.npz").read_bytes())
    data[200] ^= 1
    (tmp_path / "planes.npz").write_bytes(data)
    with pytest.raises(ModelError, match="does not belong to this plan"):
        ReusePlan.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("3.thresholds"), "has no 3.thresholds"),
        (lambda found: found.update({"1.planes": found["1.planes"].astype(np.float64)}), "float64"),
        (lambda found: found.update({"1.planes": found["1.planes"][0]}), r"expected \[S, L, H\]"),
        (lambda found: found.update({"1.planes": found["1.planes"][:0]}), r"expected \[S, L, H\]"),
        (lambda found: found.update({"1.thresholds": found["1.thresholds"][:1]}), r"expected \[S, L, H\]"),
        (lambda found: found.update({"1.planes": found["1.planes"] * np.float32("nan")}), "NaN"),
        (lambda found: found.update({"1.planes": found["1.planes"] + np.float32("inf")}), "Inf"),
        (lambda found: found.update({"1.thresholds": found["1.thresholds"] * np.float32("nan")}), "NaN"),
        (lambda found: found.update({"1.thresholds": -np.abs(found["1.thresholds"])}), "Inf"),
        (lambda found: found.update({"1.planes": np.array([{}], dtype=object)}), "damaged.*pickle"),
    ],
)
def test_bad_planes(tmp_path, change, message):
    make_plan().save(tmp_path)
    found = members()
    change(found)
    rewrite_planes(tmp_path, found)
    with pytest.raises(ModelError, match=message):
        ReusePlan.load(tmp_path)


def test_compressed_planes_are_refused(tmp_path):
    make_plan().save(tmp_path)
    rewrite_planes(tmp_path, members(), np.savez_compressed)
    with pytest.raises(ModelError, match="compressed"):
        ReusePlan.load(tmp_path)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        make_plan().save(tmp_path / "file")
