"""Test that docs/format.md is right: the test vectors both ways, and a decoder written from the page alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import re
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

import lmdb
import pytest

import hutch
from hutch.codec import ext_types, frame
from hutch.codec.frame import FrameCodec
from hutch.codec.select import frame_codec_of, make_codec
from hutch.testing.conformance.kit import identical

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
FILE = json.loads((ROOT / "tests" / "format_vectors.json").read_text(encoding="utf-8"))
VECTORS: list[dict[str, Any]] = FILE["vectors"]
NAMES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(date, datetime, time, timedelta, timezone, Decimal, Fraction, UUID, ZoneInfo, PurePosixPath, PureWindowsPath),
        *(str, float, complex, set, frozenset, range, list, OrderedDict, defaultdict, Counter, deque),
        *(IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface),
    )
}

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=[f"{v['codec']} {v['value'][:60]}" for v in VECTORS])


def codec_of(vector: dict[str, Any]) -> FrameCodec:
    if vector["codec"] == "signed pickle":
        return frame_codec_of(make_codec("pickle", {"key": FILE["key"]}))
    return frame_codec_of(make_codec(vector["codec"], {}))


def value_of(vector: dict[str, Any]) -> Any:
    if "ZoneInfo" in vector["value"] and "Europe/Berlin" not in available_timezones():
        pytest.skip("this machine has no time zone data; install tzdata")
    return eval(vector["value"], {"__builtins__": {}, **NAMES})


def same(a: object, b: object) -> bool:
    """Return whether both are equal in value and type; a NaN of Decimal, which equals nothing, by its text."""
    return identical(a, b) or (isinstance(a, Decimal) and isinstance(b, Decimal) and a.is_nan() and str(a) == str(b))


# --- the page, read as an implementer would read it; nothing of hutch below ---


def decode_frame(data: bytes, key: bytes, of: bytes = b"") -> Any:
    """Return the value in a frame that is bound to the key `of`, by the page; `key` is the signature's key."""
    assert len(data) >= 6
    assert crc32(of + data) == 0x2144DF1C
    assert crc32(of + data[:-4]) == int.from_bytes(data[-4:], "little")
    header, body = data[0], data[1:-4]
    if header == 0x54:
        assert int.from_bytes(body[:8], "big") <= 253402300799999
        header, body = body[8], body[9:]
    if header == 0x92:
        assert body[-1] == 0xCE
        value, end = unpack(body, 0)
        assert end == len(body) - 1
        if data[0] == 0x92:
            (again, number), end = unpack(data, 0)
            assert end == len(data)
            assert same(again, value)
            assert int.from_bytes(number.to_bytes(4, "big"), "little") == crc32(of + data[:-4])
        return value
    if header == 0x4A:
        return json.loads(body)
    if header == 0x50:
        return pickle.loads(body)
    assert header == 0x53
    assert hmac.new(key, body[32:], hashlib.sha256).digest() == body[:32]
    return pickle.loads(body[32:])


