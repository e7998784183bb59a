"""Test the SQLite engine when a signal handler raises, or uses the file itself, at any point of any of its calls."""

from __future__ import annotations

import ast
import dis
import gc
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import hutch
from hutch.testing.signal_points import Interrupt, Visit, points, raise_interrupt, run_at

PATIENCE_S = 60.0
# The number of points tried per call, chosen at random with this seed; 0 for all of them.
LIMIT = int(os.environ.get("HUTCH_SIGNAL_POINTS", "12")) or None
SEED = int(os.environ.get("HUTCH_SEED", "0")) or random.randrange(1 << 30)
BEFORE = {f"k{number:03}": bytes([number]) * 20 for number in range(100)}
BATCH = {f"b{number:03}": b"batch" for number in range(150)}
pytestmark = pytest.mark.usefixtures("unmeasured")


class Limit(Exception):
    """Like a task queue's soft time limit."""


class Lack(MemoryError):
    """What Python raises when memory runs out."""


class LikeTheDriver(sqlite3.OperationalError):
    """An exception of a class that the engine catches from SQLite."""


@pytest.fixture(autouse=True)
def seed() -> None:
    print(f"HUTCH_SEED={SEED} HUTCH_SIGNAL_POINTS={LIMIT or 0}")


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Return what Python cannot raise: exceptions in finalizers and callbacks of weak references."""
    dropped: list[BaseException] = []
    monkeypatch.setattr("sys.unraisablehook", lambda message: dropped.append(message.exc_value))
    return dropped


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv.db"


def plugin_for(path: Path, **options: Any) -> Any:
    return hutch.load_plugin("sqlite", {"path": path, "durability": "relaxed", **options})


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Any]:
    with plugin_for(path, **options) as plugin, plugin.open("core") as storage:
        yield storage


def raw(path: Path) -> closing[sqlite3.Connection]:
    """Open the file as any other program does."""
    return closing(sqlite3.connect(path, isolation_level=None, timeout=5))


def stored(path: Path) -> dict[str, bytes]:
    with raw(path) as database:
        rows = database.execute("SELECT key, value FROM entries JOIN namespaces n ON n.id = ns WHERE name = 'core'")
        return {key.decode(): bytes(value) for key, value in rows}


def restore(storage: Any) -> None:
    storage.delete_many([key for key in storage.keys() if key not in BEFORE])  # noqa: SIM118 - a storage
    storage.write_many(BEFORE)


VERBS: dict[str, tuple[Callable[[Any], object], dict[str, bytes | None]]] = {
    "set": (lambda storage: storage.write("k001", b"new"), {"k001": b"new"}),
    "set large": (lambda storage: storage.write("k001", b"new" * 9000), {"k001": b"new" * 9000}),
    "update": (lambda storage: storage.write_many(BATCH), dict(BATCH)),
    "remove": (lambda storage: storage.delete("k001"), {"k001": None}),
    "remove_many": (lambda storage: storage.delete_many(["k001", "k002"]), {"k001": None, "k002": None}),
    "clear": (lambda storage: storage.clear(), dict.fromkeys(BEFORE)),
    "swap": (lambda storage: storage.compare_and_write("k001", BEFORE["k001"], b"new"), {"k001": b"new"}),
    "add": (lambda storage: storage.compare_and_write("new", None, b"new"), {"new": b"new"}),
    "get": (lambda storage: storage.read("k001"), {}),
    "get_many": (lambda storage: storage.read_many(list(BEFORE)), {}),
    "in": (lambda storage: storage.exists("k001"), {}),
    "len": (lambda storage: storage.len(), {}),
    "keys": (lambda storage: list(storage.keys()), {}),
    "items": (lambda storage: list(storage.read_range(None, None, False)), {}),
    "verify": (lambda storage: storage._plugin.verify(), {}),
}


def after(changes: dict[str, bytes | None]) -> dict[str, bytes]:
    return {key: value for key, value in {**BEFORE, **changes}.items() if value is not None}


def in_thread(work: Callable[[], object]) -> None:
    """Run `work` in another thread, which must not have to wait."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "a lock was left taken"
    assert raised == []


def nothing_is_held(storage: Any) -> None:
    """Assert that no transaction or snapshot is open, in this process or as seen by others, and no reader is lost."""
    database = storage._shared
    assert not database.writer._lock._tickets
    assert not database.readers._opening._tickets
    assert database.writer._connection is None or not database.writer._connection.in_transaction
    assert not database.writer._interrupted
    idle = database.readers.idle
    assert len(set(idle)) == len(idle)
    assert not any(connection.in_transaction for connection in idle)
    lost = database.readers._lost()
    assert {*idle, *lost} == database.readers._all
    with raw(storage._path) as other:
        busy, frames, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy
        assert not frames


