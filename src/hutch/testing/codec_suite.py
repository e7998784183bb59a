"""CodecSuite: every promise of a codec."""

from __future__ import annotations

import bz2
import contextlib
import copyreg
import gc
import lzma
import random
import signal
import time
import tracemalloc
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from types import FrameType
from typing import Any, ClassVar

import pytest

import hutch

from ..codec.frame import is_reserved
from ..codec.select import frame_codec_of
from .conformance.interrupts import SIGNALS, needs_timers
from .conformance.kit import identical, together

_KEY_CRC = zlib.crc32(b"key")
# A body may grow by this factor when it is decoded; zlib's own limit is 1,032.
_MOST_BYTES_PER_BYTE, _SPARE_BYTES = 2048, 16 << 20
_LONGEST_DECODE_S = 10.0
_BOMB_BYTES = 48 << 20
_RANDOM_BODIES = 300


@dataclass(frozen=True)
class _Own:
    state: int


class _Text(str):
    __slots__ = ()


class _Alarm(ValueError):
    pass


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**53 + 1, 2**70, 0.5, -0.0, 1e300, float("inf"), float("nan")),
    *("", "text", "é\u2028\x00", "\ud800", _Text("text"), b"", b"\xc4bytes", bytearray(b"array")),
    *([], [1, [2.0, "3"]], (), (1, (2,)), {}, {"a": {"b": [None]}}, {1: 2}, {1, 2}, OrderedDict(a=1)),
    *(date(2024, 2, 29), datetime(2024, 1, 1, tzinfo=UTC), Decimal("1.10"), _Own(1), [_Own(1)], {"a": (1,)}),
)


class CodecSuite:
    """Every promise of a codec as a pytest test: subclass it and add a fixture `codec` that returns the codec."""

    #: Further values that the codec accepts; required if it accepts none of the usual ones.
    values: ClassVar[Sequence[Any]] = ()
    #: Whether decoding may run code that the writer chose; damaged bodies are then not decoded.
    unpickles: ClassVar[bool] = False

    @pytest.fixture
    def codec(self) -> hutch.Codec:
        raise NotImplementedError("add a fixture `codec` that returns the codec")

    @pytest.fixture
    def taken(self, codec: hutch.Codec) -> list[Any]:
        """Return the values that the codec accepts."""
        return [value for value in (*self.values, *_VALUES) if _body(codec, value) is not None]

    def test_its_header_bytes_are_its_own(self, codec: hutch.Codec) -> None:
        """No header byte is reserved for hutch, or that of another installed codec."""
        assert codec.headers, "`headers` is empty"
        if type(codec).__module__.startswith("hutch.codec."):
            return
        assert not [header for header in codec.headers if is_reserved(header)], "reserved for hutch"
        for info in hutch.find_plugins().codecs:
            if set(info.headers) != set(codec.headers):
                assert not set(info.headers) & set(codec.headers), f"a header byte of the {info.name} codec"

    def test_a_value_comes_back_equal_and_of_the_same_type(self, codec: hutch.Codec, taken: list[Any]) -> None:
        """A value that is taken comes back as a new object, equal and with the same types; another is refused."""
        assert taken, "it accepts none of the values; add one to `values`"
        for value in taken:
            header, body = codec.encode(value)
            assert header in codec.headers
            assert type(body) is bytes
            assert body, "an empty body"
            read = codec.decode(header, body)
            assert identical(read, value), f"{value!r} came back as {read!r}"
            assert not isinstance(value, list | dict) or read is not value

    def test_what_it_cannot_keep_is_refused(self, codec: hutch.Codec) -> None:
        """A value without end, too deep, or of an unknown type is taken, or is a ValueTypeError; nothing else."""
        endless: list[Any] = []
        endless.append(endless)
        deep: list[Any] = []
        for _ in range(50_000):
            deep = [deep]
        for value in (endless, deep, object(), lambda: None, iter([])):
            _body(codec, value)

    def test_damage_of_a_frame_is_noticed(self, codec: hutch.Codec, taken: list[Any]) -> None:
        """Any changed byte of a stored frame, a missing end, or another key is a CorruptValueError."""
        frames = frame_codec_of(codec)
        for value in taken[:5]:
            data = frames.encode(value, _KEY_CRC)
            assert identical(frames.decode(data, _KEY_CRC), value)
            bad = [
                data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :] for position in range(len(data))
            ]
            for damaged in (*bad, data[:-1], b""):
                with pytest.raises(hutch.CorruptValueError):
                    frames.decode(damaged, _KEY_CRC)
            with pytest.raises(hutch.CorruptValueError):
                frames.decode(data, _KEY_CRC ^ 1)

    def test_hostile_bytes_are_refused_in_bounded_time_and_memory(self, codec: hutch.Codec, taken: list[Any]) -> None:
        """Any body is a value or a CorruptValueError, within time and memory that its length bounds."""
        if self.unpickles:
            pytest.skip("decoding may run code that the writer of a value chose")
        bodies = [*_hostile(), *(changed for value in taken for changed in _changed(codec.encode(value)[1]))]
        tracemalloc.start()
        try:
            for header in codec.headers:
                for body in bodies:
                    tracemalloc.reset_peak()
                    before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
                    with contextlib.suppress(hutch.CorruptValueError):
                        codec.decode(header, body)
                    used = tracemalloc.get_traced_memory()[1] - before
                    shown = f"a body of {len(body):,} bytes that starts with {body[:8]!r}"
                    assert time.perf_counter() - start < _LONGEST_DECODE_S, shown
                    assert used < _SPARE_BYTES + _MOST_BYTES_PER_BYTE * len(body), f"{shown} took {used:,} bytes"
        finally:
            tracemalloc.stop()

    @needs_timers
    def test_what_a_signal_handler_raises_comes_out_as_it_is(self, codec: hutch.Codec, taken: list[Any]) -> None:
        """An exception of a signal handler leaves `encode` and `decode` unmodified."""
        encoded = [codec.encode(value) for value in taken]

        def encode() -> None:
            for value in taken:
                codec.encode(value)

        def decode() -> None:
            for header, body in encoded:
                codec.decode(header, body)

        for work in (encode, decode):
            _interrupt(work)

    def test_any_thread_may_use_it(self, codec: hutch.Codec, taken: list[Any]) -> None:
        """Threads may encode and decode at the same time."""

        def work() -> None:
            for value in taken * 20:
                assert identical(codec.decode(*codec.encode(value)), value)

        together(*[work] * 4)


