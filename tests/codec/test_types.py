"""Test containers, addresses and registered classes in the default codec: the same type, or a way out that works."""

from __future__ import annotations

import ast
import datetime as dt
import enum
import importlib
import ipaddress
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import pytest

import hutch
from hutch.codec import registry
from hutch.codec.select import frame_codec_of
from hutch.codec.tagged_json import from_json, to_json

CODEC = frame_codec_of(None)
# Not named to type checkers: the environment for them need not have it.
msgspec: Any = importlib.import_module("msgspec")


def copies(value: Any) -> list[Any]:
    """Return `value` as read from a frame and from tagged JSON, alone and within other values."""
    found = []
    places: list[tuple[Any, Callable[[Any], Any]]] = [
        (value, lambda v: v),
        ([1, {"a": (value,)}], lambda v: v[1]["a"][0]),
        (OrderedDict(x=value), lambda v: v["x"]),
        ({1: value}, lambda v: v[1]),
        (["\ud800", value], lambda v: v[1]),
    ]
    for placed, take in places:
        found.append(take(CODEC.decode(CODEC.encode(placed))))
        found.append(take(from_json(to_json(placed))))
    return found


def refusal(value: Any) -> str:
    with pytest.raises(hutch.ValueTypeError) as raised:
        CODEC.encode(value)
    return str(raised.value)


# --- containers and addresses ---

CONTAINERS: list[Any] = [
    *(OrderedDict(), OrderedDict(b=1, a=OrderedDict(c=2)), OrderedDict({(1,): {2}}), OrderedDict({"$set": 1})),
    *(Counter("abca"), Counter({"a": 0, "b": -1}), Counter(), Counter({(1, 2): 3})),
    *(deque(), deque([1, 2], 2), deque(maxlen=0), deque([deque([b"x"])], 9), deque(range(1_000), 2_000)),
    *(
        defaultdict(None),
        defaultdict(list, a=[1]),
        defaultdict(dict, {1: {2: 3}}),
        defaultdict(Counter, a=Counter("b")),
    ),
    *(ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("fe80::1%eth0"), ipaddress.ip_address("::ffff:1.2.3.4")),
    *(ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("::/0"), ipaddress.ip_network("fe80::%eth0/64")),
    *(ipaddress.ip_interface("192.0.2.1/24"), ipaddress.ip_interface("fe80::1%eth0/64")),
]


@pytest.mark.parametrize("value", CONTAINERS, ids=repr)
def test_containers_and_addresses_keep_value_type_and_parts(value: Any) -> None:
    for got in copies(value):
        assert type(got) is type(value)
        assert got == value
        assert repr(got) == repr(value)
        if isinstance(value, defaultdict):
            assert got.default_factory is value.default_factory
        if isinstance(value, deque):
            assert got.maxlen == value.maxlen


@pytest.mark.parametrize("shell", [lambda v: OrderedDict(a=v), lambda v: deque([v]), lambda v: defaultdict(list, a=v)])
@pytest.mark.usefixtures("unmeasured")  # on 3.11 a traced function takes more of the stack
def test_containers_nest_as_deep_as_lists(shell: Any) -> None:
    """Also for a caller that has used a third of Python's stack."""
    value: Any = 1
    for _ in range(200):
        value = shell(value)

    def use() -> bool:
        too_deep = refusal(shell(shell([["\ud800", value]])))
        return "nested more than 200 levels deep" in too_deep and type(CODEC.decode(CODEC.encode(value))) is type(value)

    assert _at_depth(330, use)


def _at_depth(frames: int, act: Callable[[], bool]) -> bool:
    """Return ``act()``, called at this depth of a new stack of 1,000 frames, Python's usual limit."""

    def descend(left: int) -> bool:
        return descend(left - 1) if left else act()

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000)
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(descend, frames).result()
    finally:
        sys.setrecursionlimit(limit)


def test_a_refused_part_of_a_container_is_located() -> None:
    part = bytearray(b"x")
    cases: list[tuple[Any, str]] = [
        (OrderedDict(a=[part]), "the value['a'][0] is a bytearray"),
        ([Counter({"a": part})], "the value[0]['a'] is a bytearray"),
        (deque([1, part], 5), "the value[1] is a bytearray"),
        (defaultdict(list, {1: part}), "the value[1] is a bytearray"),
        (OrderedDict({(1, frozenset({object})): 1}), "a key of the value[1][0] is a type"),
    ]
    for value, where in cases:
        assert refusal(value).startswith(where)