def crc32(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def unpack(data: bytes, at: int) -> tuple[Any, int]:
    """Return the MessagePack value at `at`, and where it ends."""
    mark = data[at]
    at += 1
    if mark < 0x80:
        return mark, at
    if mark < 0x90:
        return unpack_map(data, at, mark & 15)
    if mark < 0xA0:
        return unpack_array(data, at, mark & 15)
    if mark < 0xC0:
        return data[at : at + (mark & 31)].decode(), at + (mark & 31)
    if mark >= 0xE0:
        return mark - 256, at
    if mark in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[mark], at
    if mark in (0xCB, *range(0xCC, 0xD4)):
        form = {0xCB: ">d"}.get(mark) or ">" + "BHIQbhiq"[mark - 0xCC]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if mark in range(0xD4, 0xD9):
        return unpack_extension(data, at, 1 << mark - 0xD4)
    # The remaining types have a length field of 1, 2 or 4 bytes.
    first, read = LENGTHS[max(start for start in LENGTHS if start <= mark)]
    size = (1 if read in (unpack_bin, unpack_str, unpack_extension) else 2) << mark - first
    length = int.from_bytes(data[at : at + size], "big")
    return read(data, at + size, length)


def unpack_bin(data: bytes, at: int, length: int) -> tuple[Any, int]:
    return data[at : at + length], at + length


def unpack_str(data: bytes, at: int, length: int) -> tuple[Any, int]:
    return data[at : at + length].decode(), at + length


def unpack_array(data: bytes, at: int, length: int) -> tuple[Any, int]:
    items = []
    for _ in range(length):
        item, at = unpack(data, at)
        items.append(item)
    return items, at


def unpack_map(data: bytes, at: int, length: int) -> tuple[Any, int]:
    flat, at = unpack_array(data, at, 2 * length)
    assert all(type(key) is str for key in flat[::2])
    return dict(zip(flat[::2], flat[1::2], strict=True)), at


def unpack_extension(data: bytes, at: int, length: int) -> tuple[Any, int]:
    return EXTENSIONS[data[at]](data[at + 1 : at + 1 + length]), at + 1 + length


LENGTHS: dict[int, tuple[int, Callable[[bytes, int, int], tuple[Any, int]]]] = {
    0xC4: (0xC4, unpack_bin),
    0xC7: (0xC7, unpack_extension),
    0xD9: (0xD9, unpack_str),
    0xDC: (0xDC, unpack_array),
    0xDE: (0xDE, unpack_map),
}


def packed(body: bytes) -> Any:
    value, end = unpack(body, 0)
    assert end == len(body)
    return value


def pairs(body: bytes) -> dict[Any, Any]:
    flat = packed(body)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def zone(zone: Any) -> Any:
    if isinstance(zone, str):
        return ZoneInfo(zone)
    if isinstance(zone, list):
        return timezone(timedelta(microseconds=zone[0]), zone[1])
    return None if zone is None else timezone(timedelta(microseconds=zone))


def moment(body: bytes) -> datetime:
    text, fold, at = packed(body)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?", text)
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone(at))


def hour(body: bytes) -> time:
    text, fold, at = packed(body)
    assert re.fullmatch(r"\d\d:\d\d:\d\d(\.\d{6})?", text)
    return time.fromisoformat(text).replace(fold=fold, tzinfo=zone(at))


def path(body: bytes) -> Any:
    kind, windows, text = packed(body)
    assert kind in ("path", "windows" if windows else "posix")
    return (PureWindowsPath if windows else PurePosixPath)(text.decode("utf-8", "surrogatepass"))


def defaults(body: bytes) -> defaultdict[Any, Any]:
    factory, *flat = packed(body)
    return defaultdict(NAMES.get(factory), zip(flat[::2], flat[1::2], strict=True))


def counts(body: bytes) -> Counter[Any]:
    result: Counter[Any] = Counter()
    for key, value in pairs(body).items():
        result[key] = value
    return result


def ip(body: bytes) -> Any:
    kind, address, prefix, zone = packed(body)
    text = str(IPv4Address(address) if len(address) == 4 else IPv6Address(address)) + (f"%{zone}" if zone else "")
    assert (prefix is None) == (kind == "address")
    version = "IPv4" if len(address) == 4 else "IPv6"
    return NAMES[version + kind.capitalize()](text if prefix is None else f"{text}/{prefix}")


EXTENSIONS: dict[int, Callable[[bytes], Any]] = {
    1: lambda body: tuple(packed(body)),
    2: lambda body: set(packed(body)),
    3: lambda body: frozenset(packed(body)),
    4: lambda body: int.from_bytes(body, "big", signed=True),
    5: pairs,
    6: moment,
    7: lambda body: date(*map(int, body.decode().split("-"))),
    8: hour,
    9: lambda body: timedelta(*packed(body)),
    10: lambda body: Decimal(body.decode()),
    11: lambda body: Fraction(*packed(body)),
    12: lambda body: complex(*struct.unpack(">dd", body)),
    13: lambda body: UUID(body.hex()),
    14: path,
    15: lambda body: range(*packed(body)),
    16: lambda body: body.decode("utf-8", "surrogatepass"),
    # A reader without the classes sees the name and the state.
    17: lambda body: tuple(packed(body)),
    18: lambda body: OrderedDict(pairs(body)),
    19: defaults,
    20: counts,
    21: lambda body: deque(packed(body)[1:], packed(body)[0]),
    22: ip,
}


# --- the vectors ---


@each_vector
def test_a_value_is_written_as_the_vector_says(vector: dict[str, Any]) -> None:
    data = codec_of(vector).encode(value_of(vector))
    if "deadline_ms" in vector:
        data = frame.set_deadline(data, vector["deadline_ms"])
    assert data.hex() == vector["frame"]


