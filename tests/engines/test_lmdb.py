"""Test what the LMDB engine promises beyond the contract: its map, its readers, its processes, and damage."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import lmdb
import pytest

import hutch
from hutch.testing.conformance.kit import together

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and limits")

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def connect(path: Path, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": path, **options}})


def put(path: Path, namespace: str = "core", **items: Any) -> None:
    with connect(path) as store, store.open(namespace) as space:
        space.update(items)


def everything(path: Path, namespace: str = "core") -> dict[str, Any]:
    with connect(path) as store, store.open(namespace) as space:
        items = dict(space)
        assert len(space) == len(items), "the counter is what is there"
        return items


def figures(store: hutch.Store) -> dict[str, Any]:
    return store.stats()


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def process(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


_HEAD = """
import sys, hutch
def connect(path, **options):
    return hutch.connect({"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": path, **options}})
"""


# --- the folder ---


def test_nothing_is_made_until_something_is_written(path: Path) -> None:
    with connect(path) as store, store.open("core") as space:
        assert (dict(space), len(space), "k" in space, space.get_many(["k"])) == ({}, 0, False, {})
        assert (list(space.scan(reverse=True)), list(space.scan_keys()), store.namespaces()) == ([], [], [])
        assert {"path": str(path), "durability": "normal", "keys": 0}.items() <= figures(store).items()
        assert not path.exists()
        space["k"] = 1
        assert sorted(os.listdir(path)) == ["data.mdb", "lock.mdb"]
        assert (dict(space), store.namespaces()) == ({"k": 1}, ["core"])


def test_a_reader_that_was_first_sees_what_another_process_made(path: Path) -> None:
    with connect(path) as store, store.open("core") as space:
        assert dict(space) == {}
        done = run_python(_HEAD + "with connect(sys.argv[1]) as s, s.open('core') as n: n['k'] = [1]", path)
        assert done.returncode == 0, done.stderr
        assert dict(space) == {"k": [1]}
        space["l"] = 2
        assert len(space) == 2


def test_stats_say_how_large_it_is(path: Path) -> None:
    with connect(path, map_size_bytes=2 * MIB) as store, store.open("core") as space:
        space["k"] = b"x" * 100_000
        message = figures(store)
        assert message["path"] == str(path)
        assert message["bytes"] == (path / "data.mdb").stat().st_size >= 100_000
        assert message["map_size_bytes"] == 2 * MIB
        assert str(message["version"]).startswith("1.")


def test_ten_thousand_namespaces_fit_without_a_setting(path: Path) -> None:
    names = [f"plugin {number}" for number in range(10_000)]
    with connect(path, durability="relaxed") as store:
        for name in names:
            with closing(store._factory.open(name)) as storage:
                storage.set("k", name)
        assert store.namespaces() == sorted(names)
        for name in names[::500]:
            with store.open(name) as space:
                assert dict(space) == {"k": name}
        store.drop(names[3])
        assert len(store.namespaces()) == 9_999
    # Opening takes no longer for it, nor does the first read.
    began = time.monotonic()
    assert everything(path, names[5]) == {"k": names[5]}
    assert time.monotonic() - began < 2


def test_a_dropped_namespace_is_empty_in_open_handles_and_its_data_is_gone(path: Path) -> None:
    with connect(path) as store, connect(path) as other, other.open("a") as space:
        space.update({f"k{number}": number for number in range(2000)})
        store.drop("a")
        assert (dict(space), len(space)) == ({}, 0)
        with store.open("b") as b:
            b["k"] = "of b"
            assert dict(space) == {}
            space["k"] = "of a"
            assert (dict(space), dict(b)) == ({"k": "of a"}, {"k": "of b"})


def test_values_that_come_in_the_order_of_their_keys_fill_the_pages(path: Path) -> None:
    value = os.urandom(1500)
    with connect(path, durability="relaxed") as store, store.open("core") as space:
        for number in range(300):
            space[f"{number:08}"] = value
        # Two of them fill a page of 4 KiB.
        assert figures(store)["bytes"] < 1.7 * 300 * len(value)
        for number in range(0, 300, 7):
            space[f"{number:08}"] = number
        assert len(space) == 300
        del space["00000299"]
        space["00000298+"] = value
        assert list(space)[-2:] == ["00000298", "00000298+"]
        assert len(space) == 300


def test_keys_of_the_longest_length_and_values_of_100_mib_fit(path: Path) -> None:
    longest = ["k" * 1024, "\U0001f430" * 256, "\U0010ffff" * 256, "\0" * 1024]
    with connect(path, durability="relaxed", map_size_bytes=MIB) as store, store.open("n" * 255) as space:
        space.update(dict.fromkeys(longest, "value"))
        assert list(space) == sorted(longest)
        assert list(space.scan_keys(prefix="\U0010ffff", reverse=True)) == ["\U0010ffff" * 256]
        large = bytes(100 * MIB)
        space["large"] = large
        assert space["large"] == large
        assert len(space.get_many(["large", *longest])) == 5
        space["large"] = "small"
        assert dict(space) == {**dict.fromkeys(longest, "value"), "large": "small"}


# --- stores of one process ---


def test_stores_of_one_process_share_one_environment_however_they_name_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "state"
    put(path, old=1)
    (tmp_path / "link").symlink_to(path, target_is_directory=True)
    spellings = [path, tmp_path / "other" / ".." / "state", tmp_path / "link", Path(f"{path}/")]
    with ExitStack() as stack:
        stores = [stack.enter_context(connect(spelling)) for spelling in spellings]
        spaces = [stack.enter_context(store.open("core")) for store in stores]
        assert len({id(store._factory._environment) for store in stores}) == 1
        assert len({space._store.lock_scope for space in spaces}) == 1
        together(*[lambda s=space: [s.modify("n", lambda n: n + 1, default=0) for _ in range(50)] for space in spaces])
        assert spaces[0]["n"] == 50 * len(spaces)
        with spaces[0].mutable("list", default=[]) as held:
            held.append(1)
        spaces[0].close()
        stores[0].close()
        # The others continue: the environment is closed with its last user.
        spaces[1]["k"] = 2
        assert spaces[2]["k"] == 2
        stack.pop_all()
        for space, store in zip(spaces[1:], stores[1:], strict=True):
            space.close()
            store.close()
    assert everything(path) == {"old": 1, "n": 200, "list": [1], "k": 2}


def test_one_process_has_one_durability_a_folder(path: Path) -> None:
    with connect(path, durability="strict") as store, store.open("core") as space:
        space["k"] = 1
        with pytest.raises(hutch.ConfigError) as raised:
            connect(path)
        assert "'durability'" in str(raised.value)
        assert "'strict'" in str(raised.value)
        assert str(path) in str(raised.value)
        space["k"] = 2
    with connect(path, durability="relaxed") as store:
        assert figures(store)["durability"] == "relaxed"
    assert everything(path) == {"k": 2}


@pytest.mark.parametrize(
    ("durability", "sync", "metasync"), [("strict", True, True), ("normal", True, False), ("relaxed", False, False)]
)
def test_durability_sets_the_flags_of_lmdb(path: Path, durability: str, sync: bool, metasync: bool) -> None:
    with connect(path, durability=durability) as store, store.open("core") as space:
        space["k"] = 1
        flags = store._factory._environment._env.flags()
        assert (flags["sync"], flags["metasync"]) == (sync, metasync)


def test_an_unknown_option_or_durability_is_refused_by_name(path: Path) -> None:
    with pytest.raises(hutch.ConfigError, match=r"'durability' of the lmdb engine must be one of .*strict.*'strikt'"):
        connect(path, durability="strikt")
    with pytest.raises(hutch.ConfigError, match=r"no option 'map_size'. Did you mean 'map_size_bytes'\?"):
        connect(path, map_size=5)
    with pytest.raises(hutch.ConfigError, match=r"'map_size_bytes' .* must be at least 1,048,576, not 5"):
        connect(path, map_size_bytes=5)
    with pytest.raises(hutch.ConfigError, match="needs the option 'path'"):
        hutch.connect("lmdb://")
    assert not path.exists()


def test_what_is_used_after_its_store_was_closed_says_so(path: Path) -> None:
    store = connect(path)
    storage = store._factory.open("core")
    storage.set("k", 1)
    store.close()
    uses: list[Callable[[], object]] = [
        *(lambda: storage.get("k"), lambda: storage.set("k", 2), storage.len, lambda: storage.contains("k")),
        *(lambda: list(storage.keys()), lambda: list(storage.items()), lambda: storage.remove("k"), storage.clear),
    ]
    for use in uses:
        with pytest.raises(hutch.StoreNotOpenError, match="is closed"):
            use()
    assert everything(path) == {"k": 1}


def test_large_values_are_not_copied_to_know_that_they_are_there(path: Path) -> None:
    with connect(path) as store, store.open("core") as space:
        space.update({f"{n}": b"x" * MIB for n in range(8)} | {"small": 1})
        assert "small" in space
        assert "0" in space  # which shows that some are large
        tracemalloc.start()
        try:
            assert all(f"{n}" in space for n in range(8))
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < MIB // 4
        assert ("none" in space, "small" in space) == (False, True)


def test_a_key_with_a_frame_of_no_bytes_is_there(path: Path) -> None:
    put(path, k=1)
    with closing(lmdb.open(str(path))) as environment, environment.begin(write=True) as txn:
        key = next(key for key, _ in txn.cursor() if key.endswith(b"k") and len(key) == 5)
        txn.put(key, b"")
    with connect(path) as store, store.open("core") as space:
        assert "k" in space
        with pytest.raises(hutch.CorruptValueError):
            space["k"]


def test_a_collected_factory_releases_the_folder(path: Path) -> None:
    factory = hutch.load_plugin("lmdb", {"path": path, "durability": "strict"})
    factory.open("core").set("k", 1)
    del factory
    gc.collect()
    with connect(path, durability="relaxed") as store, store.open("core") as space:
        assert dict(space) == {"k": 1}


# --- the map ---


def test_the_map_grows_while_threads_read(path: Path) -> None:
    """From 1 MiB in bursts: a reader never notices the move, nor sees a torn or an old value."""
    with connect(path, map_size_bytes=MIB, durability="relaxed") as store, store.open("core") as space:
        space.update({f"k{number:03}": number for number in range(200)})
        done = threading.Event()
        reads = [0] * 4

        def write() -> None:
            try:
                for turn in range(40):
                    space.update({f"grow {turn} {part}": bytes([turn]) * 200_000 for part in range(5)})
                    assert space[f"grow {turn} 4"] == bytes([turn]) * 200_000
            finally:
                done.set()

        def read(me: int) -> None:
            while not done.is_set():
                assert space["k007"] == 7
                assert "k100" in space
                assert [key for key, _ in space.scan(prefix="k")][-1] == "k199"
                assert space.get_many(["k001", "k002"]) == {"k001": 1, "k002": 2}
                assert len(space) >= 200
                reads[me] += 1

        together(write, *[lambda me=me: read(me) for me in range(4)])
        assert figures(store)["map_size_bytes"] >= 40 * MIB
        assert min(reads) > 0
    assert len(everything(path)) == 400


_GROW = (
    _HEAD
    + """
