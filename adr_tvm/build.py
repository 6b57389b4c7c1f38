"""From a checked model and a plan to an executable library."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import tvm
from tvm.target import Target

from adr_tvm._tvm import CUDA_CONFIG, is_cuda
from adr_tvm.frontend.importer import import_onnx
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.library import Library
from adr_tvm.passes import pipeline
from adr_tvm.passes.lower_precision import check_weights
from adr_tvm.passes.mark_candidates import CandidateRules
from adr_tvm.plan import ReusePlan
from adr_tvm.precision import Precision
from adr_tvm.targets import TargetEntry

# Shrinks buffers to what the loops around them touch. Kernels here allocate what they need; the pass changed none of
# SqueezeNet's, and took up to half of the time of code generation.
NEEDLESS = ["s_tir.CompactBufferAllocation"]


def canonical_module(
    checked: CheckedModel, target: Target, rules: CandidateRules | None = None, dump: Path | None = None
) -> tvm.IRModule:
    """Import a model and bring it into canonical form.

    Raises:
        ModelError: the model holds operators that cannot be converted.
    """
    return pipeline.run(pipeline.canonicalise(rules), import_onnx(checked), target, dump)


def build_module(
    mod: tvm.IRModule,
    target: Target,
    dump: Path | None = None,
    merge: bool = True,
    precision: Precision | None = None,
    hold: bool = False,
) -> Library:
    """Compile a canonical module (rewritten or not); every Relax function becomes an entry.

    Args:
        mod: what to compile.
        target: what to compile for.
        dump: folder that takes the module after each pass.
        merge: False: the virtual machine calls each kernel by itself, so that its instruments can time them.
        precision: data type to run in; None: fp32.
        hold: add the entries of ``passes/hold_memory.py``.

    Raises:
        ModelError: a weight is beyond the data type.
    """
    if precision is not None:
        check_weights(mod, precision)
    lowered = pipeline.run([*pipeline.lower(target, precision), *pipeline.finish(merge, hold)], mod, target, dump)
    return compile_lowered(lowered, target)


def compile_lowered(mod: tvm.IRModule, target: Target) -> Library:
    """Machine code for a module in the virtual machine's form."""
    # For CUDA, TVM's own schedules count on shrunken buffers.
    context = {"config": CUDA_CONFIG} if is_cuda(target) else {"disabled_pass": NEEDLESS}
    with target, tvm.transform.PassContext(**context):
        library = Library(tvm.compile(mod, target, relax_pipeline=tvm.transform.Sequential([])), mod)
    _trim_heap()
    return library


def _trim_heap() -> None:
    """Give back to the system what compiling took: glibc keeps hundreds of MB of LLVM's for allocations to come."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def build_plan(
    mod: tvm.IRModule, plan: ReusePlan, target: Target, dump: Path | None = None, precision: Precision | None = None
) -> Library:
    """Compile a canonical module under a plan, with the entries ``main``, ``dense`` and, if it reuses, ``main_counts``.

    For CUDA each has another beside it that a graph can be captured of (``passes/hold_memory.py``).

    Raises:
        ModelError: a weight is beyond the data type.
        ValueError: planes of the plan do not fit a layer.
    """
    rewritten = pipeline.run(pipeline.rewrite(plan), mod, target, dump)
    return build_module(rewritten, target, dump, precision=precision, hold=is_cuda(target))


def code_objects_of(entry: TargetEntry) -> AbstractContextManager[Any]:
    """The scope to compile for a target in: within it a CUDA target's kernels become code for its architectures.

    Raises:
        MissingDependencyError: on entry, there is no compiler for them, or no CUDA runtime library.
    """
    if entry.gpu is None:
        return nullcontext()
    from adr_tvm.cuda.build import code_objects

    return code_objects(entry.gpu.architectures, entry.gpu.ptx)
