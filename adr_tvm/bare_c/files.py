"""Names of the files that a network in bare C consists of."""

from __future__ import annotations

from importlib import resources

C_MANIFEST = "model.json"
WEIGHTS_FILE = "weights.bin"
EXAMPLE = ("board.h", "host.c", "mps2.c", "mps2.ld", "Makefile")


def c_files() -> set[str]:
    """All files that such a folder may hold, beside those of every bundle."""
    kernels = {path.name for path in resources.files("adr_tvm.bare_c").joinpath("kernels").iterdir()}
    example = {f"example/{name}" for name in ("main.c", *EXAMPLE)}
    return {C_MANIFEST, "model.h", "model.c", "weights.h", "weights.c", WEIGHTS_FILE, *kernels, *example}
