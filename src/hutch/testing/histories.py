"""Record histories of transactions and calls, and check that they are serializable, as Elle does with growing lists.

Every key holds a list, and each write appends an element that no other write appends. So each read shows which writes
came before it, and in which order: from the reads follow the dependencies between transactions. A cycle of them is an
anomaly: lost update, write skew, long fork, phantom (G0, G1c, G-single, G2 of Adya). Elements of a transaction that
failed (G1a), half of the elements of one (G1b) and elements that are gone are reported by name.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import hutch

#: A namespace and a key.
Place = tuple[str, str]
NAMESPACES = ("left", "middle", "right")
_KEYS = 3
# The keys of a round: those whose lists grow, and those that a scan covers, of which one is created now and then.
_GROWING, _SCANNED = "list {} {}", "new {} "
# A worker that reads a list of so many elements goes on with the keys of the next round: a list without an end would
# make each transaction longer than the one before.
_LONG_LIST = 20


@dataclass
class Entry:
    """One transaction of a history: whether it was committed, what it read first, what it appended, and its scans."""

    number: str
    is_committed: bool = False
    reads: dict[Place, list[str]] = field(default_factory=dict)
    appends: dict[Place, list[str]] = field(default_factory=dict)
    #: The namespaces and prefixes that were scanned; the lists that were found are in `reads`.
    scans: list[tuple[str, str]] = field(default_factory=list)


def record(store: hutch.Store, worker: int, count: int, seed: int) -> list[Entry]:
    """Run `count` transactions of one worker and return their history.

    They span the namespaces where the engine has `atomic-store`, and scan where it has `snapshot`.
    """
    kinds = ["read", "append", "append", "skew"]
    if "snapshot" in store.capabilities:
        kinds += ["scan", "create"]
    rng = random.Random(f"{seed} {worker}")
    entries = []
    round_ = 0
    for number in range(count):
        entry = Entry(f"{worker}.{number}")
        entries.append(entry)
        names = NAMESPACES if "atomic-store" in store.capabilities else (rng.choice(NAMESPACES),)
        try:
            with _transaction(store, names) as tx:
                _fill(tx, entry, rng, rng.choice(kinds), round_)
            entry.is_committed = True
        except hutch.ConflictError:
            pass
        round_ += any(len(elements) >= _LONG_LIST for elements in entry.reads.values())
    return entries


def record_calls(store: hutch.Store, worker: int, count: int, seed: int) -> list[Entry]:
    """Run `count` calls of `get` and `modify` of one worker and return their history: an entry has one key."""
    rng = random.Random(f"{seed} {worker}")
    entries = []
    round_ = 0
    for number in range(count):
        entry = Entry(f"{worker}.{number}", is_committed=True)
        name, key = place = _place(rng, NAMESPACES, round_)
        if rng.random() < 0.4:
            entry.reads[place] = store[name].get(key, [])
        else:
            element = f"{entry.number}.0"
            *entry.reads[place], _ = store[name].modify(key, functools.partial(_with, element), default=[])
            entry.appends[place] = [element]
        entries.append(entry)
        round_ += len(entry.reads[place]) >= _LONG_LIST
    return entries


def _with(element: str, elements: list[str]) -> list[str]:
    return [*elements, element]


def _place(rng: random.Random, names: Sequence[str], round_: int) -> Place:
    return rng.choice(names), _GROWING.format(round_, rng.randrange(_KEYS))


@contextmanager
def _transaction(store: hutch.Store, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Begin a transaction over all namespaces, or over the only one in `names`; yield its namespaces by name."""
    if len(names) == 1:
        with store[names[0]].transaction() as tx:
            yield {names[0]: tx}
    else:
        with store.transaction() as several:
            yield {name: several[name] for name in names}


def _fill(tx: Mapping[str, Any], entry: Entry, rng: random.Random, kind: str, round_: int) -> None:
    places = [_place(rng, [*tx], round_) for _ in range(3)]
    scan = name, prefix = places[0][0], _SCANNED.format(round_)
    if kind in ("scan", "create"):
        entry.scans.append(scan)
        for key, elements in tx[name].scan(prefix=prefix):
            entry.reads.setdefault((name, key), elements)
    if kind == "create":
        _append(tx, entry, (name, f"{prefix}{rng.randrange(1 << 30)}"))
    for place in places[:2] if kind == "skew" else places:
        _read(tx, entry, place)
    # Let others commit meanwhile: without a pause, threads would rarely meet.
    time.sleep(rng.choice((0, 0.0005)))
    if kind in ("append", "skew"):
        # A skew reads two keys and writes one of them; an append writes two, one of them twice.
        _append(tx, entry, places[0])
        if kind == "append":
            _append(tx, entry, places[1])
            _append(tx, entry, places[1])


def _read(tx: Mapping[str, Any], entry: Entry, place: Place) -> list[str]:
    elements: list[str] = tx[place[0]].get(place[1], [])
    if place not in entry.appends:
        entry.reads.setdefault(place, list(elements))
    return elements


