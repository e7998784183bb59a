"""Test what the SQLite engine promises beyond the contract: its file, its waits, its processes, and damage."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import hutch

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and limits")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv.db"


def connect(path: Path, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": "sqlite", "STORAGE_CONFIG": {"path": path, **options}})


def put(path: Path, namespace: str = "core", **items: Any) -> None:
    with connect(path) as store, store.open(namespace) as space:
        space.update(items)


def everything(path: Path, namespace: str = "core") -> dict[str, Any]:
    with connect(path) as store, store.open(namespace) as space:
        return dict(space)


def raw(path: Path) -> closing[sqlite3.Connection]:
    """Open the file as any other program does."""
    return closing(sqlite3.connect(path, isolation_level=None, timeout=5))


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# --- the file ---


def test_nothing_is_made_until_something_is_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "kv.db"
    with connect(path) as store:
        with store.open("core") as space:
            assert dict(space) == {}
            assert len(space) == 0
            assert "key" not in space
            assert space.get_many(["key"]) == {}
            assert space.remove_many(["key"]) == 0
            space.clear()
            with pytest.raises(KeyError):
                del space["key"]
            with pytest.raises(KeyError):
                space.modify("key", lambda value: value)
            assert not space.compare_and_set("key", 1, 2)
            assert not space.compare_and_set("key", 1, hutch.MISSING)
            assert space.compare_and_set("key", hutch.MISSING, hutch.MISSING)
        assert store.namespaces() == []
        store.drop("core")
        assert list(tmp_path.iterdir()) == []
        with store.open("core") as space:
            space["key"] = 1
    assert path.is_file()
    assert everything(path) == {"key": 1}


def test_the_file_is_an_sqlite_database_that_says_whose_it_is(path: Path) -> None:
    put(path, "core", größe=1, b=2)
    put(path, "other", b=3)
    with raw(path) as database:
        assert database.execute("PRAGMA application_id").fetchone() == (0x68757463,)
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = database.execute(
            "SELECT name, key, typeof(value) FROM entries JOIN namespaces n ON n.id = ns"
        ).fetchall()
    assert sorted(found) == [("core", b"b", "blob"), ("core", "größe".encode(), "blob"), ("other", b"b", "blob")]


@pytest.mark.parametrize("name", ["a b.db", "50%25?mode=memory#x&y.db", "ключ-鍵.db", "file:x.db", "-wal"])
def test_any_file_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    if os.name == "nt" and set(name) & set(':?"<>|*'):
        pytest.skip("Windows has no such file names")
    put(tmp_path / name, key="value")
    assert os.listdir(tmp_path) == [name]
    assert everything(tmp_path / name) == {"key": "value"}


def test_a_url_names_the_file(path: Path) -> None:
    with hutch.connect(f"sqlite://{path.as_posix()}?durability=strict&wait_s=2.5") as store:
        with store.open("core") as space:
            space["key"] = 1
        assert store.name == "sqlite"
    assert everything(path) == {"key": 1}


def test_a_closed_store_leaves_one_file_and_no_log(path: Path) -> None:
    put(path, key="value")
    assert os.listdir(path.parent) == [path.name]


def test_the_count_of_a_namespace_is_true_after_every_way_to_write(path: Path) -> None:
    with connect(path) as store, store.open("core") as space, store.open("other") as other:
        other.update(dict.fromkeys("xyz", 0))

        def check(*keys: str) -> None:
            assert len(space) == len(keys)
            assert sorted(space) == sorted(keys)
            assert len(other) == 3

        space["a"] = 1
        check("a")
        space["a"] = 2
        check("a")
        space.update({"a": 3, "b": 4, "c": 5})
        check("a", "b", "c")
        assert space.compare_and_set("d", hutch.MISSING, 1)
        assert not space.compare_and_set("d", hutch.MISSING, 1)
        check("a", "b", "c", "d")
        assert space.compare_and_set("a", 3, 4)
        assert not space.compare_and_set("a", 3, 4)
        assert space.compare_and_set("a", 4, hutch.MISSING)
        check("b", "c", "d")
        assert space.remove_many(["b", "nothing"]) == 1
        check("c", "d")
        del space["c"]
        check("d")
        space.clear()
        check()
        assert store.namespaces() == ["other"]


def test_a_batch_of_any_size_and_order_is_written_and_counted_exactly(path: Path) -> None:
    """Many rows go into one statement, what is left over into others: sizes around every such border."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    alphabet = ["a", "Z", "\0", "é", "\ud7ff", "\ue000", "\U0001f600"]
    expected: dict[str, int] = {}
    with connect(path, durability="relaxed") as store, store.open("core") as space, store.open("other") as other:
        other["a"] = 0
        for size in (0, 1, 2, 63, 64, 65, 127, 128, 129, 500):
            batch: dict[str, int] = {}
            while len(batch) < size:
                batch["".join(chance.choices(alphabet, k=chance.randint(1, 5)))] = chance.randrange(10**6)
            space.update(batch)
            expected.update(batch)
            assert dict(space) == expected
            assert len(space) == len(expected)
            wanted = [*chance.sample(sorted(expected), len(expected)), "missing"]
            assert list(space.get_many(wanted).items()) == [(key, expected[key]) for key in wanted[:-1]]
        assert list(space) == sorted(expected)
        assert dict(other) == {"a": 0}


