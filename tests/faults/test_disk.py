"""Test faults around the files: no space, no permission, no file descriptor, no memory, and files that disappear.

Each promise once, for every engine with files: the right StoreError, which says what and where; nothing acknowledged is
lost; the same handle works again when the cause is gone. test_eio.py tests a failing disk.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.discovery import search
from hutch.testing.conformance.kit import together
from tests.refused import refused

if sys.platform == "win32":
    pytest.skip("needs POSIX files, limits and mounts", allow_module_level=True)

import resource

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mounts, or /proc")

BLOCK = "x" * 5000
# An engine looks once a millisecond whether its files are still there.
BLINK_S = 0.01
OLD = {"kept": "old", "count": 1, "list": [1], **{f"k{number}": number for number in range(30)}}


@dataclass(frozen=True)
class Engine:
    name: str

    def config(self, folder: Path, **options: Any) -> dict[str, Any]:
        """A store whose files are all in ``folder/state``."""
        state = folder / "state"
        return self.at(state / "kv.db" if self.name == "sqlite" else state, **options)

    def at(self, path: Path, **options: Any) -> dict[str, Any]:
        """A store at that very path: a file for sqlite, a folder for the others."""
        option = "basedir" if self.name == "shelf" else "path"
        return {"STORAGE": self.name, "STORAGE_CONFIG": {option: path, **options}}

    def files(self, folder: Path) -> list[Path]:
        """The files of an open store without which it would lose data, or its locks."""
        state = folder / "state"
        patterns = {
            "lmdb": ["data.mdb", "lock.mdb"],
            "sqlite": ["kv.db*"],
            "shelf": ["core.db*", ".hutch-shelf/*.lock"],
        }
        # What SQLite's own library keeps beside a file of Python 3.13's shelve is its affair.
        return sorted(
            file
            for pattern in patterns[self.name]
            for file in state.glob(pattern)
            if self.name == "sqlite" or not file.name.endswith(("-wal", "-shm"))
        )


@pytest.fixture(params=["lmdb", "sqlite", "shelf"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(str(request.param))


def put(config: Any, items: Mapping[str, Any]) -> None:
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(items)


def everything(config: Any) -> dict[str, Any]:
    with hutch.connect(config) as store, store.open("core") as space:
        return contents(space)


def contents(space: hutch.Namespace) -> dict[str, Any]:
    """Return all items, asserting that every way to read agrees."""
    items = dict(space)
    assert len(space) == len(items)
    assert sorted(space) == sorted(items)
    assert {key: space[key] for key in items} == items
    return items


@contextmanager
def opened(config: Any) -> Iterator[hutch.Namespace]:
    """Open a namespace whose files may be gone when it is closed; then there is nothing to flush."""
    store = hutch.connect(config)
    space = store.open("core")
    try:
        yield space
    finally:
        with suppress(hutch.StorageUnavailableError):
            space.close()
        with suppress(hutch.StorageUnavailableError):
            store.close()


def error_of(do: Callable[[], object], *kinds: type[hutch.StoreError]) -> hutch.StoreError | None:
    """Return the error that `do` raised, if it is one of `kinds`; None if it worked."""
    try:
        do()
    except kinds as error:
        return error
    return None


# Every way to change what is there; each changes OLD.
CHANGES: dict[str, Callable[[hutch.Namespace], object]] = {
    "overwrite": lambda space: space.__setitem__("kept", "new"),
    "add": lambda space: space.__setitem__("new", "new"),
    "update": lambda space: space.update(kept="new", new="new", more=BLOCK),
    "modify": lambda space: space.modify("count", lambda count: count + 1),
    "compare_and_set": lambda space: space.compare_and_set("count", 1, 2),
    "delete": lambda space: space.__delitem__("kept"),
    "remove_many": lambda space: space.remove_many(["kept", "k1", "k2"]),
    "clear": lambda space: space.clear(),
}


def mutable(space: hutch.Namespace) -> None:
    with space.mutable("list") as held:
        held.append(2)


CHANGES["mutable"] = mutable


def refuses_every_change(space: hutch.Namespace, kind: type[hutch.StoreError], *message: object) -> None:
    """Assert that each way to write raises that error and changes nothing, and reading still works."""
    for name, change in CHANGES.items():
        with refused(kind, *message):
            change(space)
        assert contents(space) == OLD, name


def goes_on(space: hutch.Namespace) -> dict[str, Any]:
    """Assert that every way to write works; return the content after it."""
    for change in CHANGES.values():
        space.clear()
        space.update(OLD)
        change(space)
        assert contents(space) != OLD
    space.update(OLD)
    space["went on"] = True
    assert contents(space) == {**OLD, "went on": True, "list": [1]}
    return contents(space)


def python(program: str, *arguments: object) -> str:
    """Return what another Python prints; it has a function `connect` of a path and the name of an engine."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _HEAD + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_HEAD = """
