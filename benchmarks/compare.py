"""hutch beside raw LMDB and its peers, in one run: python benchmarks/compare.py [--keys 10000] [--rounds 9]

Prints one line an operation and store: microseconds a call, and the ratio to the yardstick of that operation. A
timing alone is noise on a shared machine; the stores take turns within each round, and the median of the rounds'
ratios is what to quote. Each peer runs at its own defaults; the column `survives` says what that gives up. Peers that
are not installed are left out: pip install diskcache sqlitedict.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shelve
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lmdb
import ormsgpack

import hutch

# About 120 bytes in MessagePack.
VALUE: dict[str, Any] = {
    "id": 12345,
    "name": "Some user",
    "tags": ["a", "bb", "ccc"],
    "score": 1.5,
    "active": True,
    "email": "someone@example.org",
    "note": None,
    "at": "2026-11-21T10:00:00",
}


class RawLmdb:
    """The yardstick: a transaction a call in the idiom of py-lmdb's documentation, no types kept, no checks."""

    def __init__(self, path: Path) -> None:
        self._env = lmdb.open(str(path), map_size=1 << 30, max_dbs=2, metasync=False)
        self._db = self._env.open_db(b"core")

    def __getitem__(self, key: str) -> Any:
        with self._env.begin(db=self._db) as txn:
            return ormsgpack.unpackb(txn.get(key.encode()) or b"")

    def __setitem__(self, key: str, value: Any) -> None:
        with self._env.begin(db=self._db, write=True) as txn:
            txn.put(key.encode(), ormsgpack.packb(value))

    def __contains__(self, key: str) -> bool:
        with self._env.begin(db=self._db) as txn:
            return txn.get(key.encode()) is not None

    def __len__(self) -> int:
        with self._env.begin(db=self._db) as txn:
            return int(txn.stat(self._db)["entries"])

    def update(self, items: dict[str, Any]) -> None:
        with self._env.begin(db=self._db, write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti([(key.encode(), ormsgpack.packb(value)) for key, value in items.items()])

    def items(self) -> Iterator[tuple[str, Any]]:
        with self._env.begin(db=self._db) as txn, txn.cursor() as cursor:
            for key, data in cursor:
                yield bytes(key).decode(), ormsgpack.unpackb(data)

    def close(self) -> None:
        self._env.close()


def stores(folder: Path, stack: ExitStack) -> dict[str, tuple[Any, str]]:
    """Every store at hand: its name, the mapping, and what a write that returned survives."""

    def namespace(url: str) -> Any:
        return stack.enter_context(stack.enter_context(hutch.connect(url)).open("core"))

    def closing(mapping: Any) -> Any:
        stack.callback(mapping.close)
        return mapping

    killed, power = "a killed process", "a power cut, but for the last write"
    found: dict[str, tuple[Any, str]] = {
        "raw lmdb": (closing(RawLmdb(folder / "raw")), power),
        "hutch lmdb": (namespace(f"lmdb://{folder}/lmdb"), power),
        "hutch lmdb relaxed": (namespace(f"lmdb://{folder}/relaxed?durability=relaxed"), killed),
        "hutch sqlite": (namespace(f"sqlite://{folder}/hutch.db"), killed),
        "hutch memory": (namespace("memory://"), "nothing"),
        "shelve": (closing(shelve.open(str(folder / "shelve"), protocol=5)), "a clean exit only"),  # noqa: SIM115
    }
    if importlib.util.find_spec("diskcache"):
        import diskcache

        found["diskcache"] = (closing(diskcache.Cache(str(folder / "diskcache"))), killed)
    if importlib.util.find_spec("sqlitedict"):
        import sqlitedict

        found["sqlitedict"] = (
            closing(sqlitedict.SqliteDict(str(folder / "dict.db"), autocommit=True)),
            "what its thread wrote",
        )
    return found


def operations(mapping: Any, keys: list[str]) -> dict[str, tuple[Callable[[int], Any], int]]:
    """What is timed, and how often a round does it. Every write writes a value not seen before."""
    count = len(keys)

    def fresh(number: int) -> dict[str, Any]:
        return {**VALUE, "id": number}

    def update(number: int) -> None:
        items = {key: fresh(number) for key in keys[:1000]}
        if hasattr(mapping, "update"):
            mapping.update(items)
        else:  # diskcache
            with mapping.transact():
                for key, value in items.items():
                    mapping[key] = value

    def items(_: int) -> int:
        if hasattr(mapping, "items"):
            return sum(1 for _ in mapping.items())
        return sum(1 for key in mapping if mapping[key])

    return {
        "get": (lambda n: mapping[keys[n % count]], 1000),
        "in, missing": (lambda n: "nobody" in mapping, 1000),
        "len": (lambda n: len(mapping), 200),
        "set": (lambda n: mapping.__setitem__(keys[n % count], fresh(n)), 30),
        "update 1,000": (update, 1),
        "items, all": (items, 1),
    }


def measure(found: dict[str, tuple[Any, str]], keys: list[str], rounds: int) -> None:
    names = list(found)
    timed = {name: operations(mapping, keys) for name, (mapping, _) in found.items()}
    for operation in timed[names[0]]:
        seconds: dict[str, list[float]] = {name: [] for name in names}
        number = 0
        for _ in range(rounds):
            for name in names:
                call, times = timed[name][operation]
                began = time.perf_counter()
                for _ in range(times):
                    call(number)
                    number += 1
                seconds[name].append((time.perf_counter() - began) / times)
        print(f"\n{operation:22}{'us':>12}{'x raw lmdb':>12}   survives")
        for name in names:
            ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["raw lmdb"], strict=True))
            print(f"  {name:20}{statistics.median(seconds[name]) * 1e6:12.1f}{ratio:12.2f}   {found[name][1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000, help="how many each store holds")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    print(f"Python {platform.python_version()}, lmdb {lmdb.__version__}, {sys.platform}, {asked.keys:,} keys")
    keys = [f"user:{number:06}" for number in range(asked.keys)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found = stores(Path(folder), stack)
        for mapping, _ in found.values():
            for at in range(0, len(keys), 1000):
                batch = dict.fromkeys(keys[at : at + 1000], VALUE)
                if hasattr(mapping, "update"):
                    mapping.update(batch)
                else:
                    with mapping.transact():
                        for key, value in batch.items():
                            mapping[key] = value
        measure(found, keys, asked.rounds)


if __name__ == "__main__":
    main()
