"""Time each target's operation and its yardstick alternately. Each yardstick's work is written out in its loop.

Every function gets an empty folder and the number of rounds, runs in its own process, and returns both times of each
round. A target is one function and a line in targets.py.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import lmdb
from ormsgpack import packb, unpackb

import hutch

from .rounds import Rounds, in_turn
from .workload import VALUE, fresh, key_names, shuffled

_KEYS = 10_000
_CHUNK = 1000
_MAP_BYTES = 1 << 30
_COUNT = itertools.count()
# Every read reaches LMDB. By default hutch caches the bytes of keys that are read repeatedly.
_UNCACHED = "&cache_bytes=0"

# --- the stores ---


@contextlib.contextmanager
def _namespace(url: str, keys: int = _KEYS) -> Iterator[hutch.Namespace]:
    """Open the namespace of `url` with `keys` in it."""
    with hutch.connect(url) as store, store.open("core") as namespace:
        namespace.update(_values(key_names(keys)))
        yield namespace


@contextlib.contextmanager
def _raw(folder: Path, keys: int = _KEYS, **flags: bool) -> Iterator[tuple[lmdb.Environment, Any]]:
    """Open LMDB as py-lmdb's documentation does: a named database and one transaction per call."""
    with lmdb.open(str(folder), map_size=_MAP_BYTES, max_dbs=2, **flags) as env:
        db = env.open_db(b"core")
        with env.begin(db=db, write=True) as txn:
            txn.cursor().putmulti([(key.encode(), packb(value)) for key, value in _values(key_names(keys)).items()])
        yield env, db


@contextlib.contextmanager
def _raw_sqlite(path: Path, keys: int = _KEYS, pragmas: str = "") -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    try:
        connection.executescript(pragmas + "CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB)")
        rows = [(key, packb(value)) for key, value in _values(key_names(keys)).items()]
        connection.executemany("INSERT INTO kv VALUES (?, ?)", rows)
        connection.commit()
        yield connection
    finally:
        connection.close()


def _values(keys: list[str]) -> dict[str, Any]:
    """Return a new value for each key."""
    return {key: fresh(next(_COUNT)) for key in keys}


# --- lmdb: reading ---


def get(folder: Path, rounds: int) -> Rounds:
    return _get(folder, rounds, _UNCACHED, shuffled(key_names(_KEYS), _CHUNK))


def get_hot(folder: Path, rounds: int) -> Rounds:
    return _get(folder, rounds, "", shuffled(key_names(_KEYS), 100) * 10)


def _get(folder: Path, rounds: int, options: str, keys: list[str]) -> Rounds:
    url = f"lmdb://{folder}/hutch?durability=relaxed{options}"
    with _namespace(url) as ns, _raw(folder / "raw", sync=False) as (env, db):

        def ours() -> None:
            for key in keys:
                ns[key]

        def theirs() -> None:
            for key in keys:
                with env.begin(db=db) as txn:
                    unpackb(txn.get(key.encode()))  # type: ignore[arg-type]  # there is one

        return in_turn(ours, theirs, rounds)


def get_while_another_burns(folder: Path, rounds: int) -> Rounds:
    """Time reads beside a busy thread: each release of the interpreter's lock costs the reader 5 ms."""
    burning = True

    def burn() -> None:
        number = 0
        while burning:
            number += 1

    burner = threading.Thread(target=burn)
    burner.start()
    try:
        return _get(folder, rounds, _UNCACHED, shuffled(key_names(_KEYS), 100))
    finally:
        burning = False
        burner.join()


def get_among_namespaces(folder: Path, rounds: int) -> Rounds:
    keys = shuffled(key_names(_KEYS), _CHUNK)
    many, one = (f"lmdb://{folder}/{name}?durability=relaxed{_UNCACHED}" for name in ("many", "one"))
    with hutch.connect(many) as store:
        for number in range(9_999):
            with store.open(f"plugin {number}") as other:
                other["key"] = VALUE
    with _namespace(many) as ours_ns, _namespace(one) as theirs_ns:

        def reading(ns: hutch.Namespace) -> Callable[[], None]:
            def read() -> None:
                for key in keys:
                    ns[key]

            return read

        return in_turn(reading(ours_ns), reading(theirs_ns), rounds)


