"""The GPU at hand: which code it gets, and its clock, with an emulated one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from cuda_emulator import emulated_cuda
from planner_networks import TARGET, classifier, images, network

from adr_tvm.cuda import present
from adr_tvm.cuda.present import PresentGpu
from adr_tvm.options import CompileOptions
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planner import cuda_clock
from adr_tvm.planner.cuda_clock import CudaClock
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.report.results import Timings
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import ARCHITECTURES, NEWEST, TARGETS


@pytest.mark.parametrize(
    ("architecture", "expected", "ptx"),
    [("sm_86", ("sm_86",), None), ("sm_70", ARCHITECTURES, NEWEST), ("sm_120", ARCHITECTURES, NEWEST)],
)
def test_cuda_is_the_gpu_at_hand(architecture, expected, ptx, monkeypatch):
    """One that is too old or too new for our machine code changes nothing."""
    monkeypatch.setattr(present, "present_gpu", lambda: PresentGpu("a GPU", architecture))
    gpu = CompileOptions(target="cuda").entry.gpu
    assert (gpu.architectures, gpu.ptx) == (expected, ptx)
    assert present.runs_here(TARGETS["cuda"]) == (ptx is None)
    assert not present.runs_here(TARGETS["cpu"])
    assert CompileOptions(target="cuda", arch="sm_80").entry.gpu.architectures == ("sm_80",)
    assert CompileOptions(target="h100").entry.gpu.architectures == ("sm_90",)


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr("adr_tvm.cuda.tvm_runtime.DRIVER", "libcuda.so.none")
    present.present_gpu.cache_clear()
    assert present.present_gpu() is None and not present.runs_here(TARGETS["cuda"])
    assert CompileOptions(target="cuda").entry.gpu.architectures[0] == "sm_75"
    present.present_gpu.cache_clear()  # what other tests see is what there is


def test_times_of_layers_and_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_clock, "code_objects_of", lambda entry: nullcontext())
    for name in ("REPEATS", "MOST_REPEATS", "LEAST_ROUNDS", "MOST_ROUNDS"):
        monkeypatch.setattr(cuda_clock, name, 2)
    net = network(classifier(), tmp_path)
    found = {c.layer: c for c in find_candidates(net.mod["main"], "main", CandidateRules()) if not c.reason}
    batch = {net.checked.inputs[0].name: images(1)}
    exact = ReuseSetting("segment", L=4, hash="exact")
    dense, reuse = (LayerKernel(found["conv1"].call, TARGET, setting) for setting in (None, exact))
    planning = PlanningNetwork(net.mod, list(found.values()), TARGET, [s.name for s in net.checked.inputs])
    timings, entry = Timings(), TARGETS["t4"]
    plan = ReusePlan("", "", 0, "none", 0.0, {"conv1": LayerPlan("conv1", "reuse", exact, "chosen")})
    with emulated_cuda():
        clock = CudaClock("an emulated GPU", entry, entry.make(None), net.mod, timings)
        alone = clock.kernels(planning, "conv1", {"dense": dense, "reuse": reuse}, batch)
        assert list(alone) == ["dense", "reuse"] and all(0 < t < 60 for t in alone.values())
        ((in_place, reused),) = clock.layers(planning, {"conv1": reuse}, batch).values()
        assert reused > in_place > 0, "ten kernels one after the other, on a processor"
        whole = clock.network(None, net.checked, batch, plan, 0)
        assert whole.main > whole.dense > 0
        known = len(timings)
        assert clock.network(None, net.checked, batch, plan, 0) == whole and len(timings) == known
    assert not clock.predicted and "measured on an emulated GPU with CUDA events" in clock.note(2)