@pytest.mark.parametrize("kind", [Limit, Lack, LikeTheDriver])
@pytest.mark.parametrize("verb", VERBS)
def test_an_exception_at_any_point_comes_out_and_leaves_nothing_taken(
    path: Path, verb: str, kind: type[BaseException], dropped: list[BaseException]
) -> None:
    call, changes = VERBS[verb]
    kept: BaseException | None = None
    with opened(path) as storage:
        restore(storage)
        for point in points(lambda: call(storage), LIMIT, SEED):
            restore(storage)
            error = kind(f"at point {point}")

            def action(error: BaseException = error) -> None:
                raise error

            visit = Visit(point, action)
            try:
                visit.run(lambda: call(storage))
            except BaseException as raised:
                kept = raised  # as a notebook keeps the last exception, and its frames with it
            else:
                kept = None
            assert kept is error or visit.where is None or error in dropped, f"{kept!r} at {visit.where}"
            assert stored(path) in (BEFORE, after(changes)), visit.where
            nothing_is_held(storage)
            in_thread(lambda: storage.write("k001", b"other"))
            nothing_is_held(storage)
        assert len(storage._shared.readers._all) <= 3
    assert os.listdir(path.parent) == [path.name], "a connection was left open"


@pytest.mark.parametrize("kind", [Limit, LikeTheDriver])
def test_an_exception_while_a_file_is_made_opened_and_closed_leaves_nothing_taken(
    path: Path, kind: type[BaseException], dropped: list[BaseException]
) -> None:
    def use() -> None:
        plugin = plugin_for(path)
        storage = plugin.open("core")
        storage.write("k", b"v")
        assert storage.read("k") == b"v"
        storage.close()
        plugin.close()

    for point in points(use, LIMIT, SEED):
        for file in path.parent.iterdir():
            file.unlink()
        error = kind(f"at point {point}")

        def action(error: BaseException = error) -> None:
            raise error

        visit = Visit(point, action)
        try:
            visit.run(use)
        except BaseException as raised:
            if raised is not error:
                raise
        else:
            assert visit.where is None or error in dropped, f"swallowed at {visit.where}"
        # A kept exception keeps the frames, and everything that they had not closed.
        del visit, action, error
        gc.collect()
        with opened(path) as storage:
            in_thread(lambda: storage.write("k", b"other"))
            assert storage.read("k") == b"other"
            nothing_is_held(storage)
        assert os.listdir(path.parent) == [path.name], point


@pytest.mark.parametrize("verb", VERBS)
def test_a_write_at_any_point_is_durable_when_it_returns_and_takes_nothing_from_the_outer_one(
    path: Path, verb: str
) -> None:
    call, changes = VERBS[verb]
    with opened(path, wait_s=PATIENCE_S) as storage:
        restore(storage)
        for point in points(lambda: call(storage), LIMIT, SEED):
            restore(storage)
            seen: list[dict[str, bytes]] = []

            def write(seen: list[dict[str, bytes]] = seen) -> None:
                storage.write("nested", b"1")
                storage.write_many({"nested": b"2", "nested too": b"2"})
                assert storage.read("nested") == b"2"
                seen.append(stored(path))

            began = time.monotonic()
            run_at(point, write, lambda: call(storage))
            assert time.monotonic() - began < PATIENCE_S / 2, "it waited for itself"
            for left in seen:
                assert left.pop("nested") == left.pop("nested too") == b"2"
                assert left in (BEFORE, after(changes)), "a part of a batch was to be seen"
            left = stored(path)
            nested = {left.pop("nested", None), left.pop("nested too", None)}
            assert left == after(changes), point
            assert nested == ({b"2"} if seen else {None}) or (verb == "clear" and nested == {None})
            nothing_is_held(storage)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("verb", ["set", "update", "remove_many"])
def test_a_write_through_another_store_of_the_same_file_works_at_any_point(path: Path, verb: str) -> None:
    call, changes = VERBS[verb]
    with opened(path, wait_s=PATIENCE_S) as storage, opened(path, durability="normal", wait_s=PATIENCE_S) as other:
        restore(storage)
        for point in points(lambda: call(storage), LIMIT, SEED):
            restore(storage)
            began = time.monotonic()
            run_at(point, lambda: other.write("nested", b"1"), lambda: call(storage))
            assert time.monotonic() - began < PATIENCE_S / 2, "it waited for itself"
            left = stored(path)
            left.pop("nested", None)
            assert left == after(changes), point


def test_a_write_at_any_point_of_making_the_file_works(path: Path) -> None:
    def use() -> None:
        with opened(path, wait_s=PATIENCE_S) as storage:
            storage.write("outer", b"1")

    def nested() -> None:
        with opened(path, wait_s=PATIENCE_S, durability="normal") as storage:
            storage.write("nested", b"1")

    for point in points(use, LIMIT, SEED):
        for file in path.parent.iterdir():
            file.unlink()
        visit = Visit(point, nested)
        began = time.monotonic()
        visit.run(use)
        assert time.monotonic() - began < PATIENCE_S / 2, f"it waited for itself at {visit.where}"
        assert stored(path) == {"outer": b"1", **({"nested": b"1"} if visit.where else {})}, visit.where
        assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("verb", ["set", "update", "get", "items"])