@each_vector
def test_the_frame_of_a_vector_is_read_as_its_value(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["frame"])
    if "deadline_ms" in vector:
        assert frame.verify_deadline(data) == frame.deadline_of(data) == vector["deadline_ms"]
        with pytest.raises(hutch.CorruptValueError, match="has a deadline"):
            codec_of(vector).decode(data)
        assert same(codec_of(vector).decode_inner(data), value_of(vector))
        data = frame.set_deadline(data, None)
    assert same(codec_of(vector).decode(data), value_of(vector))


@each_vector
def test_a_decoder_written_from_the_page_reads_the_same(vector: dict[str, Any]) -> None:
    assert same(decode_frame(bytes.fromhex(vector["frame"]), FILE["key"].encode()), value_of(vector))


def test_the_vectors_hold_every_codec_and_every_type_of_the_page() -> None:
    in_frames = {data[0] for vector in VECTORS if (data := bytes.fromhex(vector["frame"]))}
    assert in_frames == {frame.MSGPACK, frame.JSON, frame.PICKLE, frame.SIGNED_PICKLE, frame.DEADLINE}
    assert {int(row, 16) for row in re.findall(r"^\| `0x([0-9A-F]{2})`", PAGE, re.MULTILINE)} == in_frames
    described = [int(row) for row in re.findall(r"^\| (\d+) \|", PAGE.split("## Typed MessagePack")[1], re.MULTILINE)]
    assert described == sorted(ext_types._DECODERS) == list(EXTENSIONS)
    covered = {type(value_of(vector)) for vector in VECTORS if "ZoneInfo" not in vector["value"]}
    assert set(ext_types.ENCODERS) - {type(Path())} <= covered


# --- what no vector shows ---


def test_a_path_says_of_which_system_it_is() -> None:
    codec = frame_codec_of(make_codec("msgpack", {}))
    here_is_windows = isinstance(Path(), PureWindowsPath)
    here = codec.encode(Path("a/b"))
    assert identical(codec.decode(here), Path("a/b"))
    assert decode_frame(here, b"") == Path("a/b")
    flag, other = (b"\xc3", b"\xc2") if here_is_windows else (b"\xc2", b"\xc3")
    assert b"path" + flag in here
    from_elsewhere = frame.seal(here[:-4].replace(b"path" + flag, b"path" + other))
    expected = PurePosixPath("a\\b") if here_is_windows else PureWindowsPath("a/b")
    assert identical(codec.decode(from_elsewhere), expected)


def test_readers_take_long_forms_of_numbers_and_lengths() -> None:
    codec = frame_codec_of(make_codec("msgpack", {}))
    for body, value in (
        (b"\xcf" + (5).to_bytes(8, "big"), 5),
        (b"\xd3" + (-5).to_bytes(8, "big", signed=True), -5),
        (b"\xdb\0\0\0\1a", "a"),
        (b"\xdc\0\1\xc0", [None]),
        (b"\xdf\0\0\0\1\xa1a\1", {"a": 1}),
        (b"\xc6\0\0\0\1x", b"x"),
        (b"\xc9\0\0\0\x01\x04\x05", 5),
    ):
        data = frame.seal(b"\x92" + body + b"\xce")
        assert same(codec.decode(data), value)
        assert same(decode_frame(data, b""), value)


@pytest.mark.parametrize("number", [0, 23, 127, -1, -128])
def test_an_extension_that_is_not_on_the_page_is_refused(number: int) -> None:
    data = frame.seal(b"\x92\xd4" + struct.pack("b", number) + b"\0\xce")
    with pytest.raises(hutch.CorruptValueError, match=f"extension type {number} is unknown; a newer hutch"):
        frame_codec_of(make_codec("msgpack", {})).decode(data)


@pytest.mark.parametrize("name", ["msgpack", "json", "pickle"])
def test_a_header_that_is_not_on_the_page_is_refused_by_every_codec(name: str) -> None:
    known = {0x92, 0x4A, 0x50, 0x53, 0x54}
    for header in set(range(256)) - known:
        with pytest.raises(hutch.CorruptValueError, match=f"header byte 0x{header:02x} is unknown; a newer hutch"):
            frame_codec_of(make_codec(name, {})).decode(frame.seal(bytes([header]) + b"body"))