def test_what_a_container_would_lose_is_refused() -> None:
    factories: list[Any] = [lambda: 0, defaultdict, Decimal]
    for factory in factories:
        value: Any = defaultdict(factory)
        message = refusal({"a": value})
        assert message.startswith("the value['a'] is a defaultdict whose default_factory is not a built-in type")
        assert "Convert it with dict()" in message
        assert copies(dict(value)) == [{}] * 10
        with pytest.raises(hutch.ValueTypeError, match="default_factory"):
            to_json(value)
    for kind in (OrderedDict, Counter):
        extended: Any = kind()
        extended.extra = "secret"
        message = refusal([extended])
        assert message.startswith("the value[0] is a")
        assert "attributes beside its items" in message
        assert "secret" not in message
        with pytest.raises(hutch.ValueTypeError, match="attributes beside its items"):
            to_json(extended)


# --- subclasses, namedtuples, structs ---


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "its own text"


class Whole(int):
    pass


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    ADA = "ada"


class Items(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("a method of the class ran")

    def __init__(self, *_: Any) -> None:
        raise AssertionError("__init__ ran")


class Pair(NamedTuple):
    left: int
    right: Any = 5


class Attributes(dict[str, Any]):
    __getattr__ = dict.__getitem__


Plane = namedtuple("Plane", "x y", rename=False)

SUBCLASSES: list[Any] = [
    *(Text("é\ud800"), Whole(2**70), Whole(-1), Level.LOW, Name.ADA, Pair(1), Pair(1, [2]), Plane(1, (2,))),
    *(Attributes(a=1), Attributes(), type("Od", (OrderedDict,), {})(b=1, a=2), type("Co", (Counter,), {})("aa")),
    *(type("Dd", (defaultdict,), {})(list, a=[1]), type("Dq", (deque,), {})([1, 2], 2), type("St", (set,), {})({1})),
    *(type("Fz", (frozenset,), {})({1}), type("Tu", (tuple,), {})((1, 2)), type("Fl", (float,), {})("-0.0")),
    *(type("By", (bytes,), {})(b"a\0"), type("Cx", (complex,), {})(1 + 2j), type("De", (Decimal,), {})("1.10")),
    *(type("Fr", (Fraction,), {})(1, 3), type("Uu", (UUID,), {})(int=5), type("Da", (dt.date,), {})(2024, 2, 29)),
    type("Dt", (dt.datetime,), {})(2024, 2, 29, 1, 2, 3, 4, tzinfo=dt.UTC, fold=1),
    *(type("Ti", (dt.time,), {})(1, 2, fold=1), type("Td", (dt.timedelta,), {})(-1, 5)),
    *(type("Ip", (ipaddress.IPv4Address,), {})("10.0.0.1"), type("Nw", (ipaddress.IPv6Network,), {})("::/8")),
]


@pytest.mark.parametrize("value", SUBCLASSES, ids=lambda v: type(v).__name__)
def test_subclasses_of_built_in_types_come_back_once_registered(value: Any) -> None:
    advice = next(line for line in refusal({"a": value}).split(", ") if "register_type" in line)
    kind = type(value)
    # The call in the error, made.
    eval(advice[advice.index("hutch.") : advice.index(")") + 1], {"hutch": hutch, kind.__qualname__: kind})
    for got in copies(value):
        assert type(got) is kind
        assert got == value
        assert repr(got) == repr(value)
    with pytest.raises(hutch.CorruptValueError, match="did not take back"):
        registry.decode(f"{kind.__module__}.{kind.__qualname__}", object())


def test_no_method_of_a_subclass_runs() -> None:
    hutch.register_type(Items)
    value = Items.__new__(Items)
    list.extend(value, [1, [2]])
    for got in copies(value):
        assert type(got) is Items
        assert [list.__getitem__(got, index) for index in range(2)] == [1, [2]]


def test_attributes_beside_the_built_in_value_are_refused_and_the_way_out_keeps_them() -> None:
    class Tagged(str):
        tag = ""

    class Slotted(dict[str, int]):
        __slots__ = ("tag",)

    hutch.register_type(Tagged)
    hutch.register_type(Slotted, name="slotted")
    tagged: Any = Tagged("a")
    slotted: Any = Slotted(a=1)
    assert [type(got) for got in copies(tagged)] == [Tagged] * 10
    tagged.tag = slotted.tag = "secret"
    for value in (tagged, slotted):
        message = refusal([value])
        assert "attributes beside its built-in value" in message
        assert "encode= and decode=" in message
        assert "secret" not in message

    def decode(state: Any) -> Tagged:
        made = Tagged(state[0])
        made.tag = state[1]
        return made

    hutch.register_type(Tagged, encode=lambda value: [str(value), value.tag], decode=decode)
    assert [got.tag for got in copies(tagged)] == ["secret"] * 10


def test_a_namedtuple_that_gained_a_field_reads_its_default() -> None:
    hutch.register_type(Plane, name="plane")
    data = CODEC.encode(Plane(1, 2))
    del registry._by_name["plane"]
    grown = namedtuple("grown", "y z x", defaults=[7, 8])
    hutch.register_type(grown, name="plane")
    assert CODEC.decode(data) == grown(2, 7, 1)
    del registry._by_name["plane"]
    hutch.register_type(namedtuple("other", "needed"), name="plane")
    with pytest.raises(hutch.CorruptValueError, match="did not take back"):
        CODEC.decode(data)


def test_classes_with_more_than_hutch_can_see_have_no_recipe() -> None:
    import dataclasses
    import time

    @dataclasses.dataclass
    class Both(dict[str, int]):
        a: int = 1

    for kind in (Both, type("Plain", (), {}), time.struct_time, dt.timezone, dt.tzinfo):
        with pytest.raises(hutch.ValueTypeError, match="no recipe for this kind of class; pass encode= and decode="):
            hutch.register_type(kind)
    assert "hutch.register_type(struct_time, encode=..., decode=...)" in refusal(time.gmtime())
    assert "Convert it with tuple()" in refusal(time.gmtime())


def test_structs_of_msgspec_come_back_as_they_were() -> None:
    point = msgspec.defstruct("Point", [("x", int), ("y", list, msgspec.field(default_factory=list))], frozen=True)
    twice = msgspec.defstruct(
        "Doubled", [("n", int)], namespace={"__post_init__": lambda self: setattr(self, "n", self.n * 2)}
    )
    for kind in (point, twice):
        hutch.register_type(kind)
    doubled = twice(2)
    assert doubled.n == 4
    for value in (point(1), point(1, [(2,)]), doubled):
        for got in copies(value):
            assert type(got) is type(value)
            assert got == value
    assert refusal(point(1, [object()])).startswith("the value (a Point)['y'][0] is an object")


# --- the decorator ---


def test_register_type_is_a_decorator_with_and_without_arguments() -> None:
    @hutch.register_type
    class Bare(NamedTuple):
        x: int

    @hutch.register_type()
    class Called(NamedTuple):
        x: int

    @hutch.register_type(name="app.Named")
    class Named(NamedTuple):
        x: int

    @hutch.register_type(name="app.Own", encode=vars, decode=lambda state: Own(**state))
    class Own:
        def __init__(self, x: int) -> None:
            self.x = x

        def __eq__(self, other: object) -> bool:
            return type(other) is Own and self.x == other.x

        __hash__ = None  # type: ignore[assignment]

    for value in (Bare(1), Called(1), Named(1), Own(1)):
        assert copies(value) == [value] * 10
        assert {type(got) for got in copies(value)} == {type(value)}
    assert b"app.Named" in CODEC.encode(Named(1))
    assert Bare(x=1).x == 1
    assert hutch.register_type(Bare) is Bare
    assert hutch.register_type(cls=Bare) is Bare


MISUSES: list[tuple[str, str, str]] = [
    ("hutch.register_type(3)", "a class was expected, not an int", "hutch.register_type(User)"),
    ("hutch.register_type(None)", "a class was expected, not a NoneType", "hutch.register_type(User)"),
    ("hutch.register_type(User())", "a class was expected, not a User", "hutch.register_type(User)"),
    ("hutch.register_type(lambda: 1)", "a class was expected, not a function", "hutch.register_type(User)"),
    ("hutch.register_type('app.User')(User)", "not a str", "hutch.register_type(name='app.User')(User)"),
    ("hutch.register_type(list[int])", "a class was expected, not a GenericAlias", "hutch.register_type(User)"),
    ("hutch.register_type()(3)", "a class was expected", "hutch.register_type(User)"),
    ("hutch.register_type(User, name=3)", "name= is an int", "hutch.register_type(User, name='app.User')"),
    ("hutch.register_type(User, name='')", "name= is empty", "hutch.register_type(User, name='app.User')"),
    ("hutch.register_type(name=User)", "name= is a type", "hutch.register_type(User, name='app.User')"),
    (
        "hutch.register_type(User, encode=1, decode=2)",
        "encode= is an int: a function was expected",
        "hutch.register_type(User, encode=vars, decode=lambda state: User(**state))",
    ),
    (
        "hutch.register_type(Plain)",
        "encode=vars, decode=lambda state: Plain(**state)",
        "hutch.register_type(Plain, encode=vars, decode=lambda state: Plain(**state))",
    ),
    ("hutch.register_type(encode=vars)", "both encode= and decode=", "hutch.register_type(User)"),
    ("hutch.register_type(bool)", "the codec encodes this type itself", "CODEC.encode(True)"),
    ("hutch.register_type(OrderedDict)", "encodes this type itself. Store the value", "CODEC.encode(OrderedDict())"),
    ("hutch.register_type(bytearray)", "Convert the value with bytes()", "CODEC.encode(bytes(bytearray()))"),
]


@pytest.mark.parametrize(("made", "says", "advice"), MISUSES, ids=[made for made, _, _ in MISUSES])
def test_a_misuse_of_register_type_is_an_error_whose_advice_works(made: str, says: str, advice: str) -> None:
    names: dict[str, Any] = {
        "hutch": hutch,
        "User": type("User", (str,), {}),
        "Plain": type("Plain", (), {}),
        "CODEC": CODEC,
        "OrderedDict": OrderedDict,
    }
    before = dict(registry._by_name)
    with pytest.raises(hutch.ValueTypeError) as raised:
        eval(made, names)
    assert says in str(raised.value)
    assert registry._by_name == before
    eval(advice, names)


def test_an_instance_of_a_class_that_was_registered_again_is_refused() -> None:
    def make() -> Any:
        return type("Again", (str,), {"__module__": "reloaded"})

    old, new = make(), make()
    assert hutch.register_type(old) is hutch.register_type(old) is old
    assert type(copies(old("a"))[0]) is old
    assert hutch.register_type(new) is new
    assert "Make the value with the class that was registered last" in refusal([old("a")])
    assert {type(got) for got in copies(new("a"))} == {new}
    hutch.register_type(old)
    assert {type(got) for got in copies(old("a"))} == {old}


def test_an_unreadable_value_names_what_is_missing_and_the_line_that_registers_it() -> None:
    for cls, name in ((Pair, None), (Pair, "app.models.Pair"), (Pair, "Pair"), (Plane, "app.Plane")):
        hutch.register_type(cls, name=name)
        stored = name or f"{__name__}.Pair"
        data, text = CODEC.encode([cls(1, 2)]), to_json([cls(1, 2)])
        registry._by_type.clear()
        registry._by_name.clear()
        reads: list[Callable[[], Any]] = [partial(CODEC.decode, data), partial(from_json, text)]
        for read in reads:
            registry._by_name.clear()
            with pytest.raises(hutch.CorruptValueError) as raised:
                read()
            message = str(raised.value)
            assert f"'{stored}', which is not registered in this process" in message
            if "." in stored:
                assert f"Import {stored.rpartition('.')[0]}" in message
            call = message[message.index("hutch.register_type(") : message.index(")") + 1]
            assert ast.parse(call)
            eval(call, {"hutch": hutch, "Pair": Pair, "Plane": Plane})
            assert read() == [cls(1, 2)]


@pytest.mark.parametrize("name", ["", "a" * 10_000, "x\n\x1b[2J", "app.1x", "é", "a..b", "'", "import os;"])
def test_a_name_that_anyone_may_have_written_is_shown_without_harm(name: str) -> None:
    with pytest.raises(hutch.CorruptValueError) as raised:
        registry.decode(name, 1)
    assert len(str(raised.value)) < 600
    assert str(raised.value).isprintable()


def test_a_zone_that_is_no_zone_of_python_names_a_way_that_works() -> None:
    class Odd(dt.tzinfo):
        def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
            return dt.timedelta(hours=1)

        def dst(self, _: dt.datetime | None) -> None:
            return None

        def tzname(self, _: dt.datetime | None) -> str:
            return "odd"

    value = dt.datetime(2024, 1, 1, tzinfo=Odd())
    message = refusal([value])
    assert "the value[0] is a datetime with a tzinfo Odd" in message
    assert ".astimezone(datetime.UTC)" in message
    assert copies(value.astimezone(dt.UTC)) == [value] * 10
