"""The whole compiler as one readable list of passes.

ONNX -> import_onnx -> canonicalise -> (calibrate, plan) -> rewrite -> lower -> finish -> library
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.target import Target

from adr_tvm._tvm import is_cuda
from adr_tvm.passes.adaptive_deep_reuse import AdaptiveDeepReuse
from adr_tvm.passes.append_loss import AppendLoss
from adr_tvm.passes.append_updates import AppendUpdates, Tracking, Update
from adr_tvm.passes.branch_on_repetition import BranchOnRepetition
from adr_tvm.passes.channels_last import ChannelsLast
from adr_tvm.passes.conv_transpose_to_conv import ConvTransposeToConv
from adr_tvm.passes.dense_entry import DenseEntry
from adr_tvm.passes.differentiate import Differentiate
from adr_tvm.passes.dump_ir import DumpIR
from adr_tvm.passes.expose_counts import ExposeCounts
from adr_tvm.passes.fold_batch_norm import FoldBatchNorm
from adr_tvm.passes.fold_flatten import FoldFlatten
from adr_tvm.passes.fold_scales import FoldScales
from adr_tvm.passes.fold_shapes import FoldShapes
from adr_tvm.passes.fuse_epilogue import FuseEpilogue
from adr_tvm.passes.fuse_epilogue_gradient import FuseEpilogueGradient
from adr_tvm.passes.fuse_lrn import FuseLrn
from adr_tvm.passes.fuse_residual import FuseResidual
from adr_tvm.passes.hold_memory import HoldMemory
from adr_tvm.passes.inference_form import InferenceForm
from adr_tvm.passes.lower_operators import LowerOperators
from adr_tvm.passes.lower_precision import LowerPrecision
from adr_tvm.passes.lower_tensor_ops import LowerTensorOps
from adr_tvm.passes.lowering_cuda_gradients import LowerCudaGradients
from adr_tvm.passes.mark_candidates import CandidateRules, MarkCandidates
from adr_tvm.passes.mark_no_alias import MarkNoAlias
from adr_tvm.passes.merge_calls import MergeCalls
from adr_tvm.passes.observe_candidates import ObserveCandidates
from adr_tvm.passes.plain_names import PlainNames
from adr_tvm.passes.probe_outputs import ProbeOutputs
from adr_tvm.passes.reshape_views import KEPT, ReshapeViews
from adr_tvm.passes.reuse_in_training import ReuseInTraining
from adr_tvm.passes.schedule_gpu import ScheduleGpu
from adr_tvm.passes.schedule_loops import ScheduleLoops
from adr_tvm.passes.seed_dropout import SeedDropout
from adr_tvm.passes.simplify_power import SimplifyPower
from adr_tvm.passes.skip_zeros import SkipZeros
from adr_tvm.passes.training_operators import TrainingOperators
from adr_tvm.plan import ReusePlan
from adr_tvm.precision import Precision
from adr_tvm.train.stage import Stage

Passes = list[Any]  # of tvm.transform.Pass


def canonicalise(rules: CandidateRules | None = None) -> Passes:
    """Bring an imported network into the form that candidates are found in."""
    return [
        # Batch norms vanish into the convolutions before them.
        FoldBatchNorm(),
        relax.transform.DecomposeOpsForInference(),
        # So do the scales and shifts that exporters write in place of them.
        FoldScales(),
        # powf has no vector form; LRN's exponent needs only square roots.
        SimplifyPower(),
        # NHWC everywhere; transposes only at the edges.
        ChannelsLast(),
        ConvTransposeToConv(),
        # Convolutions and matrix products with their bias and activation become operators of ours.
        FuseEpilogue(),
        # A flattened tensor needs no transpose before a dense layer: its weights are reordered.
        FoldFlatten(),
        # Which of them may be rewritten, and why the others may not.
        MarkCandidates(rules),
    ]


def canonicalise_for_training() -> Passes:
    """Bring an imported network into the form that is trained: as above, without what only inference allows."""
    return [
        SimplifyPower(),
        ChannelsLast(),
        # Chains and operators without a gradient become operators of ours that have one.
        FuseLrn(),
        TrainingOperators(),
        FuseEpilogue(),
        FoldFlatten(),
    ]


def train(
    stage: Stage,
    label_smoothing: float,
    parameters: list[str],
    updates: list[Update],
    skip_zeros: bool = False,
    tracked: Sequence[Tracking] = (),
    precision: Precision | None = None,
    scaled: bool = False,
) -> Passes:
    """From a network with its weights as parameters to a training step.

    Args:
        stage: the layers that reuse.
        label_smoothing: of the loss.
        parameters: names of the variables to differentiate by.
        updates: of these, in order.
        skip_zeros: gradients skip what is zero in dZ; for a CPU.
        tracked: updates of the running statistics of its batch norms, in order.
        precision: data type that forward and backward will run in (``LowerPrecision``, ``EmulatePrecision``); None:
            fp32.
        scaled: whether the loss is scaled.
    """
    return [
        ReuseInTraining(stage),
        SeedDropout(),
        AppendLoss(label_smoothing, scaled),
        Differentiate(parameters),
        # A kernel of both would have no place to round what is between them.
        *([FuseEpilogueGradient()] if precision is None else []),
        *([SkipZeros()] if skip_zeros else []),
        AppendUpdates(updates, tracked, scaled),
    ]


def output_gradients(probes: list[str]) -> Passes:
    """From a network with its weights as parameters to gradients by its layers' outputs; their names as parameters."""
    return [ProbeOutputs(), SeedDropout(), AppendLoss(), Differentiate(probes)]


