"""The Linux bundle (``--emit bundle``): a compiled network with all that a C or C++ program needs to run it.

| file | content |
|---|---|
| ``lib/libmodel.so`` | the compiled network, in place of ``model.so`` |
| ``lib/libadr_model.so`` | the C API, which loads it |
| ``lib/libtvm_runtime.so``, ``lib/libtvm_ffi.so`` | TVM's runtime for the target |
| ``include/adr_model.h``, ``include/adr_model.hpp`` | the API for C and for C++ |
| ``lib/cmake``, ``lib/pkgconfig`` | how CMake and pkg-config find it |
| ``bin/run_model``, ``example/`` | a program that runs it on ``.npy`` files, and its source |
| ``licences/`` | of adr_tvm and TVM |

and the files of every bundle (``adr_tvm/deploy/bundle.py``). The folder may be moved: libraries find each other beside
themselves. ``adr_tvm.load`` takes it as well.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import adr_tvm
from adr_tvm.deploy.toolchain import Toolchain, toolchain_of
from adr_tvm.deploy.tvm_runtime import LIBRARIES, find_runtime
from adr_tvm.errors import MissingDependencyError
from adr_tvm.jsonfile import write_bytes
from adr_tvm.targets import TargetEntry

LINUX_LIBRARY = "lib/libmodel.so"
API_LIBRARY = "lib/libadr_model.so"
EXAMPLE = "bin/run_model"
# By the place in the bundle: files of this package that are only copied.
_SOURCES = {
    "include/adr_model.h": "adr_model.h",
    "include/adr_model.hpp": "adr_model.hpp",
    "lib/cmake/adr_model/adr_modelConfig.cmake": "adr_modelConfig.cmake",
    "lib/pkgconfig/adr_model.pc": "adr_model.pc",
    "example/run_model.cc": "run_model.cc",
    "example/npy.hpp": "npy.hpp",
    "example/CMakeLists.txt": "CMakeLists.txt",
}
_LICENCES = {
    "licences/adr_tvm.txt": "adr-tvm",
    "licences/tvm.txt": "apache-tvm",
    "licences/tvm_ffi.txt": "apache-tvm-ffi",
}
_FORBIDDEN = ("cutlass", "flash_attn", "tensorrt", "vllm")  # of CUDA kernels, which are in neither library
LINUX_FILES = (LINUX_LIBRARY, API_LIBRARY, EXAMPLE, *(f"lib/{name}" for name in LIBRARIES), *_SOURCES, *_LICENCES)


@dataclass(frozen=True)
class LinuxParts:
    """What a Linux bundle is made with; ``find_parts`` sees that all is there.

    Attributes:
        tools: the target's compiler.
        runtime: TVM's libraries by name.
    """

    tools: Toolchain
    runtime: Mapping[str, bytes]

    def link_options(self, folder: Path) -> list[str]:
        """Options that link with TVM's runtime, which is found beside what is linked."""
        lib = folder / "lib"
        return [f"-L{lib}", "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-Wl,-rpath,$ORIGIN"]


def find_parts(entry: TargetEntry, runtime_dir: str | Path | None) -> LinuxParts:
    """What is needed for a target, before a long search.

    Raises:
        MissingDependencyError: the compiler or TVM's runtime for the target is missing.
        UsageError: ``runtime_dir`` is no folder.
    """
    tools = toolchain_of(entry)
    tools.check()
    return LinuxParts(tools, find_runtime(entry, runtime_dir))


def write_runtime(folder: Path, parts: LinuxParts) -> None:
    """Write TVM's runtime into a bundle, so that its library can be linked with it.

    Raises:
        UsageError: the folder cannot be written.
    """
    for name, data in parts.runtime.items():
        write_bytes(folder / "lib" / name, data)


def write_linux_parts(folder: Path, parts: LinuxParts) -> None:
    """Write all of a Linux bundle beside the network: API, example, licences.

    Args:
        folder: of the bundle; ``write_runtime`` was there.

    Raises:
        MissingDependencyError: the compiler cannot compile the API, such as one without a C++ library.
        UsageError: the folder cannot be written.
    """
    native = resources.files("adr_tvm.deploy").joinpath("native")
    for place, name in _SOURCES.items():
        text = native.joinpath(name).read_text(encoding="utf-8")
        write_bytes(folder / place, text.replace("@VERSION@", adr_tvm.__version__).encode())
    write_licences(folder)
    with resources.as_file(native.joinpath("adr_model.cc")) as source:
        flags = ["-fPIC", "-shared", "-fvisibility=hidden", "-DADR_MODEL_BUILD", "-Wl,-soname,libadr_model.so"]
        compile_cxx(parts, source, folder / API_LIBRARY, [*flags, *tvm_includes(), *parts.link_options(folder)], folder)
    (folder / "bin").mkdir(exist_ok=True)
    links = [f"-L{folder / 'lib'}", "-ladr_model", f"-Wl,-rpath-link,{folder / 'lib'}", "-Wl,-rpath,$ORIGIN/../lib"]
    compile_cxx(parts, folder / "example" / "run_model.cc", folder / EXAMPLE, links, folder)


def write_licences(folder: Path) -> None:
    """Write the licences of what is linked with TVM's runtime."""
    for place, package in _LICENCES.items():
        write_bytes(folder / place, _licence(package).encode())


def compile_cxx(parts: LinuxParts, source: Path, to: Path, options: list[str], folder: Path) -> None:
    """Compile and link a C++ file; ``folder`` is where the result is at home.

    Raises:
        MissingDependencyError: the compiler cannot, such as one without a C++ library.
    """
    common = ["-std=c++17", "-O1", f"-I{folder / 'include'}", f"-ffile-prefix-map={folder}=.", str(source)]
    command = [parts.tools.check(), *common, "-o", str(to), *options, "-lstdc++"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        raise MissingDependencyError(
            f"{command[0]} cannot compile {source.name}; install {parts.tools.package} (it said: {said})"
        )


def tvm_includes() -> list[str]:
    """Options for the headers of TVM's foreign function interface."""
    import tvm_ffi

    paths = (tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
    return [f"-isystem{path}" for path in paths]


def _licence(package: str) -> str:
    """Licences and notices that a package carries, one after the other."""
    found = []
    for path in sorted(metadata.files(package) or [], key=str):
        name = path.name.lower()
        if name.startswith(("license", "notice")) and not any(word in name for word in _FORBIDDEN):
            found.append(f"== {path.name} of {package} ==\n\n{path.locate().read_text(encoding='utf-8')}")  # type: ignore[attr-defined]
    return "\n\n".join(dict.fromkeys(found))
