"""What schedules know of a processor beyond its instruction set, by LLVM's name for it."""

from __future__ import annotations

from tvm.target import Target

# Intel's server cores on a mesh: a core reads about 13 GB/s from L3 (Emerald Rapids, measured), a tenth of what one
# Zen 5 core reads, and weights are beyond L2 whenever a network comes to their layer.
SLOW_L3 = frozenset(
    {
        "skylake-avx512",
        "cascadelake",
        "cooperlake",
        "icelake-server",
        "sapphirerapids",
        "emeraldrapids",
        "graniterapids",
        "graniterapids-d",
    }
)


def fetches_ahead(target: Target) -> bool:
    """Whether kernels fetch weights and pixels to L2 some time before they read them."""
    return str(target.attrs.get("mcpu", "")) in SLOW_L3