def test_a_value_of_any_size_is_stored_as_it_is_alone_and_in_a_batch(path: Path) -> None:
    sizes = [0, 1, 4000, 4095, 4096, 4097, 5000, 100_000]
    values = {str(size): random.randbytes(size) for size in sizes}
    with connect(path) as store, store.open("alone") as alone, store.open("batch") as batch:
        for key, value in values.items():
            alone[key] = value
        batch.update(values)
        assert dict(alone) == dict(batch) == values
    with raw(path) as database:
        assert database.execute("SELECT DISTINCT typeof(key), typeof(value) FROM entries").fetchall() == [("blob",) * 2]


def test_a_value_that_sqlite_would_convert_is_not_accepted_as_a_key(path: Path) -> None:
    """To SQLite, 5 and b"5" are the same as "5" once they are cast to a blob."""
    with connect(path) as store, store.open("core") as space:
        space["5"] = "text"
        wrong: Any
        for wrong in (5, b"5", 5.0, bytearray(b"5")):
            for use in (space.__getitem__, space.get, space.__contains__, space.__delitem__, space.pop):
                with pytest.raises(hutch.KeyTypeError):
                    use(wrong)
            with pytest.raises(hutch.KeyTypeError):
                space.get_many([wrong])
        assert dict(space) == {"5": "text"}


def test_a_dropped_namespace_is_empty_in_open_handles(path: Path) -> None:
    with connect(path) as one, connect(path) as two, one.open("core") as space:
        space["old"] = 1
        two.drop("core")
        assert dict(space) == {}
        assert one.namespaces() == []
        space["new"] = 2
        assert everything(path) == {"new": 2}


def test_thousands_of_namespaces_fit_in_one_file(path: Path) -> None:
    count = 2000
    with connect(path, durability="relaxed") as store:
        for number in range(count):
            with store.open(f"space {number}") as space:
                space["number"] = number
        assert len(store.namespaces()) == count
        with store.open("space 1234") as space:
            assert dict(space) == {"number": 1234}


# --- sharing, in one process ---


def test_stores_of_one_process_share_data_and_locks_however_they_name_the_file(tmp_path: Path) -> None:
    path, link = tmp_path / "kv.db", tmp_path / "link.db"
    link.symlink_to(path)
    with (
        connect(path) as one,
        connect(link, durability="strict", wait_s=3) as two,
        one.open("core") as here,
        two.open("core") as there,
    ):
        here["key"] = 1
        assert there["key"] == 1
        there["key"] = 2
        assert here["key"] == 2
        assert here._store.lock_scope == there._store.lock_scope
    assert sorted(os.listdir(tmp_path)) == ["kv.db", "link.db"]


