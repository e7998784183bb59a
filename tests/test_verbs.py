"""Test the table of verbs, and hold the layers, the closed state, the mapping, asyncio and the docs to it."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hutch
import hutch.aio
from hutch.config import LayerConfig
from hutch.layers.cache import CacheLayer
from hutch.layers.layer import Layer
from hutch.layers.metrics import MetricsLayer, snapshot
from hutch.layers.read_only import ReadOnlyLayer
from hutch.layers.select import add_layers
from hutch.namespace.lifecycle import _Closed
from hutch.verbs import VERBS, Kind, storage_verbs
from hutch.workers import Calls

GENERATED = (Layer, ReadOnlyLayer, MetricsLayer, CacheLayer, _Closed)
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"

# A call of each verb that applications use: on a mapping, and awaited.
USES: dict[str, tuple[Callable[[hutch.Namespace], Any], Callable[[hutch.aio.Namespace], Any]]] = {
    "set": (lambda ns: ns.__setitem__("k", 1), lambda ns: ns.set("k", 1)),
    "get": (lambda ns: ns["k"], lambda ns: ns["k"]),
    "remove": (lambda ns: ns.__delitem__("k"), lambda ns: ns.remove("k")),
    "len": (len, lambda ns: ns.len()),
    "keys": (list, lambda ns: ns.keys()),
    "contains": (lambda ns: "k" in ns, lambda ns: ns.contains("k")),
    "get_many": (lambda ns: ns.get_many(["k"]), lambda ns: ns.get_many(["k"])),
    "set_many": (lambda ns: ns.set_many({"k": 1}), lambda ns: ns.set_many({"k": 1})),
    "remove_many": (lambda ns: ns.remove_many(["k"]), lambda ns: ns.remove_many(["k"])),
    "items": (lambda ns: list(ns.items()), lambda ns: ns.items()),
    "scan": (lambda ns: list(ns.scan()), lambda ns: ns.scan()),
    "scan_keys": (lambda ns: list(ns.scan_keys()), lambda ns: ns.scan_keys()),
    "clear": (lambda ns: ns.clear(), lambda ns: ns.clear()),
    "compare_and_set": (lambda ns: ns.compare_and_set("k", 1, 2), lambda ns: ns.compare_and_set("k", 1, 2)),
    "modify": (lambda ns: ns.modify("k", str), lambda ns: ns.modify("k", str)),
    "increment": (lambda ns: ns.increment("k"), lambda ns: ns.increment("k")),
    "set_with_ttl": (lambda ns: ns.set("k", 1, ttl_s=9), lambda ns: ns.set("k", 1, ttl_s=9)),
    "set_many_with_ttl": (lambda ns: ns.set_many({"k": 1}, ttl_s=9), lambda ns: ns.set_many({"k": 1}, ttl_s=9)),
    "ttl_s": (lambda ns: ns.ttl_s("k"), lambda ns: ns.ttl_s("k")),
    "touch": (lambda ns: ns.touch("k", 9), lambda ns: ns.touch("k", 9)),
    "expire": (lambda ns: ns.expire(), lambda ns: ns.expire()),
}


def counted_verbs(use: Callable[[hutch.Namespace], Any], *layers: str) -> set[str]:
    """Return the verbs of the storage that `use` calls on a mapping with the key "k"."""
    label = uuid.uuid4().hex
    config = {"STORAGE": f"memory://{label}", "LAYERS": [{"name": "metrics", "label": label}, *layers]}
    with hutch.connect(config["STORAGE"]) as store, store.open("core") as ns:
        ns["k"] = 1
        with hutch.connect(config) as other, other.open("core") as theirs:
            use(theirs)
            return set(snapshot()[label, "core"])


def problems(table: dict[str, Kind]) -> set[str]:
    """Return the verbs in which `table` and the code differ."""
    differ = set(table) ^ set(storage_verbs())
    uses = {name for name, kind in table.items() if kind not in (Kind.PRIMITIVE, Kind.COPIES, Kind.CLOSES)}
    return differ | (uses ^ set(USES))


def test_the_table_lists_the_verbs_of_a_storage() -> None:
    assert problems(VERBS) == set()


@pytest.mark.parametrize("verb", list(storage_verbs()))
def test_a_row_cannot_be_deleted(verb: str) -> None:
    assert verb in VERBS
    assert problems({name: kind for name, kind in VERBS.items() if name != verb}) == {verb}


@pytest.mark.parametrize("verb", USES)
def test_the_mapping_does_what_the_table_says(verb: str) -> None:
    assert verb in counted_verbs(USES[verb][0])
    if VERBS[verb] in (Kind.READS, Kind.ITERATES):
        counted_verbs(USES[verb][0], "read-only")
    else:
        with pytest.raises(hutch.CapabilityError, match="read-only"):
            counted_verbs(USES[verb][0], "read-only")


def noting(made: list[str], kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **options: Any) -> Any:
        made.append(kind)
        return call(*args, **options)

    return noted


@pytest.mark.parametrize("verb", USES)
def test_asyncio_does_what_the_table_says(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is abandoned delays later writes of its key, a read does not: `Calls` must know which is which."""
    made: list[str] = []

    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("core") as core:
            await core.set("k", 1)
            for kind in ("read", "write", "prepare"):
                monkeypatch.setattr(Calls, kind, noting(made, kind, getattr(Calls, kind)))
            result = USES[verb][1](core)
            if VERBS[verb] is Kind.ITERATES:
                assert len([item async for item in result]) == 1
            else:
                await result
            monkeypatch.undo()

    asyncio.run(main())
    if VERBS[verb] in (Kind.READS, Kind.ITERATES):
        assert made[0] == "read"
    else:
        assert made[0] in ("write", "prepare")