import os, resource, sys, threading, hutch
from pathlib import Path
from tests.faults.test_disk import Engine, contents, everything, put, OLD, CHANGES
"""


# --- no room ---


def fills_up(space: hutch.Namespace, name: str, value: Any, where: Path) -> None:
    """Set key after key until the disk is full; assert that exactly the acknowledged keys are there."""
    expected = contents(space)
    with refused(hutch.StorageFullError, where, "intact"):
        for number in range(100_000):
            space[f"{name} {number}"] = value
            expected[f"{name} {number}"] = value
    assert contents(space) == expected


def changes_or_is_full(space: hutch.Namespace, change: Callable[[], object], changed: Mapping[str, Any]) -> bool:
    """`change` leaves `changed`, or raises StorageFullError and leaves what was there; whether it did the first."""
    before = contents(space)
    error = error_of(change, hutch.StorageFullError)
    assert error is None or "intact" in str(error)
    assert contents(space) == (changed if error is None else before)
    return error is None


def a_full_disk_loses_nothing(config: Any, path: Path, make_room: Callable[[], None]) -> None:
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(OLD)
        fills_up(space, "block", BLOCK, path)
        fills_up(space, "scrap", "y", path)
        full = contents(space)
        assert len(full) > len(OLD) + 30
        # None of these can fit: a batch, a value that grows, an old value that would be lost if it were gone first.
        too_large: list[Callable[[], object]] = [
            lambda: space.update({"kept": "new", **{f"batch {number}": BLOCK for number in range(500)}}),
            lambda: space.modify("count", lambda _: "z" * 3_000_000),
            lambda: space.__setitem__("kept", "w" * 3_000_000),
            lambda: space.compare_and_set("kept", "old", "w" * 3_000_000),
        ]
        for change in too_large:
            with refused(hutch.StorageFullError, path, "intact"):
                change()
            assert contents(space) == full

        # Removing takes room before it gives any: it may be refused too, but then it was not done.
        left = {key: value for key, value in full.items() if key != "block 0"}
        done = [changes_or_is_full(space, lambda: space.__delitem__("block 0"), left)]
        now = contents(space)
        left = {key: value for key, value in now.items() if key not in ("block 1", "block 2")}
        done.append(changes_or_is_full(space, lambda: space.remove_many(["block 1", "block 2"]), left))
        done.append(changes_or_is_full(space, space.clear, {}))
        if done[-1]:
            space["again"] = BLOCK
            assert contents(space) == {"again": BLOCK}
        print(f"removed on the full disk: one {done[0]}, several {done[1]}, all {done[2]}")
        before = contents(space)
        make_room()
        assert contents(space) == before
        space.clear()
        expected = goes_on(space)
    assert everything(config) == expected


def test_a_full_disk_is_a_full_storage_that_loses_nothing(engine: Engine, small_disk: Path) -> None:
    config = engine.config(small_disk)
    a_full_disk_loses_nothing(config, small_disk / "state", lambda: remount(small_disk, "size=20m"))


def test_a_limit_of_file_size_is_a_full_storage_that_loses_nothing(engine: Engine, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        a_full_disk_loses_nothing(
            engine.config(tmp_path),
            tmp_path / "state",
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_storage_that_is_closed_opens_again_with_all_that_it_had(engine: Engine, small_disk: Path) -> None:
    config = engine.config(small_disk)
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(OLD)
        fills_up(space, "block", BLOCK, small_disk / "state")
        full = contents(space)
    assert everything(config) == full


def test_a_disk_that_fills_up_amid_threads_loses_nothing(engine: Engine, small_disk: Path) -> None:
    """Each of the writes that share one commit gets its own outcome."""
    config = engine.config(small_disk)
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(OLD)

        def write(me: int) -> dict[str, Any]:
            written = {}
            with refused(hutch.StorageFullError, small_disk / "state", "intact"):
                for number in range(10_000):
                    space[f"{me} {number}"] = BLOCK
                    written[f"{me} {number}"] = BLOCK
            return written

        parts = together(*[lambda me=me: write(me) for me in range(8)])
        expected = {**OLD, **{key: value for part in parts for key, value in part.items()}}
        assert contents(space) == expected
        remount(small_disk, "size=20m")
        space["again"] = BLOCK
    assert everything(config) == {**expected, "again": BLOCK}


@needs_linux
@pytest.mark.parametrize("name", ["lmdb", "sqlite"])
def test_a_disk_that_fills_up_inside_a_commit_leaves_the_old_state(name: str, small_disk: Path) -> None:
    """Each commit writes the same number to two namespaces, and grows: both keep the last one that was committed."""
    config = Engine(name).config(small_disk)
    with hutch.connect(config) as store:
        numbers = [0]

        def commit(tx: hutch.Transaction) -> None:
            for space in ("left", "right"):
                tx[space]["number"] = numbers[-1]
                for n in range(numbers[-1]):
                    tx[space][f"{numbers[-1]} {n}"] = BLOCK

        def fill() -> None:
            while True:
                numbers.append(numbers[-1] + 1)
                store.transact(commit)

        with pytest.raises(hutch.StorageFullError):
            fill()
        number = numbers[-1]
        expected = (number - 1, sum(range(number)) + 1)
        for space in ("left", "right"):
            assert (store[space]["number"], len(store[space])) == expected
    with hutch.connect(config) as store:
        assert [store[space]["number"] for space in ("left", "right")] == [number - 1] * 2


def test_a_disk_that_is_full_before_the_first_write_leaves_nothing_in_the_way(engine: Engine, small_disk: Path) -> None:
    """What is left of a store that could not be made, byte by byte more of it, is no obstacle to making it."""
    refusals = 0
    for kib in (4, 8, 12, 16, 32, 64, 96):
        remount(small_disk, f"size={kib}k")
        folder = small_disk / f"{kib}"
        config = engine.config(folder)
        made = False
        with suppress(hutch.StorageFullError):
            put(config, {"kept": "old"})
            made = True
        refusals += not made
        # Reading may have no room for what the engine needs beside the data, but there is nothing wrong to read.
        with suppress(hutch.StorageFullError):
            assert everything(config) == ({"kept": "old"} if made else {})
        remount(small_disk, "size=4m")
        assert everything(config) == ({"kept": "old"} if made else {})
        put(config, OLD)
        assert everything(config) == OLD
        shutil.rmtree(folder)
    assert refusals > 0


def test_a_disk_that_fills_up_while_the_map_of_lmdb_grows_loses_nothing(small_disk: Path) -> None:
    config = Engine("lmdb").config(small_disk, map_size_bytes=1 << 20)
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(OLD)
        batch = {f"batch {number}": BLOCK for number in range(700)}
        for _ in range(3):
            with refused(hutch.StorageFullError, small_disk / "state", "intact"):
                space.update(batch)
            assert contents(space) == OLD
        map_size = store.stats()["map_size_bytes"]
        assert isinstance(map_size, int)
        assert map_size > 3 << 20, "the map had grown before the disk was full"
        remount(small_disk, "size=20m")
        space.update(batch)
        assert contents(space) == {**OLD, **batch}
    assert everything(config) == {**OLD, **batch}


def test_a_full_lmdb_store_can_be_emptied_a_few_keys_at_a_time(small_disk: Path) -> None:
    """A step that removes much needs room for copies of all the pages that it changes; a small one finds it."""
    config = Engine("lmdb").config(small_disk, durability="relaxed")
    remount(small_disk, "size=16m")
    with hutch.connect(config) as store, store.open("core") as space:
        for batch in range(20):
            space.update({f"{batch:02} {number:04}": "x" * 300 for number in range(1000)})
        use_up(small_disk)
        with refused(hutch.StorageFullError, small_disk / "state", "intact"):
            space.clear()
        keys = list(space)
        assert len(keys) == len(space) == 20_000
        for start in range(0, len(keys), 100):
            assert space.remove_many(keys[start : start + 100]) == 100
        assert contents(space) == {}
        goes_on(space)


_MANY_READERS = """
import lmdb
with lmdb.open(sys.argv[1], create=False, max_readers=1024, max_spare_txns=1) as env:
    held = [env.begin() for _ in range(1000)]
    print(env.info()["max_readers"], env.info()["num_readers"], len(held[-1].get(b"\\0\\0\\0\\1kept")) > 0)
    del held
