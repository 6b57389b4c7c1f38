"""The whole list of passes on networks with a symbolic batch."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import tvm
from onnx_graphs import classifier, image_to_image, save
from relax_modules import TARGET, close, floats
from tvm import relax

from adr_tvm.build import build_plan, canonical_module
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.passes import pipeline
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planes_file import LayerPlanes
from adr_tvm.settings import ReuseSetting

PIXEL, ROW = ReuseSetting("pixel", L=3, H=5, hash="gaussian"), ReuseSetting("row", hash="exact")
MODELS = {
    "classifier": (classifier, (3, 12, 12), {"conv1": PIXEL}),
    "image_to_image": (
        image_to_image,
        (3, 8, 8),
        {"conv1": ROW, "up": ReuseSetting(H=4)},
    ),
}


def planned(mod, settings) -> ReusePlan:
    layers, planes = {}, {}
    for found in find_candidates(mod["main"], "main", CandidateRules()):
        setting, g = settings.get(found.layer), found.geometry
        layers[found.layer] = LayerPlan(found.layer, "reuse" if setting else "dense", setting, "for a test")
        if setting is not None and setting.hash != "exact":
            normal = floats(g.segments(setting), g.vector_length(setting), setting.H)
            planes[found.layer] = LayerPlanes(normal, 0 * normal.sum(axis=1))
    assert settings.keys() <= layers.keys()
    return ReusePlan("0" * 64, "cpu", 0, "none", None, layers, planes)


@pytest.mark.parametrize("name", MODELS)
def test_pipeline(name, tmp_path):
    """Dense equals ONNX Runtime at batches of 1 and 3; with reuse an image's result does not depend on the others."""
    make, shape, settings = MODELS[name]
    model = make()
    dumps = tmp_path / "dump"
    mod = canonical_module(check_model(save(model, tmp_path)), TARGET, dump=dumps)
    executable = build_plan(mod, planned(mod, settings), TARGET, dumps)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = floats(3, *shape)
    reused = machine["main"](tvm.runtime.tensor(x)).numpy()
    for images in (x, x[1:2]):
        close(machine["dense"](tvm.runtime.tensor(images)).numpy(), session.run(None, {"x": images})[0])
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x[1:2])).numpy(), reused[1:2])
    _, counts = machine["main_counts"](tvm.runtime.tensor(x))
    assert [c.numpy().shape for c in counts] == [(3, 2)] * len(settings)

    names = [path.stem for path in sorted(dumps.iterdir())]
    assert [int(each.split("-")[0]) for each in names] == list(range(len(names))), "numbered through"
    passes = [each.split("-", 1)[1] for each in names]
    for before, after in (("FoldBatchNorm", "ChannelsLast"), ("FuseEpilogue", "AdaptiveDeepReuse")):
        assert passes.index(before) < passes.index(after)
    after = (dumps / f"{names[passes.index('AdaptiveDeepReuse')]}.py").read_text(encoding="utf-8")
    assert "adr.reuse_conv2d" in after


def test_every_kernel_promises_no_alias(tmp_path):
    """One function without the promise takes it from all others in its library."""
    mod = canonical_module(check_model(save(classifier(), tmp_path)), TARGET)
    mod = pipeline.run([*pipeline.lower(TARGET), *pipeline.finish()], mod, TARGET)
    kernels = {gv.name_hint: f for gv, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
    assert any(name.startswith("shape_func") for name in kernels)
    assert all(bool(f.attrs["tirx.noalias"]) for f in kernels.values())