with connect(sys.argv[1], map_size_bytes=1 << 20, durability="relaxed") as store, store.open("theirs") as space:
    for turn in range(30):
        space.update({f"{turn} {part}": bytes([turn]) * 200_000 for part in range(5)})
"""
)


def test_another_process_grows_the_map_while_threads_read_and_write(path: Path) -> None:
    with connect(path, map_size_bytes=MIB, durability="relaxed") as store, store.open("mine") as mine:
        mine.update({f"k{number}": number for number in range(50)})
        with process(_GROW, path) as child:

            def read() -> int:
                rounds = 0
                while child.poll() is None:
                    assert dict(mine.scan(prefix="k")) == {f"k{number}": number for number in range(50)}
                    assert mine["k7"] == 7
                    rounds += 1
                return rounds

            def write() -> int:
                count = 0
                while child.poll() is None:
                    mine["n"] = count = count + 1
                return count

            *rounds, count = together(read, read, write)
            assert child.returncode == 0
        assert (min(rounds) > 0, mine["n"]) == (True, count)
        with store.open("theirs") as theirs:
            assert len(theirs) == 150
            assert theirs["29 4"] == bytes([29]) * 200_000
            theirs["more"] = bytes(40 * MIB)
        assert figures(store)["map_size_bytes"] > 64 * MIB


@needs_posix
def test_a_small_address_space_suffices_until_it_is_used_up(path: Path) -> None:
    """The requested map (1 GiB) does not fit; a smaller one is used, and then the store is full, not broken."""
    program = (
        _HEAD
        + """
