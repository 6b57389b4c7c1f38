"""Adaptive Deep Reuse for TVM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adr_tvm.compiler import compile_model as compile_model
    from adr_tvm.deploy.runtime import load as load
    from adr_tvm.options import CompileOptions as CompileOptions
    from adr_tvm.passes.adaptive_deep_reuse import AdaptiveDeepReuse as AdaptiveDeepReuse
    from adr_tvm.plan import ReusePlan as ReusePlan
    from adr_tvm.settings import ReuseSetting as ReuseSetting

__version__ = "0.1.0"

_LAZY = {
    "AdaptiveDeepReuse": "adr_tvm.passes.adaptive_deep_reuse",
    "CompileOptions": "adr_tvm.options",
    "ReusePlan": "adr_tvm.plan",
    "ReuseSetting": "adr_tvm.settings",
    "compile_model": "adr_tvm.compiler",
    "load": "adr_tvm.deploy.runtime",
}


def __getattr__(name: str) -> Any:
    """Names whose modules are imported on first use, so that ``import adr_tvm`` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
