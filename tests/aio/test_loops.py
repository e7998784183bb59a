"""Test one store of hutch.aio in many event loops, threads and tasks at once, and waits that would never end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hutch
import hutch.aio
from hutch import keylocks

from ..servers import RedisServer

# The tracer of coverage has a lock of its own, and sees signals between hutch's instructions.
pytestmark = pytest.mark.usefixtures("unmeasured")

LOOPS = 4
TIMES = 25


@pytest.fixture(params=["memory", "lmdb", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[str]:
    if request.param != "redis":
        yield {"memory": "memory://"}.get(request.param, f"{request.param}://{tmp_path}/data")
        return
    with RedisServer() as server:
        yield server.url


@pytest.fixture(autouse=True)
def nobody_is_left_in_a_queue() -> Iterator[None]:
    yield
    assert keylocks.waiters() == 0


def in_threads(works: list[Callable[[], Any]]) -> None:
    """Run all of `works` at once, each in its own thread; raise what one of them raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


def begun(url: str, **options: Any) -> tuple[hutch.aio.Store, hutch.aio.Namespace]:
    async def begin() -> tuple[hutch.aio.Store, hutch.aio.Namespace]:
        store = await hutch.aio.connect(url, **options)
        return store, await store.open("core")

    return asyncio.run(begin())


def ended(store: hutch.aio.Store, core: hutch.aio.Namespace) -> None:
    async def end() -> None:
        await core.close()
        await store.close()

    asyncio.run(end())


def test_modify_and_mutable_of_one_key_in_many_loops_lose_nothing(url: str) -> None:
    store, core = begun(url)

    async def work() -> None:
        async def tasks() -> None:
            for _ in range(TIMES):
                await core.modify("n", lambda n: n + 1, default=0)
                async with core.mutable("list", default=[]) as changed:
                    changed.append(1)
                    await asyncio.sleep(0)

        await asyncio.gather(tasks(), tasks())

    in_threads([lambda: asyncio.run(work())] * LOOPS)

    async def check() -> None:
        assert await core["n"] == len(await core["list"]) == 2 * LOOPS * TIMES

    asyncio.run(check())
    ended(store, core)


def test_every_verb_works_in_many_loops_at_once(url: str) -> None:
    store, core = begun(url)

    async def work(loop: int) -> None:
        for n in range(TIMES):
            key = f"{loop}:{n:02}"
            await core.set(key, n)
            await core.update({f"{key}:a": 1, f"{key}:b": 2})
            assert await core.pop(f"{key}:a") == 1
            assert await core.compare_and_set(f"{key}:b", 2, 3)
            assert [k async for k in core.scan_keys(f"{loop}:{n:02}")] == [key, f"{key}:b"]
            await core.remove(f"{key}:b")
            async with store.open(f"of loop {loop}") as own:
                await own.set("n", n)

    in_threads([lambda loop=loop: asyncio.run(work(loop)) for loop in range(LOOPS)])  # type: ignore[misc]

    async def check() -> None:
        assert await core.len() == LOOPS * TIMES
        assert await store.namespaces() == ["core", *(f"of loop {loop}" for loop in range(LOOPS))]

    asyncio.run(check())
    ended(store, core)


def test_threads_with_the_blocking_surface_and_tasks_wait_for_each_other(tmp_path: Any) -> None:
    """The blocking handle belongs to another store on the same files: both access the same data."""
    url = f"lmdb://{tmp_path}/data"
    store, core = begun(url)
    with hutch.connect(url) as other, other.open("core") as blocking:

        async def tasks() -> None:
            for _ in range(TIMES):
                async with core.mutable("list", default=[]) as changed:
                    changed.append(1)
                    await asyncio.sleep(0)

        def thread() -> None:
            for _ in range(TIMES):
                with blocking.mutable("list", default=[]) as changed:
                    changed.append(1)
                    time.sleep(0)

        in_threads([lambda: asyncio.run(tasks()), lambda: asyncio.run(tasks()), thread, thread])
        assert len(blocking["list"]) == 4 * TIMES
    ended(store, core)