import resource
put = 0
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
with connect(sys.argv[1], durability="relaxed") as store, store.open("core") as space:
    space["kept"] = "old"
    try:
        for put in range(1000):
            space[f"k{put}"] = bytes(1 << 20)
    except hutch.StorageFullError as error:
        assert "no address space" in str(error) and sys.argv[1] in str(error), error
    else:
        raise SystemExit("never full")
    assert space["kept"] == "old"
    assert len(space) == put + 1
    # So little is left that other libraries would crash; the store is what is tested.
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert len(space["k0"]) == 1 << 20
    # What is given back is used again.
    assert space.remove_many([f"k{number}" for number in range(10)]) == 10
    space["again"] = bytes(5 << 20)
print(put)
"""
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = run_python(program, path)
    assert done.returncode == 0, done.stderr
    with connect(path, durability="relaxed") as store, store.open("core") as space:
        assert (space["kept"], space["again"], len(space)) == ("old", bytes(5 << 20), int(done.stdout) - 10 + 2)
        space["more"] = bytes(600 * MIB // 8)
        assert len(space["more"]) == 600 * MIB // 8


# --- readers ---


def test_an_iteration_holds_no_transaction_between_two_items(path: Path) -> None:
    """A paused iteration would keep every page that is replaced after it from being used again."""
    with connect(path, durability="relaxed", map_size_bytes=MIB) as store, store.open("core") as space:
        space.update({f"k{number:04}": number for number in range(3000)})
        kinds: list[Iterator[Any]] = [
            *(iter(space), iter(space.items()), iter(space.values()), space.scan(), space.scan(reverse=True)),
            *(space.scan_keys(), space.scan_keys(reverse=True), space.scan(prefix="k1")),
        ]
        for paused in kinds:
            next(paused)
        sizes = []
        for turn in range(60):
            space["churn"] = bytes([turn]) * 100_000
            sizes.append((path / "data.mdb").stat().st_size)
        assert sizes[-1] == sizes[20], "freed pages are used again"
        for paused in kinds:
            assert len(set(paused) - {"churn", ("churn", bytes([59]) * 100_000)}) in (2999, 999)


_HOLD = """
import sys, lmdb
env = lmdb.open(sys.argv[1], create=False, max_readers=1024)
txn = env.begin()
txn.get(b"x")
print("reading", flush=True)
sys.stdin.read()
"""


@needs_posix
def test_the_slot_of_a_killed_reader_is_cleared(path: Path) -> None:
    """A process that was killed while it read must not keep the file growing for ever."""
    put(path, k=1)
    with process(_HOLD, path) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        reader.kill()
        reader.wait()

    def churn() -> list[int]:
        with connect(path, durability="relaxed") as store, store.open("core") as space:
            sizes = []
            for turn in range(60):
                space["churn"] = bytes([turn]) * 100_000
                sizes.append((path / "data.mdb").stat().st_size)
            return sizes

    sizes = churn()
    assert sizes[-1] == sizes[20]
    assert sizes[-1] < 2 * MIB


def test_hundreds_of_threads_read_at_once(path: Path) -> None:
    """More than the 126 slots of LMDB's default, each within a read at the same moment."""
    with connect(path) as store, store.open("core") as space:
        space.update({f"k{number}": number for number in range(10)})
        environment = store._factory._environment
        start = threading.Barrier(300)

        def read() -> int:
            def inside(txn: Any) -> int:
                assert txn.get(b"\0\0\0\0v") == b"hutch 1"
                start.wait(60)
                return int(space["k7"])

            return int(environment.read(inside, 0))

        assert together(*[read] * 300) == [7] * 300
        space["k7"] = 8
        assert figures(store)["readers"] >= 300


