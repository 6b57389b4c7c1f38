"""Five hundred broken models: each is accepted or refused in one line, none kills or hangs the process."""

from __future__ import annotations

import hostile
from onnx_graphs import MODELS

from adr_tvm.frontend import import_onnx
from adr_tvm.onnx_model import check_model

COUNT, SEED = 500, 20240229


def test_mutants_are_accepted_or_refused(tmp_path):
    mutants = hostile.make_mutants([build().SerializeToString() for build in MODELS.values()], COUNT, SEED)
    failures = hostile.run_hostile(lambda path: import_onnx(check_model(path)), mutants, tmp_path)
    assert not failures, "\n\n".join(failures)


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