def evaluate(stage: Stage | None = None) -> Passes:
    """From a network with its weights as parameters to its inference form.

    Args:
        stage: the layers that reuse; None: all dense.
    """
    return [ReuseInTraining(stage or {}, training=False), InferenceForm()]


def observe(layers: list[str]) -> Passes:
    """Instrument the network for calibration."""
    return [ObserveCandidates(layers)]


def rewrite(plan: ReusePlan) -> Passes:
    """Apply a plan: ``main`` reuses, ``dense`` does not, ``main_counts`` tells what was counted."""
    return [
        DenseEntry(),
        AdaptiveDeepReuse(plan, function="main"),
        ExposeCounts(),
    ]


def lower(target: Target, precision: Precision | None = None) -> Passes:
    """From operators to scheduled TIR.

    Args:
        target: what the kernels are for.
        precision: data type to run in; None: fp32. For a CPU there is fp16 beside it.
    """
    if is_cuda(target):
        return _lower_for_cuda(target, precision)
    if precision is not None and precision.name != "fp16":
        raise ValueError(f"{precision.name} has no kernels for {target.kind.name}")
    return _lower_for_cpu(target, precision)


def _lower_for_cpu(target: Target, precision: Precision | None) -> Passes:
    return [
        # Lossless layers need data that repeat: without, the rest of the network runs as if there were none. In fp16
        # such a layer computes in fp32, and its neighbours see no ids.
        *([BranchOnRepetition()] if precision is None else []),
        FuseResidual(),
        FuseLrn(),
        # Activations and weights in 16 bits.
        *([] if precision is None else [LowerPrecision(precision)]),
        # cluster -> GEMM -> scatter, and the dense kernels.
        LowerOperators(target),
        # Pooling, normalisation and what else has a kernel of its own.
        LowerTensorOps(target),
        # Everything else: TVM's legalisation and fusion, then our loop schedule.
        *_legalise(),
        ScheduleLoops(),
    ]


def _lower_for_cuda(target: Target, precision: Precision | None) -> Passes:
    return [
        PlainNames(),
        FuseResidual(),
        # Activations and weights in 16 bits, or weights rounded for tensor cores.
        *([] if precision is None else [LowerPrecision(precision)]),
        LowerOperators(target),
        LowerCudaGradients(),
        # Everything else: TVM's legalisation and fusion, then its schedules for GPUs.
        *_legalise(),
        ScheduleGpu(),
    ]


def _legalise() -> Passes:
    """What is left of operators becomes TIR."""
    return [
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        ReshapeViews(),
        relax.transform.LegalizeOps(skip_ops=KEPT),
        relax.transform.AnnotateTIROpPattern(),
        FoldShapes(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]


def finish(merge: bool = True, hold: bool = False) -> Passes:
    """Memory planning and the virtual machine's form.

    Args:
        merge: False: the virtual machine calls each kernel by itself, so that its instruments can time them.
        hold: add entries that also return the memory they work in.
    """
    return [
        *([MergeCalls()] if merge else []),
        *([HoldMemory()] if hold else []),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
        MarkNoAlias(),
    ]


def run(passes: Passes, mod: tvm.IRModule, target: Target, dump: Path | None = None) -> tvm.IRModule:
    """Apply passes in order.

    Args:
        passes: lists from this module, joined.
        mod: module to transform.
        target: what the kernels are for.
        dump: folder that takes the module after each pass, numbered on from the files it holds.
    """
    if dump is not None:
        start = len(list(Path(dump).glob("[0-9][0-9]-*.py")))
        passes = [q for i, p in enumerate(passes) for q in (p, DumpIR(dump, start + i, str(p.info.name)))]
    with target:
        return tvm.transform.Sequential(passes)(mod)