def test_readers_of_more_processes_than_there_are_slots_time_out_by_name(path: Path, monkeypatch: Any) -> None:
    put(path, k=1)
    with connect(path) as store, store.open("core") as space:
        module = sys.modules[type(store._factory._environment).__module__]
        monkeypatch.setattr(module, "_READ_RETRIES", 5)
        held = []
        with suppress(lmdb.ReadersFullError):
            while True:
                txn = store._factory._environment._env.begin()
                txn.get(b"x")
                held.append(txn)
        assert len(held) >= 1000
        with pytest.raises(hutch.StorageTimeoutError, match=r"1,024 readers are active"):
            space["k"]
        # A writer needs no slot.
        space["k"] = 2
        del held[:10], txn
        assert space["k"] == 2


# --- processes ---

_COUNT = (
    _HEAD
    + """
with connect(sys.argv[1]) as store, store.open("core") as space:
    for _ in range(100):
        space.modify("n", lambda n: n + 1, default=0)
"""
)


def test_processes_that_make_the_folder_at_once_lose_no_count(path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(process(_COUNT, path)) for _ in range(4)]
        assert [child.wait(60) for child in children] == [0] * 4
    assert everything(path) == {"n": 400}


_WRITE_UNTIL_KILLED = (
    _HEAD
    + """
store = connect(sys.argv[1], durability=sys.argv[2], map_size_bytes=1 << 20)
space = store.open("core")
for number in range(10**6):
    space[f"one {number}"] = number
    space.update({f"pair {number} left": number, f"pair {number} right": number})
    space.modify("n", lambda n: n + 1, default=0)
    if number % 3 == 0:
        del space[f"one {number}"]
    print(number, flush=True)
"""
)


