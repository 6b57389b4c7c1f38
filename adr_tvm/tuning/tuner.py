"""Tuning all kernels of a network, the one with the most work first."""

from __future__ import annotations

from dataclasses import asdict

import tvm
from tvm.target import Target

import adr_tvm
from adr_tvm.errors import BoardError
from adr_tvm.precision import Precision
from adr_tvm.progress import Step, get_log, progress
from adr_tvm.report.formats import factor, number
from adr_tvm.tuning.database import TuningDatabase
from adr_tvm.tuning.families import FAMILIES
from adr_tvm.tuning.needed import needed_kernels
from adr_tvm.tuning.race import Clock, Stopwatch
from adr_tvm.tuning.record import TuningRecord
from adr_tvm.tuning.search import Found, search_schedule
from adr_tvm.tuning.task import TuningTask
from adr_tvm.tuning.trial import MakeTrial


def tune_network(
    mod: tvm.IRModule,
    target: Target,
    database: TuningDatabase,
    trials: int,
    images: int = 1,
    watch: Stopwatch | None = None,
    make_trial: MakeTrial | None = None,
    precision: Precision | None = None,
) -> list[TuningRecord]:
    """Look for a schedule of every kernel that a network needs; what is found is in the database at once.

    Kernels that were tuned before with as many trials are left as they are: a run that was interrupted goes on where
    it was.

    Args:
        mod: canonical module, rewritten for reuse or not.
        database: takes what is found.
        trials: schedules to try for each kernel.
        images: in a call, where the module leaves that open.
        watch: measures; None: a clock.
        make_trial: makes kernels to run; None: on this machine.
        precision: data type that they run in; None: fp32.

    Returns:
        A record of each kernel tuned now.

    Raises:
        UsageError: the database cannot be written.
        BoardError: the board that kernels run on failed; the kernels tuned until then are kept.
    """
    counts = needed_kernels(mod, target, database, precision)
    tasks = [FAMILIES[kernel.kind](kernel, target, images) for kernel in counts]
    tasks = [task for task in tasks if len(task.candidates(database.machine.threads)) > 1]
    tasks.sort(key=lambda task: -counts[task.kernel] * task.flops)
    around = sum(task.weight_bytes * counts[task.kernel] for task in tasks)
    todo = [task for task in tasks if not _known(database, task, trials)]
    if len(todo) < len(tasks):
        get_log().info("%d of %d kernels were tuned before", len(tasks) - len(todo), len(tasks))
    watch = Clock(database.machine.threads) if watch is None else watch
    records: list[TuningRecord] = []
    if not todo:
        return records
    try:
        with progress("tuning kernels", len(todo) * trials) as step:
            for task in todo:
                records.append(_tune(task, target, database, trials, around, watch, step, make_trial))
                database.add(records[-1])
    except (KeyboardInterrupt, BoardError) as error:
        where = "" if database.path is None else f" in {database.path}"
        what = "the board failed" if isinstance(error, BoardError) else "interrupted"
        get_log().warning("%s: %d of %d kernels are tuned and kept%s", what, len(records), len(todo), where)
        raise
    return records


def _known(database: TuningDatabase, task: TuningTask, trials: int) -> bool:
    record = database.find(task.kernel)
    return record is not None and record.trials >= trials and record.images == task.images


def _tune(
    task: TuningTask,
    target: Target,
    database: TuningDatabase,
    trials: int,
    around: int,
    watch: Stopwatch,
    step: Step,
    make_trial: MakeTrial | None,
) -> TuningRecord:
    done = 0

    def advance(speedup: float) -> None:
        nonlocal done
        done += 1
        step.advance(1, f"{task.name}: {factor(speedup)}")

    threads, before = database.machine.threads, database.schedule(task.kernel, target)
    found = search_schedule(task, target, trials, watch, threads, around, before, advance, make_trial)
    if done < trials:
        step.advance(trials - done, task.name)
    record = _record(task, database, trials, found)
    for schedule in found.wrong:
        get_log().warning("%s: not the bytes of the default, dropped: %s", task.name, schedule)
    if found.schedule is None:
        get_log().info("%s: the default stays, at %s GFLOP/s", task.name, number(record.gflops_before))
    else:
        before, after = number(record.gflops_before), number(record.gflops_after)
        get_log().info("%s: %s -> %s GFLOP/s (%s)", task.name, before, after, factor(found.speedup))
    return record


def _record(task: TuningTask, database: TuningDatabase, trials: int, found: Found) -> TuningRecord:
    kernel, gflops = task.kernel, task.flops / found.default_seconds / 1e9
    return TuningRecord(
        machine=database.machine,
        kind=kernel.kind,
        geometry=kernel.geometry,
        batch=kernel.batch,
        setting=kernel.setting,
        images=task.images,
        schedule=None if found.schedule is None else asdict(found.schedule),
        speedup=found.speedup,
        gflops_before=gflops,
        gflops_after=gflops * found.speedup,
        trials=trials,
        measured=found.measured,
        adr_version=adr_tvm.__version__,
    )