"""


def test_on_a_full_disk_as_many_read_as_ever(small_disk: Path) -> None:
    """LMDB notes each reader in a file that it leaves full of holes; who writes to a hole on a full disk is killed."""
    config = Engine("lmdb").config(small_disk)
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(OLD)
        use_up(small_disk)
        assert python(_MANY_READERS, small_disk / "state").split() == ["1024", "1000", "True"]
        assert contents(space) == OLD


def test_nothing_needs_room_for_temporary_files(
    engine: Engine, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_up(small_disk)
    for name in ("TMPDIR", "SQLITE_TMPDIR"):
        monkeypatch.setenv(name, str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    config = engine.config(tmp_path / "elsewhere")
    with hutch.connect(config) as store, store.open("core") as space:
        many = {f"{number:05}": "v" * 200 for number in range(20_000)}
        space.update(many)
        space.update(dict.fromkeys(many, "w" * 200))
        assert dict(space.scan(reverse=True)) == dict.fromkeys(many, "w" * 200)
        assert space.remove_many(list(many)[:10_000]) == 10_000
        space.clear()
        goes_on(space)


# --- no right to write ---


@pytest.mark.parametrize("made", [True, False], ids=["a store", "no store yet"])
def test_a_read_only_disk_is_unavailable_and_promptly_so(engine: Engine, small_disk: Path, made: bool) -> None:
    config = engine.config(small_disk)
    if made:
        put(config, OLD)
    remount(small_disk, "ro")
    for _ in range(2):
        with refused(hutch.StorageUnavailableError, small_disk, "ead-only"):
            put(config, {"kept": "new"})
    assert everything(config) == (OLD if made else {})
    remount(small_disk, "rw")
    assert everything(config) == (OLD if made else {})
    with hutch.connect(config) as store, store.open("core") as space:
        goes_on(space)


@pytest.fixture
def real_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield an ext4 file system of 16 MiB. Its mount can be aborted, as the kernel does when it meets an error."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        mount(image, folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount an image of a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@needs_linux
def test_reads_continue_when_the_disk_of_an_open_store_turns_read_only(engine: Engine, real_disk: Path) -> None:
    """As ext4 does when it meets an error; reading must still work."""
    strict = {} if engine.name == "shelf" else {"durability": "strict"}
    config = engine.config(real_disk, **strict)
    put(config, OLD)  # closing flushes a shelf
    with opened(config) as space:
        if strict:
            space["kept"] = "newer"
            space["kept"] = "old"
        remount(real_disk, "abort", source=None)
        refuses_every_change(space, hutch.StorageUnavailableError, real_disk, "ead-only")
    subprocess.run(["umount", real_disk], check=True)
    mount(real_disk.parent / "image", real_disk)
    assert everything(config) == OLD
    with hutch.connect(config) as store, store.open("core") as space:
        goes_on(space)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


_RIGHTS = """
engine, folder = Engine(sys.argv[1]), Path(sys.argv[2])
put(engine.config(folder / "warm"), OLD)  # everything is imported while it still may be
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
import time
config = engine.config(folder / "own")
state = folder / "own" / "state"
(folder / "own").mkdir()
with hutch.connect(config) as store, store.open("core") as space:
    space.update(OLD)
    for target in (state, folder / "own", *sorted(state.iterdir())):
        space.clear()
        space.update(OLD)
        mode = target.stat().st_mode
        target.chmod(0)
        time.sleep(0.01)
        expected = contents(space)
        refused = 0
        for number in range(3):
            try:
                space[f"written {number}"] = number
                expected[f"written {number}"] = number
            except hutch.StorageUnavailableError as error:
                assert str(state) in str(error), error
                refused += 1
            assert contents(space) == expected
        target.chmod(mode)
        assert contents(space) == expected
        space["again"] = 1
        assert contents(space) == {**expected, "again": 1}
        assert refused or not target.is_dir(), "an unreadable folder refuses calls"
        print(target.name, refused)
