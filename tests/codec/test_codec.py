"""Test the codecs: values come back equal and of the same type; others are refused; damage is noticed."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import math
import pickle
import random
import sys
import traceback
import types
import zlib
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar
from uuid import UUID

import numpy
import ormsgpack
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hutch
from hutch.codec import frame, msgpack, registry
from hutch.codec.frame import FrameCodec
from hutch.codec.json import JsonCodec
from hutch.codec.msgpack import MsgpackCodec
from hutch.codec.pickle import PickleCodec
from hutch.codec.pickled import Pickled
from hutch.codec.select import frame_codec_of, make_codec

KEY = b"a key of some length"
TYPED, JSON, PICKLE, SIGNED = map(frame_codec_of, (MsgpackCodec(), JsonCodec(), PickleCodec(), PickleCodec(KEY)))
CODECS: dict[str, FrameCodec] = {"msgpack": TYPED, "json": JSON, "pickle": PICKLE, "signed pickle": SIGNED}
each_codec = pytest.mark.parametrize("name", CODECS)


def identical(a: Any, b: Any) -> bool:
    """Return whether both are equal in value and type at every level.

    NaN equals NaN, 0.0 is not -0.0, dict order counts.
    """
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (a != a and b != b) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, complex):
        return identical(a.real, b.real) and identical(a.imag, b.imag)
    if isinstance(a, Decimal):
        return bool(a.as_tuple() == b.as_tuple())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(identical, a.items(), b.items()))
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(identical(x, y) for y in b) for x in a)
    if isinstance(a, datetime | time):
        return bool(a == b and a.fold == b.fold and identical(a.tzinfo, b.tzinfo))
    if isinstance(a, timezone):
        return bool(a.utcoffset(None) == b.utcoffset(None) and a.tzname(None) == b.tzname(None))
    return bool(a == b)


def made(name: str, options: dict[str, Any]) -> FrameCodec:
    return frame_codec_of(make_codec(name, options))


def round_trip(value: Any, codec: FrameCodec = TYPED) -> Any:
    return codec.decode(codec.encode(value))


def refusal(value: Any, codec: FrameCodec = TYPED) -> str:
    with pytest.raises(hutch.ValueTypeError) as raised:
        codec.encode(value)
    return str(raised.value)


def nested(shell: Callable[[Any], Any], depth: int, core: Any = 1) -> Any:
    for _ in range(depth):
        core = shell(core)
    return core


# --- round trips ---

any_text = st.text(st.characters(), max_size=20)  # lone surrogates included
fixed_zones = st.one_of(
    st.builds(timezone, st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))),
    st.builds(
        timezone,
        st.sampled_from([timedelta(0), timedelta(hours=-3), timedelta(hours=5, minutes=45)]),
        st.sampled_from(["GMT", "UTC", "", "local", "UTC+01:00", "é"]),
    ),
    st.just(UTC),
)
folds = st.sampled_from([0, 1])
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.sampled_from([s * 2**n + d for s in (1, -1) for n in (7, 8, 15, 16, 31, 32, 63, 64) for d in (-1, 0, 1)]),
    st.floats(),
    any_text,
    st.binary(max_size=40),
    st.builds(lambda v, fold, zone: v.replace(fold=fold, tzinfo=zone), st.datetimes(), folds, st.none() | fixed_zones),
    st.builds(lambda v, fold, zone: v.replace(fold=fold, tzinfo=zone), st.times(), folds, st.none() | fixed_zones),
    st.dates(),
    st.timedeltas(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.uuids(),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    st.builds(PurePosixPath, any_text.filter(lambda text: "\0" not in text)),
    st.builds(PureWindowsPath, any_text.filter(lambda text: "\0" not in text)),
    st.builds(Path, st.text("ab/._-é", max_size=10)),
)
# A signalling NaN cannot be hashed.
hashable_atoms = atoms.filter(lambda atom: not (isinstance(atom, Decimal) and atom.is_snan()))
hashables = st.recursive(
    hashable_atoms,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(st.text(max_size=8), inner, max_size=5),
        st.dictionaries(hashables, inner, max_size=5),
        st.sets(hashables, max_size=5),
        st.frozensets(hashables, max_size=5),
    ),
    max_leaves=25,
)


@settings(max_examples=500, deadline=None)
@given(values)
@example(Decimal("sNaN"))
@example({"\ud800": {("\udfff",): [b"\xc4"]}, "plain": 1})
@example(datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "GMT")))
@example("\xc4\xc5\xc6" * 10)
@example([0xC4, 0xC5, 0xC6, 196.0])
def test_any_value_comes_back_equal_and_of_identical_type(value: Any) -> None:
    assert identical(round_trip(value), value)


@settings(max_examples=200, deadline=None)
@given(values)
def test_pickle_signed_or_not_gives_back_what_the_default_codec_takes(value: Any) -> None:
    assert identical(round_trip(value, PICKLE), value)
    assert identical(round_trip(value, SIGNED), value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=25,
)


@pytest.mark.parametrize("size", [0, 255, 256, 65_535, 65_536, 65_537, 1 << 20])
@pytest.mark.parametrize("seed", [0, 0xDEADBEEF])
def test_bytes_of_any_size_have_the_frame_that_the_format_says(size: int, seed: int) -> None:
    value = random.Random(size).randbytes(size)
    codec = frame_codec_of(MsgpackCodec())
    frame = codec.encode(value, seed)
    body = b"\x92" + ormsgpack.packb(value) + b"\xce"
    assert frame == body + zlib.crc32(body, seed).to_bytes(4, "little")
    assert codec.encode_many([value, 1, value], [seed, 1, 2]) == [frame, codec.encode(1, 1), codec.encode(value, 2)]
    assert codec.decode(frame, seed) == value


@settings(max_examples=200, deadline=None)
@given(st.lists(values, max_size=150))
def test_a_batch_has_the_frames_of_its_values(batch: list[Any]) -> None:
    crcs = list(range(len(batch)))
    frames = TYPED.encode_many(batch, crcs)
    assert frames == list(map(TYPED.encode, batch, crcs))
    assert identical(TYPED.decode_many(frames, crcs), batch)


def test_a_batch_may_contain_what_separates_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is one that a separator could be found in, if its random bytes were known."""
    monkeypatch.setattr("os.urandom", lambda size: b"a" * size)
    start, placeholder, between = msgpack._new_separator()
    batch = [1, [placeholder, start], between, [between], "text", {"a": [placeholder, start, placeholder]}]
    crcs = list(range(len(batch)))
    for count in range(len(batch) + 1):
        assert TYPED.encode_many(batch[:count], crcs) == list(map(TYPED.encode, batch[:count], crcs))
    assert TYPED.encode_many(batch * 30, crcs * 30) == list(map(TYPED.encode, batch * 30, crcs * 30))


