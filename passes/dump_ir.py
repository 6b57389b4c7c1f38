"""Write the module to a numbered file: an ordinary pass, put behind the passes to be watched."""

from __future__ import annotations

from pathlib import Path

import tvm


@tvm.transform.module_pass(opt_level=0, name="DumpIR")
class DumpIR:
    """Write ``NN-name.py`` (TVMScript, constants left out) into a folder and return the module unchanged."""

    def __init__(self, folder: Path, index: int, name: str):
        self.path = Path(folder) / f"{index:02d}-{name}.py"

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(mod.script(show_meta=False), encoding="utf-8")
        return mod
