"""Test readers without any permission to write: of a closed store, a live one, and one on a read-only medium.

To let a reader and a writer run against each other for longer: HUTCH_READER_S=60.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import hutch
from tests.faults.test_disk import Engine, remount
from tests.refused import refused

if sys.platform == "win32":
    pytest.skip("needs POSIX users and permissions", allow_module_level=True)

_SECONDS = float(os.environ.get("HUTCH_READER_S", "1"))
DATA = {"one": 1, "two": [2], "long": "x" * 100_000, **{f"k{number:03}": number for number in range(300)}}
ENGINES = ["lmdb", "sqlite", "shelf"]
LIVE = [name for name in ENGINES if name != "shelf"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def fill(config: Any) -> None:
    with hutch.connect(config) as store, store.open("core") as space:
        space.update(DATA)


def forbid_writing(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):  # a log of a writer that closes its store
            path.chmod(0o755 if path.is_dir() else 0o644)


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return what a reader may not change: every file with its time of change and its content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


_HEAD = """
import os, sys, tempfile, time, hutch
from pathlib import Path
from tests.faults.test_disk import Engine
from tests.faults.test_readers import DATA, read_everything, refuses_every_write
engine, folder = Engine(sys.argv[1]), Path(sys.argv[2])
with hutch.connect(engine.config(Path(sys.argv[3]))) as store, store.open("core") as space:
    space.update(DATA)  # everything is imported while it still may be
    read_everything(store, space)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def reader(program: str, engine: Engine, folder: Path, warm: Path, *arguments: object) -> str:
    """Return what `program` prints in another process, as a user that owns nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _HEAD + program, engine.name, folder, warm, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120 + _SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_everything(store: hutch.Store, space: hutch.Namespace) -> None:
    """Assert that every way to read gives DATA."""
    assert dict(space) == DATA
    assert len(space) == len(DATA)
    assert dict(space.scan()) == DATA
    assert list(space.scan(reverse=True)) == sorted(DATA.items(), reverse=True)
    assert list(space.scan_keys("k1")) == [f"k{number}" for number in range(100, 200)]
    assert sorted(space) == sorted(DATA)
    assert space.get_many(["two", "none", "long"]) == {"two": [2], "long": DATA["long"]}
    assert {key: space[key] for key in DATA} == DATA
    assert "one" in space
    assert "none" not in space
    assert space.get("none") is None
    assert store.namespaces() == ["core"]
    assert list(store.verify()) == []
    assert isinstance(store.stats(), dict)


def refuses_every_write(store: hutch.Store, kind: type[hutch.StoreError], *message: str) -> None:
    """Assert that every verb that writes is refused with `kind`, and that nothing changes."""
    with store.open("core") as space:
        writes: list[Callable[[], object]] = [
            lambda: space.__setitem__("one", 2),
            lambda: space.__delitem__("one"),
            lambda: space.update(one=2, new=3),
            lambda: space.remove_many(["one", "two"]),
            space.clear,
            lambda: space.pop("one"),
            lambda: space.setdefault("new", 1),
            lambda: space.modify("one", lambda value: value + 1),
            lambda: space.compare_and_set("one", 1, 2),
        ]
        for write in writes:
            with refused(kind, *message):
                write()
        assert dict(space) == DATA
    with refused(kind, *message):
        store.drop("core")


_READ = """
for options in ({}, {"readonly": True}, {"create": False}):
    with hutch.connect(engine.config(folder, **options)) as store:
        with store.open("core") as space:
            read_everything(store, space)
        kind = hutch.CapabilityError if "readonly" in options else hutch.StorageUnavailableError
        refuses_every_write(store, kind, *([] if "readonly" in options else [str(folder)]))
        try:
            store.compact()
        except kind:
            pass
with tempfile.TemporaryDirectory() as copy:
    copy = Path(copy, "copy")
    with hutch.connect(engine.config(folder)) as store:
        store.backup(copy)
    with hutch.connect(engine.at(copy)) as store, store.open("core") as space:
        read_everything(store, space)
        space["writable"] = 1