# --- frames with a deadline ---


def sealed_with(deadline: bytes, inner: bytes = b"\x92\xc0\xce") -> bytes:
    return frame.seal(b"T" + deadline + inner)


def test_a_deadline_is_set_changed_and_removed_and_the_rest_of_the_frame_stays() -> None:
    plain = frame_codec_of(None).encode([1, "a"], 7)
    first = frame.set_deadline(plain, 1_700_000_000_000, 7)
    assert first == frame.seal(b"T" + (1_700_000_000_000).to_bytes(8, "big") + plain[:-4], 7)
    assert frame.verify_deadline(first, 7) == 1_700_000_000_000
    later = frame.set_deadline(first, frame.MAX_DEADLINE_MS, 7)
    assert frame.deadline_of(later) == frame.MAX_DEADLINE_MS
    assert frame.set_deadline(later, None, 7) == frame.set_deadline(plain, None, 7) == plain
    assert frame.deadline_of(plain) is None


@pytest.mark.parametrize("deadline_ms", [-1, frame.MAX_DEADLINE_MS + 1, 1 << 64])
def test_no_frame_is_made_with_a_deadline_that_no_reader_takes(deadline_ms: int) -> None:
    with pytest.raises(ValueError, match="between 1970 and the end of the year 9999"):
        frame.set_deadline(frame_codec_of(None).encode(1), deadline_ms)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (sealed_with((frame.MAX_DEADLINE_MS + 1).to_bytes(8, "big")), "beyond the year 9999"),
        (sealed_with(b"\xff" * 8), "beyond the year 9999"),
        (sealed_with(b"\0" * 8, b"T" + b"\0" * 8 + b"\x92\xc0\xce"), "a deadline within a deadline"),
        (sealed_with(b"\0" * 8, b""), "fewer than any value with a deadline has"),
        (sealed_with(b"\0" * 8, b"\x92"), "fewer than any value with a deadline has"),
        (sealed_with(b"\0", b""), "fewer than any value with a deadline has"),
        (sealed_with(b"\0" * 8)[:-1], "checksum does not match"),
        (sealed_with(b"\0" * 8)[:5], "only 5 bytes"),
    ],
)
def test_a_forged_deadline_is_a_corrupt_value_and_never_expires(data: bytes, problem: str) -> None:
    with pytest.raises(hutch.CorruptValueError, match=problem):
        frame.verify_deadline(data)
    if "9999" in problem or "checksum" in problem or "bytes" in problem:
        assert not frame.is_expired(data, frame.MAX_DEADLINE_MS)


def test_a_frame_expires_at_its_deadline_and_only_if_it_is_intact() -> None:
    data = frame.set_deadline(frame_codec_of(None).encode(1, 9), 1000, 9)
    assert [frame.is_expired(data, now, 9) for now in (0, 999, 1000, 1001)] == [False, False, True, True]
    assert not frame.is_expired(data, 1001, 8)
    assert not frame.is_expired(frame_codec_of(None).encode(1, 9), 1001, 9)
    for at in range(len(data)):
        assert not frame.is_expired(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], 1001, 9)


@pytest.mark.parametrize("inner", [b"\x80body", b"Ppickle", b"Sigpickle"])
def test_the_codec_behind_a_deadline_is_refused_as_without_one(inner: bytes) -> None:
    codec = frame_codec_of(None)
    data = sealed_with(b"\0" * 8, inner)
    with pytest.raises(hutch.CorruptValueError) as plain:
        codec.decode(frame.seal(inner))
    with pytest.raises(hutch.CorruptValueError) as expiring:
        codec.decode_inner(data)
    assert str(expiring.value) == str(plain.value)


def test_a_registered_type_is_its_name_and_its_state() -> None:
    class Point:
        def __init__(self, x: int, y: int) -> None:
            self.x, self.y = x, y

    hutch.register_type(Point, name="point", encode=lambda p: (p.x, p.y), decode=lambda state: Point(*state))
    assert decode_frame(frame_codec_of(make_codec("msgpack", {})).encode([Point(1, 2)]), b"") == [("point", (1, 2))]


