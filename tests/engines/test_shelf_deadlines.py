"""Test values with a deadline in a shelf: what other programs see, what they cost, damage, interrupts and kills."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import deadlines, transfer
from hutch.codec.frame import MAX_DEADLINE_MS, crc32
from hutch.codec.pickled import Pickled
from hutch.testing.signal_points import Interrupt, points, raise_interrupt, run_at
from tests.clock import Clock, stop_clock
from tests.engines.test_shelf import DIALECTS, connect, dbm_open, errbot_reads, errbot_writes, files, python, succeeded

LONG_S = 10_000.0
POINTS = int(os.environ.get("HUTCH_SIGNAL_POINTS", "12"))


@pytest.fixture(params=DIALECTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with an empty namespace "core" in each dialect."""
    dbm_open(str(tmp_path / "core.db"), request.param).close()
    (tmp_path / "dialect").write_text(request.param)
    return tmp_path


def dialect_of(folder: Path) -> str:
    return (folder / "dialect").read_text()


def stored(folder: Path) -> dict[bytes, bytes]:
    """Return what is stored, without hutch."""
    with closing(dbm_open(str(folder / "core.db"), dialect_of(folder))) as database:
        return {key: database[key] for key in list(database.keys())}


def replace(folder: Path, values: dict[bytes, bytes]) -> None:
    with closing(dbm_open(str(folder / "core.db"), dialect_of(folder))) as database:
        for key, value in values.items():
            database[key] = value


