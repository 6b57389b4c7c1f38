"""A process of its own for each number of threads: engines fix theirs as they start."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from adr_tvm.deploy.threads import PINNING, VARIABLE, check_threads
from adr_tvm.progress import get_log, set_verbosity

Answer = TypeVar("Answer")


def in_process(work: Callable[..., Answer], threads: int, *arguments: object) -> Answer:
    """``work(*arguments)`` in a new process whose TVM runtime has ``threads`` threads; it logs as this one does.

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
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, _log_like, (get_log().getEffectiveLevel(),)) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _log_like(level: int) -> None:
    if level <= logging.INFO:
        set_verbosity(0 if level == logging.INFO else 1)
