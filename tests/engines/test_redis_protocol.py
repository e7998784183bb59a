"""Test that the redis engine speaks its protocol alike with the parser in C and without it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import redis

import hutch
from tests.servers import RedisServer

# What a server sends, and what it means.
ANSWERS: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", b"OK"),
    (b":-42\r\n", -42),
    (b"$-1\r\n", None),
    (b"$0\r\n\r\n", b""),
    (b"$6\r\na\r\nb\r\n\r\n", b"a\r\nb\r\n"),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*3\r\n$1\r\nx\r\n*2\r\n:1\r\n$-1\r\n+fine\r\n", [b"x", [1, None], b"fine"]),
    (b"$200000\r\n" + b"v" * 200_000 + b"\r\n", b"v" * 200_000),
]
GARBLED = [b"HTTP/1.1 400 secret\r\n\r\n", b"$x\r\n", b"+OK\r\n+more\r\n", b"*1\r\n!secret\r\n"]


@pytest.fixture(scope="module")
def protocol() -> Any:
    with hutch.connect("redis://localhost?lazy_connect=true") as store:
        return sys.modules[f"{type(store._factory).__module__.rpartition('.')[0]}.protocol"]


def need_hiredis(protocol: Any) -> None:
    if protocol._hiredis is None:
        message = "hiredis is not installed; the extra `redis` brings it"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


@pytest.fixture(params=["hiredis", "without"])
def parser(request: pytest.FixtureRequest, protocol: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "hiredis":
        need_hiredis(protocol)
    else:
        monkeypatch.setattr(protocol, "_hiredis", None)
        monkeypatch.setattr(protocol, "_pack", None)
    return str(request.param)


@contextmanager
def answered(protocol: Any, pieces: list[bytes]) -> Iterator[Any]:
    """Yield a connection to a server that sends these pieces as soon as it was sent something."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)

    def send() -> None:
        with suppress(OSError):  # the other end may have seen enough
            theirs.recv(1000)
            for piece in pieces:
                theirs.sendall(piece)

    sender = threading.Thread(target=send)
    sender.start()
    connection = protocol.connection_of(SimpleNamespace(_sock=ours))
    try:
        yield connection
    finally:
        connection.close()
        sender.join()
        theirs.close()


@pytest.mark.parametrize("size", [1, 7, 1_000_000], ids=["byte by byte", "in sevens", "at once"])
def test_answers_mean_the_same_in_any_pieces(protocol: Any, parser: str, size: int) -> None:
    stream = b"".join(sent for sent, _ in ANSWERS[: -1 if size == 1 else None])
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    count = len(ANSWERS) - (size == 1)
    with answered(protocol, pieces) as connection:
        assert connection.ask(protocol.PING, count) == [meant for _, meant in ANSWERS[:count]]


def test_a_refusal_is_an_error_among_the_answers(protocol: Any, parser: str) -> None:
    with answered(protocol, [b"+OK\r\n-WRONGTYPE not \xff this\r\n*2\r\n:1\r\n-ERR inner\r\n"]) as connection:
        first, second, (_, inner) = connection.ask(protocol.PING, 3)
    assert first == b"OK"
    assert (type(second), type(inner)) == (redis.ResponseError, redis.ResponseError)
    assert str(second).startswith("WRONGTYPE not ")
    assert str(inner) == "ERR inner"