def miss(folder: Path, rounds: int) -> Rounds:
    keys = [f"nobody:{number}" for number in range(_CHUNK)]
    with _namespace(f"lmdb://{folder}/hutch?durability=relaxed") as ns, _raw(folder / "raw", sync=False) as (env, db):

        def ours() -> None:
            for key in keys:
                key in ns  # noqa: B015

        def theirs() -> None:
            for key in keys:
                with env.begin(db=db) as txn:
                    txn.get(key.encode()) is not None  # noqa: B015

        return in_turn(ours, theirs, rounds)


def items(folder: Path, rounds: int) -> Rounds:
    keys = 100_000
    url = f"lmdb://{folder}/hutch?durability=relaxed"
    with _namespace(url, keys) as ns, _raw(folder / "raw", keys, sync=False) as (env, db):

        def ours() -> None:
            for _key, _value in ns.items():
                pass

        def theirs() -> None:
            with env.begin(db=db) as txn:
                for key, data in txn.cursor():
                    key.decode()
                    unpackb(data)

        return in_turn(ours, theirs, rounds)


def length(folder: Path, rounds: int) -> Rounds:
    with _namespace(f"lmdb://{folder}/hutch?durability=relaxed") as ns, _raw(folder / "raw", sync=False) as (env, db):

        def ours() -> None:
            for _ in range(_CHUNK):
                len(ns)

        def theirs() -> None:
            for _ in range(_CHUNK):
                with env.begin(db=db) as txn:
                    txn.stat(db)["entries"]

        return in_turn(ours, theirs, rounds)


def length_sqlite(folder: Path, rounds: int) -> Rounds:
    return _lengths(f"sqlite://{folder}/many.db", f"sqlite://{folder}/few.db", rounds)


def length_memory(_: Path, rounds: int) -> Rounds:
    return _lengths("memory://", "memory://", rounds)


def _lengths(many: str, few: str, rounds: int) -> Rounds:
    """Time `len` of 100,000 keys beside `len` of 100."""
    with _namespace(many, 100_000) as many_ns, _namespace(few, 100) as few_ns:

        def counting(ns: hutch.Namespace) -> Callable[[], None]:
            def count() -> None:
                for _ in range(_CHUNK):
                    len(ns)

            return count

        return in_turn(counting(many_ns), counting(few_ns), rounds)


# --- lmdb: writing ---


def set_normal(folder: Path, rounds: int) -> Rounds:
    return _set(folder, rounds, "normal", 5, metasync=False)


def set_relaxed(folder: Path, rounds: int) -> Rounds:
    return _set(folder, rounds, "relaxed", 100, sync=False, metasync=False)


def _set(folder: Path, rounds: int, durability: str, calls: int, **flags: bool) -> Rounds:
    keys = shuffled(key_names(_KEYS), _KEYS)
    with _namespace(f"lmdb://{folder}/hutch?durability={durability}") as ns, _raw(folder / "raw", **flags) as (env, db):

        def ours() -> None:
            for _ in range(calls):
                number = next(_COUNT)
                ns[keys[number % _KEYS]] = fresh(number)

        def theirs() -> None:
            for _ in range(calls):
                number = next(_COUNT)
                with env.begin(db=db, write=True) as txn:
                    txn.put(keys[number % _KEYS].encode(), packb(fresh(number)))

        return in_turn(ours, theirs, rounds)


def update(folder: Path, rounds: int) -> Rounds:
    keys = key_names(_KEYS)
    url = f"lmdb://{folder}/hutch?durability=relaxed"
    with _namespace(url) as ns, _raw(folder / "raw", sync=False, metasync=False) as (env, db):

        def ours() -> float:
            values = _values(keys)
            began = time.perf_counter()
            ns.update(values)
            return time.perf_counter() - began

        def theirs() -> float:
            values = _values(keys)
            began = time.perf_counter()
            with env.begin(db=db, write=True) as txn, txn.cursor() as cursor:
                cursor.putmulti([(key.encode(), packb(value)) for key, value in values.items()])
            return time.perf_counter() - began

        return in_turn(ours, theirs, rounds)


def one_thread(folder: Path, rounds: int) -> Rounds:
    return _threads(folder, rounds, 1)


def eight_threads(folder: Path, rounds: int) -> Rounds:
    return _threads(folder, rounds, 8)


def many_threads(folder: Path, rounds: int) -> Rounds:
    return _threads(folder, rounds, 32)