@needs_posix
@pytest.mark.parametrize("durability", ["strict", "normal", "relaxed"])
def test_a_killed_writer_loses_nothing_that_was_acknowledged_and_the_counter_is_exact(
    path: Path, durability: str
) -> None:
    for generation in range(3):
        if generation:
            before = everything(path)
            with connect(path) as store, store.open("core") as space:
                space.clear()
            assert before
        with process(_WRITE_UNTIL_KILLED, path, durability) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(60 + 7 * generation)]
            child.send_signal(signal.SIGKILL)
            said += child.stdout.readlines()
            assert child.wait() == -signal.SIGKILL
        acknowledged = max(int(line) for line in said if line.endswith("\n"))
        found = everything(path)
        for number in range(acknowledged + 1):
            assert (f"one {number}" in found) == (number % 3 != 0)
            assert found[f"pair {number} left"] == found[f"pair {number} right"] == number
        assert found["n"] in (acknowledged + 1, acknowledged + 2)
        # What was under way is there whole or not at all.
        assert (f"pair {acknowledged + 1} left" in found) == (f"pair {acknowledged + 1} right" in found)


@needs_posix
def test_a_writer_killed_within_a_transaction_blocks_no_other(path: Path) -> None:
    put(path, k=1)
    program = """
import sys, lmdb
env = lmdb.open(sys.argv[1], create=False, max_readers=1024)
txn = env.begin(write=True)
txn.put(b"half", b"done")
print("writing", flush=True)
sys.stdin.read()
"""
    with process(program, path) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        # Readers do not wait for a writer.
        assert everything(path) == {"k": 1}
        writer.kill()
        writer.wait()
    began = time.monotonic()
    put(path, l=2)
    assert time.monotonic() - began < 5
    assert everything(path) == {"k": 1, "l": 2}


# --- fork ---

_FORKS = (
    _HEAD
    + """
import os, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
path = sys.argv[1]
store = connect(path, map_size_bytes=1 << 20, durability="relaxed")
space = store.open("core")
space["before"] = 1
done = threading.Event()
counts = [0] * 3
def write(me):
    while not done.is_set():
        space.update({f"{me} {part}": counts[me] for part in range(5)})
        space[f"large {me}"] = bytes([me]) * 100_000
        counts[me] += 1
threads = [threading.Thread(target=write, args=(me,)) for me in range(3)]
for thread in threads:
    thread.start()
outcomes = []
for turn in range(12):
    time.sleep(0.02)
    pid = os.fork()
    if not pid:
        status = 9
        try:
            assert space["before"] == 1
            space[f"child {turn}"] = turn
            space.modify("children", lambda n: n + 1, default=0)
            status = 0
        except hutch.StoreError as error:
            status = 3
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(status)
    outcomes.append((turn, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
done.set()
for thread in threads:
    thread.join()
assert all(status in (0, 3) for _, status in outcomes), outcomes
worked = [turn for turn, status in outcomes if status == 0]
for turn in worked:
    assert space[f"child {turn}"] == turn
assert space.get("children", 0) >= len(worked)
for me in range(3):
    assert [space[f"{me} {part}"] for part in range(5)] == [counts[me] - 1] * 5
assert len(space) == len(list(space))
space.close()
store.close()
print(len(worked))
"""
)