print("read")
"""


@pytest.mark.parametrize("name", ENGINES)
def test_a_closed_store_is_read_without_permission_to_write(name: str, folder: Path, tmp_path: Path) -> None:
    engine = Engine(name)
    fill(engine.config(folder))
    forbid_writing(folder)
    before = state_of(folder)
    assert reader(_READ, engine, folder, tmp_path) == "read\n"
    assert state_of(folder) == before


@pytest.mark.parametrize("name", LIVE)
def test_a_live_store_is_read_without_permission_to_write(name: str, folder: Path, tmp_path: Path) -> None:
    engine = Engine(name)
    with hutch.connect(engine.config(folder)) as store, store.open("core") as space:
        space.update(DATA)
        forbid_writing(folder)
        before = state_of(folder)
        assert reader(_READ, engine, folder, tmp_path) == "read\n"
        assert state_of(folder) == before
        space["again"] = 1


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("options", [{}, {"readonly": True}, {"create": False}], ids=str)
def test_a_store_on_a_read_only_medium_is_read(name: str, options: dict[str, Any], small_disk: Path) -> None:
    engine = Engine(name)
    fill(engine.config(small_disk))
    remount(small_disk, "ro")
    with hutch.connect(engine.config(small_disk, **options)) as store:
        with store.open("core") as space:
            read_everything(store, space)
        kind = hutch.CapabilityError if "readonly" in options else hutch.StorageUnavailableError
        refuses_every_write(store, kind, *([] if "readonly" in options else ["ead-only"]))


@pytest.mark.parametrize("name", ENGINES)
def test_readonly_refuses_every_write_and_changes_no_byte(name: str, tmp_path: Path) -> None:
    """Even where everything may be written."""
    engine = Engine(name)
    fill(engine.config(tmp_path))
    before = state_of(tmp_path / "state")
    with hutch.connect(engine.config(tmp_path, readonly=True)) as store:
        with store.open("core") as space:
            read_everything(store, space)
        refuses_every_write(store, hutch.CapabilityError, "readonly=true", "nothing was written")
        with refused(hutch.CapabilityError, "readonly=true"):
            store.verify(repair=True)
        with refused(hutch.CapabilityError, "readonly=true"):
            store.compact()
        store.backup(tmp_path / "copy")
        # Also without the layer that refuses before the engine does.
        with store._factory.open("core") as storage, pytest.raises(hutch.StoreError, match="readonly=true"):
            storage.set("one", 2)
    with hutch.connect(engine.at(tmp_path / "copy")) as store, store.open("core") as space:
        read_everything(store, space)
    after = state_of(tmp_path / "state")
    # LMDB notes its readers in its lock file, where it may.
    assert {path: after[path] for path in after if not path.endswith("lock.mdb")} == {
        path: before[path] for path in before if not path.endswith("lock.mdb")
    }


@pytest.mark.parametrize("name", ["lmdb", "sqlite", "shelf"])
@pytest.mark.parametrize("options", [{"create": False}, {"readonly": True}], ids=str)
def test_a_store_that_is_not_there_is_an_error_that_names_it_and_is_not_created(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    engine = Engine(name)
    path = tmp_path / "state" / "kv.db" if name == "sqlite" else tmp_path / "state"
    with refused(hutch.StoreMissingError, path, "Correct the path"):
        hutch.connect(engine.config(tmp_path, **options))
    with pytest.raises(FileNotFoundError):
        hutch.connect(f"{name}://{path}?{next(iter(options))}={str(next(iter(options.values()))).lower()}")
    assert list(tmp_path.iterdir()) == []
    # The advice of the error: a write without the options creates it.
    fill(engine.config(tmp_path))
    with hutch.connect(engine.config(tmp_path, **options)) as store, store.open("core") as space:
        read_everything(store, space)


_WRITE_ALL_THE_TIME = """
import itertools, random, signal
rng = random.Random(1)
with hutch.connect(engine.config(folder, durability="relaxed")) as store, store.open("core") as space:
    for number in itertools.count(1):
        match number % 4:
            case 0:
                space.update({f"k{key:03}": number for key in range(10)})
            case 1:
                space["long"] = (number, "y" * rng.randrange(50_000))
            case 2:
                space[f"other {rng.randrange(300)}"] = (number, "z" * rng.randrange(2000))
            case 3:
                space.remove_many([f"other {rng.randrange(300)}" for _ in range(5)])
        space["count"] = number
        if number == 8:
            print("ready", flush=True)
