"""A whole compile run: ONNX file in, bundle out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adr_tvm.deploy.threads import set_threads
from adr_tvm.errors import BoardError, GoalUnmetError, UsageError
from adr_tvm.options import DEFAULT_C_TARGET, CompileOptions
from adr_tvm.progress import get_log, progress

if TYPE_CHECKING:
    import numpy as np

    from adr_tvm.build import Library
    from adr_tvm.data.calibration import CalibrationSet
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.plan import ReusePlan
    from adr_tvm.planner.clock import Clock
    from adr_tvm.planner.cost import CostModel
    from adr_tvm.planner.options import SearchOptions
    from adr_tvm.planner.search import Outcome
    from adr_tvm.remote.board import Board
    from adr_tvm.report.results import NetworkResult, Timings

__all__ = ["CompileOptions", "CompileResult", "compile_model", "default_output"]

DEFAULT_TARGET_NOTE = (
    f"--emit c without --target: sizes and times are those of a {DEFAULT_C_TARGET}, the C compiles for any machine."
)
CALIBRATION_HINT = (
    "no calibration data, so only lossless reuse is considered; with --calib layers may also reuse "
    "approximately, within the accuracy budget"
)


@dataclass(frozen=True)
class CompileResult:
    """What a compile run made.

    Attributes:
        folder: the bundle; ``adr_tvm.load`` takes it, if it is not of C files.
        plan: what each layer does and why.
        result: what was measured.
        excess: of bare C, which limits of memory are missed and what would help; empty if none.
    """

    folder: Path
    plan: ReusePlan
    result: NetworkResult
    excess: str = ""


def default_output(model_path: str | Path) -> Path:
    """Where the bundle goes if the user does not say: ``MODEL-adr`` beside ``MODEL.onnx``."""
    path = Path(model_path)
    return path.with_name(f"{path.stem}-adr") if path.name else Path("model-adr")


def compile_model(
    model_path: str | Path,
    out: str | Path | None = None,
    options: CompileOptions | None = None,
    calibration: str | Path | np.ndarray | Mapping[str, np.ndarray] | Iterable[Any] | None = None,
) -> CompileResult:
    """Compile an ONNX model into a bundle: library, plan and reports.

    Without calibration data layers reuse losslessly, where that costs next to nothing. A run that fails or is
    interrupted leaves nothing behind.

    Args:
        model_path: the ONNX file.
        out: folder of the bundle; None: ``MODEL-adr`` beside the model. An earlier bundle there is replaced.
        options: the defaults if None.
        calibration: samples like those that the network will see: whatever
            ``adr_tvm.data.calibration.open_calibration`` takes.

    Raises:
        ModelError: the model or plan is bad or not supported.
        DataError: the calibration data or timings are bad.
        UsageError: the output cannot be written, or options do not fit the model or the data.
        GoalUnmetError: ``options.min_speedup`` was not reached, or ``max_ram`` or ``max_flash`` exceeded. The bundle
            was written, and ``result`` of the error is the ``CompileResult``.
        MissingDependencyError: there is no C++ compiler for the target, for ``--emit bundle`` no runtime, or for CUDA
            no compiler or runtime library.
        BoardError: the board of ``options.rpc`` failed. Times measured until then are in ``FOLDER-timings.json``
            beside the folder, tuned schedules in the database.
    """
    options = options or CompileOptions()
    folder = default_output(model_path) if out is None else Path(out)
    if calibration is None:
        _check_uncalibrated(options)
        if options.dtype == "int8":
            raise UsageError("--dtype int8 is quantised with calibration data: add --calib, such as --calib images.npz")
    entry = options.entry
    running = set_threads(None if entry.foreign else options.threads)  # here, even where the target is elsewhere
    threads = (options.threads or entry.cores or running) if entry.foreign else running
    bare_c = options.emit == "c"  # which runs on one thread
    threads = 1 if bare_c else threads

    from adr_tvm.build import code_objects_of
    from adr_tvm.dense_plan import HALF, NOT_SOUGHT, dense_plan
    from adr_tvm.deploy import bundle
    from adr_tvm.deploy.linux_bundle import find_parts
    from adr_tvm.deploy.toolchain import c_toolchain_of, toolchain_of
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.report.html import write_report
    from adr_tvm.report.results import Timings
    from adr_tvm.schedules.tuned import tuned_schedules
    from adr_tvm.tuning.choice import open_database
    from adr_tvm.tuning.cuda_machine import gpu_machine
    from adr_tvm.tuning.database import target_machine
    from adr_tvm.tuning.layers import with_tuning
    from adr_tvm.tuning.plan import tune_plan, tuning_on
    from adr_tvm.tuning.tuner import tune_network

    (c_toolchain_of if bare_c else toolchain_of)(entry).check()
    with code_objects_of(entry):
        pass  # its compiler and libraries, before the model is read
    linux = find_parts(entry, options.runtime_dir) if options.emit == "bundle" else None
    timings = Timings() if options.timings is None else Timings.load(options.timings)
    with _board(options) as board, _kept(timings, folder):
        if board is not None:
            threads = board.threads
            options = replace(options, threads=threads)
        network = LoadedNetwork(model_path, options)
        samples, plan = network.open_calibration(calibration), network.given_plan()
        if bare_c:
            from adr_tvm.bare_c.bundle import check_operators

            check_operators(network.mod, network.checked)
        half = options.precision is not None and entry.gpu is None
        if (bare_c or half) and samples is None and plan is None and not options.lossless:
            why = HALF if half else NOT_SOUGHT
            plan = dense_plan(network.mod, network.checked, network.rules, options, threads, why)
        if entry.gpu is None:
            machine = target_machine(network.target, threads, None if board is None else board.name)
        else:
            machine = gpu_machine(entry, options.tuning_db)
        database = open_database(options.tuning_db, options.tune, machine)
        images = 1 if samples is None else samples.batch_size
        with tuned_schedules(database), bundle.staged(folder) as staging:
            if database is not None and options.tune is not None:
                precision = None if entry.gpu is None else options.precision
                given = (network.mod, network.target, database, options.tune, images)
                tune_network(*given, *tuning_on(entry, board), precision)
            outcome = _plan_layers(network, samples, plan, timings, threads, board)
            if database is not None and options.tune is not None:
                outcome = tune_plan(network, outcome, samples, database, options.tune, images, board)
            if database is not None:
                result = with_tuning(outcome.result, network.mod, database, options.precision)
                outcome = replace(outcome, result=result)
            excess = ""
            if bare_c:
                outcome, excess = _write_bare_c(network, samples, outcome, staging)
            else:
                made = (network.checked, outcome.plan, network.mod, network.target, entry, linux)
                bundle.write_bundle(staging, _library(network, outcome), *made)
            outcome.result.save(staging)
            outcome.timings.save(staging / bundle.TIMINGS_FILE)
            write_report(outcome.result, staging)
    get_log().info("wrote %s", folder)
    compiled = CompileResult(folder, outcome.plan, outcome.result, excess)
    _check_goal(compiled, options.min_speedup)
    return compiled


def _library(network: LoadedNetwork, outcome: Outcome) -> Library:
    """What planning built, or for another machine what is built now."""
    from adr_tvm.build import build_plan, code_objects_of

    entry = network.options.entry
    if not entry.foreign:
        return outcome.executable
    with progress(f"building the library for {entry.name}", None) as step, code_objects_of(entry):
        library = build_plan(network.mod, outcome.plan, network.target, precision=network.options.precision)
        step.advance(1)
    return library


def _write_bare_c(
    network: LoadedNetwork, samples: CalibrationSet | None, outcome: Outcome, staging: Path
) -> tuple[Outcome, str]:
    """Write the C files; returns the outcome with what they take, and which limits of memory are missed."""
    from adr_tvm.bare_c.bundle import c_network, excess, int8_network, write_c_bundle

    blob = network.options.weights == "blob"
    made, notes = c_network(network.mod, network.checked, outcome.plan, blob), list(outcome.result.notes)
    if network.options.target is None and network.options.target_json is None:
        notes.append(DEFAULT_TARGET_NOTE)
    if network.options.dtype == "int8":
        assert samples is not None
        made, note = int8_network(made, samples)
        get_log().info("%s", note)
        notes.append(f"{note}.")
    with progress(f"compiling the C files for {network.options.entry.name}", None) as step:
        footprint = write_c_bundle(staging, made, outcome.plan, network.options)
        step.advance(1)
    result = replace(outcome.result, notes=[*notes, f"{footprint}."])
    return replace(outcome, result=result), excess(made, footprint, network.options)


def _plan_layers(
    network: LoadedNetwork,
    samples: CalibrationSet | None,
    plan: ReusePlan | None,
    timings: Timings,
    threads: int,
    board: Board | None,
) -> Outcome:
    """Search, or measure the given plan; the dense network is compared with ONNX Runtime first."""
    from adr_tvm._tvm import processor_target
    from adr_tvm.build import build_module, build_plan, code_objects_of
    from adr_tvm.cuda.present import present_gpu, runs_here
    from adr_tvm.frontend.dense_check import check_dense, some_inputs
    from adr_tvm.passes import pipeline
    from adr_tvm.passes.emulate_precision import EmulatePrecision
    from adr_tvm.passes.mark_candidates import find_candidates
    from adr_tvm.planner.board_clock import BoardClock
    from adr_tvm.planner.cost_file import find_cost_model, recorded
    from adr_tvm.planner.cuda_clock import CudaClock
    from adr_tvm.planner.gpu_cost import gpu_cost_model
    from adr_tvm.planner.predicted_clock import PredictedClock
    from adr_tvm.planner.search import evaluate, search
    from adr_tvm.schedules.register_tile import isa_of

    options, checked = network.options, network.checked
    inputs = some_inputs(checked.inputs, samples, options.seed)
    dense = check_dense(build_module(network.mod, network.host), checked, inputs)
    if dense.note:
        get_log().warning("%s", dense.note)
    else:
        get_log().info("the dense network is within %.1e of ONNX Runtime's largest output", dense.error)
    notes = [dense.note] if dense.note else []
    mod = network.mod
    if options.precision is not None:
        mod = pipeline.run([EmulatePrecision(options.precision)], mod, network.host)
        rounded = check_dense(build_module(mod, network.host), checked, inputs)
        note = f"accuracy was measured on this machine, in fp32 with data and weights rounded to {options.dtype}"
        if rounded.error is not None:
            note += f", which takes the dense network {rounded.error:.1e} of its largest output from ONNX Runtime's"
        if options.entry.gpu is None:
            note += "; the partial sums that an Arm core adds up in fp16 are not in it"
        get_log().info("%s", note)
        notes.append(note)
    if samples is None and plan is None:
        get_log().info("%s", CALIBRATION_HINT)
        notes.append(CALIBRATION_HINT)
    arguments = (samples, network.host, _search_options(options), timings)
    lanes = isa_of(processor_target(network.target)).lanes
    cost: CostModel | None = None
    clock: Clock | None = None
    if options.entry.foreign:
        if options.entry.gpu is not None:
            cost = gpu_cost_model(options.entry, options.precision)
        else:
            cost = recorded(timings, threads) if options.cost_model is None else None
            cost = cost or _predicted_cost(options, threads, lanes)
        candidates = find_candidates(network.mod["main"], "main", network.rules)
        gpu = present_gpu() if runs_here(options.entry) else None
        if gpu is None:
            clock = PredictedClock(cost, options.entry.name, candidates)
        else:
            get_log().info("measuring on %s", gpu.name)
            clock = CudaClock(gpu.name, options.entry, network.target, network.mod, timings, options.precision)
        if board is not None:
            clock = BoardClock(board, network.mod, network.target, timings)
    elif plan is None and samples is not None and not options.lossless:
        cost = None if options.cost_model is not None else recorded(timings, threads)
        cost = cost or find_cost_model(options.cost_model, threads, lanes)
    if plan is None:
        outcome = search(mod, checked, network.rules, *arguments, cost, clock)
    else:
        outcome = evaluate(mod, checked, network.rules, plan, *arguments, clock)
    if network.dump is not None:
        with code_objects_of(options.entry):
            build_plan(network.mod, outcome.plan, network.target, network.dump, options.precision)
    result = replace(
        outcome.result,
        target=options.entry.name,
        max_abs_error=dense.error,
        notes=[*outcome.result.notes, *notes],
    )
    made = plan or replace(outcome.plan, target=options.entry.name)
    return replace(outcome, plan=replace(made, dtype=options.dtype), result=result)


def _predicted_cost(options: CompileOptions, threads: int, lanes: int) -> CostModel:
    """What times of another machine's processor are predicted with."""
    if options.emit == "c":
        from adr_tvm.bare_c.cost import BareCCost
        from adr_tvm.bare_c.int8_cost import Int8Cost

        return (Int8Cost if options.dtype == "int8" else BareCCost).of(options.entry)
    from adr_tvm.planner.core_cost import foreign_cost_model

    return foreign_cost_model(options.entry, options.cost_model, threads, lanes, options.precision is not None)