@pytest.mark.parametrize(("durability", "synchronous"), [("strict", 2), ("normal", 1), ("relaxed", 0)])
def test_durability_sets_the_pragmas_of_each_writer(path: Path, durability: str, synchronous: int) -> None:
    put(path, key=1)
    with connect(path, durability="normal") as beside, beside.open("core") as other:
        other["beside"] = 1
        factory = hutch.load_plugin("sqlite", {"path": path, "durability": durability})
        with factory, factory.open("core") as storage:
            storage.set("key", 2)
            writer = storage._shared.write(lambda connection: connection.execute("PRAGMA synchronous").fetchone())
            assert writer == (synchronous,)


def test_an_unknown_durability_is_refused_by_name(path: Path) -> None:
    with pytest.raises(hutch.ConfigError, match=r"durability.*strict, normal, relaxed"):
        connect(path, durability="stric")


def test_a_storage_works_alone_and_releases_its_resources_when_collected(path: Path) -> None:
    hutch.load_plugin("sqlite", {"path": path}).open("core").set("key", [1])
    assert os.listdir(path.parent) == [path.name]  # no log: the last connection was closed
    assert everything(path) == {"key": [1]}


def test_a_closed_storage_says_so(path: Path) -> None:
    factory = hutch.load_plugin("sqlite", {"path": path})
    storage = factory.open("core")
    storage.set("key", 1)
    storage.close()
    storage.close()
    for use in (lambda: storage.get("key"), lambda: storage.set("key", 2), lambda: list(storage.keys())):
        with pytest.raises(hutch.StoreNotOpenError, match="'core' is closed"):
            use()
    factory.close()


def test_a_storage_outlives_its_factory(path: Path) -> None:
    factory = hutch.load_plugin("sqlite", {"path": path})
    with factory.open("core") as storage:
        storage.set("key", 1)
        factory.close()
        storage.set("key", 2)
        assert storage.get("key") == 2


def test_a_file_put_in_the_place_of_another_is_another_database(path: Path, tmp_path: Path) -> None:
    put(path, which="first")
    put(tmp_path / "second.db", which="second")
    with connect(path) as store, store.open("core") as old:
        assert old["which"] == "first"
        if os.name == "nt":
            pytest.skip("Windows does not replace open files")
        for log in tmp_path.glob("kv.db-*"):
            log.unlink()
        os.replace(tmp_path / "second.db", path)
        assert everything(path) == {"which": "second"}
        # A call that would need a new connection raises, instead of reading the other file's data.
        with pytest.raises(hutch.StorageUnavailableError, match="was replaced while it was open"):
            old["key"] = 1
    assert everything(path) == {"which": "second"}


def test_readers_and_a_writer_of_one_process_do_not_wait_for_each_other(path: Path) -> None:
    """While a writer of this process waits for the lock, reads by other threads go on."""
    put(path, key="old")
    with connect(path, wait_s=30) as store, store.open("core") as space, raw(path) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=space.__setitem__, args=("key", "new"))
        writer.start()
        try:
            for _ in range(200):
                assert space["key"] == "old"
                assert len(space) == 1
            assert writer.is_alive()
        finally:
            blocker.execute("COMMIT")
            writer.join()
        assert space["key"] == "new"


def test_a_reader_that_is_in_use_when_the_last_handle_closes_is_closed_after_use(path: Path) -> None:
    put(path, key=1)
    factory = hutch.load_plugin("sqlite", {"path": path})
    storage = factory.open("core")
    factory.close()
    assert storage.get("key") == 1
    assert os.listdir(path.parent) != [path.name]
    storage._idle[-1].set_trace_callback(lambda _: storage.close())
    assert storage.get("key") == 1
    assert os.listdir(path.parent) == [path.name]  # no log: the last connection was closed
    with pytest.raises(hutch.StoreNotOpenError):
        storage.get("key")


