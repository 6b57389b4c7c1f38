"""A run of kernel calls as one PrimFunc, for ``MergeCalls``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Expr
from tvm.tirx.analysis import undefined_vars

from adr_tvm._tvm import constant, is_op, packed_call, packed_tensor
from adr_tvm.passes.arena import Arena, Request, plan_arena
from adr_tvm.passes.weights import ATTRIBUTE, Weights

ARENA = "adr.arena"  # of a PrimFunc: which output is memory that nothing outside reads


@dataclass(eq=False)
class Storage:
    """Memory behind a tensor and its views.

    Attributes:
        source: the tensor outside of the run that it belongs to; None where calls of the run write it first.
        first, last: calls from and up to which it is in use.
        viewed: a call takes it in another shape than its source's.
    """

    source: relax.Expr | None
    first: int = 0
    last: int = 0
    viewed: bool = False


@dataclass(eq=False)
class View:
    """A tensor: memory, and the type it is seen as."""

    storage: Storage
    type: relax.TensorType

    @property
    def size(self) -> Expr:
        """Bytes."""
        size: Expr = tirx.const((tvm.DataType(str(self.type.dtype)).bits + 7) // 8, "int64")
        for dim in self.type.shape:
            size = size * dim
        return size


@dataclass(eq=False)
class CallSequence:
    """Successive bindings of a block that can become one call; ``take`` collects them.

    Attributes:
        bindings: what was taken.
        calls: kernels and their arguments, in order.
    """

    bindings: list[relax.VarBinding] = field(default_factory=list)
    calls: list[tuple[tvm.ir.GlobalVar, list[View]]] = field(default_factory=list)
    _values: dict[int, View | list[View]] = field(default_factory=dict)  # by hash of the variable
    _outside: dict[int, View] = field(default_factory=dict)
    _offsets: dict[int, int] = field(default_factory=dict)  # of constants in the block, by identity of the storage

    def take(self, binding: relax.Binding) -> bool:
        """Add a binding if it can be part of the run."""
        if not isinstance(binding, relax.VarBinding):
            return False
        value = self._value(binding)
        if value is None:
            return False
        self._values[hash(binding.var)] = value
        self.bindings.append(binding)
        return True

    def _value(self, binding: relax.VarBinding) -> View | list[View] | None:
        expr, type_ = binding.value, binding.var.ty
        if is_op(expr, "relax.call_tir") or is_op(expr, "relax.call_tir_inplace"):
            return self._call(expr, type_)
        if is_op(expr, "relax.reshape"):
            view = self._view(expr.args[0])
            return None if view is None or not _known(type_) else View(view.storage, type_)
        if isinstance(expr, relax.TupleGetItem):
            fields = self._values.get(hash(expr.tuple_value))
            return fields[expr.index] if isinstance(fields, list) else None
        return None

    def _call(self, call: relax.Call, type_: Any) -> View | list[View] | None:
        if len(call.args) != 2 or not isinstance(call.args[1], relax.Tuple):
            return None
        types = list(type_.fields) if isinstance(type_, relax.TupleType) else [type_]
        given = [self._view(arg) for arg in call.args[1].fields]
        taken = [view for view in given if view is not None]
        if len(taken) != len(given) or not all(_known(t) for t in types):
            return None
        now = len(self.calls)
        inplace = getattr(call.attrs, "inplace_indices", [-1] * len(types))
        outputs = [
            View(Storage(None, now) if int(i) < 0 else taken[int(i)].storage, t)
            for i, t in zip(inplace, types, strict=True)
        ]
        fresh = [view for i, view in zip(inplace, outputs, strict=True) if int(i) < 0]
        for view in (*taken, *fresh):
            view.storage.last = now
            view.storage.viewed |= (
                view.storage.source is not None and view is not self._outside[hash(view.storage.source)]
            )
        self.calls.append((call.args[0], [*taken, *fresh]))
        return outputs if isinstance(type_, relax.TupleType) else outputs[0]

    def _view(self, expr: relax.Expr) -> View | None:
        value = self._values.get(hash(expr))
        if value is not None:
            return None if isinstance(value, list) else value
        if not isinstance(expr, (relax.Var, tvm.ir.GenericConst)) or not _known(expr.ty):
            return None
        return self._outside.setdefault(hash(expr), View(Storage(expr), expr.ty))

    def keep_constants(self, weights: Weights) -> None:
        """Add the constants that the calls read to ``weights``."""
        for view in self._outside.values():
            value = constant(view.storage.source)
            if value is not None:
                self._offsets[id(view.storage)] = weights.offset(value)

    def merged(
        self,
        builder: relax.BlockBuilder,
        name: str,
        block: relax.Expr | None,
        needed: Callable[[relax.Var], bool],
        dataflow: bool,
    ) -> list[relax.Binding]:
        """The bindings that take the place of the run.

        Args:
            builder: takes the PrimFunc.
            name: of the PrimFunc.
            block: the constants of ``keep_constants``, as a constant.
            needed: whether a variable of the run is read outside of it.
            dataflow: whether the block is a dataflow block.
        """
        variable = relax.DataflowVar if dataflow else relax.Var
        results: dict[int, tuple[Storage, View]] = {}  # storages that leave the run, by identity
        leaving = [b.var for b in self.bindings if needed(b.var)]
        for var in leaving:
            value = self._values[hash(var)]
            for view in value if isinstance(value, list) else [value]:
                if view.storage.source is None:
                    results.setdefault(id(view.storage), (view.storage, view))
        outputs = [view for _, view in results.values()]
        arena, inside = self._arena(set(results))
        func, arguments = self._host_function(outputs, arena, inside, block)
        types = [view.type for view in outputs]
        if inside:
            types.append(relax.TensorType([arena.size], "uint8"))
        call = relax.call_tir(builder.add_func(func, name), arguments, types)
        returned = variable(name, relax.TupleType(types) if len(types) > 1 else types[0])
        bindings = [relax.VarBinding(returned, call)]

        def leave(view: View, var: relax.Var | None) -> relax.Var:
            """Bind a view outside, to ``var`` or a new variable."""
            var = variable("part", view.type) if var is None else var
            if view.storage.source is not None:
                whole, source = self._outside[hash(view.storage.source)], view.storage.source
            else:
                place = list(results).index(id(view.storage))
                whole = outputs[place]
                source = relax.TupleGetItem(returned, place) if len(types) > 1 else returned
            if view is whole or _same_shape(view.type, whole.type):
                value = source
            else:
                if isinstance(source, relax.TupleGetItem):
                    part = variable("part", whole.type)
                    bindings.append(relax.VarBinding(part, source))
                    source = part
                value = relax.op.reshape(source, relax.ShapeExpr(list(view.type.shape)))
            bindings.append(relax.VarBinding(var, value))
            return var

        for var in leaving:
            value = self._values[hash(var)]
            if isinstance(value, list):
                bindings.append(relax.VarBinding(var, relax.Tuple([leave(view, None) for view in value])))
            else:
                leave(value, var)
        return bindings

    def _arena(self, leaving: set[int]) -> tuple[Arena, dict[int, Expr]]:
        """Memory for what stays inside; offsets by identity of the storage."""
        written: dict[int, tuple[Storage, View]] = {}
        for _, views in self.calls:
            for view in views:
                if view.storage.source is None and id(view.storage) not in leaving:
                    written.setdefault(id(view.storage), (view.storage, view))
        requests = [Request(view.size, storage.first, storage.last) for storage, view in written.values()]
        arena = plan_arena(requests)
        return arena, dict(zip(written, arena.offsets, strict=True))

    def _host_function(
        self, outputs: list[View], arena: Arena, inside: dict[int, Expr], block: relax.Expr | None
    ) -> tuple[tirx.PrimFunc, list[relax.Expr]]:
        """The PrimFunc and what to call it with."""
        given: dict[int, Expr] = {}  # a tensor outside that calls take as it is
        pointers: dict[int, Expr] = {}
        inputs: list[Any] = []
        arguments: list[relax.Expr] = []
        attributes: dict[str, int] = {}
        for view in self._outside.values():
            key = id(view.storage)
            if key in self._offsets:
                continue
            if view.storage.viewed:
                inputs.append(_buffer(view.type, f"x{len(inputs)}"))
                pointers[key] = tirx.op.buffer_data(inputs[-1])
            else:
                inputs.append(tirx.Var(f"x{len(inputs)}", "handle"))
                given[key] = inputs[-1]
            arguments.append(view.storage.source)
        if block is not None and self._offsets:
            weights = _buffer(block.ty, "weights")
            attributes[ATTRIBUTE] = len(inputs)
            inputs.append(weights)
            arguments.append(block)
            pointers |= {key: tirx.address_of(weights[offset]) for key, offset in self._offsets.items()}
        results = [_buffer(view.type, f"y{place}") for place, view in enumerate(outputs)]
        pointers |= {
            id(view.storage): tirx.op.buffer_data(buffer) for view, buffer in zip(outputs, results, strict=True)
        }
        if inside:
            memory = tirx.decl_buffer((arena.size,), "uint8", name="arena")
            results.append(memory)
            attributes[ARENA] = len(results) - 1
            pointers |= {key: tirx.address_of(memory[offset]) for key, offset in inside.items()}

        def argument(view: View) -> Expr:
            key = id(view.storage)
            if key in given:
                return given[key]
            return packed_tensor(pointers[key], list(view.type.shape), str(view.type.dtype))

        body = [packed_call(gv.name_hint, [argument(view) for view in views]) for gv, views in self.calls]
        sizes = _symbols([dim for _, views in self.calls for view in views for dim in view.type.shape])
        func = tirx.PrimFunc([*inputs, *sizes, *results], tirx.SeqStmt(body))
        return func.with_attrs({"tirx.noalias": True, "tirx.is_scheduled": True, **attributes}), [*arguments, *sizes]


def _known(type_: Any) -> bool:
    """Whether a type is that of a tensor with all dimensions and the element type given."""
    return isinstance(type_, relax.TensorType) and isinstance(type_.shape, relax.ShapeExpr) and bool(str(type_.dtype))


def _same_shape(a: relax.TensorType, b: relax.TensorType) -> bool:
    return tvm_ffi.structural_equal(a.shape, b.shape)


def _buffer(type_: relax.TensorType, name: str) -> Any:
    return tirx.decl_buffer(list(type_.shape), str(type_.dtype), name=name)


def _symbols(dims: list[Expr]) -> list[tirx.Var]:
    found = {hash(var): var for dim in dims for var in undefined_vars(dim)}
    return list(found.values())