@contextmanager
def _board(options: CompileOptions) -> Iterator[Board | None]:
    """The board that the options name, connected; None without one."""
    if options.board is None:
        yield None
        return
    from adr_tvm.remote.board import Board

    entry, address = options.entry, options.board
    board = Board(address, entry, entry.make(options.threads), options.rpc_timeout)
    try:
        plural = "" if board.threads == 1 else "s"
        get_log().info("measuring on %s at %s, with %d thread%s", board.name, address, board.threads, plural)
        if options.threads not in (None, board.threads):
            raise UsageError(
                f"--threads is {options.threads}, but the RPC server at {address} runs with {board.threads}: start it "
                f"with TVM_NUM_THREADS={options.threads} in its environment, or leave --threads out"
            )
        yield board
    finally:
        board.close()


@contextmanager
def _kept(timings: Timings, folder: Path) -> Iterator[None]:
    """Where a board fails, the times measured until then are written beside the bundle's folder."""
    known = len(timings)
    try:
        yield
    except BoardError as error:
        if len(timings) == known:
            raise
        path = folder.with_name(f"{folder.name}-timings.json")
        timings.save(path)
        raise BoardError(f"{error}; the times measured so far are kept: go on with --timings {path}") from error


def _search_options(options: CompileOptions) -> SearchOptions:
    from adr_tvm.planner.options import SearchOptions

    named = {field.name: getattr(options, field.name) for field in fields(SearchOptions)}
    if options.precision is not None and options.entry.gpu is not None:
        named["granularity"] = "row"  # on tensor cores there are kernels for no other
    if options.min_psnr is not None:
        named["metric"] = "psnr"
    return SearchOptions(**named)


def _check_uncalibrated(options: CompileOptions) -> None:
    needless = [flag for flag, value in options.narrowed.items() if value not in ("exact", "row", "image")]
    if options.labels_name is not None:
        needless.append("--labels-name")
    if options.cost_model is not None and not options.entry.foreign:
        needless.append("--cost-model")
    if needless:
        raise UsageError(
            f"{' and '.join(needless)} cannot be used without calibration data: add --calib, such as --calib images.npz"
        )


def _check_goal(compiled: CompileResult, goal: float | None) -> None:
    if compiled.excess:
        raise GoalUnmetError(f"{compiled.excess}; it was written to {compiled.folder}", compiled)
    reached = compiled.result.speedup
    if goal is None or (reached is not None and reached >= goal):
        return
    word = "predicted speedup" if compiled.result.predicted else "speedup"
    what = "no speedup was measured" if reached is None else f"the {word} is {reached:.2f}x"
    raise GoalUnmetError(f"{what}, --min-speedup asks for {goal:g}x; the best found is in {compiled.folder}", compiled)