def test_the_architecture_page_shows_the_table() -> None:
    rows = re.findall(r"^\| ((?:`\w+` ?)+) \| ([\w -]+) \|[^|]*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    kinds = {kind.value: kind for kind in Kind}
    shown = {verb: kinds[kind] for verbs, kind in rows if kind in kinds for verb in re.findall(r"\w+", verbs)}
    assert shown == VERBS


@pytest.mark.parametrize("layer", [Layer, ReadOnlyLayer, MetricsLayer, CacheLayer])
@pytest.mark.parametrize("verb", list(storage_verbs()))
def test_a_layer_has_each_verb_with_its_own_signature(layer: type[Layer], verb: str) -> None:
    def shown(function: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in list(inspect.signature(function).parameters.values())[1:]]

    assert verb in vars(layer)
    assert shown(getattr(layer, verb)) == shown(storage_verbs()[verb])


# --- a verb that is added ---


def stamp(self: hutch.StorageBase, key: str, value: Any = 1, *, twice: bool = False) -> str:
    """Set `key`, as a new verb would."""
    self.set(key, value)
    return f"{value} {twice}"


@pytest.fixture(params=["in the table", "not in the table"])
def new_verb(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add `stamp` to StorageBase, and to the table or not."""
    monkeypatch.setattr(hutch.StorageBase, "stamp", stamp, raising=False)
    if request.param == "in the table":
        monkeypatch.setitem(VERBS, "stamp", Kind.WRITES)
    yield
    remove_generated("stamp")


def remove_generated(verb: str) -> None:
    for made in GENERATED:
        if made._sources.pop(verb, None):
            delattr(made, verb)
        made._generated_from = []  # else the verb would not be generated again if it is added again


def layered(url: str, *layers: Any) -> dict[str, Any]:
    return {"STORAGE": url, "LAYERS": list(layers)}


@pytest.mark.usefixtures("new_verb")
def test_a_new_verb_is_refused_by_read_only_and_when_closed_and_is_counted(tmp_path: Path) -> None:
    for url in (f"memory://{uuid.uuid4().hex}", f"sqlite://{tmp_path / 'kv.db'}", f"shelf://{tmp_path}"):
        label = uuid.uuid4().hex
        with hutch.connect(layered(url, "read-only")) as store, store.open("core") as ns:
            with pytest.raises(hutch.CapabilityError, match="namespace 'core' is configured read-only"):
                ns._store.stamp("k")  # type: ignore[attr-defined]
            assert len(ns) == 0
        with pytest.raises(hutch.StoreNotOpenError, match="namespace 'core' is closed"):
            ns._store.stamp("k")  # type: ignore[attr-defined]
        with hutch.connect(layered(url, {"name": "metrics", "label": label})) as store, store.open("core") as ns:
            assert ns._store.stamp("k", 2, twice=True) == "2 True"  # type: ignore[attr-defined]
            assert ns["k"] == 2
        assert snapshot()[label, "core"]["stamp"].calls == 1
        assert "set" not in snapshot()[label, "core"]


@pytest.mark.usefixtures("new_verb")
def test_a_new_verb_that_a_layer_forwards_by_hand_is_refused_by_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layer, "stamp", lambda self, key: self._inner.stamp(key), raising=False)
    with hutch.connect(layered("memory://", "read-only")) as store, store.open("core") as ns:
        with pytest.raises(hutch.CapabilityError):
            ns._store.stamp("k")  # type: ignore[attr-defined]
        assert len(ns) == 0


@pytest.mark.usefixtures("new_verb")
def test_a_new_verb_leaves_no_old_value_in_the_cache() -> None:
    with hutch.connect(layered("memory://", "cache")) as store, store.open("core") as ns:
        ns["k"] = 1
        assert ns["k"] == 1
        ns._store.stamp("k", 2)  # type: ignore[attr-defined]
        assert ns["k"] == 2


def test_a_new_verb_that_the_table_calls_a_read_passes_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hutch.StorageBase, "peek", lambda self, key: self.get(key), raising=False)
    monkeypatch.setitem(VERBS, "peek", Kind.READS)
    try:
        with hutch.load_plugin("memory") as factory, factory.open("core") as inner:
            inner.set("k", 1)
            assert add_layers(inner, (LayerConfig("read-only"),), "memory", "core").peek("k") == 1  # type: ignore[attr-defined]
    finally:
        remove_generated("peek")


# --- what a call costs ---


def depth_of(work: Callable[[], object]) -> int:
    """Return the largest number of Python frames at once during `work`, its own not counted."""
    depth = deepest = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal depth, deepest
        depth += {"call": 1, "return": -1}.get(event, 0)
        deepest = max(deepest, depth)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return deepest - 1


@pytest.mark.parametrize("layers", [[], ["read-only"], ["metrics"]])
def test_a_read_passes_three_python_frames_and_one_more_per_layer(layers: list[str]) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    with hutch.connect(url) as store, store.open("core") as ns:
        ns["k"] = 1
        with hutch.connect(layered(url, *layers)) as other, other.open("core") as theirs:
            assert depth_of(lambda: theirs["k"]) == 3 + len(layers)
