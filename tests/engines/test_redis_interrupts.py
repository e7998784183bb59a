"""Test the redis engine under signal handlers that raise or use hutch, at every point of every verb."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from types import FrameType
from typing import Any

import pytest
import redis

import hutch
from hutch.discovery.factory import find_plugins
from hutch.discovery.load import build_factory
from hutch.testing.conformance.interrupts import ALL_POINTS_FROM, SIGNALS
from hutch.testing.signal_points import Visit, count_points
from tests.servers import RedisServer, wait_until

# The tracer of coverage has a lock of its own, and sees signals between hutch's instructions.
pytestmark = pytest.mark.usefixtures("unmeasured")

# Classes that the driver, the sockets or hutch itself catch, and others: a handler's exception must come out unchanged.
RAISED: list[type[BaseException]] = [
    RuntimeError,
    TimeoutError,
    ConnectionResetError,
    OSError,
    ValueError,
    IndexError,
    KeyError,
    MemoryError,
    KeyboardInterrupt,
    UnicodeDecodeError,
]


# Longer verbs are tested at each n-th point; the long form of the conformance kit tests all of them.
MOST_POINTS = 1_000_000 if SIGNALS >= ALL_POINTS_FROM else 300


def made(kind: type[BaseException]) -> BaseException:
    if kind is UnicodeDecodeError:
        return UnicodeDecodeError("utf-8", b"", 0, 1, "of a handler")
    return kind("of a handler")


@pytest.fixture
def options(redis_server: RedisServer) -> dict[str, Any]:
    return {"url": redis_server.url, "prefix": f"t{uuid.uuid4().hex}", "timeout_s": 5}


@pytest.fixture(params=[None, 1], ids=["any number of connections", "max_connections=1"])
def store(request: pytest.FixtureRequest, options: dict[str, Any]) -> Iterator[hutch.Store]:
    with hutch.connect({"STORAGE": "redis", "STORAGE_CONFIG": options | {"max_connections": request.param}}) as opened:
        yield opened


VERBS: dict[str, Callable[[hutch.Namespace], object]] = {
    "get": lambda core: core["key"],
    "miss": lambda core: core.get("no such key"),
    "set": lambda core: core.__setitem__("key", 1),
    "pop": lambda core: core.pop("other", None),
    "in": lambda core: "key" in core,
    "len": len,
    "update": lambda core: core.update(a=1, b=2),
    "get_many": lambda core: core.get_many(["key", "a"]),
    "remove_many": lambda core: core.remove_many(["a", "b"]),
    "keys": list,
    "items": lambda core: list(core.items()),
    "modify": lambda core: core.modify("count", lambda n: n + 1, 0),
    "compare_and_set": lambda core: core.compare_and_set("key", 1, 1),
    "clear": lambda core: core.clear(),
}


def fill(core: hutch.Namespace) -> None:
    core.update({"key": 1, "other": 2, **{f"{i:03}": i for i in range(200)}})


def assert_sound(core: hutch.Namespace, store: hutch.Store) -> None:
    """Assert that the next calls get their own answers, and no connection and no place in the queue is lost."""
    core["one"] = "first"
    core["two"] = "second"
    assert (core["one"], core["two"]) == ("first", "second")
    assert core.pop("one") == "first"
    assert core.pop("two") == "second"
    assert len(core) == len(list(core)) == len(list(core.items()))
    pool = pool_of(store)
    assert pool._limit is None or not pool._limit._queue
    assert not pool._connect_lock._tickets


def pool_of(store: hutch.Store) -> Any:
    plugin: Any = store._factory
    return plugin.server._pool


def in_finalizer() -> bool:
    """Return whether a finalizer runs: Python drops its exceptions. A socket's finalizer warns, with its repr."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not what_comes_out.__code__:
        if frame.f_code.co_name in ("__del__", "__repr__", "_remove"):
            return True
        frame = frame.f_back
    return False


def visit_of(point: int, action: Callable[[str], None]) -> Visit:
    """Return a visit that calls `action` with the place of its point."""
    visits: list[Visit] = []
    visits.append(Visit(point, lambda: action(str(visits[0].where))))
    return visits[0]


def what_comes_out(visit: Visit, work: Callable[[], object]) -> BaseException | None:
    try:
        visit.run(work, loops=False)
    except BaseException as error:
        return error
    return None


def raise_outside_the_codec(raised: list[str], error: BaseException, where: str) -> None:
    # tests/test_interrupted.py is about the codec.
    if "/codec/" not in where and not in_finalizer():
        raised.append(where)
        raise error


