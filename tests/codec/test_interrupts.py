"""Test that what a signal handler raises during encoding or decoding comes out unchanged, and so does MemoryError."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.codec.json import JsonCodec
from hutch.codec.msgpack import MsgpackCodec
from hutch.codec.pickle import PickleCodec
from hutch.codec.select import frame_codec_of
from hutch.codec.tagged_json import from_json, to_json
from hutch.handlers import guard_entry, passes_through

INTERRUPTS = int(os.environ.get("HUTCH_INTERRUPTS", "300"))

pytestmark = [
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send a signal"),
]


@hutch.register_type
@dataclass
class Point:
    x: int
    y: Any


class Timeout(Exception):
    pass


class OwnValueError(ValueError):
    pass


class OwnTypeError(TypeError):
    pass


class OwnRecursionError(RecursionError):
    pass


RAISED = [Timeout, OwnValueError, OwnTypeError, OwnRecursionError, MemoryError, KeyboardInterrupt]

TYPED, PICKLE, JSON = map(frame_codec_of, (MsgpackCodec(), PickleCodec(b"k" * 16), JsonCodec()))
VALUE = [(i, {i}, date(2024, 2, 29), Decimal(i), {1: (2,)}, Point(i, (i,))) for i in range(40)]
KEYED = {1: [(i, frozenset({i}), datetime.now(UTC)) for i in range(40)]}  # for the walk
PLAIN = [{"a": [i, str(i)]} for i in range(200)]


def _verbs() -> dict[str, Callable[[], object]]:
    typed, keyed, pickled, plain = TYPED.encode(VALUE), TYPED.encode(KEYED), PICKLE.encode(VALUE), JSON.encode(PLAIN)
    text = to_json(VALUE)
    return {
        "encode": lambda: TYPED.encode(VALUE),
        "encode by the walk": lambda: TYPED.encode(KEYED),
        "encode_many": lambda: TYPED.encode_many(VALUE, [0] * len(VALUE)),
        "decode": lambda: TYPED.decode(typed),
        "decode a dict": lambda: TYPED.decode(keyed),
        "decode_many": lambda: TYPED.decode_many([typed, keyed] * 3, [0] * 6),
        "decode_body": lambda: TYPED.decode_body(typed[1:-5]),
        "pickle encode": lambda: PICKLE.encode(VALUE),
        "pickle decode": lambda: PICKLE.decode(pickled),
        "json encode": lambda: JSON.encode(PLAIN),
        "json decode": lambda: JSON.decode(plain),
        "to_json": lambda: to_json(VALUE),
        "from_json": lambda: from_json(text),
    }


@pytest.fixture
def alarm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("raised", RAISED, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("verb", list(_verbs()))
def test_what_a_handler_raises_comes_out_as_itself(verb: str, raised: type[BaseException], alarm: None) -> None:
    work = _verbs()[verb]
    fired: list[BaseException] = []

    def handler(*_: object) -> None:
        fired.append(raised())
        raise fired[-1]

    signal.signal(signal.SIGALRM, handler)
    start = time.perf_counter()
    work()
    longest = max(time.perf_counter() - start, 1e-4)
    outcomes: Counter[str] = Counter()
    inside = 0
    for number in range(max(30, INTERRUPTS // len(RAISED))):
        fired.clear()
        try:
            signal.setitimer(signal.ITIMER_REAL, 2e-5 + number % 37 / 37 * longest)
            _repeat(work, fired)
            outcomes["swallowed"] += 1
        except BaseException as error:
            outcomes["as it was" if error is fired[0] else type(error).__name__] += 1
            inside += _is_inside(error)
            if error is not fired[0] and not isinstance(error, Exception | KeyboardInterrupt):
                raise
    delivered = sum(outcomes.values())
    print(f"{verb}: {delivered:,} interrupts, {inside:,} landed inside hutch, {dict(outcomes)}")
    assert outcomes == {"as it was": delivered}
    assert inside >= delivered * 0.3


def _repeat(work: Callable[[], object], fired: list[BaseException]) -> None:
    # In a function of its own: in Python 3.13, an exception that a handler raises as a loop jumps back escapes the
    # `try`.
    while not fired:
        work()


def _is_inside(error: BaseException) -> bool:
    traceback, package = error.__traceback__, str(Path(hutch.__file__).parent)
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename.startswith(package):
            return True
        traceback = traceback.tb_next
    return False


class Greedy:
    """Takes more memory than there is whenever it is encoded or decoded."""

    def __reduce__(self) -> Any:
        raise MemoryError("greedy")


def _raise_memory_error(*_: object) -> Any:
    raise MemoryError("greedy")


def test_memory_error_comes_out_as_itself() -> None:
    hutch.register_type(Greedy, name="greedy", encode=lambda _: 1, decode=_raise_memory_error)
    data, text = TYPED.encode([Greedy()]), to_json([Greedy()])
    for work in (
        lambda: TYPED.decode(data),
        lambda: TYPED.decode_many([data], [0]),
        lambda: from_json(text),
        lambda: PICKLE.encode(Greedy()),
    ):
        with pytest.raises(MemoryError, match="greedy"):
            work()
    hutch.register_type(Greedy, name="greedy", encode=_raise_memory_error, decode=lambda _: Greedy())
    for value in (Greedy(), [Greedy()], {1: Greedy()}):
        with pytest.raises(MemoryError, match="greedy"):
            TYPED.encode(value)
        with pytest.raises(MemoryError, match="greedy"):
            to_json(value)


def test_a_decoder_runs_once_whatever_it_raises() -> None:
    calls: list[int] = []

    def decode(_: Any) -> Any:
        calls.append(1)
        raise KeyError("x") if len(calls) > 1 else MemoryError

    hutch.register_type(Greedy, name="greedy", encode=lambda _: 1, decode=decode)
    data = TYPED.encode([Greedy()])
    with pytest.raises(MemoryError):
        TYPED.decode(data)
    assert len(calls) == 1


def test_a_finalizer_that_fails_to_decode_does_not_hide_what_was_raised() -> None:
    bad = TYPED.encode([(1, date(2024, 1, 1))]).replace(b"2024-01-01", b"2024-13-01")

    class Fails:
        def __del__(self) -> None:
            with pytest.raises(hutch.CorruptValueError):
                TYPED.decode_body(bad[1:-5])

    def decode(_: Any) -> Any:
        _held = Fails()
        raise Timeout

    hutch.register_type(Greedy, name="greedy", encode=lambda _: 1, decode=decode)
    for value in (Greedy(), [(Greedy(),)]):
        with pytest.raises(hutch.CorruptValueError, match="did not take back"):
            TYPED.decode(TYPED.encode(value))


def test_a_guarded_function_catches_what_is_raised_as_it_begins(alarm: None) -> None:
    caught: list[BaseException] = []

    @guard_entry
    def work(a: int, b: int) -> int:
        try:
            return a + b
        except BaseException as error:
            caught.append(error)
            raise

    def handler(*_: object) -> None:
        raise Timeout

    signal.signal(signal.SIGALRM, handler)
    landed = noted = 0
    for number in range(2_000):
        caught.clear()
        try:
            signal.setitimer(signal.ITIMER_REAL, 3e-5 + number % 7 * 1e-6)
            _repeat(lambda: list(map(work, (1, 2, 3), (1, 2, 3))), [])
        except Timeout as error:
            if any(name == "work" for name in _names(error)):
                landed += 1
                noted += caught == [error]
    print(f"{landed:,} landed in the function")
    assert landed > 100
    assert noted == landed
    assert work(1, 2) == 3
    assert work.__code__.co_exceptiontable[0] == 0x80


def _names(error: BaseException) -> Iterator[str]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_name
        traceback = traceback.tb_next


def test_what_passes_through() -> None:
    for error in (KeyboardInterrupt(), SystemExit(), GeneratorExit(), MemoryError()):
        assert passes_through(error)
    for other in (Exception(), ValueError(), OSError(), RecursionError()):
        assert not passes_through(other)
