"""Test copy, verify, dump and load: nothing is lost or changed, and an interruption is noticed and repaired."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import math
import pickle
import struct
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hutch
from hutch import transfer
from hutch.codec.select import frame_codec_of
from hutch.transfer import from_json, to_json


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


hutch.register_type(Colour, name="tests.Colour")
hutch.register_type(Point, name="tests.Point")


@dataclasses.dataclass(eq=False)
class Stranger:
    """An unregistered class: only pickle can hold it."""

    name: str
    friends: list[str]


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"list": [value], "tuple": (value,), "dict": {1: value}}[kind.__name__]
    return value


VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        2**53 - 1,
        2**53,
        -(2**53),
        2**64,
        10**400,
        -(10**20_000),
        0.0,
        -0.0,
        5.0,
        1e300,
        5e-324,
    ),
    *(float("nan"), float("inf"), float("-inf"), struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]),
    *(
        "",
        "text",
        "é\u2028\x9b31m\x00\n",
        "😀",
        "\ud800",
        "\ud83d\ude00",
        b"",
        b"\x00\xff",
        [],
        [1, [True, 1.0]],
        (),
        ((),),
    ),
    *({}, {"a": 1, "b": {"c": []}}, {"b": 1, "a": 2}, {"$set": [1]}, {"": 0, "$": 1}, {"$type": "x", "value": 1}),
    *({"\ud800": 1}, {1: 2, True and "1": 3, None: 4, (1, "a"): 5, b"x": 6, 1.5: 7}, {"count": 3}, {"hutch_dump": 1}),
    *(set(), {1, "a", None, (1, 2), frozenset({3})}, frozenset(), frozenset({1.5, b"x"})),
    *(datetime(2024, 2, 29, 1, 2, 3, 4), datetime(1, 1, 1, tzinfo=UTC), datetime(2024, 10, 27, 2, 30, fold=1)),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3, microseconds=7))),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")),
    *(date(9999, 12, 31), time(1, 2, 3, 4), time(23, 59, fold=1), time(0, tzinfo=UTC), time(5, tzinfo=ZoneInfo("UTC"))),
    *(timedelta(days=-1, microseconds=1), timedelta.max, Decimal("1.50"), Decimal("NaN123"), Decimal("-Infinity")),
    *(Fraction(-1, 3), complex(-0.0, 1), complex(math.nan, math.inf), UUID(int=5), range(0), range(10, 0, -3)),
    *(range(2**70), Path("/srv/x"), Path("rel/\udcff"), PurePosixPath("a/b"), PureWindowsPath("C:\\x\\y"), Path()),
    *(OrderedDict(b=1, a={1: 2}), OrderedDict({(1,): 2}), Counter("abca"), Counter({"a": 0}), deque([1, (2,)], 3)),
    *(deque(), defaultdict(list, a=[1]), defaultdict(None, {1: 2}), ip_address("fe80::1%eth0")),
    *(ip_network("192.0.2.0/24"), ip_interface("::1/64")),
    *(Colour.RED, Point(1, {2: (Point(3),)}), nested(199, list), nested(199, tuple), nested(199, dict)),
]


def exact(value: Any) -> Any:
    """Return `value` as an object whose `==` also compares types, bits of floats, order of dicts and time zones."""
    kind = type(value)
    if kind is float:
        return (kind, struct.pack(">d", value))
    if kind is complex:
        return (kind, exact(value.real), exact(value.imag))
    if kind in (list, tuple):
        return (kind, [exact(item) for item in value])
    if kind is dict:
        return (kind, [(exact(key), exact(item)) for key, item in value.items()])
    if kind in (set, frozenset):
        return (kind, sorted((exact(item) for item in value), key=repr))
    if kind in (datetime, time):
        return (kind, value.isoformat(), value.fold, repr(value.tzinfo))
    if kind is Decimal:
        return (kind, str(value))
    if kind is Point:
        return (kind, exact(value.x), exact(value.y))
    return (kind, value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_type_of_the_default_codec_comes_back_from_json_exactly(value: Any) -> None:
    text = to_json(value)
    assert exact(from_json(text)) == exact(value)
    assert text.isprintable()
    assert exact(from_json(text.encode())) == exact(value)


TEXT = st.text(st.characters(), max_size=8)
ATOMS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(width=64),
    TEXT,
    st.binary(max_size=8),
    st.datetimes(timezones=st.one_of(st.none(), st.just(UTC), st.sampled_from([ZoneInfo("Europe/Berlin")]))),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.uuids(),
    st.builds(PurePath, st.sampled_from(["a", "b/c", "."])).map(Path),
)
ANYTHING = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(st.one_of(st.integers(), st.text(max_size=4)), max_size=4),
        st.frozensets(st.one_of(st.integers(), st.binary(max_size=4)), max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(["$set", "$", "value"]), st.text(max_size=4)), inner, max_size=4),
        st.dictionaries(st.one_of(st.integers(), st.tuples(st.booleans())), inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_json_with_tags_keeps_whatever_the_default_codec_keeps(value: Any) -> None:
    through_codec = frame_codec_of(None).decode(frame_codec_of(None).encode(value))
    assert exact(from_json(to_json(value))) == exact(through_codec) == exact(value)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), TEXT), st.lists, max_leaves=5))
def test_what_json_keeps_is_plain_json(value: Any) -> None:
    def is_plain(item: Any) -> bool:
        if type(item) is list:
            return all(map(is_plain, item))
        if type(item) is str:
            return not any("\ud800" <= char <= "\udfff" for char in item)
        return type(item) is not int or abs(item) < 2**53

    assert not is_plain(value) or json.loads(to_json(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "not JSON: Expecting value at character 1"),
        ('{"$ref": 1}', "'$ref' is not a tag"),
        ('{"a": 1, "$set": []}', "is not a tag, or not alone"),
        ('{"$set": [], "a": 1}', "not alone in its object"),
        ('{"$set": "abc"}', "what stands in '$set' is not what that tag holds"),
        ('{"$set": [[1]]}', "not what that tag holds"),
        ('{"$tuple": {"a": 1}}', "not what that tag holds"),
        ('{"$int": 5}', "not what that tag holds"),
        ('{"$int": "five"}', "not what that tag holds"),
        ('{"$float": "1.5"}', "not what that tag holds"),
        ('{"$bytes": "%%"}', "not what that tag holds"),
        ('{"$date": "yesterday"}', "not what that tag holds"),
        ('{"$datetime": ["2024-01-01", 0]}', "not what that tag holds"),
        ('{"$fraction": [1, 0]}', "not what that tag holds"),
        ('{"$decimal": "x"}', "not what that tag holds"),
        ('{"$dict": [[1, 2], [1, 3]]}', "the same key twice"),
        ('{"$dict": [[1]]}', "not what that tag holds"),
        ('{"a": 1, "a": 2}', "the same name twice"),
        ('{"$type": "nobody.Knows", "value": 1}', "'nobody.Knows', which is not registered"),
        ('{"$datetime": ["2024-01-01T00:00:00", 0, "Mars/Olympus"]}', "its time zone is unknown here"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "is not JSON"),
        ("9" * 5000, "not JSON that hutch can read"),
        ("[" * 100_000, "nested too deep"),
        (b'"\xff"', "not UTF-8"),
    ],
)
def test_text_that_is_not_a_value_is_refused_with_what_was_expected(text: str | bytes, message: str) -> None:
    with pytest.raises(hutch.CorruptValueError, match=message.replace("$", r"\$")):
        from_json(text)


def test_a_value_that_only_pickle_holds_is_refused_with_its_type() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value, message in [
        ([Stranger("x", [])], "tests.test_transfer.Stranger, which JSON with type tags cannot store"),
        (bytearray(b"x"), "bytearray"),
        (loop, "nested more than 200 levels deep"),
        (datetime(2024, 1, 1, tzinfo=_OwnZone()), "tzinfo _OwnZone"),
    ]:
        with pytest.raises(hutch.ValueTypeError, match=message):
            to_json(value)


class _OwnZone(ZoneInfo):
    def __new__(cls) -> _OwnZone:
        return super().__new__(cls, "UTC")

    key = None  # type: ignore[assignment]


def test_equal_sets_have_one_text_whatever_their_order() -> None:
    assert to_json({0, 8, "a"}) == to_json({8, 0, "a"})


# --- between stores ---


@pytest.fixture
def source() -> Iterator[hutch.Store]:
    with hutch.connect("memory://") as store:
        for name in ("core", "a:b", "a"):
            with store.open(name) as handle:
                handle.update({f"key {number}": value for number, value in enumerate(VALUES)})
        yield store


@pytest.fixture
def target() -> Iterator[hutch.Store]:
    with hutch.connect("memory://") as store:
        yield store


def everything(store: hutch.Store) -> dict[str, dict[str, Any]]:
    found = {}
    for name in store.namespaces():
        with store.open(name) as handle:
            found[name] = {key: exact(value) for key, value in handle.scan()}
    return found


@pytest.mark.parametrize("url", ["lmdb://x", "memory://", "sqlite://x.db", "shelf://x"])
def test_a_copy_holds_every_value_with_its_type_on_any_engine(
    url: str, source: hutch.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with hutch.connect(url) as target:
        made = transfer.copy(source, target)
        assert made == transfer.Transferred(3, 3 * len(VALUES), 0)
        assert everything(target) == everything(source)
        checked = transfer.verify(source, target)
        assert checked == transfer.Verified(3, 3 * len(VALUES), 0, 0, 0, ())
        assert transfer.copy(source, target) == transfer.Transferred(3, 0, 3 * len(VALUES))


def test_a_copy_to_redis_and_back_changes_nothing(source: hutch.Store, target: hutch.Store, redis_server: Any) -> None:
    with hutch.connect(f"{redis_server.url}?prefix=test_transfer") as middle:
        transfer.copy(source, middle)
        transfer.copy(middle, target)
    assert everything(target) == everything(source)


def test_a_copy_never_removes_and_replaces_what_differs_in_type_alone(source: hutch.Store, target: hutch.Store) -> None:
    with source.open("core") as handle:
        handle.update({"one": 1, "zero": -0.0, "list": [1, True], "order": {"a": 1, "b": 2}})
    with target.open("core") as handle:
        handle.update({"one": True, "zero": 0.0, "list": [True, 1], "order": {"b": 2, "a": 1}, "mine": "stays"})
    checked = transfer.verify(source, target, ["core"])
    assert (checked.equal, checked.missing, checked.different, checked.extra) == (0, len(VALUES), 4, 1)
    assert not checked.ok
    assert transfer.Difference("different", "core", "list") in checked.examples
    assert transfer.Difference("extra", "core", "mine") in checked.examples
    assert len(checked.examples) == 5 + 4 + 1
    assert transfer.copy(source, target, ["core"]).written == len(VALUES) + 4
    with target.open("core") as handle:
        assert handle["mine"] == "stays"
        assert handle["one"] == 1
        assert handle["one"] is not True
    assert transfer.verify(source, target, ["core"]).ok


def test_only_the_namespaces_that_fit_a_glob_are_moved(source: hutch.Store, target: hutch.Store) -> None:
    with source.open("x[1]") as handle:
        handle["k"] = 1
    assert transfer.copy(source, target, ["a", "x[1]"]).namespaces == 2
    assert target.namespaces() == ["a", "x[1]"]
    assert transfer.copy(source, target, ["nobody*"]) == transfer.Transferred(0, 0, 0)
    assert transfer.copy(source, target, ["a*"]).written == len(VALUES)
    assert target.namespaces() == ["a", "a:b", "x[1]"]
    out = io.BytesIO()
    assert transfer.dump(source, out, ["A*", "c?re"]).namespaces == 1
    lines = out.getvalue().splitlines(keepends=True)
    assert transfer.load(target, lines, ["nobody"]) == transfer.Transferred(0, 0, 0)
    assert transfer.load(target, lines, ["core"]).written == len(VALUES)


class _Stopped(Exception):
    pass


def test_an_interrupted_copy_continues_where_it_stopped(target: hutch.Store) -> None:
    def stop(progress: transfer.Progress) -> None:
        assert progress.namespace == "core"
        assert progress.total == 5000
        if progress.done >= 3000:
            raise _Stopped

    with hutch.connect("memory://") as source:
        with source.open("core") as handle:
            handle.update({f"{number:05}": {number} for number in range(5000)})
        with pytest.raises(_Stopped):
            transfer.copy(source, target, progress=stop)
        with target.open("core") as handle:
            assert len(handle) == 3000
        assert transfer.copy(source, target) == transfer.Transferred(1, 2000, 3000)
        assert transfer.verify(source, target).ok


def items_of(count: int, asked: list[int]) -> Iterator[tuple[str, str, Any]]:
    """Yield the items of two namespaces, appending the reader's position to `asked`."""
    for number in range(count):
        asked.append(number)
        yield ("a" if number < count // 2 else "b"), f"{number:05}", (number, {number})


def test_items_of_any_source_are_copied_verified_and_continued_like_a_store(target: hutch.Store) -> None:
    asked: list[int] = []

    def stop(progress: transfer.Progress) -> None:
        if (progress.namespace, progress.done) == ("b", 1000):
            # At most one batch more was read than written.
            assert len(asked) <= 4000
            raise _Stopped

    with pytest.raises(_Stopped):
        transfer.copy_items(items_of(5000, asked), target, progress=stop)
    checked = transfer.verify_items(items_of(5000, []), target)
    assert (checked.equal, checked.missing, checked.different, checked.extra) == (3500, 1500, 0, 0)
    assert checked.examples[0] == transfer.Difference("missing", "b", "03500")
    assert transfer.copy_items(items_of(5000, []), target) == transfer.Transferred(2, 1500, 3500)
    with target.open("a") as handle:
        handle["00007"] = (7, {7.0})  # equal, and of another type
        handle["mine"] = "stays, and is not a fault"
    checked = transfer.verify_items(items_of(5000, []), target)
    assert checked == transfer.Verified(2, 4999, 0, 1, 0, (transfer.Difference("different", "a", "00007"),))


def test_a_damaged_value_of_the_target_is_replaced_and_one_of_the_source_is_named(target: hutch.Store) -> None:
    def plant(store: hutch.Store) -> None:
        with store.open("core") as handle:
            storage = handle._store
            assert isinstance(storage, hutch.EncodedStorage)
            storage.write("b", b"not what hutch writes")

    with hutch.connect("memory://") as source:
        for store in (source, target):
            with store.open("core") as handle:
                handle.update({"a": 1, "b": 2, "c": 3})
        plant(target)
        assert transfer.verify(source, target).different == 1
        assert transfer.copy(source, target) == transfer.Transferred(1, 1, 2)
        assert transfer.verify(source, target).ok
        plant(source)
        with target.open("core") as handle:
            handle.clear()
        with pytest.raises(hutch.CorruptValueError, match="'b' in namespace 'core'"):
            transfer.dump(source, io.BytesIO())
        with pytest.raises(hutch.CorruptValueError, match="'b' in namespace 'core'"):
            transfer.copy(source, target)
        with target.open("core") as handle:
            assert dict(handle) == {"a": 1}


def test_values_that_only_pickle_holds_are_copied_compared_and_not_dumped(tmp_path: Path) -> None:
    config = {"STORAGE": "memory", "CODEC": "pickle"}
    loop: dict[str, Any] = {"stranger": Stranger("x", ["a"])}
    loop["self"] = loop
    with hutch.connect(config) as source, hutch.connect(config) as target, hutch.connect("memory://") as typed:
        with source.open("core") as handle:
            handle.update({"a": 1, "s": Stranger("x", ["x", "y"]), "loop": loop})
        transfer.copy(source, target)
        assert transfer.copy(source, target) == transfer.Transferred(1, 0, 3)
        assert transfer.verify(source, target).ok
        with target.open("core") as handle:
            handle["s"] = Stranger("x", ["x", "z"])
        assert transfer.verify(source, target).different == 1
        with pytest.raises(hutch.ValueTypeError, match=r"key 'loop' in namespace 'core' cannot be dumped.*Stranger"):
            transfer.dump(source, io.BytesIO())
        with pytest.raises(hutch.ValueTypeError, match=r"key 's' in namespace 'core' cannot be written.*Stranger"):
            transfer.copy(source, typed)


def test_a_store_that_cannot_list_its_namespaces_is_copied_by_name(tmp_path: Path, target: hutch.Store) -> None:
    (tmp_path / "mute.plug").write_text("[Core]\nName = Mute\nModule = mute_storage\n")
    (tmp_path / "mute_storage.py").write_text(
        "class Storage:\n"
        "    def __init__(self): self.data = {'k': {1}}\n"
        "    def get(self, key): return self.data[key]\n"
        "    def set(self, key, value): self.data[key] = value\n"
        "    def remove(self, key): del self.data[key]\n"
        "    def len(self): return len(self.data)\n"
        "    def keys(self): return self.data.keys()\n"
        "    def close(self): pass\n"
        "class MutePlugin:\n"
        "    def __init__(self, config): pass\n"
        "    def open(self, namespace): return Storage()\n"
    )
    with hutch.connect({"STORAGE": "mute", "EXTRA_PLUGIN_DIRS": [str(tmp_path)]}) as source:
        for patterns in (None, ["c*"]):
            with pytest.raises(hutch.CapabilityError):
                transfer.copy(source, target, patterns)
        assert transfer.copy(source, target, ["core"]) == transfer.Transferred(1, 1, 0)
    assert everything(target) == {"core": {"k": exact({1})}}


# --- dumps ---


def dumped(store: hutch.Store) -> bytes:
    out = io.BytesIO()
    transfer.dump(store, out)
    return out.getvalue()


def test_a_dump_that_is_loaded_holds_every_value_with_its_type(source: hutch.Store, target: hutch.Store) -> None:
    text = dumped(source)
    seen: list[transfer.Progress] = []
    assert transfer.load(target, io.BytesIO(text), progress=seen.append) == transfer.Transferred(3, 3 * len(VALUES), 0)
    assert everything(target) == everything(source)
    assert [(one.namespace, one.done, one.total) for one in seen] == [
        (name, len(VALUES), None) for name in ("a", "a:b", "core")
    ]
    assert dumped(target) == text
    assert transfer.load(target, io.BytesIO(text)) == transfer.Transferred(3, 0, 3 * len(VALUES))


def test_a_dump_is_lines_of_json_that_any_reader_takes(source: hutch.Store) -> None:
    lines = dumped(source).decode().split("\n")
    assert lines.pop() == ""
    assert json.loads(lines[0]) == {"hutch_dump": 1}
    assert json.loads(lines[-1]) == {"count": 3 * len(VALUES)}
    for line in lines[1:-1]:
        assert line.isprintable()
        assert json.loads(line).keys() == {"namespace", "key", "value"}


def test_dumps_in_a_row_are_one(source: hutch.Store, target: hutch.Store) -> None:
    with hutch.connect("memory://") as other:
        with other.open("core") as handle:
            handle["later"] = "wins"
        both = dumped(source) + dumped(other)
    transfer.load(target, io.BytesIO(both))
    with target.open("core") as handle:
        assert handle["later"] == "wins"
        assert len(handle) == len(VALUES) + 1


HEAD = b'{"hutch_dump":1}\n'
ITEM = b'{"namespace":"core","key":"%d","value":1}\n'


@pytest.mark.parametrize(
    ("text", "message", "kept"),
    [
        (b"", "it is empty", 0),
        (b"\n", r"not a dump of hutch: expected \{\"hutch_dump\": 1\}", 0),
        (b"SQLite format 3\x00\xff", "line 1 of the dump: this is not a dump of hutch", 0),
        (b"[1]\n", "not a dump of hutch", 0),
        (b'{"hutch_dump":2}\n', "a newer one wrote it", 0),
        (HEAD, "ends after line 1 without its last line: it was truncated", 0),
        (HEAD + ITEM % 1 + ITEM % 2, "truncated. The 2 items before it were read and are loaded", 2),
        (HEAD + ITEM % 1 + b'{"count":2}\n', "line 3 of the dump: its count of items does not match", 1),
        (HEAD + ITEM % 1 + (ITEM % 2)[:20], "line 3 of the dump: not JSON", 1),
        (HEAD + ITEM % 1 + b"\xff\n", "line 3 of the dump: not", 1),
        (HEAD + ITEM % 1 + b'{"namespace":"core","key":"2"}\n', "line 3 .* expected the names", 1),
        (HEAD + ITEM % 1 + b"[]\n", "line 3 .* expected an object", 1),
        (HEAD + b'{"namespace":"co\\u0000re","key":"2","value":1}\n', "line 2 .* may not hold NUL", 0),
        (HEAD + b'{"namespace":"core","key":5,"value":1}\n', "line 2 .* a key must be a str", 0),
        (HEAD + ITEM % 1 + b'{"count":1}\n' + ITEM % 2, "line 4 .* not a dump of hutch", 1),
    ],
)
def test_a_damaged_dump_is_named_by_its_line_and_what_comes_before_is_loaded(
    text: bytes, message: str, kept: int, target: hutch.Store
) -> None:
    with pytest.raises(hutch.CorruptValueError, match=message):
        transfer.load(target, io.BytesIO(text))
    with target.open("core") as handle:
        assert sorted(handle) == [str(number + 1) for number in range(kept)]


def test_no_prefix_of_a_dump_passes_for_a_whole_one(target: hutch.Store) -> None:
    with hutch.connect("memory://") as source:
        with source.open("core") as handle:
            handle.update({"a": 1, "b": [2]})
        whole = dumped(source)
    for length in range(len(whole) - 1):
        with pytest.raises(hutch.CorruptValueError):
            transfer.load(target, io.BytesIO(whole[:length]))
    transfer.load(target, io.BytesIO(whole[:-1]))


def test_a_transfer_holds_one_batch_in_memory_and_not_the_store(tmp_path: Path) -> None:
    with hutch.connect(f"lmdb://{tmp_path}/a") as source, hutch.connect(f"lmdb://{tmp_path}/b") as target:
        with source.open("core") as handle:
            for start in range(0, 600, 100):
                handle.update({f"{number:04}": bytes([number % 256]) * 200_000 for number in range(start, start + 100)})
        tracemalloc.start()
        try:
            transfer.copy(source, target)
            transfer.verify(source, target)
            with (tmp_path / "dump").open("wb") as out:
                transfer.dump(source, out)
            with (tmp_path / "dump").open("rb") as lines:
                transfer.load(target, lines)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 60_000_000, "120 MB were moved"


def test_pickles_are_never_made_of_what_the_codec_takes(monkeypatch: pytest.MonkeyPatch, source: hutch.Store) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("pickled")

    monkeypatch.setattr(pickle, "Pickler", refuse)
    with hutch.connect("memory://") as target:
        transfer.copy(source, target)
        assert transfer.verify(source, target).ok