# The driver closes its sockets in a finalizer, which may be interrupted too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_a_handler_that_raises_at_any_point_of_a_verb_breaks_nothing(store: hutch.Store, verb: str) -> None:
    work = functools.partial(VERBS[verb])
    with store.open("core") as core:
        fill(core)
        work(core)
        total = count_points(lambda: work(core), loops=False)
        raised: list[str] = []
        came_out: list[str] = []
        for point in range(1, total + 1, max(1, total // MOST_POINTS)):
            error = made(RAISED[point % len(RAISED)])
            visit = visit_of(point, functools.partial(raise_outside_the_codec, raised, error))
            caught = what_comes_out(visit, lambda: work(core))
            if caught is not None:
                assert caught is error, visit.where
                came_out.append(str(visit.where))
            if point % 7 == 0 or point > total - 20:
                assert_sound(core, store)
        assert_sound(core, store)
        print(f"{verb}: {total} points, {len(raised)} raised, {len(came_out)} came out as they were")
        # There the standard library tries some conversions, and drops a handler's ValueError.
        lost = [where for where in raised if where not in came_out]
        assert [where for where in lost if "/lib/python3" not in where or "site-packages" in where] == []
        assert len(came_out) >= len(raised) * 0.95


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("verb", ["get", "set", "modify"])
def test_an_exception_of_a_handler_that_is_kept_keeps_no_connection_open(
    store: hutch.Store, redis_server: RedisServer, verb: str
) -> None:
    work = functools.partial(VERBS[verb])
    kept: list[BaseException | None] = []

    def raise_in_the_engine(where: str) -> None:
        # The driver has its socket in a variable of its own while it connects.
        if "plugins/redis/" in where and not in_finalizer():
            raise InEngineError

    with store.open("core") as core, closing(redis.Redis(redis_server.host, redis_server.port)) as admin:
        fill(core)
        work(core)
        before = len(admin.client_list())
        total = count_points(lambda: work(core), loops=False)
        kept += [what_comes_out(visit_of(point, raise_in_the_engine), lambda: work(core)) for point in range(1, total)]
        assert len([error for error in kept if error is not None]) > 10
        # The server needs a moment to notice a closed connection.
        wait_until(lambda: len(admin.client_list()) <= before + 1)


NESTED = ["get", "set", "pop", "update", "items", "modify", "compare_and_set", "clear"]


@pytest.mark.parametrize("verb", NESTED)
def test_a_handler_that_uses_the_store_at_any_point_of_a_verb_gets_its_own_answers(
    store: hutch.Store, verb: str
) -> None:
    with store.open("core") as core, store.open("nested") as nested:
        fill(core)
        expected = VERBS[verb](core)
        if verb == "pop":
            expected = 2
        total = count_points(lambda: VERBS[verb](core), loops=False)
        for point in range(1, total + 1, max(1, total // 60)):
            core.update({"key": 1, "other": 2})
            core.pop("count", None)

            def use(number: int = point) -> None:
                nested["number"] = number
                assert nested["number"] == number
                assert nested.modify("number", lambda n: n + 1) == number + 1

            got = Visit(point, use).run(lambda: VERBS[verb](core), loops=False)
            if verb in ("get", "set", "pop", "compare_and_set"):
                assert got == expected, point
        assert_sound(core, store)
        assert nested["number"] > total // 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_handler_that_raises_at_any_point_of_connect_leaves_no_connection(
    options: dict[str, Any], redis_server: RedisServer
) -> None:
    # Without the search for plugins: it lists the folders of sys.path again whenever one of them has changed, as the
    # checkout does while other tests write their coverage there, so a point would have another number in each search.
    info = find_plugins().find("redis")

    def connect() -> None:
        plugin: Any = build_factory(info, options)
        plugin.close()

    connect()
    found: list[str] = []
    total = count_points(connect, loops=False)
    for point in range(1, total + 1):
        caught = what_comes_out(visit_of(point, functools.partial(raise_within_redis, found)), connect)
        if caught is not None:
            assert isinstance(caught, InEngineError)
            found[-1] = "came out"
    print(f"{total} points, {len(found)} in the engine or the driver")
    assert len(found) > 400
    assert set(found) == {"came out"}


class InEngineError(Exception):
    pass


def raise_within_redis(found: list[str], where: str) -> None:
    if re.search(r"(plugins|site-packages)/redis/|/socket\.py", where) and not in_finalizer():
        found.append(where)
        raise InEngineError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_handler_that_forks_in_the_middle_of_a_call_shares_no_answer_with_the_child(
    store: hutch.Store, unmeasured: None
) -> None:
    with store.open("core") as core:
        core.update(key="value", other="other")
        total = count_points(lambda: core["key"], loops=False)
        for point in range(1, total + 1, 3):
            children: list[int] = []

            def fork(children: list[int] = children) -> None:
                children.append(os.fork())

            status = 1
            try:
                got = Visit(point, fork).run(lambda: core["key"], loops=False)
                status = 0 if got == "value" and core["other"] == "other" else 2
            except hutch.StorageUnavailableError:
                status = 0 if core["other"] == "other" else 3
            finally:
                if children == [0]:
                    os._exit(status)
            assert status == 0, point
            assert core["other"] == "other"
            if children:
                assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0, point


@pytest.mark.parametrize("continues", [True, False], ids=["a slow server", "a hung server"])
def test_an_abandoned_call_is_over_when_its_exception_comes_out(continues: bool) -> None:
    """Otherwise the server may run it after the application's next call. A hung server is not waited for."""
    continued = threading.Event()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def go_on() -> None:
        continued.set()
        server.resume()

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with RedisServer() as server, hutch.connect(server.url) as store, store.open("core") as core:
            assert core.increment("count") == 1  # the server knows the script from now on
            server.stall()
            later = threading.Timer(0.06, go_on)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            if continues:
                later.start()
            with pytest.raises(KeyboardInterrupt):
                core.increment("count")
            assert continued.is_set() == continues
            later.cancel()
            server.resume()
            assert core["count"] == 2
    finally:
        signal.signal(signal.SIGALRM, before)
