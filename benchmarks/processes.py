"""A process of its own for each number of threads: engines fix theirs as they start."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from adr_tvm.deploy.threads import PINNING, VARIABLE, check_threads

Answer = TypeVar("Answer")


def in_process(work: Callable[..., Answer], threads: int, *arguments: object) -> Answer:
    """``work(*arguments)`` in a new process whose TVM runtime has ``threads`` threads.

    Args:
        work: a function of a module, so that the process can import it.
        threads: for TVM; other engines take theirs from the arguments.

    Raises:
        UsageError: there are not so many processors.
    """
    check_threads(threads)
    before = {name: os.environ.get(name) for name in (VARIABLE, PINNING)}
    os.environ.update({VARIABLE: str(threads), PINNING: "0"})
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
