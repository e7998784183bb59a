"""Run one store in its own process, controlled over stdin: python -m benchmarks.worker STORE FOLDER KEYS

An order is one line of JSON, `{"operation": ..., "calls": ...}`; so is the answer: seconds, and flushes if those are
counted. Only the calls are timed; keys and values are made before.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from .flushes import counter
from .peers import STORES
from .workload import fresh, key_names, shuffled

T = TypeVar("T")

_BATCH = 1000
_MANY = 100
#: Each timed operation, and what one call of it is.
OPERATIONS = {
    "get": "`ns[key]`",
    "has": "`key in ns`",
    "miss": "`key in ns`, missing",
    "set": "`ns[key] = v`",
    "add_delete": "add a key, delete it",
    "update": f"`update`, {_BATCH:,}",
    "get_many": f"`get_many`, {_MANY}",
    "counter": "atomic `+ 1`",
    "keys": "all keys",
    "items": "all items",
    "len": "`len(ns)`",
    "open": "close, open, get",
}


class Worker:
    def __init__(self, name: str, folder: Path, keys: int) -> None:
        self._store = STORES[name]
        self._folder = folder
        self._subject = self._store.open(folder)
        self._keys = key_names(keys)
        self._mixed = shuffled(self._keys, keys)
        self._numbers = itertools.count()
        for at in range(0, keys, _BATCH):
            self._subject.update({key: fresh(next(self._numbers)) for key in self._keys[at : at + _BATCH]})

    def about(self) -> dict[str, Any]:
        lacks = self._store.lacks | self._subject.lacks
        if "has" in lacks:
            lacks |= {"miss"}
        return {
            "offers": [operation for operation in OPERATIONS if operation not in lacks],
            "note": self._subject.note,
            "python": sys.version.split()[0],
        }

    def prepare(self, operation: str, calls: int) -> Callable[[], Any]:
        """Return a function that runs `calls` calls of `operation`."""
        subject = self._subject
        match operation:
            case "get" | "has":
                keys = self._some(calls)
                return lambda: getattr(subject, operation)(keys)
            case "miss":
                keys = [f"nobody:{number}" for number in range(calls)]
                return lambda: subject.has(keys)
            case "set":
                items = [(key, self._fresh()) for key in self._some(calls)]
                return lambda: subject.set(items)
            case "add_delete":
                items = [(f"passer-by:{number}", self._fresh()) for number in range(calls)]
                return lambda: subject.add_delete(items)
            case "update":
                batches = [{key: self._fresh() for key in self._keys[:_BATCH]} for _ in range(calls)]
                return lambda: _each(subject.update, batches)
            case "get_many":
                lists = [self._some(_MANY) for _ in range(calls)]
                return lambda: _each(subject.get_many, lists)
            case "counter" | "len":
                return lambda: getattr(subject, operation)(calls)
            case "keys" | "items":
                return lambda: _each(self._all, [operation] * calls)
            case "open":
                return lambda: _each(self._reopen, range(calls))
        raise ValueError(operation)

    def close(self) -> None:
        self._subject.close()

    def _some(self, count: int) -> list[str]:
        start = next(self._numbers) * 37
        return [self._mixed[(start + number) % len(self._mixed)] for number in range(count)]

    def _fresh(self) -> dict[str, Any]:
        return fresh(next(self._numbers))

    def _all(self, what: str) -> None:
        found = getattr(self._subject, what)()
        # Errbot's shelf has one more key, the counter another.
        assert len(self._keys) <= found <= len(self._keys) + 2, f"{found} {what}, not {len(self._keys)}"

    def _reopen(self, _: int) -> None:
        self._subject.close()
        self._subject = self._store.open(self._folder)
        self._subject.get(self._keys[:1])


def _each(call: Callable[[T], None], arguments: Iterable[T]) -> None:
    for argument in arguments:
        call(argument)


def main() -> None:
    name, folder, keys = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    worker = Worker(name, Path(folder), int(keys))
    flushes = counter()
    # A store's own output must not be read as an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(worker.about()), file=answers, flush=True)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        run = worker.prepare(order["operation"], order["calls"])
        before = flushes() if flushes else 0
        began = time.perf_counter()
        run()
        seconds = time.perf_counter() - began
        if flushes is not None and order["operation"] not in ("open", "len"):
            worker.prepare("get", 1)()  # a store that writes in the background answers this after its writes
        answer = {"seconds": seconds, "flushes": flushes() - before if flushes else None}
        print(json.dumps(answer), file=answers, flush=True)
    worker.close()


if __name__ == "__main__":
    main()
