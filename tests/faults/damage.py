"""Damage closed stores and use them, in a separate process, so that a crash of the interpreter ends only that process.

python damage.py FOLDER: makes the stores in FOLDER, then reads orders, one JSON ``[engine, way, seed]`` per line, and
answers each with one JSON line per step. `test_damage` sends the orders.
"""

from __future__ import annotations

import faulthandler
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import hutch

#: Longer than any step takes on a slow machine; then it hangs.
PATIENCE_S = 60
PAGE_BYTES = 4096
#: In every value, so that a message that quotes one is noticed.
SECRET = "tell nobody"
_NAMED_KEY = re.compile(r"the value of key .* in namespace", re.DOTALL)
FILES = {"lmdb": "store/data.mdb", "sqlite": "store/kv.db"}

#: What is done with each damaged store.
STEPS = ("check", "fix", "again", "use")
#: How the uses of a whole store come out. A StoreError says what is wrong, or nothing was asked for.
GOOD = {"right", "done", "StoreError"}

Model = dict[str, dict[str, Any]]


def model() -> Model:
    """Return small values, some of one page and some of several, in a few namespaces; the same each time."""
    random = Random(7)
    made: Model = {}
    for namespace in ("core", "weather", "a:b", "notes"):
        items: dict[str, Any] = {
            f"key {number:05}": {"n": number, "text": SECRET + "x" * random.randrange(150)}
            for number in range(random.randrange(100, 500))
        }
        for size in (3000, 3000, 3000, 9000, 9000, 30_000):
            items[f"large {len(items)}"] = (SECRET.encode() + random.randbytes(16)).ljust(size, b".")
        made[namespace] = items
    return made


def url(engine: str, folder: Path) -> str:
    """The store of that engine in `folder`. Nobody cuts the power here, so nothing is flushed."""
    file = folder / FILES[engine]
    if engine == "sqlite":
        return f"sqlite://{file}?durability=relaxed"
    return f"lmdb://{file.parent}?durability=relaxed&map_size_bytes={16 << 20}"


def build(engine: str, folder: Path) -> bytes:
    """Return the bytes of a closed store that holds `model`, with free pages in it."""
    with hutch.connect(url(engine, folder)) as store:
        for namespace, items in model().items():
            with store.open(namespace) as handle:
                handle.update(items | {f"gone {number}": "y" * 300 for number in range(150)})
                handle.remove_many([f"gone {number}" for number in range(150)])
                handle["key 00001"] = items["key 00001"]
    return (folder / FILES[engine]).read_bytes()


# --- damage ---


def _bit(data: bytearray, random: Random) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _bits(data: bytearray, random: Random) -> None:
    for _ in range(20):
        _bit(data, random)


def _page_heads(data: bytearray, random: Random) -> None:
    for _ in range(3):
        data[_page(data, random) + random.randrange(64)] = random.randrange(256)


def _file_head(data: bytearray, random: Random) -> None:
    data[random.randrange(2) * PAGE_BYTES + random.randrange(180)] ^= 1 << random.randrange(8)


def _sector(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) // 512) * 512
    data[at : at + 512] = bytes(512)


def _swap(data: bytearray, random: Random) -> None:
    a, b = _page(data, random), _page(data, random)
    data[a : a + PAGE_BYTES], data[b : b + PAGE_BYTES] = data[b : b + PAGE_BYTES], data[a : a + PAGE_BYTES]


def _double(data: bytearray, random: Random) -> None:
    a, b = _page(data, random), _page(data, random)
    data[a : a + PAGE_BYTES] = data[b : b + PAGE_BYTES]


def _garbage(data: bytearray, random: Random) -> None:
    at = _page(data, random)
    data[at : at + PAGE_BYTES] = random.randbytes(PAGE_BYTES)