def test_a_store_closed_under_its_readers_leaves_no_connection_open(path: Path) -> None:
    """Threads that read while the handle is closed get an error, and release everything they held of the file."""
    put(path, key=1)

    def read(space: hutch.Namespace, reading: threading.Barrier, errors: list[BaseException]) -> None:
        reading.wait()
        try:
            while space["key"] == 1:
                pass
        except BaseException as error:
            errors.append(error)

    for _ in range(10):
        errors: list[BaseException] = []
        store = connect(path)
        space = store.open("core")
        reading = threading.Barrier(4)
        threads = [threading.Thread(target=read, args=(space, reading, errors)) for _ in range(3)]
        for thread in threads:
            thread.start()
        reading.wait()
        time.sleep(random.uniform(0, 0.01))
        space.close_storage()
        for thread in threads:
            thread.join()
        store.close()
        assert [type(error) for error in errors] == [hutch.StoreNotOpenError] * 3
        assert os.listdir(path.parent) == [path.name]  # no log: the last connection was closed


def test_many_threads_read_and_write_one_handle(path: Path) -> None:
    threads, rounds = 12, 60
    wrong: list[object] = []
    with connect(path) as store, store.open("core") as space:

        def work(number: int) -> None:
            try:
                for turn in range(rounds):
                    space[f"own {number}"] = turn
                    space.modify("all", lambda count: count + 1, default=0)
                    if space[f"own {number}"] != turn or "all" not in space.get_many(["all"]):
                        wrong.append((number, turn))
            except BaseException as error:
                wrong.append(error)

        started = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        assert wrong == []
        assert space["all"] == threads * rounds
        assert len(space) == threads + 1


# --- ranges ---


def test_an_iteration_holds_nothing_open_between_two_items(path: Path) -> None:
    with connect(path) as store, store.open("core") as space:
        space.update({f"{number:05}": number for number in range(3000)})
        for items in (space.scan(), space.scan(reverse=True), iter(space.items())):
            for _ in range(20):
                next(items)
            with raw(path) as other:
                # Refused (1, ...) while anybody reads.
                assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
            assert sum(1 for _ in items) == 3000 - 20


def test_an_iteration_gives_each_key_once_and_in_order_while_others_change(path: Path) -> None:
    kept = [f"{number:06}" for number in range(0, 20_000, 10)]
    changing = random.Random(7)
    with connect(path) as store, store.open("core") as space:
        space.update(dict.fromkeys(kept, 0))
        for reverse in (False, True):
            seen = []
            for count, (key, _) in enumerate(space.scan(reverse=reverse)):
                seen.append(key)
                if count % 10 == 0:
                    space[f"{changing.randrange(20_000):05}x"] = count
                    space.pop(f"{changing.randrange(20_000):05}x", None)
            assert seen == sorted(set(seen), reverse=reverse)
            assert set(kept) <= set(seen)


def test_a_scan_of_large_values_takes_little_memory(path: Path) -> None:
    size, count = 300_000, 100
    with connect(path, durability="relaxed") as store, store.open("core") as space:
        for number in range(count):
            space[f"{number:03}"] = bytes(size)
        tracemalloc.start()
        try:
            assert sum(len(value) for value in space.values()) == size * count
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 12 * size