def _body(codec: hutch.Codec, value: object) -> bytes | None:
    """Return the body of `value`; None if the codec refuses it."""
    try:
        return codec.encode(value)[1]
    except hutch.ValueTypeError:
        return None


def _hostile() -> Iterator[bytes]:
    chance = random.Random(0)
    for _ in range(_RANDOM_BODIES):
        yield chance.randbytes(chance.randrange(1, 60))
    for repeated in (b"[", b'{"a":', b"\x91", b"\xd4\x01", b"1", b"(", b"\x00", b"\xff"):
        yield repeated * (200_000 // len(repeated))
    # Headers that announce more bytes than follow.
    yield from (b"\xdd\xff\xff\xff\xff", b"\xc6\x7f\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x9b" + b"\xff" * 8)
    zeros = b"0" * _BOMB_BYTES
    yield from (zlib.compress(zeros), bz2.compress(zeros, 1), lzma.compress(zeros, preset=0))


def _changed(body: bytes) -> Iterator[bytes]:
    for position in range(min(len(body), 40)):
        yield body[:position]
        yield body[:position] + bytes([body[position] ^ 0xFF]) + body[position + 1 :]
    yield body + b"\x00"


def _interrupt(work: Callable[[], None]) -> None:
    """Call `work` while a signal handler raises at random moments, and assert that its exception comes out."""
    fired: list[BaseException] = []
    interrupted: list[str] = []

    def handler(_: int, called: FrameType | None) -> None:
        interrupted[:] = [called.f_code.co_filename] if called else []
        fired.append(_Alarm("secret"))
        raise fired[-1]

    def repeat() -> None:
        # A function of its own: CPython may raise at the end of a loop outside the `try` around the loop.
        while not fired:
            work()

    start = time.perf_counter()
    work()
    longest = max(time.perf_counter() - start, 1e-4)
    # Python drops what is raised in a callback of the collector; hypothesis has one.
    callbacks = gc.callbacks[:]
    before = signal.signal(signal.SIGALRM, handler)
    try:
        gc.callbacks.clear()
        for number in range(SIGNALS):
            fired.clear()
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-5 + number % 37 / 37 * longest)
                repeat()
            except _Alarm as error:
                assert error is fired[0]
            else:
                # Python's copyreg, which pickle calls, has a bare `except: pass`.
                if not interrupted or interrupted[0] != copyreg.__file__:
                    pytest.fail("the exception of a signal handler was swallowed")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.callbacks[:] = callbacks