def test_a_hundred_tasks_that_wait_for_keys_leave_the_threads_to_others() -> None:
    store, core = begun("memory://", threads=2)

    async def main() -> None:
        async def hold(key: str) -> None:
            async with core.mutable(key, default=[]) as changed:
                changed.append(1)
                entered.set()
                await let.wait()

        async def take_turns(key: str) -> None:
            await core.modify(key, lambda value: [*value, 2], default=[])

        entered, let = asyncio.Event(), asyncio.Event()
        holding = [asyncio.create_task(hold(key)) for key in "abcd"]
        await entered.wait()
        waiting = [asyncio.create_task(take_turns(key)) for key in "abcd" for _ in range(25)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            for n in range(20):
                await core.set("free", n)
            assert await core["free"] == 19
            assert not any(task.done() for task in waiting)
            let.set()
            await asyncio.gather(*holding, *waiting)
        assert [len(await core[key]) for key in "abcd"] == [26] * 4

    asyncio.run(main())
    ended(store, core)


# --- waits that would never end ---


async def both_in_the_other_order(core: hutch.aio.Namespace, inner: str) -> list[BaseException | None]:
    """Two tasks lock "a" and "b" in opposite orders, and meet in the middle."""
    barrier = asyncio.Barrier(2)

    async def take(first: str, second: str) -> None:
        async with core.mutable(first, default=[]) as changed:
            changed.append(first)
            await barrier.wait()
            if inner == "modify":
                await core.modify(second, lambda value: [*value, second], default=[])
            else:
                async with core.mutable(second, default=[]) as other:
                    other.append(second)

    return [*await asyncio.gather(take("a", "b"), take("b", "a"), return_exceptions=True)]


@pytest.mark.parametrize("inner", ["modify", "mutable"])
def test_two_tasks_that_wait_for_each_others_keys_get_an_error_at_once(url: str, inner: str) -> None:
    store, core = begun(url)

    async def main() -> None:
        began_s = time.monotonic()
        results = await both_in_the_other_order(core, inner)
        assert time.monotonic() - began_s < 1 * 10
        (error,) = [result for result in results if result is not None]
        assert isinstance(error, hutch.ConflictError)
        assert "'a'" in str(error)
        assert "'b'" in str(error)
        # The other task continued, and wrote both.
        assert sorted([await core.get("a", []), await core.get("b", [])]) == [["a"], ["b"]]

    asyncio.run(main())
    ended(store, core)


def test_tasks_of_two_loops_that_wait_for_each_others_keys_get_an_error_at_once() -> None:
    store, core = begun("memory://")
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []

    async def take(first: str, second: str) -> None:
        try:
            async with core.mutable(first, default=[]) as changed:
                changed.append(first)
                await asyncio.to_thread(barrier.wait, 20)
                await core.modify(second, lambda value: [*value, second], default=[])
        except hutch.ConflictError as error:
            errors.append(error)

    in_threads([lambda: asyncio.run(take("a", "b")), lambda: asyncio.run(take("b", "a"))])
    assert len(errors) == 1
    ended(store, core)


@pytest.mark.parametrize("outer", ["modify", "mutable"])
def test_the_function_of_modify_that_wants_its_own_key_is_refused_at_once(tmp_path: Any, outer: str) -> None:
    url = f"lmdb://{tmp_path}/data"
    store, core = begun(url)

    async def main() -> None:
        with hutch.connect(url) as other, other.open("core") as blocking:

            def nested(value: int) -> int:
                with pytest.raises(hutch.ConflictError, match="'k'"):
                    blocking.modify("k", lambda n: n + 1, default=0)
                return value + 1

            began_s = time.monotonic()
            if outer == "modify":
                await core.modify("k", nested, default=0)
            else:
                async with core.mutable("k", default={}) as changed:
                    changed["n"] = 1
                    with pytest.raises(hutch.ConflictError, match="'k'"):
                        await core.modify("k", lambda value: value)
            assert time.monotonic() - began_s < 1 * 10

    asyncio.run(main())
    ended(store, core)


def test_waiting_for_a_key_ends_after_wait_s_and_names_the_key(tmp_path: Any) -> None:
    """A task awaited inside the block that needs its key would wait for ever, which hutch cannot detect."""
    store, core = begun(f"sqlite://{tmp_path}/kv.db?wait_s=0.3")

    async def main() -> None:
        async with core.mutable("k", default=[]) as changed:
            changed.append(1)
            for use in (lambda: core.modify("k", lambda value: value), lambda: enter("k")):
                with pytest.raises(hutch.StorageTimeoutError, match=r"key 'k' was held by task .* for 0\.3 s"):
                    await asyncio.create_task(use())
        assert await core["k"] == [1]

    async def enter(key: str) -> None:
        async with core.mutable(key):
            pytest.fail("the block was run")

    asyncio.run(main())
    ended(store, core)


def test_a_cancelled_wait_for_a_key_leaves_the_queue_and_the_next_one_gets_it() -> None:
    store, core = begun("memory://")

    async def main() -> None:
        let = asyncio.Event()

        async def hold() -> None:
            async with core.mutable("k", default=[]) as changed:
                changed.append(1)
                await let.wait()

        async def add(n: int) -> None:
            await core.modify("k", lambda value: [*value, n])

        holding = asyncio.create_task(hold())
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(add(n)) for n in range(2, 5)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.wait(waiting[:2])
        let.set()
        async with asyncio.timeout(20):
            await asyncio.gather(holding, waiting[2])
        assert await core["k"] == [1, 4]

    asyncio.run(main())
    ended(store, core)


def test_a_loop_that_ends_inside_a_block_leaves_the_key_to_others() -> None:
    store, core = begun("memory://")

    def abandoned() -> None:
        loop = asyncio.new_event_loop()

        async def hold() -> None:
            async with core.mutable("k", default=[]):
                entered.set()
                await asyncio.Event().wait()

        entered = threading.Event()
        left.append(loop.create_task(hold()))

        async def until_entered() -> None:
            while not entered.is_set():
                await asyncio.sleep(0.001)

        loop.run_until_complete(until_entered())
        loop.close()

    async def main() -> None:
        async with asyncio.timeout(30):
            assert await core.modify("k", lambda value: [*value, 2], default=[]) == [2]

    left: list[asyncio.Task[None]] = []
    abandoned()
    asyncio.run(main())
    left[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    left[0].get_coro().close()
    ended(store, core)


def test_closing_in_one_loop_is_seen_by_the_others() -> None:
    store, core = begun("memory://")

    async def work() -> None:
        n = 0
        while True:
            try:
                await core.set(f"k{n % 10}", n)
            except hutch.StoreNotOpenError:
                return
            n += 1

    async def close() -> None:
        await asyncio.sleep(0.05)
        await core.close()
        await store.close()

    in_threads([*[lambda: asyncio.run(work())] * LOOPS, lambda: asyncio.run(close())])
    assert not core.is_open_storage()


# --- signal handlers that raise ---

INTERRUPTED = """
import asyncio, gc, random, signal, sys, threading, warnings
import hutch, hutch.aio
from hutch import keylocks

class Stop(Exception):
    pass

def stop(*_):
    global fired
    fired += 1
    raise Stop

async def begin():
    store = await hutch.aio.connect(sys.argv[1], threads=3)
    return store, await store.open("core")

async def use(core, task):
    n = 0
    while True:
        n += 1
        await core.set(f"k{task}", n)
        acknowledged[task] = n
        await core.modify("shared", lambda value: value + 1, default=0)
        async with core.mutable("list", default=[]) as changed:
            changed[:] = [n]

def interrupted(core, rng):
    # asyncio itself may lose a wake-up where a handler raises: each time is a loop of its own, as with asyncio.run.
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    tasks = [loop.create_task(use(core, task)) for task in range(4)]
    loop.call_later(0.012, loop.stop)
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.008))
    try:
        loop.run_forever()
    except Stop:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    for task in tasks:
        task.cancel()
    try:
        loop.run_until_complete(asyncio.wait(tasks, timeout=0.2))
    except RuntimeError:  # stopped before
        pass
    for task in tasks:
        if task.done() and not task.cancelled():
            assert isinstance(task.exception(), Stop), repr(task.exception())
    loop.close()

async def end(store, core):
    async with asyncio.timeout(30):
        for task, n in acknowledged.items():
            await core.set(f"k{task}", "end")
            assert await core[f"k{task}"] == "end"
        await core.modify("shared", lambda value: value + 1, default=0)
        await core.modify("list", lambda value: value, default=[])
        await core.close()
        await store.close()

fired, acknowledged, rng = 0, {}, random.Random()
warnings.simplefilter("ignore")
signal.signal(signal.SIGALRM, stop)
store, core = asyncio.run(begin())
for _ in range(int(sys.argv[2])):
    interrupted(core, rng)
gc.collect()
asyncio.run(end(store, core))
print(f"{fired} interrupts, {keylocks.waiters()} keys held, {threading.active_count()} thread")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGALRM on Windows")
@pytest.mark.parametrize("engine", ["memory", "lmdb", "sqlite"])
def test_handlers_that_raise_leave_no_key_held_no_thread_and_no_call_that_never_ends(
    engine: str, tmp_path: Any
) -> None:
    url = "memory://" if engine == "memory" else f"{engine}://{tmp_path}/data"
    command = [sys.executable, "-c", INTERRUPTED, url, "40"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(" interrupts, 0 keys held, 1 thread\n")


def test_the_default_executor_of_the_loop_is_left_to_the_application(url: str) -> None:
    async def main() -> None:
        async with hutch.aio.connect(url) as store, store.open("core") as core:
            await core.set("k", 1)
            await core.modify("k", lambda n: n + 1)
            async with core.mutable("k"):
                pass
            assert [key async for key in core] == ["k"]
            assert await store.namespaces() == ["core"]
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]

    asyncio.run(main())