assert everything(config) == {**expected, "again": 1}
"""


def test_rights_that_are_taken_away_from_an_open_store_cost_nothing_that_was_written(
    engine: Engine, open_folder: Path
) -> None:
    lines = python(_RIGHTS, engine.name, open_folder).splitlines()
    assert lines[0] == "state 3"
    assert len(lines) > 3


_FORBIDDEN = """
import time
engine, folder = Engine(sys.argv[1]), Path(sys.argv[2])
config = engine.config(folder)
put(engine.config(Path(sys.argv[3])), OLD)  # everything is imported while it still may be
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for use in (everything, lambda config: put(config, {"kept": "new", "new": 1})):
    began = time.monotonic()
    try:
        print(use(config) == OLD)
    except hutch.StorageUnavailableError as error:
        message = str(error)
        assert str(folder) in message, error
        assert any(sign in message for sign in ("ermission", "must be able to write", "readonly")), error
        print("unavailable")
    assert time.monotonic() - began < 5
"""


@pytest.mark.parametrize("what", ["folder closed", "folder read-only", "files closed", "files read-only"])
def test_without_a_right_to_the_files_it_is_unavailable_and_says_so(
    engine: Engine, open_folder: Path, tmp_path: Path, what: str
) -> None:
    config = engine.config(open_folder)
    state = open_folder / "state"
    put(config, OLD)
    if engine.name == "lmdb" and what == "folder read-only":
        (state / "lock.mdb").unlink()  # with its two files there, LMDB needs no right to the folder
    inside = [file for file in state.rglob("*") if file.is_file()]
    for path in (state, *state.rglob("*")):
        path.chmod(0o777)
    match what:
        case "folder closed":
            state.chmod(0)
        case "folder read-only":
            for path in (state, *(path for path in state.rglob("*") if path.is_dir())):
                path.chmod(0o555)
        case _:
            for path in inside:
                path.chmod(0 if what == "files closed" else 0o444)
    try:
        read, wrote = python(_FORBIDDEN, engine.name, open_folder, tmp_path).splitlines()
    finally:
        state.chmod(0o777)
        for path in state.rglob("*"):
            path.chmod(0o777)
    assert wrote == "unavailable"
    # No engine needs permission to write in order to read.
    readable = [
        ("shelf", "folder read-only"),
        ("shelf", "files read-only"),
        ("sqlite", "files read-only"),
        ("sqlite", "folder read-only"),
        ("lmdb", "folder read-only"),
        ("lmdb", "files read-only"),
    ]
    assert read == "unavailable" or (read == "True" and (engine.name, what) in readable)
    assert everything(config) == OLD


def test_where_no_folder_can_be_made_there_is_nothing_to_read_and_nothing_can_be_written(
    engine: Engine, open_folder: Path, tmp_path: Path
) -> None:
    open_folder.chmod(0o555)
    message = python(_FORBIDDEN, engine.name, open_folder / "new", tmp_path)
    assert message.splitlines() == ["False", "unavailable"]
    assert os.listdir(open_folder) == []


# --- files that go away ---


def be_removed(config: Any, state: Path, aside: Path) -> None:
    shutil.copytree(state, aside)
    shutil.rmtree(state)


def be_moved(config: Any, state: Path, aside: Path) -> None:
    state.rename(aside)


def be_replaced_by_nothing(config: Any, state: Path, aside: Path) -> None:
    state.rename(aside)
    state.mkdir()


def be_replaced_by_another(config: Any, state: Path, aside: Path) -> None:
    state.rename(aside)
    # Made by another process: what this one has open must not be in the way.
    python("put(eval(sys.argv[1].replace('PosixPath', 'Path')), {'theirs': 'intact'})", config)


GOING_AWAY = [be_removed, be_moved, be_replaced_by_nothing, be_replaced_by_another]


@pytest.mark.parametrize("happen", GOING_AWAY, ids=lambda happen: happen.__name__)
def test_a_folder_that_goes_away_under_an_open_store_takes_no_write_with_it(
    engine: Engine, tmp_path: Path, happen: Callable[[Any, Path, Path], None]
) -> None:
    config = engine.config(tmp_path)
    state, aside = tmp_path / "state", tmp_path / "aside"
    with opened(config) as space:
        space.update(OLD)
        happen(config, state, aside)
        time.sleep(BLINK_S)
        unavailable = hutch.StorageUnavailableError
        refuses_every_change(space, unavailable, state, "removed, moved, replaced", "nothing was written")
        # A new connection finds the current files, and can write.
        theirs = {"theirs": "intact"} if happen is be_replaced_by_another else {}
        assert everything(config) == theirs
        put(config, {"new": 1})
        assert everything(config) == {**theirs, "new": 1}
        refuses_every_change(space, unavailable, "nothing was written")
    assert everything(config) == {**theirs, "new": 1}
    # What was put aside has all that was acknowledged.
    shutil.rmtree(state)
    aside.rename(state)
    assert everything(config) == OLD


def test_a_folder_that_comes_back_is_written_to_by_the_same_handle(engine: Engine, tmp_path: Path) -> None:
    config = engine.config(tmp_path)
    state, aside = tmp_path / "state", tmp_path / "aside"
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(OLD)
        state.rename(aside)
        time.sleep(BLINK_S)
        refuses_every_change(space, hutch.StorageUnavailableError, state, "nothing was written")
        assert everything(config) == {}
        aside.rename(state)
        # Another store of this process, on files that are open here already.
        with hutch.connect(config) as second, second.open("core") as again:
            assert contents(again) == OLD
            if engine.name == "lmdb":
                assert second._factory._environment is store._factory._environment, "LMDB must not open a file twice"
            again["kept"] = "newer"
            assert space["kept"] == "newer"
        expected = goes_on(space)
    assert everything(config) == expected


def test_a_file_that_goes_away_within_the_folder_takes_no_write_with_it(engine: Engine, tmp_path: Path) -> None:
    """Without its lock file, LMDB would let two processes write at once; without its log, SQLite would lose it."""
    config = engine.config(tmp_path)
    aside = tmp_path / "aside"
    with hutch.connect(config) as store, store.open("core") as space:
        goes_on(space)
        files = engine.files(tmp_path)
        assert len(files) >= 2
        for file in files:
            space.clear()
            space.update(OLD)
            file.rename(aside)
            time.sleep(BLINK_S)
            refuses_every_change(space, hutch.StorageUnavailableError, tmp_path, "nothing was written")
            aside.rename(file)
            expected = goes_on(space)
    assert everything(config) == expected


# --- no file descriptor, no memory, no thread ---


@contextmanager
def files_left(spare: int) -> Iterator[None]:
    """Let this process open at most `spare` files more than it has open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(spare + 1)]
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("made", [True, False], ids=["a store", "no store yet"])
def test_too_many_open_files_at_opening_are_unavailable_and_leave_none_open(
    engine: Engine, tmp_path: Path, made: bool
) -> None:
    config = engine.config(tmp_path)
    put(engine.config(tmp_path / "warm"), OLD)  # everything is imported
    if made:
        put(config, OLD)
    before = open_files()
    outcomes = []
    expected = dict(OLD) if made else {}
    for spare in range(12):
        added = {f"with {spare}": spare}
        search._made.clear()  # otherwise no folder is searched, and the store's own files are the first that fail
        with files_left(spare):
            error = error_of(lambda: put(config, added), hutch.PluginNotFoundError, hutch.StorageUnavailableError)  # noqa: B023 - run at once
        if error is None:
            expected |= added
        else:
            # SQLite needs several; the one that hutch tries when that has failed may work.
            assert "Too many open files" in str(error) or "unable to open" in str(error), error
            # Without a single one, not even the folder of plugins can be searched.
            assert str(tmp_path / "state") in str(error) or spare == 0
        outcomes.append("worked" if error is None else type(error).__name__)
        assert open_files() == before
        assert everything(config) == expected
    assert outcomes[:2] == ["PluginNotFoundError", "StorageUnavailableError"]
    assert outcomes[-1] == "worked"
    assert outcomes == sorted(outcomes, key=["PluginNotFoundError", "StorageUnavailableError", "worked"].index)


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_too_many_open_files_amid_threads_cost_nothing_that_was_written(engine: Engine, tmp_path: Path) -> None:
    config = engine.config(tmp_path)
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(OLD)

        def work(me: int) -> dict[str, Any]:
            written = {}
            for number in range(40):
                with suppress(hutch.StorageUnavailableError):
                    assert space["kept"] == "old"
                    assert space.get_many(["count", "list"]) == {"count": 1, "list": [1]}
                # What the cause was may be over by the time that SQLite is asked for it.
                with suppress(hutch.StorageUnavailableError):
                    space[f"{me} {number}"] = number
                    written[f"{me} {number}"] = number
                with suppress(hutch.StorageUnavailableError):
                    assert f"{me} nothing" not in space
            return written

        with files_left(0):
            written = together(*[lambda me=me: work(me) for me in range(6)])
        assert contents(space) == {**OLD, **{key: value for part in written for key, value in part.items()}}
        space.clear()
        goes_on(space)