def test_an_lmdb_store_is_laid_out_as_the_page_says(tmp_path: Path) -> None:
    with (
        hutch.connect({"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": tmp_path}}) as store,
        store.open("core") as core,
        store.open("é: other") as other,
    ):
        core.update({"b": 1, "a": [2], "é": None})
        other["k"] = 1
        del core["b"]
        other.clear()
    assert {file.name for file in tmp_path.iterdir()} == {"data.mdb", "lock.mdb"}
    with lmdb.open(str(tmp_path), readonly=True) as env, env.begin() as txn:
        table = dict(txn.cursor())
    one, two = (1).to_bytes(4, "big"), (2).to_bytes(4, "big")
    values = {key: decode_frame(table.pop(one + key), b"", of=key) for key in (b"a", "é".encode())}
    assert values == {b"a": [2], "é".encode(): None}
    assert table == {
        b"\0\0\0\0v": b"hutch 1",
        b"\0\0\0\0i": two,
        b"\0\0\0\0ncore": one,
        b"\0\0\0\0n" + "é: other".encode(): two,
        one: (2).to_bytes(8, "big"),
        two: bytes(8),
    }


def test_a_store_that_another_program_wrote_by_the_page_is_read(tmp_path: Path) -> None:
    one = (1).to_bytes(4, "big")
    body = b"\x92\x81\xa2us\xc3\xce"
    entries = {
        b"\0\0\0\0v": b"hutch 1",
        b"\0\0\0\0i": one,
        b"\0\0\0\0ncore": one,
        one: (2).to_bytes(8, "big"),
        one + b"key": body + crc32(b"key" + body).to_bytes(4, "little"),
        one + b"unbound": body + crc32(body).to_bytes(4, "little"),
    }
    with lmdb.open(str(tmp_path), lib_version=1) as env, env.begin(write=True) as txn:
        for key, value in entries.items():
            txn.put(key, value)
    with hutch.connect({"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": tmp_path}}) as store, store.open("core") as core:
        assert dict(core) == {"key": {"us": True}, "unbound": {"us": True}}
        assert len(core) == 2
        core["new"] = 1
        assert store.namespaces() == ["core"]


@pytest.mark.parametrize("url", ["lmdb://{}/state", "sqlite://{}/state.db"])
@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle"])
def test_a_value_under_another_key_than_its_own_is_not_taken_for_one(tmp_path: Path, url: str, codec: str) -> None:
    """As after damage to a key, or to the path from key to value."""
    config = {"STORAGE": url.format(tmp_path), "CODEC": codec}
    with hutch.connect(config) as store, store.open("core") as core:
        core.update({"a": 1, "b": 2, "c": 3})
        core._store.write("b", core._store.read("a"))  # type: ignore[attr-defined]
        assert core.get_many(["a", "c"]) == {"a": 1, "c": 3}
        for read in (
            lambda: core["b"],
            lambda: core.get_many(["a", "b"]),
            lambda: list(core.items()),
            lambda: core.modify("b", lambda n: n),
        ):
            with pytest.raises(hutch.CorruptValueError, match=r"'b'.*belongs to another key"):
                read()
        core["b"] = 4
        assert core["b"] == 4


def test_a_signature_binds_the_value_and_not_its_place(tmp_path: Path) -> None:
    """As the page warns: an old signed value, put back or copied to another key, is accepted."""
    config = {"STORAGE": "memory", "CODEC": {"name": "pickle", "key": FILE["key"]}}
    with hutch.connect(config) as store:
        storage = store._factory.open("core")
        storage.set("a", "of a")
        stored = storage.read("a")
        storage.write("b", stored)
        assert storage.get("b") == "of a"
        storage.write("a", stored[:-5] + bytes([stored[-5] ^ 1]) + stored[-4:])
        with pytest.raises(hutch.CorruptValueError):
            storage.get("a")


def test_the_smallest_and_the_widest_zone_are_written_in_microseconds() -> None:
    codec = frame_codec_of(make_codec("msgpack", {}))
    for offset in (timedelta(microseconds=1), timedelta(days=1) - timedelta(microseconds=1), -timedelta(hours=23)):
        value = datetime(2024, 1, 1, tzinfo=timezone(offset))
        data = codec.encode(value)
        assert identical(codec.decode(data), value)
        assert identical(decode_frame(data, b""), value)
    assert decode_frame(codec.encode(time(1, tzinfo=UTC)), b"") == time(1, tzinfo=UTC)
