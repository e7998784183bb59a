"""Test that a caller of hutch.aio that gives up returns at once, even if the engine does not answer.

A call that had not been sent never happens. A call that had been sent comes before every later write of its key.
`close` and the end of the process wait at most a second for it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import hutch
import hutch.aio

from ..servers import RedisServer

# A caller must return within 0.1 s; allow for a machine ten times as slow.
LET_GO_S = 0.1 * 10
GRACE_S = 1.0
PATIENCE_S = 0.2


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def hung(server: RedisServer) -> Iterator[RedisServer]:
    """Yield a server that the test stalls with `stall`, and that continues after the test."""
    yield server
    server.resume()


def url(server: RedisServer, **options: object) -> str:
    given = {"timeout_s": 8, "prefix": f"t{time.monotonic_ns()}", **options}
    return server.url + "?" + "&".join(f"{name}={value}" for name, value in given.items())


@asynccontextmanager
async def opened(config: Any, **options: Any) -> AsyncIterator[hutch.aio.Namespace]:
    """Open a namespace with keys "k" and "l", of a store that is not closed by leaving the block."""
    store = await hutch.aio.connect(config, **options)
    core = await store.open("core")
    await core.update({"k": 0, "l": 0})
    core.store = store  # type: ignore[attr-defined]
    yield core


async def close(core: hutch.aio.Namespace) -> None:
    await core.close()
    await core.store.close()  # type: ignore[attr-defined]


async def timed(what: str, awaitable: Awaitable[Any]) -> float:
    """Return how many seconds after `PATIENCE_S`, when its caller gave up, `awaitable` raised."""
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(awaitable, PATIENCE_S)
    let_go_s = time.monotonic() - began_s - PATIENCE_S
    print(f"{what}: let go after {let_go_s * 1000:.1f} ms")
    assert let_go_s < LET_GO_S
    return let_go_s


async def listed(iterator: Any) -> list[Any]:
    return [item async for item in iterator]


async def change(core: hutch.aio.Namespace) -> None:
    async with core.mutable("k") as value:
        del value


async def within_a_timeout(core: hutch.aio.Namespace) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(core.set("k", 1))
        group.create_task(core.get("l"))


async def awaited(opening: Awaitable[Any]) -> Any:
    return await opening


def double(value: int) -> int:
    return value * 2


VERBS: dict[str, Callable[[hutch.aio.Namespace], Coroutine[Any, Any, Any]]] = {
    "get": lambda core: core.get("k"),
    "[]": lambda core: core["k"],
    "contains": lambda core: core.contains("k"),
    "len": lambda core: core.len(),
    "get_many": lambda core: core.get_many(["k", "l"]),
    "items": lambda core: listed(core.items()),
    "scan": lambda core: listed(core.scan()),
    "set": lambda core: core.set("k", 1),
    "remove": lambda core: core.remove("k"),
    "update": lambda core: core.update({"k": 1}, l=2),
    "set_many": lambda core: core.set_many({"k": 1}),
    "remove_many": lambda core: core.remove_many(["k", "l"]),
    "clear": lambda core: core.clear(),
    "pop": lambda core: core.pop("k"),
    "popitem": lambda core: core.popitem(),
    "setdefault": lambda core: core.setdefault("k", 1),
    "compare_and_set": lambda core: core.compare_and_set("k", 0, 1),
    "modify": lambda core: core.modify("k", double),
    "mutable": change,
    "gather": lambda core: awaited(asyncio.gather(core.set("k", 1), core.get("l"), core.set("m", 1))),
    "TaskGroup in a timeout": within_a_timeout,
    "namespaces": lambda core: core.store.namespaces(),  # type: ignore[attr-defined]
    "drop": lambda core: core.store.drop("other"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_caller_cancelled_while_the_server_hangs_returns_at_once(hung: RedisServer, verb: str) -> None:
    async def main() -> None:
        async with opened(url(hung)) as core:
            hung.stall()
            await timed(verb, VERBS[verb](core))
            hung.resume()
            await close(core)

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["get", "set", "modify", "mutable", "gather", "drop"])
def test_close_waits_for_what_was_given_up_for_a_second_at_most(hung: RedisServer, verb: str) -> None:
    async def main() -> None:
        async with opened(url(hung)) as core:
            hung.stall()
            await timed(verb, VERBS[verb](core))
            began_s = time.monotonic()
            await close(core)
            closed_s = time.monotonic() - began_s
            print(f"close after {verb}: {closed_s:.2f} s")
            assert closed_s < GRACE_S + LET_GO_S
            assert not core.is_open_storage()

    asyncio.run(main())


def test_a_caller_cancelled_while_connecting_returns_at_once(hung: RedisServer) -> None:
    async def main() -> None:
        hung.stall()
        await timed("connect", awaited(hutch.aio.connect(url(hung))))
        hung.resume()
        async with hutch.aio.connect(url(hung)) as store, store.open("core") as core:
            await core.set("k", 1)

    asyncio.run(main())


def test_a_later_write_of_the_key_is_not_sent_before_the_one_given_up_is_answered(hung: RedisServer) -> None:
    async def main() -> None:
        async with opened(url(hung)) as core:
            hung.stall()
            await timed("set", core.set("k", "given up"))
            later = asyncio.create_task(core.set("k", "later"))
            others = asyncio.gather(core.get("k"), core.set("l", 1))
            await asyncio.sleep(0.05)
            hung.resume()
            await later
            await others
            assert (await core["k"], await core["l"]) == ("later", 1)
            await close(core)

    asyncio.run(main())


LATER: dict[str, Callable[[hutch.aio.Namespace], Coroutine[Any, Any, Any]]] = {
    name: VERBS[name]
    for name in (
        *("set", "remove", "update", "set_many", "remove_many", "clear", "pop", "popitem", "setdefault"),
        *("compare_and_set", "modify", "mutable"),
    )
}


@pytest.mark.parametrize("first", ["set", "update", "clear", "modify"])
def test_later_writes_of_the_key_say_so_after_half_of_the_time_out(hung: RedisServer, first: str) -> None:
    async def main() -> None:
        async with opened(url(hung, timeout_s=4)) as core:
            hung.stall()
            await timed(first, VERBS[first](core))
            began_s = time.monotonic()
            errors = await asyncio.gather(*[use(core) for use in LATER.values()], return_exceptions=True)
            assert 1.5 < time.monotonic() - began_s < 4
            for later, error in zip(LATER, errors, strict=True):
                assert isinstance(error, hutch.StorageTimeoutError), (later, error)
                assert "was not sent" in str(error)
                if not (first == "clear" and later in ("clear", "popitem")):
                    assert "key 'k' of namespace 'core'" in str(error)
            hung.resume()
            await close(core)

    asyncio.run(main())


def test_a_timeout_while_waiting_for_an_earlier_write_names_that_write(hung: RedisServer) -> None:
    async def main() -> None:
        async with opened(url(hung)) as core:
            hung.stall()
            await timed("set", core.set("k", 1))
            with pytest.raises(TimeoutError) as caught:
                await asyncio.wait_for(core.set("k", 2), PATIENCE_S)
            cause: BaseException | None = caught.value.__cause__
            assert cause is not None
            assert "key 'k' of namespace 'core'" in cause.__notes__[0]
            hung.resume()
            await close(core)

    asyncio.run(main())


def test_what_was_not_sent_is_withdrawn_and_never_happens(hung: RedisServer) -> None:
    async def main() -> None:
        async with opened(url(hung), threads=2) as core:
            hung.stall()
            tasks = [asyncio.create_task(core.set(f"given up {n}", n)) for n in range(20)]
            await asyncio.sleep(PATIENCE_S)
            for task in tasks:
                task.cancel()
            began_s = time.monotonic()
            await asyncio.wait(tasks)
            assert time.monotonic() - began_s < LET_GO_S
            assert all(task.cancelled() for task in tasks)
            later = asyncio.create_task(core.set("later", 1))
            await asyncio.sleep(0.1)
            hung.resume()
            await later
            await core.set("given up 0", "after")
            await core.set("given up 1", "after")
            assert await listed(core.scan("given up")) == [("given up 0", "after"), ("given up 1", "after")]
            await close(core)

    asyncio.run(main())


def test_calls_given_up_do_not_keep_the_threads_from_others(hung: RedisServer) -> None:
    """Each abandoned call occupies a thread; new threads replace them, up to three times as many."""

    async def main() -> None:
        async with opened(url(hung), threads=2) as core:
            hung.stall()
            for n in range(10):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(core.set(f"k{n}", n), 0.08)
            pool = core._calls.pool
            assert len(pool._workers) == 8
            hung.resume()
            await core.set("k", 1)
            # The surplus threads end one by one.
            async with asyncio.timeout(20):
                while len(pool._workers) > 2:
                    await asyncio.sleep(0.01)
            # The eighth had a thread, the ninth and the tenth had none.
            assert await core.get_many([f"k{n}" for n in range(10)]) == {f"k{n}": n for n in range(8)}
            await close(core)

    asyncio.run(main())


def test_modify_that_was_given_up_does_not_call_its_function_again(hung: RedisServer) -> None:
    calls = 0

    def count(value: int) -> int:
        nonlocal calls
        calls += 1
        return value + 1

    async def main() -> None:
        async with opened(url(hung)) as core:
            hung.stall()
            await timed("modify", core.modify("k", count))
            hung.resume()
            # Not before the abandoned call is over.
            assert await core.modify("k", count) == 1
            assert calls == 1
            await close(core)

    asyncio.run(main())


def test_a_namespace_whose_close_did_not_wait_can_be_opened_again_when_the_server_has_answered(
    hung: RedisServer,
) -> None:
    async def main() -> None:
        async with opened(url(hung, timeout_s=4)) as core:
            store = core.store  # type: ignore[attr-defined]
            hung.stall()
            await timed("set", core.set("k", "given up"))
            await core.close()
            for use in (core.get("k"), core.set("k", 1), core.modify("k", double), listed(core.items())):
                with pytest.raises(hutch.StoreNotOpenError, match="'core' is closed"):
                    await use
            with pytest.raises(hutch.StorageTimeoutError, match=r"namespace 'core': .* was not sent"):
                await store.open("core")
            hung.resume()
            async with store.open("core") as again:
                assert await again["k"] == "given up"
            await store.close()

    asyncio.run(main())


def test_a_broken_connection_ends_the_wait_for_what_was_given_up() -> None:
    async def main(server: RedisServer) -> None:
        async with opened(url(server)) as core:
            server.stall()
            await timed("set", core.set("k", "given up"))
            later = asyncio.create_task(core.set("k", "later"))
            await asyncio.sleep(0.05)
            assert not later.done()
            server.kill()
            server.start()
            async with asyncio.timeout(20):
                await later
            assert await core["k"] == "later"
            await close(core)

    with RedisServer() as server:
        asyncio.run(main(server))


# --- engines in this process, whose write lock another process holds ---

HOLD_LMDB = """
import sys, lmdb

