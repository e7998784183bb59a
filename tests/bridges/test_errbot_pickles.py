"""Test handmade malicious pickles: none is run, none takes more than its length allows, each is carried unchanged."""

from __future__ import annotations

import contextlib
import copyreg
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
import uuid
import zoneinfo
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import pytest

from hutch.bridges.errbot.pickle_constructors import NotPlainError
from hutch.bridges.errbot.plain_pickle import read_plain
from hutch.bridges.pickles import value_of
from hutch.codec.pickled import Pickled
from hutch.testing.signal_points import Interrupt, Visit, points, raise_interrupt

CLASSES = [
    ("uuid", "UUID"),
    ("uuid", "SafeUUID"),
    ("fractions", "Fraction"),
    ("decimal", "Decimal"),
    ("pathlib", "PurePosixPath"),
    ("zoneinfo", "ZoneInfo"),
    ("datetime", "datetime"),
    ("builtins", "set"),
]
PROMPT_S = 2.0


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def carried(pickled: bytes) -> bool:
    """Return whether an import takes `pickled` unchanged, quickly and without much memory."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        value = value_of(pickled, "shelf")
        assert time.monotonic() - began < PROMPT_S * 10
        assert tracemalloc.get_traced_memory()[1] < 20_000_000 + 200 * len(pickled)
    finally:
        tracemalloc.stop()
    return bool(value == Pickled(pickled))


# --- nothing is changed, called or imported ---


@pytest.mark.parametrize(("module", "name"), CLASSES)
@pytest.mark.parametrize(
    "state",
    [
        b"}" + text("pwned") + b"I1\nsb",  # a dict of attributes
        b"N}" + text("pwned") + b"I1\ns\x86b",  # (None, the attributes of slots)
        b"}" + text("pwned") + b"I1\ns}" + text("pwned") + b"I1\ns\x86b",
        b"}" + text("__setstate__") + b"Nsb",
    ],
    ids=["dict", "slots", "both", "setstate"],
)
def test_build_sets_no_attribute_of_a_class(module: str, name: str, state: bytes) -> None:
    owner = getattr(sys.modules[module], name)
    before = dict(vars(owner))
    assert carried(b"\x80\x02" + named(module, name) + state + b".")
    assert dict(vars(owner)) == before


def test_the_standard_unpickler_would_have_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uuid.UUID, "pwned", 0, raising=False)
    pickle.loads(b"\x80\x02" + named("fractions", "Fraction") + b"N}" + text("_pwned") + b"I1\ns\x86b.")
    assert Fraction._pwned == 1  # type: ignore[attr-defined]
    del Fraction._pwned  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "pickled",
    [
        named("os", "system") + text("false") + b"\x85R.",
        named("builtins", "eval") + text("1") + b"\x85R.",
        named("builtins", "getattr") + named("zoneinfo", "ZoneInfo") + text("clear_cache") + b"\x86R)R.",
        named("builtins", "getattr") + named("zoneinfo", "ZoneInfo") + text("__init_subclass__") + b"\x86R)R.",
        named("zoneinfo", "ZoneInfo") + text("../../etc/passwd") + b"\x85R.",
        named("uuid", "UUID") + b")\x81}" + text("int") + b"I5\ns" + text("hex") + b"I1\nsb.",
        named("uuid", "UUID") + b")\x81}" + text("int") + text("no number") + b"sb.",
        named("uuid", "UUID") + b")\x81}" + text("int") + b"I5\nsb}" + text("int") + b"I6\nsb.",  # changed afterwards
        named("uuid", "UUID.__init__") + b")R.",
        b"(iuuid\nUUID\n.",
        b"(" + named("uuid", "UUID") + b"o.",
        b"Pid\n.",
        text("id") + b"Q.",
        b"]" + named("datetime", "datetime") + b"a.",
        named("builtins", "set") + text("text") + b"\x85R.",
        named("builtins", "set") + named("builtins", "range") + b"K\x00J\xff\xff\xff\x7fK\x01\x87R\x85R.",
        named("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R.",
        named("fractions", "Fraction") + text("1e99999999") + b"\x85R.",
        named("datetime", "datetime") + b"K\x01K\x01K\x01\x87R.",
        named("datetime", "timezone") + text("x") + b"\x85R.",
        named("uuid", "SafeUUID") + text("A") + text("b c d") + b"\x86R.",
        named("fractions", "Fraction") + b"K\x01K\x02\x86R}" + text("_numerator") + b"K\x05sb.",
        b"\x97.",  # an out-of-band buffer
    ],
)
def test_nothing_is_called_but_constructors_with_what_their_own_pickles_give_them(pickled: bytes) -> None:
    caches = zoneinfo.ZoneInfo("Europe/Berlin")
    assert carried(b"\x80\x05" + pickled)
    assert zoneinfo.ZoneInfo("Europe/Berlin") is caches


@pytest.mark.parametrize("opcode", [b"\x82\x07", b"\x83\x07\x00", b"\x84\x07\x00\x00\x00"])
def test_an_extension_code_is_not_looked_up_even_where_it_is_cached(opcode: bytes) -> None:
    copyreg.add_extension("os", "getcwd", 7)
    try:
        assert pickle.loads(b"\x80\x02" + opcode + b")R.")
        assert carried(b"\x80\x02" + opcode + b")R.")
    finally:
        copyreg.remove_extension("os", "getcwd", 7)
        copyreg.clear_extension_cache()


# --- nothing takes more than its length allows ---


def doubled(times: int, opcodes: bytes, start: bytes = b"I1\n\x85") -> bytes:
    """Return a pickle with `times` levels, each of which holds the level below twice."""
    return b"\x80\x04" + start + b"".join(b"r" + struct.pack("<I", n) + opcodes for n in range(times))


def tuples(times: int) -> bytes:
    return doubled(times, b"2\x86")


def in_list(times: int) -> bytes:
    return b"\x80\x04]" + b"".join(
        b"r" + struct.pack("<I", n) + b"0](j" + struct.pack("<I", n) * 1 + b"j" + struct.pack("<I", n) + b"e"
        for n in range(times)
    )


def top_down(times: int) -> bytes:
    """Return lists that are filled after they were put into the lists that hold them twice."""
    pickled = b"\x80\x04" + b"".join(b"]r" + struct.pack("<I", n) for n in range(times))
    for n in range(times - 1):
        inner = b"j" + struct.pack("<I", n + 1)
        pickled += b"j" + struct.pack("<I", n) + b"(" + inner + inner + b"e0"
    return pickled + b"0" * (times - 1)


def frozensets(times: int) -> bytes:
    pickled = b"\x80\x04(I1\n\x91r\0\0\0\0"
    for n in range(times):
        get = b"j" + struct.pack("<I", n)
        pickled += b"(" + get + b"(" + get + b"I1\n\x91\x91r" + struct.pack("<I", n + 1)
    return pickled


BOMBS: dict[str, bytes] = {
    "tuples": tuples(60) + b".",
    "tuples as a key": b"\x80\x04}" + tuples(60)[2:] + b"Ns.",
    "tuples in a set": b"\x80\x04\x8f(" + tuples(60)[2:] + b"\x90.",
    "tuples given to set": b"\x80\x04" + named("builtins", "set") + b"](" + tuples(60)[2:] + b"e\x85R.",
    "tuples with a list": doubled(60, b"2\x86", b"]\x85") + b".",
    "lists": in_list(60) + b".",
    "lists from the top": top_down(60) + b".",
    "frozensets": frozensets(60) + b".",
    "one text many times": b"\x80\x04" + text("x" * 100_000) + b"q\0](" + b"h\0" * 100_000 + b"e.",
    "one key many times": b"\x80\x04" + tuples(15)[2:] + b"r\xff\0\0\0}(" + b"j\xff\0\0\0N" * 50_000 + b"u.",
    "one long number many times as a key": b"\x80\x04\x8b"
    + struct.pack("<I", 100_000)
    + b"\x01" * 100_000
    + b"q\0}("
    + b"h\0N" * 50_000
    + b"u.",
    "one decimal many times": b"\x80\x04"
    + named("decimal", "Decimal")
    + text("1" * 100_000)
    + b"\x85Rq\0]("
    + b"h\0" * 50_000
    + b"e.",
    "one path many times": b"\x80\x04"
    + named("pathlib", "PurePosixPath")
    + text("x/" * 50_000)
    + b"\x85Rq\0]("
    + b"h\0" * 50_000
    + b"e.",
    "memo of gigabytes": b"\x80\x04Nr\xff\xff\xff\x0f.",
    "memo of gigabytes in text": b"\x80\x04Np268435455\n.",
    "nested tuples": b"\x80\x04)" + b"\x85" * 200_000 + b".",
    "nested tuples as a key": b"\x80\x04})" + b"\x85" * 200_000 + b"Ns.",
    "nested lists": b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "long fraction": b"\x80\x04"
    + named("fractions", "Fraction")
    + b"\x8b"
    + struct.pack("<I", 300_000)
    + b"\x55" * 300_000
    + b"\x8b"
    + struct.pack("<I", 300_000)
    + b"\x33" * 300_000
    + b"\x86R.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_bomb_is_copied_unread_in_time_and_memory_linear_in_its_length(bomb: str) -> None:
    assert carried(BOMBS[bomb]) or bomb.startswith("memo")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
        b"\x80\x04\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        b"\x80\x04B" + struct.pack("<I", 0xFFFFFFFF) + b"x.",
        b"\x80\x04\x8b" + struct.pack("<I", 0x7FFFFFFF) + b"x.",
        b"\x80\x04\x8b" + struct.pack("<i", -5) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N",
        b"",
        b"\x80\x04",
        b"\x80\x04N",
    ],
)
def test_a_length_beyond_the_input_is_a_damaged_pickle(pickled: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match="not a complete pickle"):
            value_of(pickled, "shelf")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
@pytest.mark.parametrize("bomb", BOMBS)
def test_no_bomb_ends_the_process_where_memory_is_scarce(bomb: str) -> None:
    code = "import sys; from hutch.bridges.pickles import value_of\nvalue_of(sys.stdin.buffer.read(), 'shelf')"
    limit = 1 << 30
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=BOMBS[bomb],
        capture_output=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr.decode()


# --- what is harmless is read ---


@pytest.mark.parametrize("protocol", range(6))
def test_what_bots_keep_is_read_with_its_types(protocol: int) -> None:
    shared = ["x", {"y": (1, 2)}]
    values: list[Any] = [
        {
            f"name {n}": {"a key that all rows share": n, "another key that they share": [n, str(n)]}
            for n in range(2000)
        },
        [shared, shared, {"again": shared}],
        [1 << 70, -1, True, 2.5, None, "text", "Über"],
        {(1, 2), (2, 3)},
        [timedelta(days=1), Decimal("1.5"), datetime(2024, 2, 29, 23, 59)],
    ]
    if protocol >= 2:
        values += [uuid.UUID(int=5), Fraction(1, 3), PurePosixPath("a/b"), frozenset({1, frozenset({2})}), b"\xff\0"]
    for value in values:
        read = read_plain(pickle.dumps(value, protocol))
        assert (read, type(read)) == (value, type(value))


def test_what_a_handler_raises_while_it_reads_comes_out() -> None:
    pickled = pickle.dumps({"a": [datetime(2024, 2, 29), {1}]}, 2)

    def work() -> object:
        return read_plain(pickled)

    for point in points(work, 40, loops=False):
        visit = Visit(point, raise_interrupt)
        with contextlib.suppress(Interrupt):
            visit.run(work, loops=False)
            assert visit.where is None, f"swallowed at {visit.where}"


def test_opcodes_in_any_order_end_in_a_value_or_an_error() -> None:
    chance = random.Random(seed := random.randrange(1 << 30))
    print("seed", seed)
    parts: list[Callable[[], bytes]] = [
        *(lambda code=code: code for code in (b"N", b")", b"]", b"}", b"(", b"\x85", b"\x86", b"a", b"s", b"e", b"u")),
        *(lambda code=code: code for code in (b"\x8f", b"\x90", b"\x91", b"R", b"b", b"\x81", b"2", b"0", b"1", b"t")),
        lambda: b"q" + bytes([chance.randrange(4)]),
        lambda: b"h" + bytes([chance.randrange(4)]),
        lambda: b"K" + bytes([chance.randrange(256)]),
        lambda: text("int"),
        lambda: named(*chance.choice(CLASSES)),
    ]
    read = 0
    for _ in range(20_000):
        pickled = b"\x80\x04" + b"".join(chance.choice(parts)() for _ in range(chance.randrange(1, 12))) + b"."
        try:
            read_plain(pickled)
            read += 1
        except (NotPlainError, ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError):
            pass
    assert read > 100