def eight_threads_relaxed(folder: Path, rounds: int) -> Rounds:
    return _threads(folder, rounds, 8, durability="relaxed", sync=False)


def _threads(folder: Path, rounds: int, threads: int, durability: str = "normal", **flags: bool) -> Rounds:
    """Time sets, each thread with its own keys, in a process where a flush takes 1 ms (see flushes.py)."""
    calls = max(5, (80 if durability == "normal" else 1600) // threads)
    with (
        _namespace(f"lmdb://{folder}/hutch?durability={durability}") as ns,
        _raw(folder / "raw", **(flags or {"metasync": False})) as (env, db),
    ):

        def set_ours(key: str) -> None:
            for number in range(calls):
                ns[key] = fresh(number)

        def set_theirs(key: str) -> None:
            for number in range(calls):
                with env.begin(db=db, write=True) as txn:
                    txn.put(key.encode(), packb(fresh(number)))

        def crowd(work: Callable[[str], None]) -> Callable[[], float]:
            def run() -> float:
                everyone = threading.Barrier(threads + 1)

                def member(key: str) -> None:
                    everyone.wait()
                    work(key)

                members = [threading.Thread(target=member, args=[f"user:{number:06}"]) for number in range(threads)]
                for thread in members:
                    thread.start()
                began = time.perf_counter()
                everyone.wait()
                for thread in members:
                    thread.join()
                return time.perf_counter() - began

            return run

        return in_turn(crowd(set_ours), crowd(set_theirs), rounds)


# --- sqlite ---


def sqlite_get(folder: Path, rounds: int) -> Rounds:
    keys = shuffled(key_names(_KEYS), _CHUNK // 4)
    with _namespace(f"sqlite://{folder}/hutch.db") as ns, _raw_sqlite(folder / "raw.db") as connection:

        def ours() -> None:
            for key in keys:
                ns[key]

        def theirs() -> None:
            for key in keys:
                row = connection.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
                unpackb(row[0])

        return in_turn(ours, theirs, rounds)


def sqlite_update(folder: Path, rounds: int) -> Rounds:
    """Time updates in WAL mode without a flush per commit: sqlite3's defaults would make several per commit."""
    keys = key_names(_KEYS)
    pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
    with _namespace(f"sqlite://{folder}/hutch.db") as ns, _raw_sqlite(folder / "raw.db", _KEYS, pragmas) as connection:

        def ours() -> float:
            values = _values(keys)
            began = time.perf_counter()
            ns.update(values)
            return time.perf_counter() - began

        def theirs() -> float:
            values = _values(keys)
            began = time.perf_counter()
            rows = [(key, packb(value)) for key, value in values.items()]
            connection.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", rows)
            connection.commit()
            return time.perf_counter() - began

        return in_turn(ours, theirs, rounds)


def increment(folder: Path, rounds: int) -> Rounds:
    """Time increments without a flush per commit on both sides: diskcache too opens SQLite in WAL mode, NORMAL."""
    from diskcache import Cache

    with _namespace(f"sqlite://{folder}/hutch.db") as ns, Cache(str(folder / "diskcache")) as cache:

        def ours() -> None:
            for _ in range(100):
                ns.increment("counter")

        def theirs() -> None:
            for _ in range(100):
                cache.incr("counter")

        return in_turn(ours, theirs, rounds)


# --- memory, codec ---


def memory_get(_: Path, rounds: int) -> Rounds:
    from hutch.codec.select import frame_codec_of

    keys = shuffled(key_names(_KEYS), _CHUNK)
    codec = frame_codec_of(None)
    encoded = {key: codec.encode(value) for key, value in _values(key_names(_KEYS)).items()}
    data = [encoded[key] for key in keys]
    with _namespace("memory://") as ns:

        def ours() -> None:
            for key in keys:
                ns[key]

        def theirs() -> None:
            decode = codec.decode
            for one in data:
                decode(one)

        return in_turn(ours, theirs, rounds)


def memory_bytes(_: Path, rounds: int) -> Rounds:
    """Return the memory per key, keys and the namespace's own included, beside one byte."""
    keys = 100_000
    with hutch.connect("memory://") as store, store.open("core") as ns:
        ns["first"] = VALUE
        tracemalloc.start()
        for number in range(keys):
            ns[f"user:{number:06}"] = fresh(number)
        held, _peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return [(held / keys, 1.0)] * rounds


def encode(_: Path, rounds: int) -> Rounds:
    from hutch.codec.select import frame_codec_of

    ours_encode, theirs_encode = frame_codec_of(None).encode, import_module("msgspec.msgpack").Encoder().encode
    values = [fresh(number) for number in range(_CHUNK)]

    def ours() -> None:
        for value in values:
            ours_encode(value)

    def theirs() -> None:
        for value in values:
            theirs_encode(value)

    return in_turn(ours, theirs, rounds)


def decode(_: Path, rounds: int) -> Rounds:
    from hutch.codec.select import frame_codec_of

    codec, msgpack = frame_codec_of(None), import_module("msgspec.msgpack")
    theirs_decode = msgpack.Decoder().decode
    values = [fresh(number) for number in range(_CHUNK)]
    ours_data, theirs_data = [codec.encode(value) for value in values], [msgpack.encode(value) for value in values]

    def ours() -> None:
        ours_decode = codec.decode
        for data in ours_data:
            ours_decode(data)

    def theirs() -> None:
        for data in theirs_data:
            theirs_decode(data)

    return in_turn(ours, theirs, rounds)


def struct_decode(_: Path, rounds: int) -> Rounds:
    """Time the decoding of packed fields to a struct, as a typed namespace does it, and to a dict."""
    from hutch.codec.msgpack import MsgpackFrameCodec
    from hutch.codec.select import frame_codec_of
    from hutch.typed import named_shape

    values = [fresh(number) for number in range(_CHUNK)]
    fields = [(name, type(part)) for name, part in values[0].items()]
    struct: Any = named_shape(import_module("msgspec").defstruct("Value", fields))
    decode = struct.decode
    codec = frame_codec_of(None)
    bodies = [codec.encode(value)[1:-5] for value in values]

    def ours() -> None:
        for body in bodies:
            decode(body)

    def theirs() -> None:
        for body in bodies:
            MsgpackFrameCodec.decode_body(body)

    return in_turn(ours, theirs, rounds)


# --- new processes ---

_OPEN_HUTCH = """\
import hutch
with hutch.connect("lmdb://" + sys.argv[1]) as store, store.open("core") as core:
    core["user:000000"]
"""
_OPEN_RAW = """\
import lmdb
from ormsgpack import unpackb
with lmdb.open(sys.argv[1], map_size=1 << 30, max_dbs=2, metasync=False) as env:
    db = env.open_db(b"core")
    with env.begin(db=db) as txn:
        unpackb(txn.get(b"user:000000"))
"""


def cold(folder: Path, rounds: int) -> Rounds:
    """Time the whole life of a process."""
    return _cold(folder, rounds, whole=True)


def cold_inside(folder: Path, rounds: int) -> Rounds:
    """Time the same without the interpreter's start: imports, open, get, close."""
    return _cold(folder, rounds, whole=False)


def _cold(folder: Path, rounds: int, whole: bool) -> Rounds:
    with _namespace(f"lmdb://{folder}/hutch", 100), _raw(folder / "raw", 100, metasync=False):
        pass

    def running(code: str, place: str) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            inside = _in_new_process(code, str(folder / place))
            return time.perf_counter() - began if whole else inside

        return run

    return in_turn(running(_OPEN_HUTCH, "hutch"), running(_OPEN_RAW, "raw"), rounds)


_UNWANTED = ("lmdb", "sqlite3", "redis", "yaml", "pluggy", "ormsgpack", "hutch.codec", "hutch.store")


def imports(_: Path, rounds: int) -> Rounds:
    check = f"import hutch; sys.exit(str([name for name in {_UNWANTED} if name in sys.modules] or ''))"
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys; {check}"], check=False, stderr=subprocess.PIPE, text=True
    )
    if loaded.stderr.strip():
        raise SystemExit(f"`import hutch` loads what is not used yet: {loaded.stderr.strip()}")
    return in_turn(lambda: _in_new_process("import hutch", ""), lambda: _in_new_process("import diskcache", ""), rounds)


def _in_new_process(code: str, argument: str) -> float:
    """Return the seconds that `code` took in a new process, its imports included."""
    timed = f"import sys, time\nbegan = time.perf_counter()\n{code}\nprint(time.perf_counter() - began)"
    # With compiled modules, as in any second start.
    unwanted = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    ran = subprocess.run(
        [sys.executable, "-c", timed, argument], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return float(ran.stdout)
