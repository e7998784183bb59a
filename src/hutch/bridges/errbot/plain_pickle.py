"""Read a pickle made only of types that the default codec stores, without running any of its code.

`pickle.Unpickler` with a list of allowed classes is not enough: BUILD sets attributes of any object it is given,
classes included; ``set(range(10**12))`` and ``Fraction("1e99999999")`` are calls of allowed classes; a memo index of
ten digits allocates gigabytes; and tuples nested thirty deep that each hold one tuple twice take a minute to hash or to
encode. So the opcodes are interpreted here. A class is a name, not an object; each call of one is a function of
`pickle_constructors`, which validates its arguments; and time and memory are bounded by the length of the pickle.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable
from typing import Any, Final
from uuid import UUID

from .pickle_constructors import CONSTRUCTORS, Global, NotPlainError, make_frozenset, make_safe_uuid, make_set

# A repeated text takes two bytes in the pickle, but its full length as a value each time.
_LARGEST_FACTOR: Final = 100
_FREE_UNITS: Final = 1 << 20
# No codec of hutch nests deeper.
_DEEPEST: Final = 300


def read_plain(pickled: bytes) -> Any:
    """Return the value of `pickled`.

    Raises NotPlainError, ValueError where it is truncated, and what the constructors of the types raise.
    """
    return _Machine(len(pickled)).run(pickled)


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, length: int) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        # The total size and nesting depth of each immutable object, by id; and the objects, which keeps the ids valid.
        self._made: dict[int, tuple[int, int]] = {}
        self._alive: list[object] = []
        self._most = _FREE_UNITS + _LARGEST_FACTOR * length
        self._left = self._most

    def run(self, pickled: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(pickled):
            name = opcode.name
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name == "STOP":
                break
            elif (carry_out := _OPCODES.get(name)) is not None:
                carry_out(self, argument)
            elif name not in _IGNORED:
                raise NotPlainError(name)
        value = self._stack.pop()
        if self._expanded(value, {}, set(), 0) > self._most:
            raise NotPlainError("too large")
        return value

    # --- opcodes ---

    def mark(self, _: object) -> None:
        self._marks.append(len(self._stack))

    def _after_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def pop(self, _: object) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def pop_mark(self, _: object) -> None:
        self._after_mark()

    def dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def old_text(self, argument: str) -> None:
        if not argument.isascii():
            raise NotPlainError("bytes of Python 2")
        self._stack.append(argument)

    def tuple_of_mark(self, _: object) -> None:
        items = tuple(self._after_mark())
        self._push_made(items, items)

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise NotPlainError("empty stack")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._push_made(items, items)

    def list_of_mark(self, _: object) -> None:
        self._stack.append(self._after_mark())

    def append(self, _: object) -> None:
        value = self._stack.pop()
        self._top(list).append(value)

    def appends(self, _: object) -> None:
        values = self._after_mark()
        self._top(list).extend(values)

    def dict_of_mark(self, _: object) -> None:
        items = self._after_mark()
        self._stack.append({})
        self._set_items(items)

    def set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def set_items(self, _: object) -> None:
        self._set_items(self._after_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self._hashable(key)] = value

    def add_items(self, _: object) -> None:
        values = self._after_mark()
        self._top(set).update(map(self._hashable, values))

    def frozenset_of_mark(self, _: object) -> None:
        items = frozenset(map(self._hashable, self._after_mark()))
        self._push_made(items, tuple(items))

    def global_(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Global(module, name))

    def stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise NotPlainError("STACK_GLOBAL")
        self._stack.append(Global(module, name))

    def reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        make = CONSTRUCTORS.get(function.name) if type(function) is Global else None
        if make is None or type(arguments) is not tuple:
            raise NotPlainError("REDUCE")
        if make in (make_set, make_frozenset):
            arguments = tuple(list(map(self._hashable, part)) if type(part) is list else part for part in arguments)
        made = make(*arguments)
        if type(made) is set or type(made) is frozenset:
            arguments = tuple(made)
        self._push_made(made, arguments)

    def new_object(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Global or function.name != "uuid.UUID" or arguments != ():
            raise NotPlainError("NEWOBJ")
        self._stack.append(UUID.__new__(UUID))

    def build(self, _: object) -> None:
        state = self._stack.pop()
        uuid = self._top(UUID)
        if type(state) is not dict or not {"int"} <= set(state) <= {"int", "is_safe"} or hasattr(uuid, "int"):
            raise NotPlainError("BUILD")
        if type(state["int"]) is not int or not 0 <= state["int"] < 1 << 128:
            raise NotPlainError("BUILD")
        object.__setattr__(uuid, "int", state["int"])
        object.__setattr__(uuid, "is_safe", make_safe_uuid(state.get("is_safe")))

    # --- bounds ---

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise NotPlainError(f"no {kind.__name__}")
        return self._stack[-1]

    def _push_made(self, value: Any, parts: tuple[Any, ...]) -> None:
        """Push `value`, made of `parts`; raise NotPlainError if it exceeds the size or depth that hutch stores."""
        units = 1 + sum(map(self._units_of, parts))
        depth = 1 + max((self._made.get(id(part), (0, 0))[1] for part in parts), default=0)
        if units > self._most or depth > _DEEPEST:
            raise NotPlainError("too large, or nested too deep")
        self._made[id(value)] = units, depth
        self._alive.append(value)
        self._stack.append(value)

    def _units_of(self, value: Any) -> int:
        """Return the cost of hashing or encoding an immutable `value`, in bytes."""
        kind = type(value)
        if kind is str or kind is bytes or kind is bytearray:
            return 1 + len(value)
        if kind is int:
            return 1 + int(value.bit_length()) // 8
        return self._made.get(id(value), (1, 0))[0]

    def _hashable(self, value: Any) -> Hashable:
        """Return `value`, which is about to be hashed, and charge the cost against the bound."""
        kind = type(value)
        # Text and bytes cache their hashes.
        self._left -= 1 if kind is str or kind is bytes else self._units_of(value)
        if self._left < 0:
            raise NotPlainError("too large")
        return value  # type: ignore[no-any-return]

    def _expanded(self, value: Any, known: dict[int, int], around: set[int], depth: int) -> int:
        """Return the size of `value` with each shared part counted wherever it is used."""
        kind = type(value)
        if kind not in _CONTAINERS:
            return self._units_of(value)
        place = id(value)
        if place in known:
            return known[place]
        if place in around or depth > _DEEPEST:
            raise NotPlainError("refers to itself, or too deep")
        around.add(place)
        parts = [*value, *value.values()] if kind is dict else value
        units = 1 + sum(self._expanded(part, known, around, depth + 1) for part in parts)
        around.discard(place)
        known[place] = units
        return units


_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})


_VALUES: Final = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_IGNORED: Final = frozenset({"PROTO", "FRAME"})
_OPCODES: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "STRING": _Machine.old_text,
    "BINSTRING": _Machine.old_text,
    "SHORT_BINSTRING": _Machine.old_text,
    "TUPLE": _Machine.tuple_of_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.list_of_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "DICT": _Machine.dict_of_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozenset_of_mark,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
}