def _append(tx: Mapping[str, Any], entry: Entry, place: Place) -> None:
    element = f"{entry.number}.{sum(map(len, entry.appends.values()))}"
    tx[place[0]][place[1]] = [*_read(tx, entry, place), element]
    entry.appends.setdefault(place, []).append(element)


def final_state(store: hutch.Store) -> dict[Place, list[str]]:
    """Return everything that is stored after the workers have ended."""
    return {(name, key): elements for name in NAMESPACES for key, elements in store[name].items()}


def find_anomalies(entries: Iterable[Entry], final: dict[Place, list[str]]) -> list[str]:
    """Return a description of each anomaly in a history; none if it is serializable."""
    entries = list(entries)
    committed = {entry.number: entry for entry in entries if entry.is_committed}
    anomalies = list(_lost_or_aborted(entries, final))
    edges: dict[str, dict[str, str]] = defaultdict(dict)
    scans = {scan for entry in committed.values() for scan in entry.scans}
    scanned: dict[tuple[str, str], list[Place]] = {scan: [] for scan in scans}
    prefixes = sorted({len(prefix) for _, prefix in scans})
    for place, elements in final.items():
        for length in prefixes:
            scanned.get((place[0], place[1][:length]), []).append(place)
        for before, after in itertools.pairwise(elements):
            _add(edges, _writer(before), _writer(after), f"ww {place}")
    for entry in committed.values():
        reads = dict(entry.reads)
        # What a scan did not show, it has read as empty.
        places = itertools.chain.from_iterable(scanned[scan] for scan in entry.scans)
        reads |= {place: [] for place in places if place not in entry.reads and place not in entry.appends}
        for place, read in reads.items():
            elements = final.get(place, [])
            if elements[: len(read)] != read:
                anomalies.append(f"incompatible order: {entry.number} read {read} of {place}, which holds {elements}")
                continue
            if read:
                _add(edges, _writer(read[-1]), entry.number, f"wr {place}")
            if len(read) < len(elements):
                writer = _writer(elements[len(read)])
                if read and writer == _writer(read[-1]):
                    anomalies.append(f"G1b: {entry.number} read a part of {writer} in {place}")
                _add(edges, entry.number, writer, f"rw {place}")
    anomalies.extend(_describe(cycle, edges) for cycle in _cycles(edges))
    return anomalies


def _lost_or_aborted(entries: list[Entry], final: dict[Place, list[str]]) -> Iterator[str]:
    for entry in entries:
        for place, elements in entry.appends.items():
            stored = [element for element in final.get(place, []) if element in elements]
            if entry.is_committed and stored != elements:
                yield f"lost update: {entry.number} appended {elements} to {place}, where {stored} of it are stored"
            if not entry.is_committed and stored:
                yield f"G1a: {entry.number} failed, and {stored} of it are stored in {place}"


def _writer(element: str) -> str:
    return element.rpartition(".")[0]


def _add(edges: dict[str, dict[str, str]], before: str, after: str, why: str) -> None:
    if before != after:
        edges[before].setdefault(after, why)


def _cycles(edges: dict[str, dict[str, str]]) -> Iterator[list[str]]:
    """Yield one cycle of each strongly connected part: what is left if transactions without one are removed."""
    incoming: dict[str, int] = defaultdict(int)
    for targets in edges.values():
        for target in targets:
            incoming[target] += 1
    ready = [node for node in edges if not incoming[node]]
    left = set(edges) | set(incoming)
    while ready:
        node = ready.pop()
        left.discard(node)
        for target in edges.get(node, {}):
            incoming[target] -= 1
            if not incoming[target]:
                ready.append(target)
    while left:
        # Every node that is left can be reached from a cycle: walk backwards until one repeats.
        sources = {target: node for node in left for target in edges.get(node, {}) if target in left}
        node, walked = next(iter(left)), []
        while node not in walked:
            walked.append(node)
            if node not in sources:
                break
            node = sources[node]
        if node in walked[:-1] or (walked and sources.get(walked[-1]) == node):
            yield walked[walked.index(node) :][::-1]
        left -= set(walked)


def _describe(cycle: list[str], edges: dict[str, dict[str, str]]) -> str:
    whys = [edges[a].get(b, "?") for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True)]
    kinds = {why[:2] for why in whys}
    name = "G0" if kinds == {"ww"} else "G1c" if "rw" not in kinds else "G2"
    return f"{name}: " + ", ".join(f"{node} -{why}->" for node, why in zip(cycle, whys, strict=True))


def summary(entries: list[Entry], workers: int) -> dict[str, Any]:
    """Return the numbers of commits, conflicts and workers. Raises AssertionError below 5% conflicts."""
    commits = sum(entry.is_committed for entry in entries)
    conflicts = len(entries) - commits
    assert conflicts >= 0.05 * len(entries), f"only {conflicts} conflicts in {len(entries)} transactions: no test"
    return {"commits": commits, "conflicts": conflicts, "workers": workers}