def test_a_handler_may_open_drop_and_close_at_any_point(path: Path, verb: str) -> None:
    call, _ = VERBS[verb]
    with opened(path, wait_s=PATIENCE_S) as storage:
        restore(storage)
        all_points = points(lambda: call(storage), LIMIT, SEED)
    for point in all_points:
        plugin = plugin_for(path, wait_s=PATIENCE_S)
        storage = plugin.open("core")

        def act(plugin: Any = plugin, storage: Any = storage) -> None:
            plugin.open("other").close()
            plugin.drop("other")
            storage.close()
            plugin.close()

        began = time.monotonic()
        with suppress(hutch.StoreNotOpenError):
            run_at(point, act, lambda: call(storage))  # noqa: B023 - called at once
        assert time.monotonic() - began < PATIENCE_S / 2, "it waited for itself"
        storage.close()
        plugin.close()
        assert os.listdir(path.parent) == [path.name], point


PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.mark.parametrize(
    "file", sorted([*PLUGINS.glob("sqlite/*.py"), *PLUGINS.glob("memory/*.py")]), ids=lambda file: file.name
)
def test_no_loop_stands_within_a_try_that_an_exception_of_a_handler_would_miss(file: Path) -> None:
    """Python 3.12 and 3.13 leave some jumps back to the start of a loop out of the table of exception handlers."""
    tree = ast.parse(source := file.read_text(encoding="utf-8"))
    guarded = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Try | ast.With)
        for part in node.body
        for loop in ast.walk(part)
        if isinstance(loop, ast.For | ast.While)
        for line in range(loop.lineno, (loop.end_lineno or 0) + 1)
    }
    codes = [compile(source, str(file), "exec")]
    for code in codes:  # which grows meanwhile
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        bytecode: Any = dis.Bytecode(code)
        for instruction in bytecode:
            line = instruction.positions.lineno
            if "JUMP_BACKWARD" in instruction.opname and line in guarded:
                covered = [entry.start <= instruction.offset < entry.end for entry in bytecode.exception_entries]
                assert any(covered), f"{code.co_qualname}, line {line}"


def test_a_finalizer_that_writes_in_the_middle_of_a_batch_works(path: Path) -> None:
    calls: list[int] = []

    class Saves:
        def __del__(self) -> None:
            storage.write(f"saved {len(calls)}", b"1")
            calls.append(1)

    with opened(path, wait_s=PATIENCE_S) as storage:
        restore(storage)
        threshold = gc.get_threshold()
        gc.set_threshold(5)
        try:
            for _ in range(100):
                cycle: list[Any] = [Saves()]
                cycle.append(cycle)
                del cycle
                storage.write_many(BATCH)
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        assert set(stored(path)) == {*BEFORE, *BATCH, *(f"saved {number}" for number in range(len(calls)))}
    assert calls
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("readonly", ["false", "true"])
@pytest.mark.parametrize(
    "read",
    [
        lambda space: space.get("k001"),
        lambda space: "k001" in space,
        len,
        lambda space: list(space.items()),
        lambda space: list(space.scan()),
    ],
    ids=["get", "in", "len", "items", "scan"],
)
def test_a_kept_traceback_keeps_no_connection(path: Path, read: Callable[[Any], object], readonly: str) -> None:
    """A reader that a kept traceback refers to would seem to be in use for ever, and each read would open another."""
    with hutch.connect(f"sqlite://{path}") as store, store.open("core") as space:
        space.update({f"k{number:03}": number for number in range(40)})
    with hutch.connect(f"sqlite://{path}?readonly={readonly}") as store, store.open("core") as space:
        storage: Any = space._store
        readers = getattr(storage, "_inner", storage)._shared.readers

        def lose_the_idle_reader_and_read() -> None:
            readers.idle.clear()  # as an exception right after taking it does
            read(space)

        kept: list[BaseException] = []
        for point in points(lose_the_idle_reader_and_read, loops=False):
            try:
                run_at(point, raise_interrupt, lose_the_idle_reader_and_read, loops=False)
            except Interrupt as error:
                kept.append(error)
        read(space)
        assert len(kept) >= 10
        still_open = len([reader for reader in readers._all if is_open(reader)])
        assert still_open <= 2, f"{still_open} readers are open after {len(kept)} interrupted reads"


def is_open(connection: sqlite3.Connection) -> bool:
    with suppress(sqlite3.ProgrammingError):
        return connection.in_transaction in (True, False)
    return False