def test_the_first_damaged_frame_of_a_batch_is_the_one_that_fails() -> None:
    frames = TYPED.encode_many(list(range(100)), [0] * 100)
    for damaged in (b"", frames[7][:-1], b"\x92" + frames[7][2:], SIGNED.encode(7)):
        with pytest.raises(hutch.CorruptValueError) as alone:
            TYPED.decode(damaged)
        with pytest.raises(hutch.CorruptValueError) as together:
            TYPED.decode_many([*frames[:7], damaged, *frames[8:], b""], [0] * 101)
        assert str(together.value) == str(alone.value)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_json_gives_back_what_it_takes(value: Any) -> None:
    assert identical(round_trip(value, JSON), value)


@settings(max_examples=300, deadline=None)
@given(values)
def test_json_refuses_whatever_it_would_change(value: Any) -> None:
    try:
        data = JSON.encode(value)
    except hutch.ValueTypeError:
        return
    assert identical(JSON.decode(data), value)


@settings(max_examples=200, deadline=None)
@given(values)
def test_what_comes_back_is_fresh(value: Any) -> None:
    data = TYPED.encode(value)
    one, other = TYPED.decode(data), TYPED.decode(data)
    if isinstance(one, list | dict | set):
        assert one is not other
        assert one is not value


@pytest.mark.parametrize("bits", [64, 65, 1000, 14_000, 100_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_int_has_any_size(bits: int, sign: int) -> None:
    """Also where Python refuses to write the number in decimal."""
    for value in (sign * 2**bits, sign * (2**bits - 1), sign * 2**bits + 1):
        for codec in (TYPED, PICKLE):
            assert round_trip(value, codec) == value
        assert round_trip([{value: value}])[0][value] == value


def test_json_refuses_an_int_that_it_could_not_read_back() -> None:
    assert round_trip(2**10_000 - 1, JSON) == 2**10_000 - 1
    message = refusal({"a": [-(2**10_000)]}, JSON)
    assert message.startswith("the value['a'][0] is an int of more than 10,000 bits")
    assert "msgpack" in message


def test_a_nan_keeps_its_bits() -> None:
    import struct

    for bits in (b"\x7f\xf8\0\0\0\0\0\0", b"\x7f\xf8\0\0\0\0\0\1", b"\xff\xf8\0\0\0\0\0\0"):
        value = struct.unpack(">d", bits)[0]
        assert struct.pack(">d", round_trip(value)) == bits


def test_two_nans_stay_two_keys() -> None:
    value = {math.nan: 1, float("nan"): 2}
    assert [(key != key, item) for key, item in round_trip(value).items()] == [(True, 1), (True, 2)]


def test_a_named_zone_is_restored_by_its_key() -> None:
    if "Europe/Berlin" not in zoneinfo.available_timezones():
        pytest.skip("this machine has no time zone data; install tzdata")
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    for value in (datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zone), time(1, tzinfo=zone)):
        got = round_trip(value)
        assert identical(got, value)
        assert got.tzinfo is zone
        assert got.utcoffset() == value.utcoffset()


# --- refusals ---


class Text(str):
    __slots__ = ()


class Number(int):
    __slots__ = ()


class Point(namedtuple("Point", "x y")):
    __slots__ = ()


class Colour(enum.Enum):
    RED = 1
    BLUE = ("b", 2)


class Size(enum.StrEnum):
    S = "s"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Plain:
    a: int = 1


SUBCLASSES: list[Any] = [
    *(Text("a"), Number(1), Point(1, 2), Size.S),
    *(type("OD", (OrderedDict,), {})(a=1), type("DD", (defaultdict,), {})(list), type("Co", (Counter,), {})("a")),
    *(type("De", (deque,), {})(), defaultdict(lambda: 1)),
    *(type("L", (list,), {})(), type("S", (set,), {})(), type("F", (float,), {})(1), type("B", (bytes,), {})()),
    *(type("D", (date,), {})(2024, 1, 1), type("DT", (datetime,), {})(2024, 1, 1), type("U", (UUID,), {})(int=1)),
    *(type("De", (Decimal,), {})(1), type("Fr", (Fraction,), {})(1), type("C", (complex,), {})(1)),
]
OTHERS: list[Any] = [
    *(object(), object, len, lambda: None, iter(()), iter({}.items()), ..., NotImplemented, Plain(), Colour.RED),
    *(types.MappingProxyType({}), types.SimpleNamespace(), slice(1), Exception("a"), sys, Rights.READ),
    *(numpy.zeros(2), numpy.float64(1), numpy.int64(1), numpy.bool_(True), numpy.str_("a"), memoryview(b"a")),
    bytearray(b"a"),
]
PLACES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "alone": (lambda v: v, "the value is a"),
    "in a list": (lambda v: [1, v], "the value[1] is a"),
    "in a tuple": (lambda v: (1, 2, v), "the value[2] is a"),
    "in a dict": (lambda v: {"a": 1, "b": v}, "the value['b'] is a"),
    "under a number": (lambda v: {7: v}, "the value[7] is a"),
    "under another key": (lambda v: {(1, 2): v}, "the value is a"),
    "deep": (lambda v: {"a": [{"b": (v,)}]}, "the value['a'][0]['b'][0] is a"),
    "beside bytes": (lambda v: [b"x", {"a": b"y", "z": v}], "the value[1]['z'] is a"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_would_not_come_back_is_refused_with_its_type_and_place(place: str) -> None:
    put, where = PLACES[place]
    for value in SUBCLASSES + OTHERS:
        message = refusal(put(value))
        assert message.startswith(where), (value, message)
        assert type(value).__name__ in message


def test_a_refused_part_of_a_key_or_a_set_is_named() -> None:
    assert refusal({"a": {Size.S: 1}}).startswith("a key of the value['a'] is a ")
    assert refusal({(1, Text("a")): 1}).startswith("a key of the value[1] is a ")
    assert refusal([{Colour.RED}]).startswith("the value[0][0] is a ")
    assert refusal(frozenset({Point(1, 2)})).startswith("the value[0] is a ")


def test_a_refusal_names_both_ways_out() -> None:
    for value in (Plain(), Point(1, 2), Size.S):
        message = refusal([value])
        assert f"hutch.register_type({type(value).__qualname__})" in message.replace("Register", "register")
        assert "CODEC: pickle" in message
    assert "Convert it with tuple()" in refusal(Point(1, 2))
    assert "Convert it with dict()" in refusal(defaultdict(lambda: 1))
    assert "Convert it with OrderedDict()" in refusal(type("OD", (OrderedDict,), {})())
    assert "hutch.register_type(object, encode=..., decode=...)" in refusal(object())
    assert "Convert it with str()" in refusal(Size.S)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_that_can_change_are_refused_wherever_they_are(kind: Callable[[bytes], Any]) -> None:
    """The encoder would silently pack them as bytes, of any length."""
    for size in (0, 1, 255, 256, 70_000):
        part = kind(b"x" * size)
        nested = ([[{"a": ({"b": part},)}]], [b"x", part], [[0.1] * 100, {"a": [[]], "b": (part,)}])
        for value in (part, [part], {"a": part}, {1: part}, (part,), *nested):
            message = refusal(value)
            assert kind.__name__ in message
            assert "Convert it with bytes()" in message


def test_no_message_shows_a_value() -> None:
    for value in (
        {"a": ["secret", Text("secret")]},
        [Point("secret", 1)],
        {b"secret": bytearray(b"secret")},
        {("secret",): object()},
        {1: {"x": Plain("secret")}},  # type: ignore[arg-type]
    ):
        assert "secret" not in refusal(value)
        assert "secret" not in refusal(value, JSON)


def test_a_zone_that_hutch_cannot_find_again_is_refused() -> None:
    class Odd(tzinfo):
        def utcoffset(self, _: datetime | None) -> timedelta:
            return timedelta(0)

        def dst(self, _: datetime | None) -> None:
            return None

        def tzname(self, _: datetime | None) -> str:
            return "odd"

    for value in (datetime(2024, 1, 1, tzinfo=Odd()), time(1, tzinfo=Odd())):
        for where in (value, [value], {1: value}):
            message = refusal(where)
            assert f"{type(value).__name__} with a tzinfo Odd" in message
    assert refusal([datetime(2024, 1, 1, tzinfo=Odd())]).startswith("the value[0] is")
    surrogate = timezone(timedelta(hours=1), "\ud800")
    assert "datetime" in refusal([datetime(2024, 1, 1, tzinfo=surrogate)])


def test_json_names_the_place_and_the_way_out() -> None:
    cases: dict[str, Any] = {
        "the value is a tuple": (1,),
        "the value['a'][1] is a set": {"a": [0, set()]},
        "a key of the value['a'] is an int": {"a": {1: 2}},
        "the value[0] is nan": [math.nan],
        "the value is -inf": -math.inf,
        "the value['a'] holds a lone surrogate": {"a": "\ud800"},
        "a key of the value holds a lone surrogate": {"\udfff": 1},
        "the value is a Number": Number(1),
        "the value[0] is a Text": [Text("a")],
        "the value is a bytes": b"a",
        "the value is a Size": Size.S,
    }
    for start, value in cases.items():
        message = refusal(value, JSON)
        assert message.startswith(start), message
        assert "msgpack" in message


def test_pickle_refuses_what_cannot_be_pickled() -> None:
    for codec in (PICKLE, SIGNED):
        message = refusal([lambda: None], codec)
        assert message.startswith("a list that cannot be pickled: ")
        assert "lambda" in message


def test_what_a_class_says_of_a_value_when_it_is_pickled_is_in_the_cause_alone() -> None:
    class Talks:
        def __reduce__(self) -> str:
            raise ValueError("hunter2")

    for codec in (PICKLE, SIGNED):
        with pytest.raises(hutch.ValueTypeError, match=r"^a Talks that cannot be pickled: ValueError$") as error:
            codec.encode(Talks())
        assert "hunter2" in str(error.value.__cause__)


# --- depth ---


def test_two_hundred_levels_of_anything_come_back() -> None:
    shells: list[Callable[[Any], Any]] = [
        lambda v: [v],
        lambda v: (v,),
        lambda v: {"a": v},
        lambda v: {1: v},
        lambda v: frozenset({v}),
    ]
    for shell in shells:
        for core in (1, b"x", "\ud800"):
            value = nested(shell, 200, core)
            assert round_trip(value) == value
    mixed: Any = 1
    for level in range(200):
        mixed = shells[level % 4](mixed)
    assert round_trip(mixed) == mixed
    value = nested(lambda v: [v], 200)
    assert round_trip(value, JSON) == value


@pytest.mark.parametrize("name", ["msgpack", "json"])
def test_what_is_deeper_or_holds_itself_is_refused(name: str) -> None:
    looped: list[Any] = []
    looped.append(looped)
    ring: dict[str, Any] = {}
    ring["a"] = [ring]
    beside = [b"x", looped]
    for value in (
        nested(lambda v: [v], 300),
        nested(lambda v: {"a": v}, 50_000),
        looped,
        ring,
        *([beside] * (name == "msgpack")),
    ):
        message = refusal(value, CODECS[name])
        assert "nested more than 200 levels deep or refers to itself" in message
        assert len(message) < 300
    if name == "msgpack":
        tangled: list[Any] = []
        tangled.append((tangled,))
        for value in (nested(lambda v: (v,), 10_000), nested(lambda v: {1: v}, 300), tangled):
            assert "nested more than 200 levels deep" in refusal(value)
    # Freeing such a list is the interpreter's business, not the test's.
    looped.clear()
    ring.clear()


def test_pickle_refuses_what_is_too_deep_for_it() -> None:
    assert "cannot be pickled" in refusal(nested(lambda v: [v], 100_000), PICKLE)


def test_a_short_stack_is_an_error_of_hutch_and_never_another_value() -> None:
    """Called from deep in a recursion, every codec returns the right result or raises a StoreError."""
    deep_values = [nested(lambda v: [v], 200, b"x"), nested(lambda v: (v,), 200), nested(lambda v: {1: v}, 100)]
    plain = nested(lambda v: [v], 150, "x")
    work: list[tuple[FrameCodec, Any]] = [(TYPED, value) for value in deep_values] + [(JSON, plain), (PICKLE, plain)]
    frames = [codec.encode(value) for codec, value in work]

    def called_at(depth: int, act: Callable[[], Any]) -> Any:
        return called_at(depth - 1, act) if depth else act()

    used = 0
    here: types.FrameType | None = sys._getframe()
    while here is not None:
        used, here = used + 1, here.f_back
    refused = 0
    for left in (40, 100, 200, 300, 450, 700):
        depth = max(0, sys.getrecursionlimit() - used - left)
        for (codec, value), data in zip(work, frames, strict=True):
            try:
                assert called_at(depth, lambda c=codec, v=value: c.encode(v)) == data  # type: ignore[misc]
            except hutch.ValueTypeError:
                refused += 1
            try:
                got = called_at(depth, lambda c=codec, d=data: c.decode(d))  # type: ignore[misc]
            except hutch.CorruptValueError:
                refused += 1
            else:
                assert codec.encode(got) == data
    assert refused > 0


# --- registered types ---


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Computed:
    a: int
    double: int = dataclasses.field(init=False)
    made: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.double = self.a * 2
        Computed.made += 1


@dataclasses.dataclass(kw_only=True)
class Outer:
    inner: Frozen
    colours: dict[Colour, set[Rights]]
    when: datetime = datetime(2024, 1, 1)


class Model(pydantic.BaseModel):
    number: int = pydantic.Field(alias="n")
    tags: set[str] = set()
    inner: Model | None = None
    _private: int = pydantic.PrivateAttr(default=0)

    @pydantic.field_validator("number")
    @classmethod
    def double(cls, value: int) -> int:
        return value * 2


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    a: int = 1


class Root(pydantic.RootModel[list[int]]):
    pass


def register(*kinds: type) -> None:
    for kind in kinds:
        assert hutch.register_type(kind) is kind


def test_dataclasses_come_back_without_being_initialised_again() -> None:
    register(Frozen, Computed, Outer, Colour, Rights)
    computed = Computed(2)
    computed.double = 77
    made = Computed.made
    outer = Outer(inner=Frozen(1, [{2}]), colours={Colour.RED: {Rights.READ, Rights.READ | Rights.WRITE}})
    for value in (Frozen(1), Frozen(1, [Frozen(2)]), computed, outer, {outer.inner.a: [(outer,)]}, {Colour.BLUE: 1}):
        got = round_trip(value)
        assert got == value
        assert type(got) is type(value)
    assert round_trip(computed).double == 77
    assert Computed.made == made
    assert round_trip({Frozen(1, ()): 1}) == {Frozen(1, ()): 1}  # type: ignore[arg-type]  # hashable in this form


def test_a_dataclass_that_gained_a_field_reads_its_default() -> None:
    register(Frozen)
    data = TYPED.encode(Frozen(1, [2]))

    @dataclasses.dataclass
    class Grown:
        a: int
        new: int = 7
        more: list[int] = dataclasses.field(default_factory=lambda: [8])

    @dataclasses.dataclass
    class Demanding:
        a: int
        needed: int

    name = f"{Frozen.__module__}.{Frozen.__qualname__}"
    del registry._by_name[name]
    hutch.register_type(Grown, name=name)
    assert TYPED.decode(data) == Grown(1, 7, [8])
    del registry._by_name[name]
    hutch.register_type(Demanding, name=name)
    with pytest.raises(
        hutch.CorruptValueError,
        match=r"Frozen' that the class did not take back \(KeyError in recipes\.py, line \d+\)",
    ):
        TYPED.decode(data)


def test_enums_and_flags_come_back_as_the_members_they_are() -> None:
    register(Colour, Size, Rights)
    for value in (Colour.RED, Colour.BLUE, Size.S, Rights.READ, Rights.READ | Rights.WRITE, Rights(0)):
        assert round_trip(value) is value
        assert round_trip({value: [value]}) == {value: [value]}


def test_pydantic_models_come_back_as_they_were_and_unvalidated() -> None:
    register(Model, Open, Root)
    model = Model(n=1, inner=Model(n=2, tags={"a"}))
    model._private = 5
    assert model.number == 2
    got = round_trip(model)
    assert got == model
    assert (got.number, got._private, got.inner.number) == (2, 5, 4)
    assert got.model_fields_set == {"number", "inner"}
    assert got.model_dump() == model.model_dump()
    extra = Open(a=2, more=[1])  # type: ignore[call-arg]
    assert round_trip(extra) == extra
    assert round_trip(extra).more == [1]
    assert round_trip(Root([1, 2])) == Root([1, 2])


def test_a_pydantic_model_that_gained_a_field_reads_its_default() -> None:
    class Before(pydantic.BaseModel):
        a: int
        gone: int = 0

    class After(pydantic.BaseModel):
        a: int
        new: list[int] = pydantic.Field(default_factory=lambda: [7])

    class Demanding(pydantic.BaseModel):
        needed: int

    hutch.register_type(Before, name="model")
    data = TYPED.encode(Before(a=1))
    del registry._by_name["model"]
    hutch.register_type(After, name="model")
    assert TYPED.decode(data) == After.model_construct({"a"}, a=1)
    del registry._by_name["model"]
    hutch.register_type(Demanding, name="model")
    with pytest.raises(hutch.CorruptValueError, match="did not take back"):
        TYPED.decode(data)


ARRAYS: dict[str, Any] = {
    "plain": numpy.arange(6),
    "without items": numpy.zeros((0, 3)),
    "without dimensions": numpy.array(5.0),
    "columns first": numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
    "backwards": numpy.arange(10)[::-2],
    "broadcast": numpy.broadcast_to(numpy.arange(3), (2, 3)),
    "structured": numpy.array([(1, 2.0, b"x")], dtype=[("a", "<i4"), ("b", ">f8"), ("c", "S3")]),
    "structured within": numpy.zeros(2, dtype=[("a", [("b", "i4", (2, 2))])]),
    "aligned": numpy.zeros(1, dtype=numpy.dtype([("a", "i1"), ("b", "i8")], align=True)),
    "big endian": numpy.arange(3, dtype=">i8"),
    "dates": numpy.array(["2020-01-01", "NaT"], "M8[D]"),
    "text": numpy.array(["a", "bcé"]),
    "bytes": numpy.array([b"a", b""]),
    "bools": numpy.array([[True], [False]]),
    "complex": numpy.array([1j, complex("nan")]),
    "halves": numpy.array([1.5, -0.0], numpy.float16),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_with_dtype_shape_and_order(name: str) -> None:
    register(numpy.ndarray)
    array = ARRAYS[name]
    got = round_trip({"a": [array]})["a"][0]
    assert type(got) is numpy.ndarray
    assert got.dtype == array.dtype
    assert got.dtype.isalignedstruct == array.dtype.isalignedstruct or name == "aligned"
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()
    assert got.flags.writeable
    assert got.flags.f_contiguous or not array.flags.f_contiguous
    if got.size:
        got[...] = numpy.zeros((), got.dtype)


def test_scalars_of_numpy_come_back() -> None:
    kinds = (*(numpy.float64, numpy.int8, numpy.bool_, numpy.str_, numpy.bytes_, numpy.complex128), numpy.datetime64)
    register(*kinds, numpy.void)
    for value in (
        *(numpy.float64("nan"), numpy.float64(-0.0), numpy.int8(-3), numpy.bool_(True), numpy.complex128(1j)),
        *(numpy.str_("é"), numpy.str_(""), numpy.str_("a\0"), numpy.bytes_(b""), numpy.bytes_(b"a\0\0")),
        *(numpy.datetime64("2020-01-01T10"), numpy.datetime64("NaT", "D"), numpy.array([(1, 2.0)], "i4,f8")[0]),
    ):
        got = round_trip([value])[0]
        assert type(got) is type(value)
        assert got.dtype == value.dtype
        assert got.tobytes() == value.tobytes()
    for text in ("a\0", "", "é\0\0"):
        assert len(round_trip(numpy.str_(text))) == len(text)
        assert len(round_trip(numpy.bytes_(text.encode()))) == len(text.encode())


def test_arrays_without_bytes_of_their_own_are_refused() -> None:
    register(numpy.ndarray)
    message = refusal({"a": numpy.array([object()])})
    assert message.startswith("the value['a'] is a numpy.ndarray")
    assert "tolist()" in message
    assert "no size" in refusal([numpy.zeros(3, "V0")])


@pytest.mark.parametrize(
    "kind", [numpy.matrix, numpy.recarray, numpy.ma.MaskedArray, numpy.dtype, numpy.random.Generator]
)
def test_classes_of_numpy_that_would_come_back_as_others_are_not_taken(kind: type) -> None:
    with pytest.raises(hutch.ValueTypeError, match="no recipe for this kind of class; pass encode= and decode="):
        hutch.register_type(kind)


class Own:
    def __init__(self, state: Any) -> None:
        self.state = state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.state == other.state

    def __hash__(self) -> int:
        return 7


def test_an_own_class_goes_by_its_own_functions_wherever_it_is() -> None:
    hutch.register_type(Own, name="own", encode=lambda own: own.state, decode=Own)
    for state in (1, "\ud800", {(1,): {2}}, [Own(Own(None))], b"x"):
        own = Own(state)
        for value in (own, [own], (own,), {"a": own}, {1: own}, {own: own}, {own}, frozenset({own})):
            assert round_trip(value) == value
    assert b"own" in TYPED.encode(Own(1))


def test_state_that_cannot_be_stored_is_refused_with_its_place() -> None:
    hutch.register_type(Own, encode=lambda own: own.state, decode=Own)
    assert refusal([Own({"a": object()})]).startswith("the value[0] (an Own)['a'] is an object")
    assert "bytearray" in refusal([Own([bytearray()])])
    looped = Own(None)
    looped.state = [looped]
    assert "nested more than 200 levels deep" in refusal(looped)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("secret"),
        TypeError("secret"),
        ValueError("secret"),
        RuntimeError("secret"),
        RecursionError("secret"),
        hutch.StoreError("secret"),
        OSError("secret"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_own_encode_that_raises_is_a_refusal_with_the_cause(error: Exception) -> None:
    def encode(_: Own) -> Any:
        raise error

    hutch.register_type(Own, name="own", encode=encode, decode=Own)
    for value in (Own(1), [Own(1)], {1: Own(1)}, (Own(1),), {"a": b"x", "b": Own(1)}):
        with pytest.raises(hutch.ValueTypeError) as raised:
            TYPED.encode(value)
        assert raised.value.__cause__ is error
        assert f"own whose registered encode raised {type(error).__name__}" in str(raised.value)
        assert "secret" not in str(raised.value)
    assert round_trip([1, (2,)]) == [1, (2,)]


@pytest.mark.parametrize(
    "error", [KeyError("secret"), ValueError("secret"), RecursionError("secret")], ids=lambda e: type(e).__name__
)
def test_an_own_decode_that_raises_is_a_corrupt_value_that_does_not_quote_it(error: Exception) -> None:
    def decode(_: Any) -> Own:
        raise error

    hutch.register_type(Own, name="own", encode=lambda own: own.state, decode=decode)
    for value in (Own(1), [Own(1)], {1: Own(1)}, (Own(1),), Own(Own(1))):
        data = TYPED.encode(value)
        with pytest.raises(hutch.CorruptValueError, match=r"'own' that the class did not take back") as raised:
            TYPED.decode(data)
        assert f"({type(error).__name__} in test_codec.py, line " in str(raised.value)
        assert "secret" not in "".join(traceback.format_exception(raised.value))
        assert "secret" not in str(raised.value)
    assert round_trip([1, (2,)]) == [1, (2,)]


def test_a_function_that_fails_once_leaves_nothing_behind() -> None:
    """hutch remembers a hook's exception, which ormsgpack drops; it must not be raised for the next value."""
    failures = [ValueError("once")]

    def encode(own: Own) -> Any:
        if failures:
            raise failures.pop()
        return own.state

    hutch.register_type(Own, name="own", encode=encode, decode=Own)
    assert TYPED.decode(TYPED.encode([Own(5)])) == [Own(5)]
    with pytest.raises(hutch.CorruptValueError) as raised:
        TYPED.decode(frame.seal(b"\x92\xc1\xce"))
    assert "once" not in repr(raised.value.__cause__)


def test_an_interrupt_within_a_function_passes() -> None:
    class Stop(BaseException):
        pass

    def stop(_: Any) -> Any:
        raise Stop

    hutch.register_type(Own, name="own", encode=lambda own: own.state, decode=Own)
    data = TYPED.encode([(Own(1),)])
    hutch.register_type(Own, name="own", encode=stop, decode=stop)
    for value in (Own(1), [Own(1)], {1: Own(1)}, (Own(1),)):
        with pytest.raises(Stop):
            TYPED.encode(value)
    with pytest.raises(Stop):
        TYPED.decode(data)
    assert round_trip((1,)) == (1,)


def test_a_type_that_is_not_registered_when_it_is_read_says_so() -> None:
    hutch.register_type(Own, name="own", encode=lambda own: own.state, decode=Own)
    data = TYPED.encode({"a": [(Own(1),)]})
    registry._by_name.clear()
    with pytest.raises(hutch.CorruptValueError, match=r"holds a 'own', which is not registered .* hutch.register_type"):
        TYPED.decode(data)


def test_a_name_stands_for_one_class() -> None:
    hutch.register_type(Own, name="n", encode=lambda own: own.state, decode=Own)
    with pytest.raises(hutch.ValueTypeError, match=r"the name 'n' already stands for .*Own.*; pass another name="):
        hutch.register_type(Frozen, name="n")
    # A reloaded module defines the same class again.
    again = type("Own", (), {"__module__": Own.__module__, "__qualname__": Own.__qualname__})
    hutch.register_type(again, name="n", encode=lambda _: 1, decode=lambda _: again())
    assert type(round_trip(again())) is again


def test_a_name_that_cannot_be_written_is_refused_when_it_is_given() -> None:
    with pytest.raises(hutch.ValueTypeError, match=r"lone surrogate.*Pass another name="):
        hutch.register_type(Own, name="\ud800", encode=lambda own: own.state, decode=Own)


def test_both_functions_are_given_or_none() -> None:
    for given_alone in ({"encode": str}, {"decode": Own}):
        with pytest.raises(hutch.ValueTypeError, match="give both encode= and decode=, or neither"):
            hutch.register_type(Own, **given_alone)
    with pytest.raises(hutch.ValueTypeError, match="no recipe"):
        hutch.register_type(Own)


@pytest.mark.parametrize("kind", [bytearray, memoryview, bytes, int, str, dict, list, set, tuple, Decimal, datetime])
def test_a_type_that_the_codec_knows_cannot_be_registered(kind: type) -> None:
    """It would be ignored, or worse: a bytearray is packed as bytes before its type is looked up."""
    with pytest.raises(hutch.ValueTypeError, match="the codec encodes this type itself"):
        hutch.register_type(kind, encode=bytes, decode=kind)


def test_a_subclass_of_a_registered_class_is_not_registered() -> None:
    register(Frozen)
    assert "Sub" in refusal(type("Sub", (Frozen,), {})(1))


# --- damage ---

SAMPLE: dict[str, Any] = {"name": "value", "n": [1, 2.5, None, True], "deep": {"a": ["b"]}}
RICH: Any = [SAMPLE, (1, {2}), {3: b"x"}, datetime(2024, 1, 1, tzinfo=UTC), Decimal("1.5"), 2**70, Path("a"), range(3)]


def sample(name: str) -> Any:
    return SAMPLE if name == "json" else RICH


@each_codec
def test_every_flipped_byte_is_noticed(name: str) -> None:
    codec = CODECS[name]
    data = codec.encode(sample(name))
    for position in range(len(data)):
        for bits in (0x01, 0x80, 0xFF, data[position] or 0x10):
            damaged = bytearray(data)
            damaged[position] ^= bits
            with pytest.raises(hutch.CorruptValueError):
                codec.decode(bytes(damaged))


@each_codec
def test_every_truncation_and_addition_is_noticed(name: str) -> None:
    codec = CODECS[name]
    data = codec.encode(sample(name))
    for length in range(len(data)):
        for damaged in (data[:length], data[-length:] if length else b"", data[:length] + bytes(len(data) - length)):
            if damaged != data:
                with pytest.raises(hutch.CorruptValueError):
                    codec.decode(damaged)
    for damaged in (data + b"\0", b"\0" + data, data + data, data[::-1], data[4:] + data[:4]):
        with pytest.raises(hutch.CorruptValueError):
            codec.decode(damaged)


@each_codec
def test_random_bytes_are_no_value(name: str) -> None:
    chance = random.Random(7)
    for _ in range(2000):
        with pytest.raises(hutch.CorruptValueError):
            CODECS[name].decode(chance.randbytes(chance.randrange(60)))


def complaint(codec: FrameCodec, data: bytes) -> str:
    """Return the message of the CorruptValueError, or "" if `data` is read. It is short: it quotes no data."""
    try:
        codec.decode(data)
    except hutch.CorruptValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("stored", ["", "J text", 5, None, 1.5])
def test_a_stored_value_that_is_not_bytes_is_a_corrupt_value(stored: Any) -> None:
    """One flipped bit of an SQLite file turns bytes into such a value."""
    for codec in (*CODECS.values(), made("passthrough", {})):
        assert complaint(codec, stored)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([0x92, 0x4A, 0x53]), st.binary(max_size=60))
def test_any_body_under_a_right_checksum_is_a_value_or_a_corrupt_value(header: int, body: bytes) -> None:
    """A correctly sealed frame never raises any other error. (Unsigned pickles are left out: they may do anything.)"""
    data = frame.seal(bytes([header]) + body + b"\xce")
    for codec in CODECS.values():
        assert len(complaint(codec, data)) < 300


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 17), st.binary(max_size=30) | values.map(lambda value: TYPED.encode(value)[1:-5]))
def test_any_body_of_an_extension_is_a_value_or_a_corrupt_value(number: int, body: bytes) -> None:
    head = b"\xc9" + len(body).to_bytes(4, "big") + bytes([number])
    assert len(complaint(TYPED, frame.seal(b"\x92" + head + body + b"\xce"))) < 300


def test_a_frame_nested_past_every_limit_is_a_corrupt_value() -> None:
    for depth in (1022, 5000, 200_000):
        with pytest.raises(hutch.CorruptValueError):
            TYPED.decode(frame.seal(b"\x92" + b"\x91" * depth + b"\xc0\xce"))
        with pytest.raises(hutch.CorruptValueError):
            JSON.decode(frame.seal(b"J" + b"[" * depth * 10 + b"]" * depth * 10))
    body = b"\xc0"
    for _ in range(3000):
        body = b"\xc9" + (len(body) + 1).to_bytes(4, "big") + b"\x01\x91" + body
    with pytest.raises(hutch.CorruptValueError, match="nested too deep"):
        TYPED.decode(frame.seal(b"\x92" + body + b"\xce"))


# --- one codec's values, read with another ---


def test_a_value_read_with_another_codec_is_right_or_an_error() -> None:
    readable = {"msgpack": {"msgpack", "json"}, "json": {"msgpack", "json"}, "pickle": {"msgpack", "json", "pickle"}}
    readable["signed pickle"] = {"signed pickle"}
    for writer, reader in [(writer, reader) for writer in CODECS for reader in CODECS]:
        data = CODECS[writer].encode(SAMPLE)
        if writer in readable[reader]:
            assert identical(CODECS[reader].decode(data), SAMPLE)
        else:
            with pytest.raises(hutch.CorruptValueError) as raised:
                CODECS[reader].decode(data)
            message = str(raised.value)
            assert "pickle" in message or "signed" in message
            assert "value" not in message.replace("values", "")


class Canary:
    """Leaves a mark when it is unpickled."""

    marks: ClassVar[list[str]] = []

    def __reduce__(self) -> Any:
        return Canary.sing, ()

    @staticmethod
    def sing() -> str:
        Canary.marks.append("sung")
        return "sung"


@pytest.fixture
def canary() -> Iterator[bytes]:
    """Yield a pickle that leaves a mark, in `Canary.marks`, when it is loaded."""
    Canary.marks.clear()
    body = pickle.dumps(Canary())
    assert pickle.loads(body) == Canary.marks.pop() == "sung"
    yield body
    Canary.marks.clear()


def test_no_codec_but_pickle_ever_unpickles(canary: bytes) -> None:
    frames = [frame.seal(bytes([header]) + canary) for header in range(256) if header != frame.PICKLE]
    frames += [canary, b"P" + canary, TYPED.encode(canary), frame.seal(b"P" + canary), frame.seal(b"\x92" + canary)]
    frames += [frame.seal(b"\x92\xc7" + bytes([len(canary), number]) + canary + b"\xce") for number in range(128)]
    for codec in (TYPED, JSON):
        for data in frames:
            with contextlib.suppress(hutch.CorruptValueError):
                codec.decode(data)
    assert Canary.marks == []


def test_a_signed_pickle_is_never_loaded_unless_its_signature_fits(canary: bytes) -> None:
    signed = SIGNED.encode(Canary())
    assert SIGNED.decode(signed) == Canary.marks.pop() == "sung"
    foreign = frame_codec_of(PickleCodec(b"another key of some length")).encode(Canary())
    frames = [
        PICKLE.encode(Canary()),
        foreign,
        frame.seal(b"S" + canary),
        frame.seal(b"S"),
        frame.seal(b"S" + b"\0" * 32),
    ]
    frames += [
        frame.seal(b"S" + bytes(32) + canary),
        frame.seal(b"P" + signed[1:-4]),
        TYPED.encode("a"),
        JSON.encode(1),
    ]
    for position in range(1, len(signed) - 4):
        changed = bytearray(signed[:-4])
        changed[position] ^= 1
        # With a valid checksum, as anyone who can write to the store can make it.
        frames += [bytes(changed) + signed[-4:], frame.seal(bytes(changed))]
    frames += [frame.seal(signed[:length]) for length in range(1, len(signed) - 4)]
    for data in frames:
        with pytest.raises(hutch.CorruptValueError):
            SIGNED.decode(data)
    assert Canary.marks == []


def test_an_unsigned_reader_does_not_load_signed_pickles(canary: bytes) -> None:
    with pytest.raises(hutch.CorruptValueError, match="it is a signed pickle; configure CODEC"):
        PICKLE.decode(SIGNED.encode(Canary()))
    assert Canary.marks == []


def test_a_pickle_that_cannot_be_loaded_names_the_class_and_no_value() -> None:
    gone = pickle.dumps(Plain()).replace(b"Plain", b"Plaim")
    missing = pickle.dumps(Fraction(1, 3)).replace(b"fractions", b"fractionz")
    for body, named in ((gone, "Plaim"), (missing, "fractionz"), (b"secret", ""), (b"\x80\x05N", "")):
        with pytest.raises(hutch.CorruptValueError, match=f"cannot be unpickled here: .*{named}") as raised:
            PICKLE.decode(frame.seal(b"P" + body))
        assert raised.value.__suppress_context__
        assert "secret" not in str(raised.value)


# --- choosing a codec ---


def test_a_codec_is_made_by_name() -> None:
    assert [type(make_codec(name, {})) for name in ("msgpack", "json", "pickle")] == [
        MsgpackCodec,
        JsonCodec,
        PickleCodec,
    ]
    for key in (KEY.decode(), KEY):
        assert made("pickle", {"key": key}).decode(SIGNED.encode(1)) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("msgpak", {}, "no codec is called 'msgpak'. Did you mean 'msgpack'? Choose msgpack, json, pickle"),
        ("json", {"key": "x" * 20}, "json has no option 'key'; it takes no options"),
        ("pickle", {"keys": "x"}, "pickle has no option 'keys'; it takes key"),
        ("pickle", {"key": "hush-hush"}, "at least 16 bytes"),
        ("pickle", {"key": 12345678901234567890}, "must be text or bytes"),
    ],
)
def test_a_codec_that_cannot_be_made_is_a_config_error(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(hutch.ConfigError) as raised:
        make_codec(name, options)
    assert message in str(raised.value)
    assert "hush" not in str(raised.value)


def test_a_signing_key_is_in_no_repr() -> None:
    assert repr(SIGNED.codec) == "PickleCodec(signed)"
    assert repr(PICKLE.codec) == "PickleCodec(unsigned)"


def test_codecs_are_used_by_many_threads_and_keep_nothing() -> None:
    from hutch.testing.conformance.kit import together

    hutch.register_type(Own, name="own", encode=lambda own: own.state, decode=Own)

    def work() -> None:
        for turn in range(50):
            assert round_trip([Own(turn), (turn,)]) == [Own(turn), (turn,)]
            assert "Text" in refusal((Text("x"),))
            with pytest.raises(hutch.CorruptValueError, match="unknown"):
                TYPED.decode(frame.seal(b"\x92\xd4\x63\0\xce"))

    together(*[work] * 4)
    for _ in range(20):
        round_trip(RICH)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(2000):
        round_trip(RICH)
    gc.collect()
    assert sys.getallocatedblocks() - before < 1000, "less than one object for every two values"


# --- pickle for what msgpack refuses ---


@pytest.mark.parametrize("options", [{}, {"key": KEY}], ids=["unsigned", "signed"])
def test_pickle_that_prefers_msgpack_pickles_only_what_msgpack_refuses(options: dict[str, Any]) -> None:
    codec = made("pickle", {"prefer": "msgpack", **options})
    for value in RICH, SAMPLE, None, 2**70:
        data = codec.encode(value)
        assert data == TYPED.encode(value)
        assert identical(codec.decode(data), value)
    for value in (Point(1, 2), [Text("a")], Colour.RED, Plain(3)):
        data = codec.encode(value)
        assert data[0] == (frame.SIGNED_PICKLE if options else frame.PICKLE)
        assert identical(codec.decode(data), value)
    assert codec.decode(JSON.encode([1])) == [1]
    assert "cannot be pickled" in refusal(lambda: None, codec)
    with pytest.raises(hutch.ConfigError, match="can only be msgpack"):
        make_codec("pickle", {"prefer": "json"})


def test_a_key_keeps_foreign_pickles_out_also_where_msgpack_is_preferred(canary: bytes) -> None:
    codec = made("pickle", {"prefer": "msgpack", "key": KEY})
    signed = codec.encode(Canary())
    assert codec.decode(signed) == Canary.marks.pop()
    for data in (
        PICKLE.encode(Canary()),
        frame.seal(b"S" + bytes(32) + canary),
        frame.seal(b"\x92" + canary),
        signed[:-4],
    ):
        with contextlib.suppress(hutch.CorruptValueError):
            codec.decode(data)
    damaged = bytearray(TYPED.encode(RICH))
    damaged[5] ^= 1
    with pytest.raises(hutch.CorruptValueError):
        codec.decode(bytes(damaged))
    assert Canary.marks == []


# --- pickles that are carried ---


@pytest.mark.parametrize("options", [{}, {"key": KEY}])
def test_passthrough_copies_a_pickle_unchanged_and_never_loads_it(canary: bytes, options: dict[str, Any]) -> None:
    carry, loads = made("passthrough", options), made("pickle", {"prefer": "msgpack", **options})
    written = loads.encode(Text("a"))
    value = carry.decode(written)
    assert value == Pickled(pickle.dumps(Text("a"), 5))
    assert carry.encode(value) == written
    assert carry.decode(carry.encode(Pickled(canary))).body == canary
    assert Canary.marks == []
    for plain in ({1: {2}}, None, "text"):  # values that need no pickle are unchanged
        assert identical(carry.decode(loads.encode(plain)), plain)
        assert identical(loads.decode(carry.encode(plain)), plain)
    assert identical(carry.decode(JSON.encode([1])), [1])


def test_a_codec_key_refuses_pickles_signed_with_another_key_also_in_passthrough() -> None:
    carry = made("passthrough", {"key": KEY})
    for foreign in (PICKLE.encode({1}), frame_codec_of(PickleCodec(b"another key of its own")).encode({1})):
        with pytest.raises(hutch.CorruptValueError, match="sign"):
            carry.decode(foreign)
    with pytest.raises(hutch.CorruptValueError, match="it is a signed pickle"):
        made("passthrough", {}).decode(SIGNED.encode({1}))


def test_passthrough_creates_no_pickle_and_other_codecs_refuse_its_pickles() -> None:
    carry = made("passthrough", {})
    assert refusal(Text(), carry).startswith("the value is a tests.codec.test_codec.Text")
    assert refusal(Pickled(b"hush-hush"), JSON).startswith("the value is a Pickled")
    assert all("CODEC: passthrough" in refusal(Pickled(b"hush-hush"), codec) for codec in (TYPED, PICKLE, SIGNED))
    for refusing in (carry, TYPED):
        message = refusal([1, Pickled(b"hush-hush")], refusing)
        assert message.startswith("the value[1] is a pickle that was not loaded")
        assert "hush" not in message
    assert repr(Pickled(b"hush-hush")) == "<a pickle of 9 bytes>"
    assert repr(carry.codec) == "PassthroughCodec(unsigned)"
    assert repr(make_codec("passthrough", {"key": KEY})) == "PassthroughCodec(signed)"