@pytest.mark.parametrize("stream", GARBLED)
def test_what_is_no_answer_ends_the_connection_and_is_not_quoted(protocol: Any, parser: str, stream: bytes) -> None:
    with answered(protocol, [stream]) as connection:
        with pytest.raises(protocol.CallFailedError) as caught:
            connection.ask(protocol.PING, 1)
        assert connection._socket.fileno() == -1
    assert isinstance(caught.value.error, redis.InvalidResponse)
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_requests_are_the_same_bytes_and_large_arguments_are_not_copied(
    protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_hiredis(protocol)
    large = b"l" * 100_000
    commands = [(b"SET", "ü", b"\r\n", -5, 2**62), [b"SET", b"k", large], (b"GET", b"")]
    with_hiredis = protocol.packed(commands)
    monkeypatch.setattr(protocol, "_pack", None)
    without = protocol.packed(commands)
    assert b"".join(with_hiredis) == b"".join(without)
    assert [piece is large for piece in with_hiredis] == [piece is large for piece in without] == [False, True, False]


@pytest.fixture(params=["hiredis", "without", "the driver's public methods"])
def way(request: pytest.FixtureRequest, protocol: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Speak to servers in each way; return the class of connections."""
    adapter = sys.modules[protocol.__name__.replace(".protocol", ".adapter")]
    if request.param == "the driver's public methods":
        monkeypatch.setattr(adapter, "socket_of", lambda connected: None)
        return adapter.DriverConnection
    if request.param == "without":
        monkeypatch.setattr(protocol, "_hiredis", None)
        monkeypatch.setattr(protocol, "_pack", None)
        return protocol.Connection
    need_hiredis(protocol)
    return protocol.HiredisConnection


def connection_in(store: hutch.Store) -> Any:
    plugin: Any = store._factory
    (connection,) = plugin.server._pool._idle
    return connection


def test_every_verb_works_each_way(redis_server: RedisServer, prefix: str, way: Any) -> None:
    value = {"text": "v" * 100_000, "number": 1}
    with hutch.connect(f"{redis_server.url}?prefix={prefix}") as store, store.open("core") as core:
        core["a"] = value
        core.update({f"k{i:03}": i for i in range(500)})
        assert core["a"] == value
        assert core.get_many(["a", "k001", "none"]) == {"a": value, "k001": 1}
        assert list(core) == ["a", *(f"k{i:03}" for i in range(500))]
        assert dict(core.items()) == {"a": value} | {f"k{i:03}": i for i in range(500)}
        assert core.increment("k001") == 2
        assert core.remove_many(["k002", "none"]) == 1
        with core.transaction() as tx:
            tx["k003"] += 1
        assert (core["k003"], len(core), "k002" in core) == (4, 500, False)
        assert type(connection_in(store)) is way


def test_each_way_survives_a_restart_and_a_time_out(way: Any) -> None:
    with RedisServer(appendonly=True) as server:
        config = {"url": server.url, "timeout_s": 0.5, "retry_s": 30}
        with hutch.connect({"STORAGE": "redis", "STORAGE_CONFIG": config}) as store, store.open("core") as core:
            core["n"] = 1
            server.stop()
            server.start()
            assert core.modify("n", lambda n: n + 1) == 2  # not sent over a connection that has ended
            server.stall()
            with pytest.raises(hutch.StorageTimeoutError):
                core["n"]
            server.resume()
            core["m"] = 5
            assert (core["n"], core["m"]) == (2, 5)
            assert type(connection_in(store)) is way


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_way_a_child_leaves_the_connection_to_its_parent(redis_server: RedisServer, prefix: str, way: Any) -> None:
    with hutch.connect(f"{redis_server.url}?prefix={prefix}") as store, store.open("core") as core:
        core["n"] = 1
        child = os.fork()
        if not child:
            status = 1
            try:
                core["child"] = 2
                status = int(core["n"] != 1)
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (core["n"], core["child"]) == (1, 2)


INTERRUPTED = """
import signal, sys
import hutch

class Stop(Exception):
    pass

def stop(*_):
    raise Stop

with hutch.connect("redis://localhost?lazy_connect=true") as store:
    protocol = sys.modules[f"{type(store._factory).__module__.rpartition('.')[0]}.protocol"]
signal.signal(signal.SIGALRM, stop)
stopped = 0
while stopped < 5000:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        while True:
            protocol.packed([(b"ZADD", "key", 1, b"value", 2**40, b"other")])
    except Stop:
        stopped += 1
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
@pytest.mark.usefixtures("unmeasured_processes")
def test_a_handler_that_raises_while_numbers_are_packed_does_not_crash_the_process(protocol: Any) -> None:
    """hiredis 3.5 crashes when it converts a number and a signal handler raises."""
    need_hiredis(protocol)
    subprocess.run([sys.executable, "-c", INTERRUPTED], check=True, timeout=120)