"""
_OPEN_AND_CLOSE_ALL_THE_TIME = """
import itertools
for number in itertools.count(1):
    with hutch.connect(engine.config(folder, durability="relaxed")) as store, store.open("core") as space:
        space.update({f"k{key:03}": number for key in range(10)})
        space["long"] = (number, "y" * (number * 37 % 50_000))
        space["count"] = number
    if number == 8:
        print("ready", flush=True)
"""
_READ_ALL_THE_TIME = """
end_s, last, rounds = time.monotonic() + float(sys.argv[4]), 0, 0
with hutch.connect(engine.config(folder)) as store, store.open("core") as space:
    while time.monotonic() < end_s or rounds < 20:
        count = space["count"]
        assert count >= last, "a later read returned an older state"
        last = count
        assert set(space["long"][1]) <= {"y"}
        together = space.get_many([f"k{key:03}" for key in range(10)])
        assert len(together) == 10 and len(set(together.values())) == 1, "a part of a batch was visible"
        assert [key for key, _ in space.scan("k")] == [f"k{key:03}" for key in range(300)]
        assert len(list(space.scan_keys("k", reverse=True))) == 300
        assert "k200" in space and "none" not in space
        assert 303 <= len(space) <= 604
        assert store.namespaces() == ["core"]
        rounds += 1
print(rounds, last)
"""


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize(
    "write", [_WRITE_ALL_THE_TIME, _OPEN_AND_CLOSE_ALL_THE_TIME], ids=["open", "opened and closed"]
)
def test_a_reader_without_permissions_reads_what_is_right_while_a_writer_never_pauses(
    name: str, write: str, folder: Path, tmp_path: Path
) -> None:
    engine = Engine(name)
    fill(engine.config(folder))
    program = "import sys, hutch\nfrom pathlib import Path\nfrom tests.faults.test_disk import Engine\n"
    program += "engine, folder = Engine(sys.argv[1]), Path(sys.argv[2])\n" + write
    with subprocess.Popen([sys.executable, "-c", program, name, folder], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            forbid_writing(folder)
            rounds, last = map(int, reader(_READ_ALL_THE_TIME, engine, folder, tmp_path, _SECONDS).split())
            assert writer.poll() is None
        finally:
            writer.kill()
    print(f"{name}: {rounds:,} rounds, up to write {last:,}")
    assert last >= 8


_LEFT_OPEN = """
import os, signal
store = hutch.connect(engine.config(folder))
store.open("core").update(DATA)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_log_that_a_killed_process_left_is_read_or_the_error_names_the_file(folder: Path, tmp_path: Path) -> None:
    """What is in the log only must not be left out."""
    engine = Engine("sqlite")
    program = "import sys, hutch\nfrom pathlib import Path\nfrom tests.faults.test_disk import Engine\n"
    program += "from tests.faults.test_readers import DATA\n"
    program += "engine, folder = Engine(sys.argv[1]), Path(sys.argv[2])\n" + _LEFT_OPEN
    subprocess.run([sys.executable, "-c", program, "sqlite", folder], check=False, timeout=60)
    state = folder / "state"
    assert sorted(os.listdir(state)) == ["kv.db", "kv.db-shm", "kv.db-wal"]
    forbid_writing(folder)
    assert reader(_READ, engine, folder, tmp_path) == "read\n"
    (state / "kv.db-shm").unlink()
    assert reader(_REFUSED, engine, folder, tmp_path) == "named\n"
    # The advice of the error.
    with hutch.connect(engine.config(folder)) as store, store.open("core") as space:
        assert dict(space) == DATA
    assert os.listdir(state) == ["kv.db"]
    assert reader(_READ, engine, folder, tmp_path) == "read\n"


_REFUSED = """
for options in ({}, {"readonly": True}):
    with hutch.connect(engine.config(folder, **options)) as store:
        try:
            store.open("core")
        except hutch.StorageUnavailableError as error:
            assert "kv.db-wal" in str(error) and "kv.db-shm" in str(error) and "ermission" in str(error), error
            assert "Open the store once with permission to write" in str(error)
            print("named" if options else "", end="\\n" if options else "")
"""
