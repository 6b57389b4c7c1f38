"""Compiled steps: one for each stage but for its bits, which change at run time; the next is made in the background.

Stages are never gone back to, so only the variant in use and the one after it are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from adr_tvm.train.engine import Engine, Step
from adr_tvm.train.ladder import Ladder
from adr_tvm.train.stage import LayerReuse, Stage, variant

Key: TypeAlias = tuple[tuple[str, LayerReuse | None], ...]


class Variants:
    """Compiles steps and keeps those in use. Close it (``with``) to wait for what is being compiled.

    Args:
        engine: compiles.
        ladders: all candidates of a run, for the largest number of bits of each kind.
        ahead: compile the next in the background.
    """

    def __init__(self, engine: Engine, ladders: Mapping[str, Ladder], ahead: bool) -> None:
        self._engine = engine
        self._most_bits = most_bits(ladders.values())
        self._pool = ThreadPoolExecutor(1, "compile") if ahead else None
        self._steps: dict[Key, Step | Future[Step]] = {}

    def __enter__(self) -> Variants:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, stage: Stage) -> Step:
        """The step of a stage; waits until it is compiled. All others are forgotten."""
        compiled, key = self._compiled(stage)
        found = self._steps.get(key)
        step = found.result() if isinstance(found, Future) else found or self._engine.compile(compiled)
        self._steps = {key: step}
        return step

    def prepare(self, stage: Stage | None) -> None:
        """Begin to compile a stage that may come next."""
        if self._pool is None or stage is None:
            return
        compiled, key = self._compiled(stage)
        if key not in self._steps:
            self._steps[key] = self._pool.submit(self._engine.compile, compiled)

    def _compiled(self, stage: Stage) -> tuple[Stage, Key]:
        compiled = variant(stage, self._most_bits)
        return compiled, tuple(compiled.items())


def most_bits(ladders: Iterable[Ladder]) -> dict[LayerReuse, int]:
    """The largest H of each kind of reuse, by that reuse ``with_bits(1)``."""
    found: dict[LayerReuse, int] = {}
    for ladder in ladders:
        for candidate in ladder:
            if candidate.reuse is not None:
                kind = candidate.reuse.with_bits(1)
                found[kind] = max(found.get(kind, 1), candidate.reuse.setting.H)
    return found