_NO_ADDRESS_SPACE = """
engine, folder = Engine(sys.argv[1]), Path(sys.argv[2])
config = engine.config(folder)
put(config, OLD)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
for spare in (0, 100_000):
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    try:
        outcome = "worked" if everything(config) == OLD else "wrong"
    except hutch.StorageUnavailableError as error:
        outcome = f"unavailable: {error}"
    except MemoryError:
        outcome = "Python itself had no memory left"  # its allocator had none in reserve
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    print(outcome)
assert everything(config) == OLD
put(config, {"again": 1})
assert everything(config) == {**OLD, "again": 1}
"""


@needs_linux
def test_without_address_space_it_is_unavailable_or_works(engine: Engine, tmp_path: Path) -> None:
    for message in python(_NO_ADDRESS_SPACE, engine.name, tmp_path).splitlines():
        if message == "Python itself had no memory left":
            continue
        if engine.name == "lmdb":
            assert message == f"unavailable: lmdb {tmp_path / 'state'}: no address space to map it"
        assert message == "worked" or str(tmp_path / "state") in message


_NO_THREADS = """
import asyncio, hutch.aio
engine, folder = Engine(sys.argv[1]), Path(sys.argv[2])
from tests.faults.test_disk import goes_on
put(engine.config(folder / "warm"), OLD)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
allowed = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (0, allowed[1]))
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print("no thread")
with hutch.connect(engine.config(folder / "own")) as store, store.open("core") as space:
    print(len(goes_on(space)))

# hutch.aio makes its calls in threads: each of its callers learns that the call was not made.
async def main():
    store = hutch.aio.connect(engine.config(folder / "own"))
    for _ in range(3):
        try:
            await hutch.aio.connect(engine.config(folder / "own"))
        except hutch.StorageUnavailableError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_NPROC, allowed)
    async with hutch.aio.connect(engine.config(folder / "own")) as store, store.open("other") as space:
        await space.set("kept", "old")
        # One thread is there, and busy: it is enough.
        resource.setrlimit(resource.RLIMIT_NPROC, (0, allowed[1]))
        await asyncio.gather(*(space.set(f"k{number}", number) for number in range(50)))
        print(await space.len())
asyncio.run(main())
"""