def _cut(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def _page(data: bytearray, random: Random) -> int:
    return random.randrange(len(data) // PAGE_BYTES) * PAGE_BYTES


WAYS: dict[str, Callable[[bytearray, Random], None]] = {
    "bit": _bit,
    "bits": _bits,
    "page heads": _page_heads,
    "file head": _file_head,
    "sector": _sector,
    "swap": _swap,
    "double": _double,
    "garbage": _garbage,
    "cut": _cut,
}


def damaged(whole: bytes, way: str, seed: int) -> bytes:
    """Return `whole`, damaged in that way."""
    data = bytearray(whole)
    WAYS[way](data, Random(seed))
    return bytes(data)


# --- use ---


def check(engine: str, folder: Path, *, repair: bool) -> dict[str, Any]:
    """Return the findings, or the StoreError."""
    try:
        found = list(hutch.verify(url(engine, folder), repair=repair))
    except hutch.StoreError as error:
        return {"error": str(error), "kinds": [], "findings": []}
    return {
        "error": "",
        "kinds": sorted({finding.kind for finding in found if not finding.repaired}),
        "findings": [[finding.kind, finding.namespace, finding.key, finding.message] for finding in found],
    }


def use(engine: str, folder: Path) -> Counter[str]:
    """Read every key in each way, write some, and count the outcomes."""
    came = Counter[str]()

    def each(what: str, work: Callable[[], str]) -> None:
        try:
            came[f"{what}: {work()}"] += 1
        except KeyError:
            came[f"{what}: KeyError"] += 1
        except hutch.StoreError as error:
            came[f"{what}: StoreError"] += 1
            # A damaged page may give a piece of a value out as a key, and keys are named.
            came["showed a secret"] += SECRET in _NAMED_KEY.sub("", str(error))

    def one(handle: hutch.Namespace, items: dict[str, Any], key: str) -> str:
        return "right" if handle[key] == items[key] else "wrong"

    def length(handle: hutch.Namespace, items: dict[str, Any]) -> str:
        return "right" if len(handle) == len(items) else "wrong"

    def written(write: Callable[[Any], object], what: object) -> str:
        write(what)
        return "done"

    def whole(handle: hutch.Namespace, items: dict[str, Any]) -> str:
        found = dict(handle.items())
        lost, other = items.keys() - found.keys(), found.keys() - items.keys()
        if any(found[key] != items[key] for key in found.keys() & items.keys()):
            return "wrong"
        # A flipped bit in a key makes it another key: nothing in the value can tell.
        moved = sorted(map(repr, (items[key] for key in lost))) == sorted(map(repr, (found[key] for key in other)))
        return ("keys changed" if lost else "right") if moved else "lost" if lost else "wrong"

    def used() -> str:
        with hutch.connect(url(engine, folder)) as store:
            for namespace, items in model().items():
                with suppress(hutch.StoreError), store.open(namespace) as handle:
                    for key in items:
                        each("get", partial(one, handle, items, key))
                    each("items", partial(whole, handle, items))
                    each("len", partial(length, handle, items))
                    each("set", partial(written, handle.update, {"new": 1}))
                    some = {f"key {number:05}": number for number in range(0, 600, 7)}
                    each("update", partial(written, handle.update, some))
                    each("remove", partial(written, handle.remove_many, list(some)))
        return "done"

    each("store", used)
    return came


def step(name: str, engine: str, folder: Path) -> Any:
    """Return the result of one of `STEPS`."""
    if name == "use":
        return use(engine, folder)
    return check(engine, folder, repair=name == "fix")


def main(folder: Path) -> None:
    """Answer the orders on standard input."""
    whole = {engine: build(engine, folder / engine) for engine in FILES}
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        engine, way, seed = json.loads(line)
        data = damaged(whole[engine], way, seed)
        place = folder / str(number)
        for name in STEPS:
            # What `repair` left is looked at again; all else starts from the damaged file.
            if name != "again":
                shutil.rmtree(place, ignore_errors=True)
                file = place / FILES[engine]
                file.parent.mkdir(parents=True)
                file.write_bytes(data)
            faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
            try:
                answer = step(name, engine, place)
            except Exception as error:
                answer = {"leaked": f"{type(error).__name__}: {error}"}
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps([name, answer]), flush=True)
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
