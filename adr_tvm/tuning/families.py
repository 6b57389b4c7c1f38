"""The kinds of kernels that can be tuned."""

from __future__ import annotations

from adr_tvm.precision import PRECISIONS
from adr_tvm.schedules.cuda.tuned_tile import gemm_kind
from adr_tvm.tuning.cuda_gemm import TensorGemmTask, ThreadGemmTask
from adr_tvm.tuning.dense_conv import DenseConvTask
from adr_tvm.tuning.reuse_conv import ReuseConvTask
from adr_tvm.tuning.task import TuningTask
from adr_tvm.tuning.weight_gradient import WeightGradientTask

FAMILIES: dict[str, type[TuningTask]] = {
    "conv2d": DenseConvTask,
    "reuse": ReuseConvTask,
    "weight_gradient": WeightGradientTask,
    gemm_kind(None): ThreadGemmTask,
    **{gemm_kind(precision): TensorGemmTask for precision in PRECISIONS.values()},
}