@needs_fork
@pytest.mark.usefixtures("unmeasured")
def test_a_process_may_fork_in_the_middle_of_its_threads_writes(path: Path) -> None:
    done = run_python(_FORKS, path)
    assert done.returncode == 0, done.stderr
    assert everything(path)["before"] == 1


@pytest.mark.usefixtures("unmeasured")
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_only_reads_an_unwritten_store_creates_no_file(path: Path) -> None:
    with connect(path) as store, store.open("core") as space:
        pid = os.fork()
        if not pid:
            status = 1
            with suppress(BaseException):
                status = 0 if dict(space) == {} and not path.exists() else 2
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        space["k"] = 1
    assert everything(path) == {"k": 1}


# --- what stands in its way ---


def refused(path: Path, kind: type[Exception], *message: str) -> None:
    """Assert that opening, reading and writing raise `kind` at once, naming the path, and change nothing."""
    before = {file: file.read_bytes() for file in path.rglob("*.mdb") if file.is_file()}
    for use in (dict, lambda space: space.__setitem__("k", 1)):
        began = time.monotonic()
        with pytest.raises(kind) as raised, connect(path) as store, store.open("core") as space:
            use(space)
        assert time.monotonic() - began < 5
        for part in (str(path), *message):
            assert part in str(raised.value)
    for file, content in before.items():
        if file.name == "data.mdb":
            assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b"not a database\n" * 1000, b"x", bytes(8192), b"SQLite format 3\0" * 600])
def test_a_file_that_is_not_lmdb_is_left_alone(path: Path, content: bytes) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(content)
    refused(path, hutch.CorruptValueError, "data.mdb is damaged, or is not an LMDB file")
    with connect(path.parent / "other") as store, store.open("core") as space:
        space["others"] = "work"


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_and_does_not_crash(path: Path, part: float) -> None:
    put(path, **{f"k{number}": "x" * 1000 for number in range(500)})
    data = path / "data.mdb"
    os.truncate(data, int(data.stat().st_size * part))
    refused(path, hutch.CorruptValueError, "data.mdb ")


def test_a_file_that_lacks_only_pages_of_values_is_refused_before_they_are_read(path: Path) -> None:
    """LMDB itself looks at the first page alone; reading past the end of the file would kill the process."""
    with connect(path) as store, store.open("core") as space:
        space.update({f"k{number}": "x" * 1000 for number in range(500)})
        space["last"] = bytes(3 * MIB)
        for _ in range(3):
            # The pages that lead to the value are written where others were freed: they do not lie at the end.
            space["k1"] += "y"
    data = path / "data.mdb"
    whole = data.read_bytes()
    # Four pages at the end are free, which is no harm.
    os.truncate(data, len(whole) - 6 * mmap.PAGESIZE)
    refused(path, hutch.CorruptValueError, "data.mdb was truncated: it has", "Restore it from a copy")
    data.write_bytes(whole)
    assert everything(path)["last"] == bytes(3 * MIB)


def test_a_file_that_ends_before_its_last_free_pages_is_intact(path: Path) -> None:
    """Pages that one transaction takes and frees are never written: a large removal leaves a file without its end."""
    ended_early = 0
    for seed in range(10):
        random = Random(seed)
        folder = path / str(seed)
        for _ in range(3):
            with connect(folder, durability="relaxed") as store, store.open("core") as space:
                number = random.randrange(50, 400)
                space.update({f"k{i}": "x" * random.randrange(500) for i in range(number)})
                gone = [f"k{i}" for i in range(number) if random.random() < 0.8]
                space.remove_many(gone)
                kept = dict(space)
            with lmdb.open(str(folder), readonly=True) as env:
                pages_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            ended_early += (folder / "data.mdb").stat().st_size < pages_bytes
            assert everything(folder) == kept
    assert ended_early, "none of these files shows what is tested"