# As a foreign program: it goes past hutch's own queue of processes.
with lmdb.open(sys.argv[1], max_dbs=10) as environment, environment.begin(write=True):
    print("held", flush=True)
    sys.stdin.readline()
"""

HOLD_SQLITE = """
import sqlite3, sys

connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


class Held:
    """A file engine whose write lock another process holds, from `hold` to `let`."""

    def __init__(self, engine: str, path: Path) -> None:
        self.url = f"{engine}://{path}"
        self._script = {"lmdb": HOLD_LMDB, "sqlite": HOLD_SQLITE}[engine]
        self._path = path
        self._process: subprocess.Popen[str] | None = None

    def hold(self) -> None:
        command = [sys.executable, "-c", self._script, str(self._path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "held\n"

    def let(self) -> None:
        if self._process is not None:
            self._process.communicate("\n", timeout=20)
            self._process = None


@pytest.fixture(params=["lmdb", "sqlite"])
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Held]:
    held = Held(request.param, tmp_path / "data")
    yield held
    held.let()


@pytest.mark.parametrize("verb", ["set", "remove", "update", "clear", "pop", "modify", "mutable", "gather"])
def test_a_writer_that_gives_up_waiting_for_a_lock_is_let_go_and_its_key_is_written_in_order(
    held: Held, verb: str
) -> None:
    async def main() -> None:
        async with opened(held.url) as core:
            held.hold()
            await timed(verb, VERBS[verb](core))
            later = asyncio.create_task(core.set("k", "later"))
            assert await core.get("l") == 0
            await asyncio.sleep(0.05)
            assert not later.done()
            held.let()
            await later
            assert await core["k"] == "later"
            await close(core)

    asyncio.run(main())


def test_close_and_the_next_open_with_a_lock_held_by_another_process(held: Held) -> None:
    async def main() -> None:
        async with opened(held.url) as core:
            held.hold()
            await timed("set", core.set("k", "given up"))
            began_s = time.monotonic()
            await close(core)
            closed_s = time.monotonic() - began_s
            print(f"close: {closed_s:.2f} s")
            assert closed_s < GRACE_S + LET_GO_S
            held.let()
        async with hutch.aio.connect(held.url) as store, store.open("core") as again:
            await again.set("k", "again")

    asyncio.run(main())


# --- by chance ---


@pytest.mark.parametrize("engine", ["memory", "lmdb", "sqlite", "redis"])
def test_by_chance_given_up_writes_never_come_after_later_ones(
    server: RedisServer, engine: str, tmp_path: Path
) -> None:
    """Each key is written by one task: its last acknowledged write is stored, whatever was abandoned before."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    config = {"memory": "memory://", "redis": url(server)}.get(engine, f"{engine}://{tmp_path}/data")
    given_up = 0

    def write_once(core: hutch.aio.Namespace, key: str, n: int) -> Coroutine[Any, Any, Any]:
        match rng.choice(["set", "update", "modify", "set_many"]):
            case "set":
                return core.set(key, n)
            case "update":
                return core.update({key: n, f"{key}:too": n})
            case "modify":
                return core.modify(key, lambda _: n, default=0)
            case _:
                return core.set_many({key: n})

    async def write(core: hutch.aio.Namespace, key: str) -> None:
        nonlocal given_up
        last = 0
        for n in range(1, 60):
            try:
                await asyncio.wait_for(write_once(core, key, n), rng.choice([0, 0.0005, 0.002, 5]))
                last = n
            except TimeoutError:
                given_up += 1
            if last == n:
                # This write certainly happens, and no abandoned write comes after it.
                assert await core[key] == n
        await core.set(key, "end")

    async def main() -> None:
        async with hutch.aio.connect(config, threads=4) as store, store.open("core") as core:
            await asyncio.gather(*[write(core, f"k{n}") for n in range(8)])
            await asyncio.sleep(0.05)
            assert await core.get_many([f"k{n}" for n in range(8)]) == {f"k{n}": "end" for n in range(8)}

    asyncio.run(main())
    print(f"{given_up} calls were given up")
    assert given_up > 20


# --- the end of the process ---

PROGRAM = """
import asyncio, sys, time, hutch.aio

async def main():
    async with hutch.aio.connect(sys.argv[1]) as store, store.open("core") as core:
        await core.set("acknowledged", 1)
        print("ready", flush=True)
        sys.stdin.readline()
        {body}

try:
    asyncio.run(main())
except BaseException as error:
    print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize(
    ("body", "interrupted", "error"),
    [
        ("await core.set('k', 1)", True, "KeyboardInterrupt"),
        ("await core.get('k')", True, "KeyboardInterrupt"),
        ("await core.modify('k', lambda n: n, 1)", True, "KeyboardInterrupt"),
        ("await asyncio.gather(*[core.set(f'k{n}', n) for n in range(50)])", True, "KeyboardInterrupt"),
        ("await asyncio.wait_for(core.set('k', 1), 0.1)", False, "TimeoutError"),
    ],
)
def test_a_program_whose_server_hangs_ends_on_ctrl_c_and_after_a_time_out(
    hung: RedisServer, body: str, interrupted: bool, error: str
) -> None:
    config = url(hung, timeout_s=60)
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{body}", body), config],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdin is not None
    assert program.stdout is not None
    with program:
        assert program.stdout.readline() == "ready\n"
        hung.stall()
        program.stdin.write("\n")
        program.stdin.flush()
        time.sleep(0.5)
        began_s = time.monotonic()
        if interrupted:
            program.send_signal(signal.SIGINT)
        try:
            message = program.communicate(timeout=30)[0]
        finally:
            program.kill()
    ended_s = time.monotonic() - began_s
    print(f"{body}: ended after {ended_s:.2f} s")
    assert (message, program.returncode) == (f"{error}\n", 0)
    assert ended_s < GRACE_S + LET_GO_S
    hung.resume()
    with hutch.connect(config) as store, store.open("core") as core:
        assert core["acknowledged"] == 1


def test_calls_that_were_not_abandoned_finish_before_the_process_ends(tmp_path: Path) -> None:
    script = """
    import asyncio, sys, hutch.aio

    loop = asyncio.new_event_loop()
    store = loop.run_until_complete(anext_ := hutch.aio.connect("sqlite://" + sys.argv[1])._opening())
    core = loop.run_until_complete(store.open("core")._opening())
    tasks = [loop.create_task(core.set(f"k{n}", n)) for n in range(200)]

    async def begin():
        await asyncio.sleep(0)

    loop.run_until_complete(begin())
    """
    path = tmp_path / "kv.db"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with hutch.connect(f"sqlite://{path}") as store, store.open("core") as core:
        assert len(core) == 200
