"""Test that decoding is bounded in time, memory and stack by the input's length, and accepts only what hutch writes."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import ormsgpack
import pytest
from ormsgpack import Ext

import hutch
from hutch.codec.select import frame_codec_of
from hutch.codec.tagged_json import from_json, to_json

CODEC = frame_codec_of(None)
packb = ormsgpack.packb
# All ints that are multiples of it have the same hash.
PRIME = sys.hash_info.modulus


def frame_of(value: Any) -> bytes:
    """Return an intact frame of ormsgpack's encoding of `value`, whether hutch would write it or not."""
    return seal(packb(value))


def seal(packed: bytes) -> bytes:
    body = b"\x92" + packed + b"\xce"
    return body + struct.pack("<I", zlib.crc32(body))


def ext(number: int, body: bytes) -> bytes:
    return b"\xc9" + struct.pack(">I", len(body)) + bytes([number]) + body


def big(value: int) -> bytes:
    return ext(4, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def array(items: list[bytes]) -> bytes:
    return b"\xdd" + struct.pack(">I", len(items)) + b"".join(items)


def fraction(number: int) -> bytes:
    # numerator = denominator modulo PRIME, so that the hash is 1.
    denominator = 2 * number + 3
    return ext(11, packb([denominator + PRIME, denominator]))


def took(work: Callable[[], object], what: str) -> float:
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    print(f"{what}: {seconds:.3f} s")
    return seconds


def refused(data: bytes) -> None:
    with pytest.raises(hutch.CorruptValueError) as raised:
        CODEC.decode(data)
    assert len(str(raised.value)) < 300


def frozen_twins(depth: int, which: int) -> bytes:
    """A frozenset of frozensets of ... that has the same hash as its twin."""
    if depth == 0:
        return big(PRIME * (which + 1))
    return ext(3, array([frozen_twins(depth - 1, which * 2 + side) for side in (0, 1)]))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a Fraction of text": lambda: frame_of(Ext(11, packb(["1e99999999"]))),
    "a Fraction of two texts": lambda: frame_of(Ext(11, packb(["1e99999999", "3"]))),
    "a Fraction of floats": lambda: frame_of(Ext(11, packb([1.0, 2.0]))),
    "a Fraction of bools": lambda: frame_of(Ext(11, packb([True, True]))),
    "a Fraction of long ints": lambda: seal(ext(11, array([big(3**400_000), big(7**400_000)]))),
    "a range of floats": lambda: frame_of(Ext(15, packb([0.0, 1e300, 1]))),
    "a range of two": lambda: frame_of(Ext(15, packb([0, 1]))),
    "a timedelta of floats": lambda: frame_of(Ext(9, packb([1e300, 0, 0]))),
    "a timedelta of texts": lambda: frame_of(Ext(9, packb(["1", 0, 0]))),
    "a timedelta out of range": lambda: frame_of(Ext(9, packb([10**12, 0, 0]))),
    "a complex of 15 bytes": lambda: frame_of(Ext(12, b"x" * 15)),
    "a Decimal of another spelling": lambda: frame_of(Ext(10, b"1_000")),
    "a Decimal of Arabic digits": lambda: frame_of(Ext(10, "\u0661".encode())),
    "a Decimal beyond its exponents": lambda: frame_of(Ext(10, b"1e99999999999999999999")),
    "a date of another spelling": lambda: frame_of(Ext(7, b"2024-W01-1")),
    "a datetime of another spelling": lambda: frame_of(Ext(6, packb(["2024-01-01T00:00Z", 0, None]))),
    "a datetime of a number": lambda: frame_of(Ext(6, packb([5, 0, None]))),
    "a zone that leads out": lambda: frame_of(Ext(6, packb(["2024-01-01T00:00:00", 0, "../../etc/passwd"]))),
    "a zone with an absolute path": lambda: frame_of(Ext(6, packb(["2024-01-01T00:00:00", 0, "/etc/localtime"]))),
    "a zone that is a folder": lambda: frame_of(Ext(6, packb(["2024-01-01T00:00:00", 0, "Europe"]))),
    "a zone that is long": lambda: frame_of(Ext(6, packb(["2024-01-01T00:00:00", 0, "A" * 100_000]))),
    "a zone of floats": lambda: frame_of(Ext(6, packb(["2024-01-01T00:00:00", 0, 1.5]))),
    "a path of text": lambda: frame_of(Ext(14, packb(["path", False, "x"]))),
    "a tuple of a text": lambda: frame_of(Ext(1, packb("abc"))),
    "a set of a dict": lambda: frame_of(Ext(2, packb({"a": 1}))),
    "a set of lists": lambda: frame_of(Ext(2, packb([[]]))),
    "a dict with a key twice": lambda: frame_of(Ext(5, packb([1, 2, 1, 3]))),
    "a dict with half an item": lambda: frame_of(Ext(5, packb([1, 2, 1]))),
    "an array of 4 billion": lambda: seal(b"\xdd\xff\xff\xff\xff"),
    "a map of 4 billion": lambda: seal(b"\xdf\xff\xff\xff\xff"),
    "ints of one hash in a set": lambda: seal(ext(2, array([big(PRIME * i) for i in range(9, 60_000)]))),
    "ints of one hash in a frozenset": lambda: seal(ext(3, array([big(PRIME * i) for i in range(9, 60_000)]))),
    "ints of one hash as keys": lambda: seal(ext(5, array([big(PRIME * (9 + i // 2)) for i in range(60_000)]))),
    "Fractions of one hash": lambda: seal(ext(2, array([fraction(i) for i in range(40_000)]))),
    "tuples of one hash": lambda: seal(
        ext(2, array([ext(1, array([big(PRIME * (9 + i)), b"\x01"])) for i in range(40_000)]))
    ),
    "an OrderedDict with a key twice": lambda: frame_of(Ext(18, packb([1, 2, 1, 3]))),
    "an OrderedDict with half an item": lambda: frame_of(Ext(18, packb([1, 2, 1]))),
    "an OrderedDict of a map": lambda: frame_of(Ext(18, packb({"a": 1}))),
    "an OrderedDict with a list as key": lambda: frame_of(Ext(18, packb([[], 1]))),
    "a defaultdict without a factory": lambda: frame_of(Ext(19, packb([]))),
    "a defaultdict of a function": lambda: frame_of(Ext(19, packb(["eval"]))),
    "a defaultdict of an import": lambda: frame_of(Ext(19, packb(["os.system", 1, 2]))),
    "a defaultdict of a list": lambda: frame_of(Ext(19, packb([["list"]]))),
    "a defaultdict of True": lambda: frame_of(Ext(19, packb([True]))),
    "a Counter with a key twice": lambda: frame_of(Ext(20, packb(["a", 2, "a", 3]))),
    "a deque without maxlen": lambda: frame_of(Ext(21, packb([]))),
    "a deque of more than maxlen": lambda: frame_of(Ext(21, packb([1, 2, 3]))),
    "a deque of a negative maxlen": lambda: frame_of(Ext(21, packb([-1]))),
    "a deque of True": lambda: frame_of(Ext(21, packb([True, 1]))),
    "a deque of a huge maxlen": lambda: seal(ext(21, array([big(1 << 400)]))),
    "a deque of a text": lambda: frame_of(Ext(21, packb("abc"))),
    "an address of text": lambda: frame_of(Ext(22, packb(["address", "192.0.2.1", None, None]))),
    "an address of five bytes": lambda: frame_of(Ext(22, packb(["address", b"12345", None, None]))),
    "an address with a prefix": lambda: frame_of(Ext(22, packb(["address", b"1234", 8, None]))),
    "an IPv4 address with a zone": lambda: frame_of(Ext(22, packb(["address", b"1234", None, "eth0"]))),
    "an address with a strange zone": lambda: frame_of(Ext(22, packb(["address", b"x" * 16, None, "a%b/c"]))),
    "a network with host bits": lambda: frame_of(Ext(22, packb(["network", b"1234", 8, None]))),
    "a network of a wide prefix": lambda: frame_of(Ext(22, packb(["network", bytes(4), 1 << 40, None]))),
    "a network of a netmask": lambda: frame_of(Ext(22, packb(["network", bytes(4), "255.0.0.0", None]))),
    "a network of True": lambda: frame_of(Ext(22, packb(["network", bytes(4), True, None]))),
    "an interface without a prefix": lambda: frame_of(Ext(22, packb(["interface", bytes(4), None, None]))),
    "an address of another kind": lambda: frame_of(Ext(22, packb(["host", bytes(4), 8, None]))),
    "an address of three parts": lambda: frame_of(Ext(22, packb(["address", bytes(4), None]))),
    **{
        f"ints of one hash in a {name}": lambda number=number, header=header: seal(  # type: ignore[misc]
            ext(number, array(header + [big(PRIME * (9 + i // 2)) for i in range(60_000)]))
        )
        for name, number, header in (("OrderedDict", 18, []), ("defaultdict", 19, [b"\xc0"]), ("Counter", 20, []))
    },
    "frozensets of frozensets of one hash": lambda: seal(ext(2, array([frozen_twins(14, 0), frozen_twins(14, 1)]))),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_what_hutch_does_not_write_is_refused_at_once(what: str) -> None:
    data = HOSTILE[what]()
    seconds = took(lambda: refused(data), f"{what}, {len(data):,} bytes")
    assert seconds < 10


def test_a_decimal_and_an_int_of_its_hash_are_compared_in_bounded_time() -> None:
    # Decimal converts the int it is compared with, in time quadratic in its length.
    number = 7 + PRIME * (1 << 8_000_000)
    data = seal(ext(2, array([ext(10, b"7"), big(number)])))
    assert hash(number) == hash(Decimal(7))
    assert took(lambda: refused(data), f"{len(data):,} bytes") < 10


@pytest.mark.parametrize("levels", [3, 8, 40, 300, 1_000])
def test_no_nesting_overflows_the_stack(levels: int) -> None:
    program = f"""
        import hutch
        from tests.codec.test_bounds import CODEC, ext, seal
        packed = b"\\x01"
        for _ in range({levels}):
            packed = ext(1, b"\\x91" * 1_000 + packed)
        try:
            CODEC.decode(seal(packed))
        except hutch.CorruptValueError as error:
            print(error)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran
    assert levels == 3 or "nested too deep" in ran.stdout


def test_what_nests_deep_within_the_rules_is_read() -> None:
    value: Any = list(range(2_000))
    for _ in range(50):
        value = (value, "x" * 30)
    assert CODEC.decode(CODEC.encode(value)) == value


def test_what_the_encoder_writes_of_such_types_is_read() -> None:
    value = [
        {PRIME * i for i in range(1, 200)},
        {
            (a, b, c, d, e, f): 1
            for a in (-1, -2)
            for b in (-1, -2)
            for c in (-1, -2)
            for d in (1, 2)
            for e, f in [(1, 2)]
        },
        {frozenset({-1}), frozenset({-2})},
        set(range(5_000)),
        {str(i) for i in range(5_000)},
        {Fraction(i, 7) for i in range(2_000)},
        {UUID(int=i) for i in range(2_000)},
        {float(i) for i in range(2_000)} | {complex(i, i) for i in range(2_000)},
        {timedelta(i): Decimal(i) for i in range(1_000)},
        Fraction(3**20_000, 7**20_000),
        Decimal("1e999999999999999999"),
        Decimal("-Infinity"),
        range(10**30),
        datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=1), "a name")),
        ZoneInfo("Etc/GMT+12").utcoffset(None),
        date(1, 1, 1),
        datetime.max.replace(tzinfo=UTC),
        Path("a/../b"),
        OrderedDict({PRIME * i: i for i in range(1, 200)}),
        Counter({UUID(int=i): i for i in range(2_000)}),
        defaultdict(list, {str(i): [i] for i in range(5_000)}),
        deque(range(5_000), 9_000),
        {ip_address(i) for i in range(2_000)},
    ]
    assert CODEC.decode(CODEC.encode(value)) == value
    assert from_json(to_json(value)) == value


def test_what_would_not_be_read_is_refused_when_it_is_set() -> None:
    too_long = Fraction(3**60_000, 7**60_000)
    with pytest.raises(hutch.ValueTypeError, match=r"the value\[0\] is a Fraction of more than 65,536 bits; store"):
        CODEC.encode([too_long])
    with pytest.raises(hutch.ValueTypeError, match="a Fraction of more than 65,536 bits; store"):
        to_json(too_long)
    hashes = {PRIME * i for i in range(9, 2_000)}
    for value in (
        [hashes],
        [frozenset(hashes)],
        [dict.fromkeys(hashes)],
        {1: hashes},
        [OrderedDict.fromkeys(hashes)],
        [Counter(hashes)],
    ):
        with pytest.raises(hutch.ValueTypeError, match=r"the value\[[01]\]: too many items .* equal hashes"):
            CODEC.encode(value)
        with pytest.raises(hutch.ValueTypeError, match="equal hashes"):
            to_json(value)


@pytest.mark.parametrize(
    "text",
    [
        '{"$fraction":["1e99999999"]}',
        '{"$fraction":["1e99999999",1]}',
        '{"$fraction":[1.5,1]}',
        '{"$fraction":[true,1]}',
        '{"$range":[0.0,1,1]}',
        '{"$timedelta":[1e300,0,0]}',
        '{"$timedelta":["1",0,0]}',
        '{"$complex":["1","2"]}',
        '{"$int":"' + "9" * 1_000_000 + '"}',
        "9" * 1_000_000,
        '{"$fraction":[{"$int":"0x' + "f" * 400_000 + '"},{"$int":"0x' + "e" * 400_001 + '"}]}',
        '{"$set":[' + ",".join(f'{{"$int":"{PRIME * i}"}}' for i in range(9, 20_000)) + "]}",
        '{"$dict":[' + ",".join(f'[{{"$int":"{PRIME * i}"}},1]' for i in range(9, 20_000)) + "]}",
        '{"$counter":[' + ",".join(f'[{{"$int":"{PRIME * i}"}},1]' for i in range(9, 20_000)) + "]}",
        '{"$ordered_dict":[["a",1],["a",2]]}',
        '{"$ordered_dict":{"a":1}}',
        '{"$defaultdict":["eval",[]]}',
        '{"$defaultdict":[["list"],[]]}',
        '{"$deque":[1,[1,2]]}',
        '{"$deque":[true,[1]]}',
        '{"$deque":[-1,[]]}',
        '{"$deque":[null,"SECRET"]}',
        '{"$ip_address":"SECRET"}',
        '{"$ip_address":5}',
        '{"$ip_network":"192.0.2.1/24"}',
        '{"$ip_network":"::/' + "9" * 100_000 + '"}',
        '{"$datetime":["2024-01-01T00:00:00",0,"' + "SECRET" * 1000 + '"]}',
    ],
    ids=lambda text: text[:40],
)
def test_tagged_json_is_bounded_too(text: str) -> None:
    def work() -> None:
        with pytest.raises(hutch.CorruptValueError) as raised:
            from_json(text)
        assert "SECRET" not in str(raised.value)

    assert took(work, f"{len(text):,} characters") < 10


def test_a_lifted_limit_of_digits_does_not_slow_reading_down() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        for text in ("9" * 3_000_000, '{"$int":"' + "9" * 3_000_000 + '"}'):
            with pytest.raises(hutch.CorruptValueError):
                from_json(text)
        body = b"J" + b"9" * 3_000_000
        with pytest.raises(hutch.CorruptValueError):
            CODEC.decode(body + struct.pack("<I", zlib.crc32(body)))
    finally:
        sys.set_int_max_str_digits(limit)


FUZZ = """
    import random, resource, sys, time, tracemalloc
    import hutch
    from tests.codec.test_bounds import CODEC, from_json, samples, mutated, seal, to_json
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    rng, outcomes, slowest = random.Random(seed), [0, 0], 0.0
    packed = [CODEC.encode(value)[1:-5] for value in samples()]
    texts = [to_json(value).encode() for value in samples()]
    tracemalloc.start()
    for number in range(count):
        data = mutated(rng, packed if number % 3 else texts)
        start, wanted = time.process_time(), data[:200]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            (lambda: CODEC.decode(seal(data)) if number % 3 else from_json(data))()
            outcomes[0] += 1
        except hutch.CorruptValueError as error:
            assert len(str(error)) < 300, error
            outcomes[1] += 1
        seconds = time.process_time() - start
        used = tracemalloc.get_traced_memory()[1] - before
        slowest = max(slowest, seconds)
        assert seconds < 2 and used < 2_000_000 + 3_000 * len(data), (seed, number, seconds, used, wanted)
    print(f"seed {seed}: {outcomes[0]:,} read, {outcomes[1]:,} refused, slowest {slowest:.3f} s")
"""


def samples() -> list[Any]:
    """Return values of every type, as seeds of the fuzz test."""
    return [
        [(1, {2, 3}), frozenset({"a"}), 2**70, {1: 2, (3,): 4}, "\ud800", b"x" * 20, 1.5],
        [datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo")), date.max],
        [datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "n")).timetz(), timedelta(-1, 2, 3)],
        [Decimal("1.5E+400"), Fraction(1, 3), 1 + 2j, UUID(int=5), Path("a/b"), range(1, 9, 2)],
        {"a": [{"b": (1, [2, {"c": {4, 5}}])}] * 5},
        [OrderedDict(a=1, b=(2,)), OrderedDict({1: 2}), defaultdict(list, {"a": [1]}), defaultdict(None, {1: 2})],
        [Counter("abca"), deque([1, (2,)], 3), deque([{3}]), OrderedDict(a=deque([Counter({2: 3})]))],
        [ip_address("192.0.2.1"), ip_address("fe80::1%eth0"), ip_network("2001:db8::/32"), ip_interface("::1/64")],
    ]


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """One of `corpus` with some bytes changed, moved, repeated or taken from another."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randrange(9)]
        elif kind == 2:
            other = rng.choice(corpus)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.randrange(40)]
        elif kind == 3:
            data[at:at] = data[at : at + 8] * rng.randrange(30)
        elif kind == 4 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at:at] = rng.choice(
                (
                    b"\xdd\xff\xff\xff\xff",
                    b"\xc9\x00\x00\x00\x08\x0b",
                    b"\xc7\x08\x13",
                    b"\xc7\x04\x15",
                    b"1e9999",
                    b'{"$fraction":[',
                    b"\x91",
                )
            )
        if not data:
            data = bytearray(b"\xc0")
    return bytes(data)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_mutated_frames_and_dumps_are_read_or_refused_within_bounds() -> None:
    seed = int(os.environ.get("HUTCH_SEED", "0")) or random.SystemRandom().randrange(10**6)
    count = os.environ.get("HUTCH_MUTATIONS", "4000")
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FUZZ), str(seed), count], capture_output=True, text=True, check=False
    )
    print(ran.stdout)
    assert ran.returncode == 0, (seed, ran.stderr[-2000:])
