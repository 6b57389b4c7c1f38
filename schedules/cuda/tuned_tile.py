"""Which tile a GEMM on a GPU gets: a tuned one where the source in force knows one, else that of the estimate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm.target import Target

from adr_tvm.geometry import ConvGeometry
from adr_tvm.precision import Precision
from adr_tvm.schedules.cuda.tensor_tile import TensorTile, tensor_tile
from adr_tvm.schedules.cuda.thread_tile import TYPICAL_BATCH, ThreadTile, gemm_tile
from adr_tvm.schedules.cuda.unit_gather import whole_units
from adr_tvm.schedules.tuned import KernelShape, find_tuned
from adr_tvm.settings import ReuseSetting


def gemm_kind(precision: Precision | None) -> str:
    """The kind of the GEMM kernels, dense and of the rows in a list, in a data type; None: fp32."""
    return "cuda_gemm" if precision is None else f"cuda_gemm_{precision.name}"


def gemm_shape(
    geometry: ConvGeometry, batch: int | None, precision: Precision | None = None, setting: ReuseSetting | None = None
) -> KernelShape:
    """What a tile is looked up by.

    Args:
        batch: images in a call; None where it is known only then.
        precision: data type; None: fp32.
        setting: of the layer whose rows are multiplied; None: all rows are. The guard makes no difference.
    """
    rows = None if setting is None else replace(setting, max_clusters=None)
    return KernelShape(gemm_kind(precision), geometry, batch, rows)


def thread_gemm_tile(geometry: ConvGeometry, batch: int | None, setting: ReuseSetting | None = None) -> ThreadTile:
    """The tile of ``implicit_gemm``; arguments as of ``gemm_shape``."""
    tuned = _tuned(gemm_shape(geometry, batch, None, setting))
    return gemm_tile(geometry.rows * (batch or TYPICAL_BATCH), geometry.M) if tuned is None else tuned


def tensor_gemm_tile(
    geometry: ConvGeometry, batch: int | None, precision: Precision, setting: ReuseSetting | None = None
) -> TensorTile:
    """The tile of ``tensor_gemm``; arguments as of ``gemm_shape``."""
    tuned = _tuned(gemm_shape(geometry, batch, precision, setting))
    if tuned is not None:
        return tuned
    return tensor_tile(geometry.rows * (batch or TYPICAL_BATCH), geometry.M, whole_units(geometry, precision.storage))


def _tuned(kernel: KernelShape) -> Any | None:
    target = Target.current(allow_none=True)  # which passes run under
    return None if target is None else find_tuned(target, kernel)