@needs_linux
def test_where_no_thread_can_be_started_everything_works(engine: Engine, open_folder: Path) -> None:
    (open_folder / "own").mkdir()
    (open_folder / "own").chmod(0o777)
    assert python(_NO_THREADS, engine.name, open_folder).splitlines() == [
        "no thread",
        str(len(OLD) + 1),
        *["can't start new thread, and the call was not made; try again later"] * 3,
        "51",
    ]


# --- what is in the place of the store ---


def place_with(tmp_path: Path, kind: str) -> Path:
    """Return a path where no store can be."""
    path = tmp_path / "place"
    match kind:
        case "a file":
            path.write_text("mine")
        case "under a file":
            path.write_text("mine")
            path = path / "deeper"
        case "a socket":
            with socket.socket(socket.AF_UNIX) as bound:
                folder = os.open(tmp_path, os.O_RDONLY)
                try:
                    # The name of a socket is short; that of pytest's folder is not.
                    bound.bind(f"/proc/self/fd/{folder}/place" if sys.platform == "linux" else str(path))
                finally:
                    os.close(folder)
        case "a pipe":
            os.mkfifo(path)
        case "a device":
            path.symlink_to(os.devnull)
        case "a loop of links":
            path.symlink_to(tmp_path / "place too")
            (tmp_path / "place too").symlink_to(path)
        case "a long name":
            path = tmp_path / ("n" * 300)
        case "a long path":
            path = tmp_path.joinpath(*["n" * 200] * 30)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *("a file", "under a file", "a socket", "a pipe", "a device", "a loop of links"),
        *("a long name", "a long path"),
    ],
)
def test_a_path_unfit_for_a_store_is_refused_and_unchanged(engine: Engine, tmp_path: Path, kind: str) -> None:
    path = place_with(tmp_path, kind)
    before = sorted((file.name, file.lstat().st_mode, file.lstat().st_size) for file in tmp_path.iterdir())
    named = os.devnull if kind == "a device" else path
    expected: type[hutch.StoreError] = hutch.StorageUnavailableError
    if engine.name == "sqlite" and kind == "a file":
        expected = hutch.CorruptValueError
    for use in (everything, lambda config: put(config, {"k": 1})):
        with refused(expected, named):
            use(engine.at(path))
    assert sorted((file.name, file.lstat().st_mode, file.lstat().st_size) for file in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["a folder", "a socket", "a pipe", "a device", "a link to nowhere"])
