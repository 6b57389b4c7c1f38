"""Plans for a case, one for each budget, and ONNX Runtime's 8-bit model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adr_tvm.compiler import CompileOptions, CompileResult, compile_model
from adr_tvm.errors import ModelError
from adr_tvm.progress import get_log
from adr_tvm.report.formats import metric_value
from benchmarks.networks import input_name
from benchmarks.plan_cases import PlanCase
from benchmarks.plan_rows import Plan


def compile_plans(case: PlanCase, folder: Path, time_budget: float | None) -> list[Plan]:
    """A plan for each budget, the loosest first: a tighter budget that its bound keeps too has the same plan.

    Plans are nested, the furthest within the budget is taken. A search takes the times that those before it measured.
    """
    found: list[tuple[CompileResult, Path, list[float]]] = []
    for budget in sorted(case.budgets, reverse=case.metric != "psnr"):
        if found and _keeps(found[-1][0], budget):
            found[-1][2].append(budget)
            continue
        out = folder / f"{case.name}-{budget:g}"
        timings = found[-1][1] / "timings.json" if found else None
        found.append((_compile(case, budget, out, time_budget, timings), out, [budget]))
    plans = [
        Plan(_plan_name(case, budgets[::-1]), out, budgets[::-1], len(compiled.plan.reused))
        for compiled, out, budgets in found[::-1]
    ]
    for index, (name, plan) in enumerate(case.given.items()):
        out = folder / f"{case.name}-given-{index}"
        compile_model(case.path, out, CompileOptions(input_shapes=_shape(case), plan=plan))
        plans.append(Plan(name, out, [], len(plan.reused)))
    return plans


def _keeps(compiled: CompileResult, budget: float) -> bool:
    """Whether what was compiled is shown to keep a budget."""
    bound = compiled.result.bound
    if not compiled.plan.reused:
        return True
    return bound is not None and (bound >= budget if compiled.result.metric == "psnr" else bound <= budget)


def _compile(
    case: PlanCase, budget: float, out: Path, time_budget: float | None, timings: Path | None
) -> CompileResult:
    options: dict[str, Any] = {"input_shapes": _shape(case), **case.options}
    calibration = None
    if case.planning is not None:
        x, labels = case.planning
        options |= {"min_psnr": budget} if case.metric == "psnr" else {"max_drop": budget}
        options |= {"metric": case.metric, "time_budget": time_budget, "timings": timings}
        options |= {} if labels is None else {"labels_name": "labels"}
        calibration = {input_name(case.path): x} | ({} if labels is None else {"labels": labels})
    return compile_model(case.path, out, CompileOptions(**options), calibration)


def _shape(case: PlanCase) -> dict[str, tuple[int, ...]]:
    return {input_name(case.path): (case.batch, *case.unseen[0].shape[1:])}


def _plan_name(case: PlanCase, budgets: list[float]) -> str:
    if case.planning is None:
        return "plan, lossless"
    sign = ">=" if case.metric == "psnr" else "<="
    what = case.metric if case.metric in ("psnr", "nmse") else f"{case.metric} drop"
    return f"plan, {what} {sign} {', '.join(metric_value(case.metric, budget) for budget in budgets)}"


def quantised(case: PlanCase, model: Path, folder: Path) -> Path | None:
    """ONNX Runtime's 8-bit model from the planning inputs (lossless: from the input itself); None if it cannot."""
    from adr_tvm.bench.onnxruntime_engine import quantise

    x, name = (case.unseen if case.planning is None else case.planning)[0], input_name(model)
    try:
        return quantise(model, folder, ({name: part} for part in case.batches(x)))
    except ModelError as error:
        get_log().warning("%s", error)
        return None