def test_bounds_compare_by_code_point_also_where_they_are_no_possible_keys(path: Path) -> None:
    keys = ["a", "a\0", "a\0b", "\x7f", "\x80", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"]
    with connect(path) as store, store.open("core") as space:
        space.update(dict.fromkeys(keys, 0))
        assert [key for key, _ in space.scan()] == sorted(keys)
        for start in (*keys, "", "\ud800", "\udfff"):
            assert [key for key, _ in space.scan(start=start)] == sorted(key for key in keys if key >= start)
            assert [key for key, _ in space.scan(stop=start, reverse=True)] == sorted(
                (key for key in keys if key < start), reverse=True
            )


# --- several processes ---


_COUNT_UP = """
import sys, hutch
print("ready", flush=True)
sys.stdin.readline()
with hutch.connect({"STORAGE": "sqlite", "STORAGE_CONFIG": {"path": sys.argv[1], "wait_s": 30}}) as store:
    with store.open("core") as space:
        for _ in range(50):
            space.modify("count", lambda count: count + 1, default=0)
"""


@pytest.mark.parametrize("round_", range(3))
def test_eight_processes_make_one_file_at_once_and_lose_no_count(path: Path, round_: int) -> None:
    command = [sys.executable, "-c", _COUNT_UP, str(path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 8
    assert everything(path) == {"count": 8 * 50}


def test_a_busy_file_is_a_timeout_after_the_configured_wait(path: Path) -> None:
    put(path, key="old")
    with connect(path, wait_s=0.3) as store, store.open("core") as space, raw(path) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        writes = (
            lambda: space.__setitem__("key", "new"),
            lambda: space.update({"key": "new", "more": 1}),
            lambda: space.compare_and_set("key", "old", "new"),
            space.clear,
        )
        for write in writes:
            begin = time.monotonic()
            with pytest.raises(hutch.StorageTimeoutError, match=r"kv\.db .*0\.3 s.*wait_s") as caught:
                write()
            assert 0.3 <= time.monotonic() - begin < 3
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert dict(space) == {"key": "old"}
        blocker.execute("COMMIT")
        space["key"] = "new"
        assert dict(space) == {"key": "new"}


def test_a_thread_that_waits_for_another_times_out_too(path: Path) -> None:
    put(path, key="old")
    with connect(path, wait_s=0.5) as store, store.open("core") as space, raw(path) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        failed: list[BaseException] = []

        def write() -> None:
            try:
                space["key"] = "new"
            except hutch.StorageTimeoutError as error:
                failed.append(error)

        begin = time.monotonic()
        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failed) == 4
        assert time.monotonic() - begin < 4
        blocker.execute("COMMIT")
        assert space["key"] == "old"


_WRITE_UNTIL_KILLED = """
import sys, hutch
with hutch.connect({"STORAGE": "sqlite", "STORAGE_CONFIG": {"path": sys.argv[1], "durability": sys.argv[2]}}) as store:
    with store.open("core") as space:
        number = 0
        while True:
            space[f"one {number}"] = number
            space.update({f"pair {number} left": number, f"pair {number} right": number})
            number += 1
            print(number, flush=True)
"""


@needs_posix
@pytest.mark.parametrize("durability", ["strict", "normal", "relaxed"])
def test_a_killed_writer_loses_nothing_that_was_acknowledged(path: Path, durability: str) -> None:
    command = [sys.executable, "-c", _WRITE_UNTIL_KILLED, str(path), durability]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(150)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
        assert process.wait() == -signal.SIGKILL
    acknowledged = max(int(line) for line in said if line.endswith("\n"))
    found = everything(path)
    for number in range(acknowledged):
        assert found[f"one {number}"] == number
        assert found[f"pair {number} left"] == found[f"pair {number} right"] == number
    # What was under way is there whole or not at all.
    assert (f"pair {acknowledged} left" in found) == (f"pair {acknowledged} right" in found)
    with connect(path) as store, store.open("core") as space:
        assert len(space) == len(found)


# --- fork ---


def in_child(work: Any) -> int:
    """Fork, run `work` in the child, and return the pid. The child ends with 0 if nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        os.write(2, f"in the child: {error!r}\n".encode())
    finally:
        os._exit(status)


def ended_well(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_and_its_parent_use_an_inherited_handle_at_the_same_time(path: Path) -> None:
    with connect(path) as store, store.open("core") as space:
        space["before"] = 1

        def child() -> None:
            assert space["before"] == 1
            for number in range(200):
                space.modify("count", lambda count: count + 1, default=0)
                space[f"child {number}"] = number
            assert len(space) >= 202

        pid = in_child(child)
        for number in range(200):
            space.modify("count", lambda count: count + 1, default=0)
            space[f"parent {number}"] = number
        assert ended_well(pid)
        assert space["count"] == 400
        assert len(space) == 402
    assert len(everything(path)) == 402


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_parent_may_close_while_a_child_writes(path: Path) -> None:
    """A child that inherited the parent's record of locks would write to a log that the parent deletes."""
    read_end, write_end = os.pipe()
    with connect(path) as store, store.open("core") as space:
        space["before"] = 1

        def child() -> None:
            space["child"] = 1
            os.write(write_end, b"x")
            for number in range(300):
                space[f"child {number}"] = number
                time.sleep(0.001)

        pid = in_child(child)
        os.read(read_end, 1)
    for _ in range(20):
        put(path, parent=1)
    assert ended_well(pid)
    os.close(read_end)
    os.close(write_end)
    assert len(everything(path)) == 303


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("unmeasured")
def test_a_process_may_fork_while_its_threads_read_and_write(path: Path) -> None:
    stop = threading.Event()
    wrong: list[BaseException] = []
    written = [0, 0]
    with connect(path) as store, store.open("core") as space:
        space["key"] = 0

        def work(number: int) -> None:
            try:
                while not stop.is_set():
                    space[f"thread {number}"] = written[number] + 1
                    written[number] += 1
                    assert space[f"thread {number}"] == written[number]
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            # Where busy threads delay the fork too long, the child raises, and has written nothing.
            ended = [
                f"child {number}"
                for number in range(10)
                if ended_well(in_child(lambda number=number: space.__setitem__(f"child {number}", number)))
            ]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert wrong == []
        assert [space["thread 0"], space["thread 1"]] == written
        assert ended
        assert list(space.scan_keys("child ")) == ended
        assert len(space) == 3 + len(ended)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("unmeasured")
def test_a_child_forked_during_a_write_gets_an_error_and_damages_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, key="old")
    with connect(path, wait_s=30) as store, store.open("core") as space, raw(path) as blocker:
        module = sys.modules[type(space._store._shared).__module__]  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "_FORK_PATIENCE_S", 0.2)
        blocker.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=space.__setitem__, args=("key", "new"))
        writer.start()
        while not space._store._shared.writer._lock._tickets:  # type: ignore[attr-defined]
            time.sleep(0.001)

        def child() -> None:
            for use in (lambda: space["key"], lambda: space.__setitem__("key", "child")):
                with pytest.raises(hutch.StorageUnavailableError, match="forked while a thread was using"):
                    use()
            with pytest.raises(hutch.StorageUnavailableError, match="forked"), connect(path) as again:
                again.open("core")

        pid = in_child(child)
        blocker.execute("COMMIT")
        writer.join()
        assert ended_well(pid)
        assert dict(space) == {"key": "new"}
        space["key"] = "newer"
    assert everything(path) == {"key": "newer"}