@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
def test_a_path_of_lmdb_that_is_not_a_regular_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    config = Engine("lmdb").config(tmp_path)
    put(config, OLD)
    file = tmp_path / "state" / name
    file.rename(tmp_path / "aside")
    if kind == "a folder":
        file.mkdir()
    elif kind == "a link to nowhere":
        file.symlink_to(tmp_path / "no folder" / "no file")
    else:
        place_with(tmp_path, kind).rename(file)
    for _ in range(2):
        with refused(hutch.StorageUnavailableError, tmp_path / "state"):
            put(config, {"k": 1})
    file.rmdir() if kind == "a folder" else file.unlink()
    (tmp_path / "aside").rename(file)
    assert everything(config) == OLD


@pytest.mark.parametrize("target", ["not there", "not there/nor this"])
def test_a_link_that_leads_nowhere_is_followed_by_the_first_write(engine: Engine, tmp_path: Path, target: str) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / target)
    config = engine.at(path)
    assert everything(config) == {}
    assert not (tmp_path / target).exists()
    put(config, OLD)
    assert everything(config) == everything(engine.at(tmp_path / target)) == OLD
    assert path.is_symlink()


@needs_linux
def test_a_folder_whose_name_is_not_utf_8_is_a_folder(engine: Engine, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff"))
    config = engine.config(folder)
    with hutch.connect(config) as store, store.open("core") as space:
        expected = goes_on(space)
    assert everything(config) == expected
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9 \xff"]
    # Nor is it an obstacle to saying what is wrong.
    shutil.rmtree(folder)
    folder.write_text("mine")
    with pytest.raises(hutch.StorageUnavailableError) as raised:
        put(config, OLD)
    assert "caf" in str(raised.value)


# --- disks ---


def mount(what: Path, folder: Path) -> None:
    subprocess.run(["mount", "-o", "loop", what, folder], check=True, capture_output=True)


def remount(folder: Path, options: str, source: str | None = "tmpfs") -> None:
    # With a source, nothing is added to the options: in a user namespace the ones that there are may not be repeated.
    sources = [] if source is None else [source]
    subprocess.run(["mount", "-o", f"remount,{options}", *sources, folder], check=True, capture_output=True)


def use_up(disk: Path) -> None:
    """Fill the disk."""
    with suppress(OSError), (disk / "taken").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
