"""What tensor cores need and TIR has no words for: products of a warp, fragments from shared memory, copies on the way.

Each function here makes a call of a small device function whose source travels with the kernel. A *fragment* is the
share of a thread in a small matrix, in words of 32 bits (``mma`` of the PTX manual, m16n8k16 for 16-bit entries,
m16n8k8 for tf32). GPUs before sm_80 have neither the larger product nor copies that do not wait: there a product is
made in two halves, and a copy goes through registers between its begin and its end.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

_HEAD = "static __device__ __forceinline__"

_LOAD_MATRICES = f"""
{_HEAD} void adr_load_matrices(uint* to, const uint* row) {{
  unsigned place = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%0, %1, %2, %3}}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
}}
"""

_FRAGMENTS = '"+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])'
_WHOLE = '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])'


def _product(shape: str, kind: str, a: str, b: str, operands: str) -> str:
    return (
        f'asm("mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 '
        f'{{%0, %1, %2, %3}}, {a}, {b}, {{%0, %1, %2, %3}};" : {_FRAGMENTS} : {operands});'
    )


def _multiply_source(kind: str) -> str:
    shape = "m16n8k8" if kind == "tf32" else "m16n8k16"
    whole = _product(shape, kind, "{%4, %5, %6, %7}", "{%8, %9}", _WHOLE)
    halves = [
        _product("m16n8k8", kind, "{%4, %5}", "{%6}", f'"r"(a[{2 * i}]), "r"(a[{2 * i + 1}]), "r"(b[{i}])')
        for i in range(2)
    ]
    body = f"  {whole}"
    if kind == "f16":
        body = f"#if __CUDA_ARCH__ >= 800\n{body}\n#else\n  {halves[0]}\n  {halves[1]}\n#endif"
    return f"\n{_HEAD} void adr_multiply_{kind}(float* c, const uint* a, const uint* b) {{\n{body}\n}}\n"


_BEGIN_COPY = f"""
{_HEAD} void adr_begin_copy(uint* kept, uint* to, const void* from, int bytes) {{
#if __CUDA_ARCH__ >= 800
  unsigned place = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(place), "l"(from), "r"(bytes) : "memory");
#else
  *(uint4*)kept = bytes ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}}
"""

_END_COPY = f"""
{_HEAD} void adr_end_copy(const uint* kept, uint* to) {{
#if __CUDA_ARCH__ < 800
  *(uint4*)to = *(const uint4*)kept;
#endif
}}
"""

_COMMIT = f"""
{_HEAD} void adr_commit_copies() {{
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}}
"""


def _wait_source(groups: int) -> str:
    return f"""
{_HEAD} void adr_wait_copies_{groups}() {{
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group {groups};" ::: "memory");
#endif
}}
"""


_ROUND_TF32 = f"""
{_HEAD} uint adr_round_tf32(uint value) {{
  uint rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(value)));
  return rounded;
}}
"""

_STORE_UNIT = f"""
{_HEAD} void adr_store_unit(uint* to, const void* from) {{ *(uint4*)to = *(const uint4*)from; }}
"""


def load_matrices(to: Any, row: Any) -> Any:
    """Four 8 x 8 matrices of 16-bit entries into four words of each thread; thread t gives row t % 8 of matrix t // 8.

    Args:
        to: address of the words.
        row: address of 16 bytes in shared memory.
    """
    return T.cuda.func_call("adr_load_matrices", to, row, source_code=_LOAD_MATRICES)


def multiply(kind: str, c: Any, a: Any, b: Any) -> Any:
    """c += a b for 16 rows, 8 columns and 32 bytes of K; ``kind`` is ``f16``, ``bf16`` or ``tf32``.

    Args:
        kind: of the factors.
        c, a, b: addresses of the thread's fragments: four of fp32, four words, two words.
    """
    return T.cuda.func_call(f"adr_multiply_{kind}", c, a, b, source_code=_multiply_source(kind))


def begin_copy(kept: Any, to: Any, source: Any, inside: Any) -> Any:
    """Start to copy 16 bytes from global to shared memory, or as many zeros.

    Args:
        kept: address of four words of the thread, which old GPUs keep the data in until the end.
        to: address in shared memory.
        source: address in global memory, a multiple of 16; where ``inside`` is false it is not read.
        inside: whether there are data.
    """
    return T.cuda.func_call("adr_begin_copy", kept, to, source, T.if_then_else(inside, 16, 0), source_code=_BEGIN_COPY)


def end_copy(kept: Any, to: Any) -> Any:
    """What is left to do of a copy, once what it overwrites is no longer needed; arguments as of its begin."""
    return T.cuda.func_call("adr_end_copy", kept, to, source_code=_END_COPY)


def commit_copies() -> Any:
    """The thread's copies begun since the last such call become a group."""
    return T.cuda.func_call("adr_commit_copies", source_code=_COMMIT)


def wait_copies(groups: int) -> Any:
    """Wait until at most the last ``groups`` groups of the thread are on their way."""
    return T.cuda.func_call(f"adr_wait_copies_{groups}", source_code=_wait_source(groups))


def round_tf32(word: Any) -> Any:
    """An fp32 number, as a word, rounded to tf32: nearest, ties away from zero."""
    return T.cuda.func_call("adr_round_tf32", word, source_code=_ROUND_TF32, return_type="uint32")


def store_unit(to: Any, source: Any) -> Any:
    """16 bytes of the thread into shared memory; both are addresses."""
    return T.cuda.func_call("adr_store_unit", to, source, source_code=_STORE_UNIT)
