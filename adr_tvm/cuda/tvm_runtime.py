"""TVM's CUDA runtime in this process: it keeps code objects, at compile time also on a machine without a driver.

The library needs ``libcuda.so.1``, the driver, and ``libcudart.so.13``. Compiling calls nothing of the driver, so where
there is none an empty library of that name takes its place in this process: each of its functions returns an error.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from adr_tvm.cuda.graph import RUNTIME
from adr_tvm.errors import MissingDependencyError

DRIVER, TVM_RUNTIME = "libcuda.so.1", "libtvm_runtime_cuda.so"
REGISTERED = "ffi.Module.create.cuda"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_NAMES = re.compile(rb"\x00(cu[A-Z]\w+)(?=\x00)")


def load_cuda_runtime(driver_needed: bool = False) -> None:
    """Load it; doing so again changes nothing.

    Args:
        driver_needed: whether code is to run, and not only to be compiled.

    Raises:
        MissingDependencyError: CUDA's runtime library or, where it is needed, the driver is missing.
    """
    driver = _is_there(DRIVER)
    if driver_needed and not driver:
        raise MissingDependencyError(f"no NVIDIA driver: {DRIVER} is not there")
    import tvm
    import tvm_ffi

    if tvm_ffi.get_global_func(REGISTERED, allow_missing=True) is not None:
        return
    library = Path(tvm.libinfo.find_libtvm_runtime()).with_name(TVM_RUNTIME)
    _load_cudart()
    if not driver:
        _load_empty_driver(library)
    ctypes.CDLL(str(library))


@functools.cache
def _is_there(library: str) -> bool:
    """Whether a library can be loaded; of the driver, as it was before an empty one took its place."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _load_cudart() -> None:
    nvcc = shutil.which("nvcc")
    beside = [] if nvcc is None else [str(Path(nvcc).resolve().parent.parent / "lib64" / RUNTIME)]
    for name in (RUNTIME, *beside):
        try:
            ctypes.CDLL(name)
            return
        except OSError:
            continue
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("cudart")
        ctypes.CDLL(RUNTIME)  # that of another major version would not do
    except (ImportError, RuntimeError, OSError) as error:
        needs = f"CUDA targets need {RUNTIME} (pip install 'adr-tvm[cuda]')"
        raise MissingDependencyError(f"{needs}: {str(error).strip().splitlines()[0]}") from None


def _load_empty_driver(user: Path) -> None:
    """Load a library with the driver's name and every function of it that ``user`` may need."""
    from adr_tvm.deploy.toolchain import toolchain_of
    from adr_tvm.targets import TARGETS

    names = sorted({name.decode() for name in _NAMES.findall(user.read_bytes())})
    source = "\n".join(f'extern "C" int {name}() {{ return {_NO_DEVICE}; }}' for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, DRIVER)
        command = [toolchain_of(TARGETS["cpu"]).check(), "-shared", "-fPIC", f"-Wl,-soname,{DRIVER}"]
        subprocess.run([*command, "-x", "c++", "-", "-o", str(path)], input=source, text=True, check=True)
        ctypes.CDLL(str(path))
