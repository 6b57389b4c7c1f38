"""JSON files of this project: dataclasses in, the same bytes out for equal content, strictly validated in.

One place for the format rules that ``plan.json``, ``report.json`` and ``timings.json`` share: UTF-8, two
spaces, fields in the order of the dataclass, no NaN, a newline at the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from adr_tvm.errors import AdrError, UsageError

T = TypeVar("T")

MAX_BYTES = 64 << 20


def write_json(path: Path, value: Any) -> None:
    """Write a JSON-ready value.

    Raises:
        UsageError: the file cannot be written.
        ValueError: the value holds NaN or Inf.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, making its folder.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def read_json(path: Path, shape: type[T], version: int | None, error: type[AdrError]) -> T:
    """Read and validate a JSON file into ``shape``, a dataclass or a plain type such as ``dict[str, float]``.

    Types are strict (no "8" for 8), unknown fields and repeated keys are refused.

    Args:
        version: newest format understood, compared with the field ``version``; None: there is no such field.
        error: raised for whatever is wrong with the file.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(f"{path} is larger than {MAX_BYTES >> 20} MiB: not a file this program wrote")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON: {problem}") from problem
    if version is not None:
        _check_version(path, content, version, error)
    try:
        return TypeAdapter(shape).validate_json(text, strict=True)
    except ValidationError as problem:
        raise error(f"{path}: {_first_problem(problem.errors())}") from problem


def _check_version(path: Path, content: object, newest: int, error: type[AdrError]) -> None:
    found = content.get("version") if isinstance(content, dict) else None
    if type(found) is not int or found < 1:
        raise error(f"{path} has no format version: not a file this program wrote")
    if found > newest:
        raise error(
            f"{path} has format version {found}, this program reads up to {newest}: "
            "use a newer adr-tvm, or make the file again"
        )


def _first_problem(problems: list[Any]) -> str:
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "top level"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first['msg']}{more}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} appears twice")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