def markers(folder: Path) -> list[str]:
    return [name for name in files(folder) if name.endswith(".ttl")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stop_clock(monkeypatch, deadlines.now_ms())


def state(store: hutch.Store) -> dict[str, tuple[Any, float | None]]:
    with store.open("core") as core:
        return {key: (value, core.ttl_s(key)) for key, value in core.items()}


# --- what other programs and other namespaces notice ---


def test_errbot_reads_a_value_with_a_deadline_and_others_keep_their_bytes(folder: Path) -> None:
    with connect(folder) as store, store.open("core") as core:
        core.set("long", {"a": [1, {2}]}, ttl_s=LONG_S)
        core["plain"] = {"a": 1}
        core.set("cleared", 1, ttl_s=LONG_S)
        core.touch("cleared", float("inf"))
    assert errbot_reads(folder, dialect_of(folder)) == {"long": {"a": [1, {2}]}, "plain": {"a": 1}, "cleared": 1}
    found = stored(folder)
    assert (found[b"plain"], found[b"cleared"]) == (pickle.dumps({"a": 1}, 2), pickle.dumps(1, 2))
    assert found[b"long"].startswith(pickle.dumps({"a": [1, {2}]}, 2) + b"hTTL")
    errbot_writes(folder, dialect_of(folder), long="by the bot")
    with connect(folder) as store:
        assert state(store)["long"] == ("by the bot", None)


def test_the_stored_bytes_are_those_of_the_format_page(folder: Path, clock: Clock) -> None:
    with connect(folder) as store, store.open("core") as core:
        core.set("ключ", 1, ttl_s=1.5)
    content = pickle.dumps(1, 2) + b"hTTL" + (clock.ms + 1500).to_bytes(8, "big")
    checksum = crc32("ключ".encode() + content).to_bytes(4, "big")
    assert stored(folder) == {"ключ".encode(): content + checksum + b"\xd1"}


def test_a_namespace_without_deadlines_pays_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(folder) as store, store.open("core") as core, store.open("other") as other:
        shelf: Any = core._store._shelf  # type: ignore[attr-defined]
        core.update({str(n): n for n in range(20)})
        plain = shelf.read(1, type)
        reads: list[bytes] = []
        real = plain.get

        def get(self: Any, key: bytes) -> bytes | None:
            reads.append(key)
            result: bytes | None = real(self, key)
            return result

        monkeypatch.setattr(plain, "get", get)
        other.set("k", 1, ttl_s=LONG_S)
        del reads[:]
        assert (len(core), len(list(core)), "3" in core, core["3"], core.remove_many(["3", "none"])) == (
            *(20, 20, True, 3),
            1,
        )
        assert shelf.read(1, type) is plain
        assert set(reads) <= {b"3", b"none"}
        assert len(markers(folder)) == 1
        core.set("k", 1, ttl_s=LONG_S)
        assert shelf.read(1, type) is not plain
        assert len(markers(folder)) == 2


def test_a_dropped_namespace_leaves_no_marker(folder: Path) -> None:
    with connect(folder) as store:
        with store.open("core") as core:
            core.set("k", 1, ttl_s=LONG_S)
        assert len(markers(folder)) == 1
        store.drop("core")
        assert markers(folder) == []
        with store.open("core") as core:
            core["k"] = 1
            assert core.ttl_s("k") is None


def test_what_another_program_sets_meanwhile_does_not_expire(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "dialect").write_text("sqlite3")  # the one dialect in which a bot's write is seen meanwhile
    dbm_open(str(tmp_path / "core.db"), "sqlite3").close()
    with connect(tmp_path) as store, store.open("core") as core:
        core.set_many({"set": 1, "removed": 1, "gone": 1}, ttl_s=1)
        shelf: Any = core._store._shelf  # type: ignore[attr-defined]
        old = stored(tmp_path)[b"set"]
        errbot_writes(tmp_path, "sqlite3", set="by the bot")
        with closing(dbm_open(str(tmp_path / "core.db"), "sqlite3")) as database:
            del database[b"removed"]
        clock.move(2)
        assert (dict(core), len(core), list(core), "set" in core) == ({"set": "by the bot"}, 1, ["set"], True)
        # As if the bot had set it between the read of its value and its removal.
        shelf.write(1, lambda live: live._database.write_and_expire({}, {b"set": old}))
        assert core.expire() == 1
        core["other"] = 1
        assert dict(core) == {"set": "by the bot", "other": 1}


def test_a_lost_marker_is_noticed_when_a_value_is_read(folder: Path, clock: Clock) -> None:
    with connect(folder) as store, store.open("core") as core:
        core.set("gone", 1, ttl_s=1)
        core.set("long", 1, ttl_s=LONG_S)
    for name in markers(folder):
        (folder / name).unlink()
    clock.move(2)
    with connect(folder) as store, store.open("core") as core:
        assert dict(core.items()) == {"long": 1}
        assert (len(core), list(core), "gone" in core) == (1, ["long"], False)
    assert markers(folder) == []
    with connect(folder) as store, store.open("core") as core:
        assert core.get("gone") is None
        assert len(core) == 1
        core["plain"] = 1  # restores the marker
        assert core.expire() == 0  # that write took the expired key
    assert len(markers(folder)) == 1


@pytest.mark.parametrize("readonly", [False, True])
def test_a_folder_without_hutch_s_own_files_has_its_deadlines_from_the_first_look(
    folder: Path, clock: Clock, readonly: bool
) -> None:
    """As in a backup that skipped hidden folders: the values are the truth, and a writer restores the marker."""
    with connect(folder) as store, store.open("core") as core, store.open("over") as over:
        core.set("gone", 1, ttl_s=1)
        core.set("long", 1, ttl_s=LONG_S)
        over.set("gone", 1, ttl_s=1)
    shutil.rmtree(folder / ".hutch-shelf")
    clock.move(2)
    with hutch.connect(f"shelf://{folder}{'?readonly=true' if readonly else ''}") as store:
        assert store.namespaces() == ["core"]
        with store.open("core") as core:
            assert (len(core), list(core), "gone" in core, core.ttl_s("long")) == (1, ["long"], False, LONG_S - 2)
    assert len(markers(folder)) == (not readonly)


def test_a_shelf_that_hutch_meets_for_the_first_time_is_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errbot_writes(folder, dialect_of(folder), a="1", b="2")
    scans: list[int] = []
    with connect(folder) as store, store.open("other") as other:
        shared: Any = sys.modules[type(other._store._shelf).__module__]  # type: ignore[attr-defined]
    real = shared.read_index

    def read_index(database: Any) -> Any:
        scans.append(len(database))
        return real(database)

    monkeypatch.setattr(shared, "read_index", read_index)
    for _ in range(3):
        with connect(folder) as store, store.open("core") as core:
            assert (len(core), "a" in core) == (2, True)
    assert scans == [2]
    assert markers(folder) == []


# --- space ---


def test_each_write_takes_two_expired_keys_and_expire_the_rest(folder: Path, clock: Clock) -> None:
    with connect(folder) as store, store.open("core") as core:
        core.set_many({f"k{n}": n for n in range(40)}, ttl_s=1)
        clock.move(1)
        writes: list[Callable[[], object]] = [
            lambda: core.__setitem__("a", 1),
            lambda: core.update(b=1, c=1),
            lambda: core.set("d", 1, ttl_s=LONG_S),
            lambda: core.compare_and_set("e", hutch.MISSING, 1),
            lambda: core.modify("a", lambda value: value + 1),
            lambda: core.__delitem__("c"),
        ]
        held = 40
        shelf: Any = core._store._shelf  # type: ignore[attr-defined]
        for write in writes:
            write()
            held -= 2
            assert sum(key[:1] == b"k" for key in shelf.read(1, lambda live: live._database.keys())) == held
            assert "k39" not in core
        assert (core.expire(5), core.expire(), core.expire()) == (5, held - 5, 0)
    assert sorted(stored(folder)) == [b"a", b"b", b"d", b"e"]


def test_clear_removes_expired_keys_too(folder: Path, clock: Clock) -> None:
    with connect(folder) as store, store.open("core") as core:
        core.set_many({"a": 1, "b": 2}, ttl_s=1)
        clock.move(1)
        assert len(core) == 0
        core.clear()
    assert stored(folder) == {}


def test_a_namespace_of_expired_keys_is_not_listed_whoever_has_it_open(folder: Path, clock: Clock) -> None:
    with connect(folder) as store:
        with store.open("core") as core:
            core.set("k", 1, ttl_s=1)
            assert store.namespaces() == ["core"]
            clock.move(1)
            assert store.namespaces() == []
        assert store.namespaces() == []
        assert store.factory.stored_namespaces() == ["core"]
        before = {name: (folder / name).read_bytes() for name in files(folder)}
        assert store.namespaces() == []
        assert {name: (folder / name).read_bytes() for name in files(folder)} == before
        with store.open("core"):
            listing = "import hutch, sys; print(hutch.connect(sys.argv[1]).namespaces())"
            assert succeeded(python(listing, f"shelf://{folder}")) in ("[]\n", "['core']\n")
        clock.move(-1)
        assert store.namespaces() == ["core"]


# --- readers, copies, backups ---


def test_a_reader_without_permission_to_write_sees_no_expired_key(folder: Path, clock: Clock) -> None:
    with connect(folder) as store, store.open("core") as core:
        core.set("gone", 1, ttl_s=1)
        core.set("long", 1, ttl_s=LONG_S)
        core["plain"] = 1
    clock.move(1)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    with hutch.connect(f"shelf://{folder}?readonly=true") as store:
        assert store.namespaces() == ["core"]
        with store.open("core") as core:
            assert dict(core) == {"long": 1, "plain": 1}
            assert (len(core), sorted(core), "gone" in core, core.ttl_s("long")) == (
                2,
                ["long", "plain"],
                False,
                LONG_S - 1,
            )
            for write in (core.expire, lambda: core.touch("long", 5), lambda: core.set("a", 1, ttl_s=1)):
                with pytest.raises(hutch.CapabilityError):
                    write()
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_a_backup_a_compaction_and_a_copied_folder_keep_deadlines(folder: Path, clock: Clock, tmp_path: Path) -> None:
    with connect(folder) as store:
        with store.open("core") as core:
            core.set_many({f"long {n}": n for n in range(5)}, ttl_s=LONG_S)
            core["plain"] = 1
        expected = state(store)
        assert {ttl for _, ttl in expected.values()} == {None, LONG_S}
        store.backup(tmp_path / "copy")
        store.compact()
        assert state(store) == expected
    shutil.copytree(folder, tmp_path / "tree", ignore=shutil.ignore_patterns("copy"))
    for copy in ("copy", "tree"):
        with connect(tmp_path / copy) as store:
            assert state(store) == expected
    clock.move(LONG_S)
    for copy in ("copy", "tree", "."):
        with connect(tmp_path / copy) as store, store.open("core") as core:
            assert dict(core) == {"plain": 1}


def test_transfers_keep_deadlines_although_values_expire_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_ms, readings = deadlines.now_ms(), [0]

    def tick() -> int:
        readings[0] += 1
        return start_ms + readings[0] * 1000

    with connect(folder) as store, hutch.connect("memory://") as target:
        with store.open("core") as core:
            core.set_many({f"soon {n}": n for n in range(50)}, ttl_s=20)
            core.set("long", 1, ttl_s=LONG_S)
            core["plain"] = 2
            until = core._store.deadline("long")
        monkeypatch.setattr(deadlines, "now_ms", tick)
        out = io.BytesIO()
        transfer.dump(store, out)
        transfer.load(target, out.getvalue().splitlines())
        transfer.copy(store, target)
        assert readings[0] > 20
        with target.open("core") as copied:
            assert copied.get_many(["long", "plain"]) == {"long": 1, "plain": 2}
            assert copied._store.deadline("long") == until
        store.drop("core")
        transfer.copy(target, store)
        with store.open("core") as core:
            assert core._store.deadline("long") == until


# --- damage ---


def test_no_damaged_bit_makes_a_value_expire_or_lose_its_deadline(folder: Path, clock: Clock) -> None:
    with connect(folder) as store, store.open("core") as core:
        core.set("k", 1, ttl_s=1)
    bits = 8 * len(stored(folder)[b"k"])
    with connect(folder) as store, store.open("core") as core:
        core.set_many({f"{bit:04}": 1 for bit in range(bits)}, ttl_s=1)
        del core["k"]
    damaged = {}
    for name, value in stored(folder).items():
        bit = int(name)
        damaged[name] = value[: bit // 8] + bytes([value[bit // 8] ^ 1 << bit % 8]) + value[bit // 8 + 1 :]
    replace(folder, damaged)
    clock.move(2)
    with connect(folder) as store:
        with store.open("core") as core:
            assert len(core) == len(list(core)) == bits
            assert all(key in core for key in ("0000", "0100"))
            for key in list(core):
                for use in (core.__getitem__, core.ttl_s, lambda key: core.touch(key, 5)):
                    with pytest.raises(hutch.CorruptValueError, match=f"'{key}' in namespace 'core'.*deadline behind"):
                        use(key)
            assert core.expire() == 0
            assert core.get_many([]) == {}
        findings = list(store.verify())
        assert {(finding.kind, finding.key) for finding in findings} == {("value", f"{n:04}") for n in range(bits)}
        assert store.namespaces() == ["core"]
        with store.open("core") as core:
            core["0000"] = "repaired"
            core.remove_many([key for key in core if key != "0000"])
            assert dict(core) == {"0000": "repaired"}


def test_a_forged_or_moved_deadline_is_damage(folder: Path, clock: Clock) -> None:
    with connect(folder) as store, store.open("core") as core:
        core.set("k", 1, ttl_s=1)
    value = stored(folder)[b"k"]
    content = pickle.dumps(1, 2) + b"hTTL" + (MAX_DEADLINE_MS + 1).to_bytes(8, "big")
    replace(
        folder,
        {
            b"moved": value,
            b"far": content + crc32(b"far" + content).to_bytes(4, "big") + b"\xd1",
            b"short": value[-17:],
            b"end": b"\xd1",
            b"empty": b"",
            # Not a trailer: what follows a pickle of another program is ignored, as ever.
            b"foreign": pickle.dumps(1, 2) + b"padding",
        },
    )
    clock.move(1)
    with connect(folder) as store, store.open("core") as core:
        for key in ("moved", "far", "short", "end", "empty"):
            assert key in core
            with pytest.raises(hutch.CorruptValueError, match=f"'{key}'"):
                core[key]
        assert core["foreign"] == 1
        assert "k" not in core


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_a_link_in_place_of_the_marker_is_refused(folder: Path) -> None:
    with connect(folder) as store:
        with store.open("core") as core:
            core.set("k", 1, ttl_s=LONG_S)
        [name] = markers(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "elsewhere")
        with pytest.raises(hutch.StorageUnavailableError, match="symbolic link"):
            store.open("core")
    assert not (folder / "elsewhere").exists()


# --- imports ---


def test_imports_keep_deadlines_and_leave_out_the_expired(folder: Path, tmp_path: Path) -> None:
    bot = tmp_path / "bot"
    bot.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            file.rename(bot / file.name)
    with connect(bot) as store, store.open("core") as core:
        core.set("long", {"a": 1}, ttl_s=LONG_S)
        core["plain"] = 1
        core.set("gone", 1, ttl_s=0.001)
        while "gone" in core:
            pass
    command = [sys.executable, "-m", "hutch", "-s", f"sqlite://{tmp_path / 'kv.db'}", "import"]
    for arguments in (["errbot-shelf", str(bot)], ["shelve", str(bot / "core.db"), "-n", "shelve"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "imported 2 items" in done.stdout) == (0, True), done.stderr
    with hutch.connect(f"sqlite://{tmp_path / 'kv.db'}") as store:
        for name in ("core", "shelve"):
            with store.open(name) as ns:
                assert dict(ns) == {"long": {"a": 1}, "plain": 1}
                assert LONG_S - 1000 < (ns.ttl_s("long") or 0) <= LONG_S
                assert ns.ttl_s("plain") is None


@pytest.mark.parametrize("codec", ["msgpack", "passthrough"])
def test_an_export_keeps_deadlines(tmp_path: Path, codec: str) -> None:
    """The exported shelf has the deadlines from the first look, so also the marker of its namespace."""
    url = f"sqlite://{tmp_path / 'kv.db'}"
    with hutch.connect(f"{url}?codec={codec}") as store:
        for name in ("core", "plain"):
            with store.open(name) as ns:
                ns["plain"] = {"a": 1} if codec == "msgpack" else Pickled(pickle.dumps({"a": 1}, 2))
        with store.open("core") as core:
            core.set("long", core["plain"], ttl_s=LONG_S)
            core.set("soon", core["plain"], ttl_s=LONG_S / 2)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hutch", "-s", f"{url}?codec={codec}", "export", "errbot-shelf", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr, "exported 4 items" in done.stdout) == (0, "", True)
    assert len(markers(out)) == 1
    with connect(out) as store, store.open("core") as core:
        assert len(core) == 3
        assert dict(core) == {key: {"a": 1} for key in ("plain", "long", "soon")}
        assert LONG_S - 1000 < (core.ttl_s("long") or 0) <= LONG_S
        assert core.ttl_s("plain") is None


# --- interrupts and kills ---


WRITES: dict[str, tuple[Callable[[hutch.Namespace], object], dict[str, Any]]] = {
    "set": (lambda ns: ns.set("k1", "new", ttl_s=LONG_S), {"k1": "new"}),
    "a plain set": (lambda ns: ns.__setitem__("k1", "new"), {"k1": "new"}),
    "touch": (lambda ns: ns.touch("k1", LONG_S), {}),
    "expire": (lambda ns: ns.expire(), {}),
    "len": (len, {}),
    "items": (lambda ns: list(ns.items()), {}),
}


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", WRITES)
def test_an_interrupt_at_any_point_leaves_the_old_or_the_new_state(folder: Path, clock: Clock, name: str) -> None:
    call, changes = WRITES[name]
    before = {f"k{n}": n for n in range(3)}

    def restore(ns: hutch.Namespace) -> None:
        ns.set_many(before, ttl_s=LONG_S / 2)
        ns.set_many({f"gone {n}": n for n in range(5)}, ttl_s=1)
        clock.move(2)

    with connect(folder) as store, store.open("core") as ns:
        restore(ns)
        for point in points(lambda: call(ns), POINTS or None, 7, loops=False):
            restore(ns)
            try:
                run_at(point, raise_interrupt, lambda: call(ns), loops=False)
            except Interrupt:
                assert dict(ns) in (before, {**before, **changes})
            else:
                assert dict(ns) == {**before, **changes}
            assert (len(ns), sorted(ns)) == (3, sorted(before))
            ns.expire()
            assert len(ns._store._shelf.read(1, lambda live: live._database.keys())) == 3  # type: ignore[attr-defined]


FIRST_DEADLINES = """
import itertools, sys, hutch
with hutch.connect("shelf://" + sys.argv[1]) as store, store.open("core") as core:
    for n in itertools.count():
        core.set(f"k{n}", n, ttl_s=10_000)
        print(n, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_writer_leaves_no_value_without_its_deadline(folder: Path) -> None:
    for count in (1, 3, 20):
        command = [sys.executable, "-c", FIRST_DEADLINES, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(count):
                last = int(writer.stdout.readline())
            writer.kill()
        with connect(folder) as store, store.open("core") as core:
            assert {f"k{n}" for n in range(last + 1)} <= set(core)
            assert all((core.ttl_s(key) or 0) > LONG_S / 2 for key in core)
            core.clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_reads_deadlines_after_the_parent_closed(folder: Path) -> None:
    with connect(folder) as store:
        with store.open("core") as core:
            core.set("long", 1, ttl_s=LONG_S)
            core.set("gone", 1, ttl_s=0.001)
            while "gone" in core:
                pass
        child = os.fork()
        if child == 0:
            with store.open("core") as core:
                is_right = dict(core) == {"long": 1} and (core.ttl_s("long") or 0) > LONG_S / 2
            os._exit(0 if is_right else 1)
        assert os.waitpid(child, 0)[1] == 0
