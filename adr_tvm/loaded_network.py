"""A model, imported and canonicalised, and the checks of what the user gives beside it."""

from __future__ import annotations

import re
from typing import Any

import tvm

from adr_tvm import ops
from adr_tvm._tvm import cpu_target
from adr_tvm.build import canonical_module
from adr_tvm.data.calibration import CalibrationSet, open_calibration
from adr_tvm.deploy.threads import set_threads
from adr_tvm.dump_folder import prepare_dump_folder
from adr_tvm.errors import ModelError, UsageError
from adr_tvm.frontend.onnx_model import CheckedModel, check_model
from adr_tvm.layers import Layer, list_layers
from adr_tvm.options import CompileOptions
from adr_tvm.passes.lower_precision import check_weights
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.plan import ReusePlan
from adr_tvm.progress import get_log

DEFAULT_BATCH = 32


class LoadedNetwork:
    """A model on its way through the compiler.

    Args:
        model_path: the ONNX file.
        options: of the run.

    Attributes:
        options: of the run.
        checked: the validated model.
        target: TVM's target.
        host: where the network runs while it is planned: this machine if ``target`` is foreign, else ``target``.
        rules: layers that the user allows.
        mod: the canonical module.
        layers: its convolutions and matrix products, in network order.
        dump: folder for the module after each pass, or None.

    Raises:
        ModelError: the model is bad or not supported, or a weight is beyond the data type.
        UsageError: the folder for dumps cannot be written.
    """

    def __init__(self, model_path: Any, options: CompileOptions) -> None:
        self.options = options
        self.rules = CandidateRules(tuple(options.skip), tuple(options.only))
        self.checked: CheckedModel = check_model(model_path, options.input_shapes)
        self.dump = None if options.dump_ir is None else prepare_dump_folder(options.dump_ir)
        self.target: tvm.target.Target = options.entry.make(options.threads)
        self.host = cpu_target(threads=set_threads()) if options.entry.foreign else self.target
        self.mod: tvm.IRModule = canonical_module(self.checked, self.target, self.rules, self.dump)
        if options.precision is not None:
            check_weights(self.mod, options.precision)
        self.layers: list[Layer] = list_layers(self.mod, self.rules)
        for flag, patterns in (("--skip", options.skip), ("--only", options.only)):
            for pattern in patterns:
                if not any(re.search(pattern, layer.layer) for layer in self.layers):
                    get_log().warning("%s %s matches no layer; --dry-run lists their names", flag, pattern)

    def open_calibration(self, source: Any | None) -> CalibrationSet | None:
        """The calibration data, checked against the model's inputs; None without any.

        Raises:
            DataError: they do not fit.
            UsageError: the batch size is not the model's.
        """
        if source is None:
            return None
        fixed = next((s.shape[0] for s in self.checked.inputs if s.shape and isinstance(s.shape[0], int)), None)
        size = self.options.batch_size or fixed or DEFAULT_BATCH
        if fixed is not None and size != fixed:
            raise UsageError(f"--batch-size is {size}, but the model is fixed to batches of {fixed}")
        samples = open_calibration(
            source, self.checked.inputs, self.options.labels_name, size, whole_batches=fixed is not None
        )
        get_log().info("%d calibration samples, in batches of %d", len(samples), samples.batch_size)
        return samples

    def given_plan(self) -> ReusePlan | None:
        """The plan of ``options.plan``; None without one.

        Raises:
            ModelError: it is damaged, for another model, or does not fit its layers.
        """
        given = self.options.plan
        if given is None:
            return None
        plan = given if isinstance(given, ReusePlan) else ReusePlan.load(given)
        for note in plan.check_model(self.checked.sha256):
            get_log().warning("%s", note)
        if plan.dtype != self.options.dtype:
            get_log().warning("the plan was made for --dtype %s, this is %s", plan.dtype, self.options.dtype)
        self._check_layers(plan, "the plan" if isinstance(given, ReusePlan) else str(given))
        return plan

    def _check_layers(self, plan: ReusePlan, where: str) -> None:
        found = {c.layer: c for c in find_candidates(self.mod["main"], "main", self.rules)}
        unknown = [repr(name) for name in plan.layers if name not in found]
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise ModelError(
                f"{where} names layers that the model does not have: {', '.join(unknown[:3])}{more}; "
                "--dry-run lists them"
            )
        for name, setting in plan.reused.items():
            candidate, planes = found[name], plan.planes.get(name)
            if self.options.entry.gpu is not None and setting.table.startswith("int"):
                raise ModelError(
                    f"{where}: layer {name!r} keeps products as {setting.table}, which has no CUDA kernels yet"
                )
            on_tensor_cores = self.options.entry.gpu is not None and self.options.precision is not None
            if on_tensor_cores and setting.granularity != "row":
                raise ModelError(
                    f"{where}: layer {name!r} reuses by {setting.granularity}, for which there are CUDA kernels in "
                    "fp32 only: leave out --dtype"
                )
            if candidate.reason:
                raise ModelError(f"{where}: layer {name!r} cannot reuse: {candidate.reason}")
            tensors = (None, None) if planes is None else (planes.planes, planes.thresholds)
            try:
                ops.with_reuse(candidate.call, setting, *tensors)
            except ValueError as error:
                raise ModelError(f"{where}: {error}") from error
