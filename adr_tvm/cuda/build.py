"""What TVM builds for CUDA targets becomes fat binaries, within ``code_objects``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adr_tvm.cuda.code_objects import Resources, compile_code, compiler
from adr_tvm.cuda.tvm_runtime import load_cuda_runtime

CALLBACK = "tvm_callback_cuda_compile"


@contextmanager
def code_objects(architectures: Sequence[str], ptx: str | None = None) -> Iterator[list[Resources]]:
    """Within the block TVM's code for CUDA is compiled for some architectures; yields what its kernels use.

    Args:
        architectures: that get machine code, such as ``sm_80``.
        ptx: virtual architecture whose PTX is added.

    Raises:
        MissingDependencyError: there is no compiler, or no CUDA runtime library.
    """
    import tvm_ffi

    compiler()
    load_cuda_runtime()
    used: list[Resources] = []

    def compiled(source: str) -> bytes:
        made = compile_code(str(source), architectures, ptx)
        used.extend(made.resources)
        return made.data

    before = tvm_ffi.get_global_func(CALLBACK, allow_missing=True)
    tvm_ffi.register_global_func(CALLBACK, compiled, override=True)
    try:
        yield used
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(CALLBACK)
        else:
            tvm_ffi.register_global_func(CALLBACK, before, override=True)