# --- what is in the place of the file ---


def assert_refused(path: Path, kind: type[hutch.StoreError], message: str) -> None:
    """Assert that opening the file raises `kind`, promptly, and changes neither the file nor its folder."""
    before = (path.read_bytes() if path.is_file() else None, sorted(os.listdir(path.parent)))
    with connect(path) as store:
        for use in (lambda: store.open("core"), store.namespaces, lambda: store.drop("core")):
            begin = time.monotonic()
            with pytest.raises(kind, match=message) as caught:
                use()
            assert str(path) in str(caught.value)
            assert time.monotonic() - begin < 2
    assert (path.read_bytes() if path.is_file() else None, sorted(os.listdir(path.parent))) == before


def test_a_database_of_another_application_is_left_alone(path: Path) -> None:
    with raw(path) as database:
        database.execute("CREATE TABLE entries (ns, key, value)")
        database.execute("INSERT INTO entries VALUES (1, 'key', 'theirs')")
    assert_refused(path, hutch.CorruptValueError, "another application.*nothing was changed")
    with raw(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        database.execute("PRAGMA application_id = 77")
    assert_refused(path, hutch.CorruptValueError, "application_id 0x4d")


def test_a_file_of_a_newer_format_is_left_alone(path: Path) -> None:
    put(path, key=1)
    with raw(path) as database:
        database.execute("PRAGMA user_version = 2")
    assert_refused(path, hutch.CorruptValueError, "has format 2.*Upgrade hutch")


def test_a_file_that_lacks_a_table_or_a_trigger_is_left_alone(path: Path) -> None:
    put(path, key=1)
    with raw(path) as database:
        database.execute("DROP TRIGGER entry_removed")
    assert_refused(path, hutch.CorruptValueError, "lacks 'entry_removed'")


@pytest.mark.parametrize(
    "content", [b"not a database" * 400, b"x", b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 4080]
)
def test_a_file_that_is_not_a_database_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert_refused(path, hutch.CorruptValueError, "is not a database|malformed")


def test_a_truncated_file_is_left_alone(path: Path) -> None:
    put(path, **{f"key{number}": "x" * 100 for number in range(1000)})
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 4096, 4096, 4095, 1000, 100, 50, 1):
        path.write_bytes(whole[:size])
        assert_refused(path, hutch.CorruptValueError, "is not a database|malformed")
    path.write_bytes(whole)
    assert len(everything(path)) == 1000