def test_pages_are_looked_at_before_lmdb_sees_them_where_it_is_asked_for(path: Path) -> None:
    """A page in the place of another can end a process that lets LMDB read it."""
    put(path, **{f"k{number:05}": "x" * 200 for number in range(2000)})
    connect(path, verify=True).close()
    data = path / "data.mdb"
    pages = bytearray(data.read_bytes())
    middle = len(pages) // 4096 // 2 * 4096
    pages[middle : middle + 4096] = pages[4096 * 4 : 4096 * 5]
    data.write_bytes(pages)
    with pytest.raises(hutch.CorruptValueError, match="check"):
        connect(path, verify=True)
    data.write_bytes(bytes(8192))
    with pytest.raises(hutch.CorruptValueError, match=r"data\.mdb"):
        connect(path, verify=True)


def test_a_file_in_the_old_format_is_left_alone(path: Path) -> None:
    with lmdb.open(str(path), lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    refused(path, hutch.CorruptValueError, "old format (0.9)")
    with lmdb.open(str(path), readonly=True) as env, env.begin() as txn:
        assert txn.get(b"key") == b"value"


def test_a_database_of_another_application_is_left_alone(path: Path) -> None:
    with lmdb.open(str(path), lib_version=1) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    with pytest.raises(hutch.CorruptValueError, match="LMDB database that hutch did not write; choose another path"):
        connect(path)
    with lmdb.open(str(path), readonly=True) as env, env.begin() as txn:
        assert dict(txn.cursor()) == {b"key": b"value"}


def test_a_newer_format_is_left_alone(path: Path) -> None:
    put(path, k=1)
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.put(b"\0\0\0\0v", b"hutch 3")
    with pytest.raises(hutch.CorruptValueError, match=r"format b'hutch 3'; .* b'hutch 1' and b'hutch 2'"):
        connect(path)


def test_a_value_that_another_program_wrote_wrong_is_an_error_that_says_where(path: Path) -> None:
    put(path, good=1, bad=2)
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.put(b"\0\0\0\1bad", b"nonsense")
    with connect(path) as store, store.open("core") as space:
        with pytest.raises(hutch.CorruptValueError, match="key 'bad' in namespace 'core' of the lmdb storage"):
            space["bad"]
        assert space["good"] == 1


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    for place in (path, path / "deeper"):
        refused(place, hutch.StorageUnavailableError)
    assert path.read_text() == "mine"


def test_a_folder_in_the_place_of_the_file_is_refused(path: Path) -> None:
    (path / "data.mdb").mkdir(parents=True)
    refused(path, hutch.StorageUnavailableError)


def test_a_write_that_is_interrupted_leaves_nothing_half_done(path: Path) -> None:
    """Whatever is raised within a write transaction, the next writer and the readers go on."""

    class Stop(BaseException):
        pass

    with connect(path) as store, store.open("core") as space:
        space["k"] = 1
        environment = store._factory._environment

        def writing(slot: Any) -> None:
            slot[0].put(b"\0\0\0\1k", b"half")
            raise Stop

        for _ in range(3):
            with pytest.raises(Stop):
                environment.write(writing)
        assert space["k"] == 1
        began = time.monotonic()
        together(*[lambda: space.modify("k", lambda k: k + 1)] * 8)
        assert time.monotonic() - began < 10
        assert dict(space) == {"k": 9}


def test_keys_in_damaged_order_are_noticed(tmp_path: Path) -> None:
    with hutch.connect(f"lmdb://{tmp_path}/state") as store, store.open("core") as core:
        core.update({f"key {n}": n for n in range(10)})
    data = tmp_path / "state" / "data.mdb"
    damaged = data.read_bytes().replace(b"key 3", b"key ?").replace(b"key 6", b"key 3").replace(b"key ?", b"key 6")
    data.write_bytes(damaged)
    with hutch.connect(f"lmdb://{tmp_path}/state") as store, store.open("core") as core:
        for listing in (core.keys, core.items, lambda: reversed(core)):
            with pytest.raises(hutch.CorruptValueError, match="not in order"):
                list(listing())
