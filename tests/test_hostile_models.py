"""Five hundred broken models: adr-compile lists or refuses each in one line, none kills or hangs the process."""

from __future__ import annotations

import contextlib
import io
import random
import threading
from pathlib import Path

import hostile
from onnx_graphs import MODELS

from adr_tvm.cli.compile import main

COUNT, SEED, COMPILED = 100, 20240229, 20


def command(*argv: object) -> int:
    """``adr-compile``; what it should not do is an error. Returns 0, or 3 for a model that it refused."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, argv), "-q"])
    last = err.getvalue().splitlines()[-1:]
    if code not in (0, 3) or "Traceback" in err.getvalue() or (code and not last[0].startswith("adr-compile: error: ")):
        raise AssertionError(f"exit code {code}: {err.getvalue()}")
    return code


def list_layers(path: Path) -> None:
    """The mutant's dry run; an accepted one leaves a copy of itself."""
    if command(path, "--dry-run") == 0:
        path.with_suffix(".accepted").write_bytes(path.read_bytes())


def compile_completely(path: Path) -> None:
    """In a thread of its own: TVM's worker threads belong to a thread, and did not survive the fork."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            command(path, "-o", path.with_suffix(""))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_mutants_are_accepted_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ADR_DEBUG", "")
    command(_saved(tmp_path / "warm.onnx"), "--dry-run")  # import everything before the forks
    mutants = hostile.make_mutants([build().SerializeToString() for build in MODELS.values()], COUNT, SEED)
    failures = hostile.run_hostile(list_layers, mutants, tmp_path)
    assert not failures, "\n\n".join(failures)
    accepted = sorted(tmp_path.glob("*.accepted"))
    assert COMPILED < len(accepted) < COUNT
    chosen = [path.read_bytes() for path in random.Random(SEED).sample(accepted, COMPILED)]
    failures = hostile.run_hostile(compile_completely, chosen, tmp_path, timeout=300)
    assert not failures, "\n\n".join(failures)


def _saved(path: Path) -> Path:
    path.write_bytes(MODELS["classifier"]().SerializeToString())
    return path


def test_harness_sees_crashes(tmp_path):
    """A harness that cannot fail proves nothing."""

    def misbehave(path):
        index = int(path.stem.split("_")[1])
        if index == 0:
            hostile.os.kill(hostile.os.getpid(), hostile.signal.SIGSEGV)
        elif index == 1:
            hostile.time.sleep(30)
        elif index == 2:
            raise KeyError("x")

    failures = hostile.run_hostile(misbehave, [b"0", b"1", b"2", b"3"], tmp_path, timeout=1)
    assert sorted(text.split(":")[0] for text in failures) == ["mutant 0", "mutant 1", "mutant 2"]
    assert any("SIGSEGV" in text for text in failures)
    assert any("no answer in time" in text for text in failures)
    assert any("KeyError" in text for text in failures)