@needs_posix
def test_a_file_truncated_to_zero_bytes_does_not_lose_its_log(path: Path) -> None:
    program = (
        "import hutch, sys, os; s = hutch.connect(f'sqlite://{sys.argv[1]}'); s.open('core')['key'] = 1; os._exit(0)"
    )
    assert run_python(program, path).returncode == 0
    assert path.with_name("kv.db-wal").stat().st_size > 0
    os.truncate(path, 0)
    assert_refused(path, hutch.CorruptValueError, "truncated to 0 bytes")


def test_an_empty_file_is_a_database_without_data(path: Path) -> None:
    path.touch()
    assert everything(path) == {}
    assert path.stat().st_size == 0
    put(path, key=1)
    assert everything(path) == {"key": 1}


def test_a_damaged_page_is_an_error_that_names_the_file(path: Path) -> None:
    keys = [f"key{number:04}" for number in range(2000)]
    put(path, **dict.fromkeys(keys, "x" * 100))
    content = bytearray(path.read_bytes())
    for page in range(8, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    path.write_bytes(content)
    with connect(path) as store, store.open("core") as space:
        for use in (lambda: [space[key] for key in keys], lambda: list(space), lambda: dict(space.scan())):
            with pytest.raises(hutch.CorruptValueError, match=r"kv\.db.*malformed.*damaged"):
                use()


def test_a_row_that_another_program_wrote_wrong_is_an_error(path: Path) -> None:
    put(path, key=1)
    with raw(path) as database:
        for row in ("'text', x'00'", "5, x'00'", "NULL, x'00'", "x'00', 'text'", "x'00', 5", "x'00', NULL"):
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(f"INSERT INTO entries (ns, key, value) VALUES (1, {row})")
        with pytest.raises(sqlite3.IntegrityError):
            database.execute("UPDATE entries SET value = 'text'")
        database.execute("INSERT INTO entries (ns, key, value) VALUES (1, x'ff41', x'00')")
        database.execute("INSERT INTO entries (ns, key, value) VALUES (1, x'fe42', x'00')")
        database.execute("DELETE FROM entries WHERE key = x'ff41'")
    with connect(path) as store, store.open("core") as space:
        assert space["key"] == 1
        assert len(space) == 2  # the triggers count for other programs too


def test_a_key_of_which_one_bit_made_a_text_is_an_error_and_no_other(path: Path) -> None:
    """SQLite keeps the type of a field in the lowest bit of its length: here that of each key, in its row and in the
    index."""
    keys = [f"{number:057}" for number in range(20)]
    with connect(path) as store, store.open("core") as space:
        space.update(dict.fromkeys(keys, 1))
    whole = path.read_bytes()
    places = [place for place, byte in enumerate(whole) if byte == 12 + 2 * len(keys[0])]
    assert len(places) == 2 * len(keys)
    errors = []
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert {finding.kind for finding in hutch.verify(f"sqlite://{path.as_posix()}")} & {"index", "structure"}
        with connect(path) as store, store.open("core") as space:
            for use in (list, lambda space: list(space.items())):
                try:
                    use(space)
                except hutch.CorruptValueError as error:
                    errors.append(str(error))
    assert errors
    assert all("a key in namespace 'core' that is not bytes of UTF-8" in error for error in errors)


def test_a_key_that_is_not_utf_8_is_an_error(path: Path) -> None:
    put(path, key=1)
    with raw(path) as database:
        database.execute("INSERT INTO entries (ns, key, value) VALUES (1, x'c341', x'00')")
    with connect(path) as store, store.open("core") as space:
        with pytest.raises(hutch.CorruptValueError, match=r"kv\.db holds a key .* 'core' that is not bytes of UTF-8"):
            list(space)
        assert space["key"] == 1
        # What comes before it is given all the same.
        keys, items = space.scan_keys(), space.scan()
        assert (next(keys), next(items)) == ("key", ("key", 1))


def test_a_file_made_by_the_first_release_is_used_as_it_is(path: Path) -> None:
    """Its tables mean the same in different SQL: `typeof` in the constraints."""
    put(path, key="old")
    with raw(path) as database:
        (made,) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'entries'").fetchone()
        former = made.replace(
            "CHECK (key >= x''), CHECK (value >= x'')", "CHECK (typeof(key) = 'blob' AND typeof(value) = 'blob')"
        )
        assert former != made
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'entries'", (former,))
    with connect(path) as store, store.open("core") as space:
        assert space["key"] == "old"
        space.update({f"{number:03}": number for number in range(200)})
        assert len(space) == 201
        assert space.get_many(["199", "key"]) == {"199": 199, "key": "old"}


def test_a_folder_in_the_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir()
    assert_refused(path, hutch.StorageUnavailableError, "is a folder")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with connect(tmp_path / "file" / "kv.db") as store, pytest.raises(hutch.StorageUnavailableError, match="file"):
        store.open("core")["key"] = 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("config", ["sqlite://:memory:", {"STORAGE": "sqlite", "STORAGE_CONFIG": {"path": ":memory:"}}])
def test_a_database_in_memory_is_refused_with_the_way_to_one(config: Any) -> None:
    with pytest.raises(hutch.ConfigError, match="memory://"):
        hutch.connect(config)


def test_a_path_is_needed() -> None:
    with pytest.raises(hutch.ConfigError, match="path"):
        hutch.connect("sqlite://")


def test_the_file_is_mapped_only_where_it_is_asked_for(tmp_path: Path) -> None:
    for mmap_bytes in (0, 1 << 20):
        url = f"sqlite://{tmp_path}/state.db?mmap_bytes={mmap_bytes}"
        with hutch.connect(url) as store, store.open("core") as core:
            core.update({f"k{number}": "x" * 1000 for number in range(100)})
            assert core["k99"] == "x" * 1000
            database = core._store._database  # type: ignore[attr-defined]
            assert database.row("PRAGMA mmap_size", ()) == (mmap_bytes,)
