"""Test the layers: what each changes, that it changes nothing else, and what a config may ask for."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

import hutch
from hutch.config import LayerConfig
from hutch.layers.cache import CacheLayer, _writes
from hutch.layers.metrics import Figures, snapshot
from hutch.layers.select import add_layers, validate_layers
from hutch.testing import StorageSuite
from hutch.testing.conformance.kit import together
from tests.servers import RedisServer

HOUR_S = 3600.0


class TestCacheAndMetricsOverMemory(StorageSuite):
    """Every promise holds with values cached for an hour: this process sees its own writes at once."""

    @pytest.fixture
    def config(self) -> Any:
        layers = ["metrics", {"name": "cache", "ttl_s": HOUR_S}]
        return {"STORAGE": f"memory://{uuid.uuid4().hex}", "LAYERS": layers}


class TestCacheOverSqlite(StorageSuite):
    """Every promise between processes holds too, except those that the layer trades away."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        return {"STORAGE": f"sqlite://{tmp_path / 'kv.db'}", "LAYERS": [{"name": "cache", "ttl_s": 0.3}]}

    def test_processes_see_each_others_writes_at_once(self, config: Any, store: hutch.Store) -> None:
        """What another store wrote may stay unseen for ttl_s, and is seen after it."""
        with store.open("core") as ns, hutch.connect(config["STORAGE"]) as other, other.open("core") as theirs:
            ns["k"] = "old"
            assert ns["k"] == "old"
            theirs["k"] = "new"
            assert ns["k"] in ("old", "new")
            time.sleep(0.3)
            assert ns["k"] == "new"
            del theirs["k"]
            time.sleep(0.3)
            assert "k" not in ns

    def test_a_batch_of_another_process_appears_at_once(self, config: Any, store: hutch.Store) -> None:
        """A batch of another store is seen at once by get_many, and key by key within ttl_s."""
        with store.open("core") as ns, hutch.connect(config["STORAGE"]) as other, other.open("core") as theirs:
            ns.update(a=1, b=1)
            assert ns["b"] == 1
            theirs.update(a=2, b=2)
            assert ns.get_many(["a", "b"]) == {"a": 2, "b": 2}
            time.sleep(0.3)
            assert (ns["a"], ns["b"]) == (2, 2)

    def test_writers_go_on_when_others_are_killed(self, config: Any, store: hutch.Store) -> None:
        """A reader meanwhile may see values of up to ttl_s ago; without the layer the engine keeps it."""
        pytest.skip("a cache over an engine that other processes write to may be ttl_s old")


class Engine(hutch.EncodedStorage):
    """A dict of bytes that counts its reads, and can be delayed, or fail, between reading and answering."""

    def __init__(self, factory: hutch.StoragePluginBase) -> None:
        super().__init__(factory, "core")
        self.data: dict[str, bytes] = {}
        self.reads = 0
        self.closed = False
        self.after_read: Callable[[], None] = lambda: None
        self.after_write: Callable[[], None] = lambda: None

    def read(self, key: str) -> bytes | None:
        self.reads += 1
        found = self.data.get(key)
        self.after_read()
        return found

    def write(self, key: str, data: bytes) -> None:
        self.data[key] = data
        self.after_write()

    def delete(self, key: str) -> bool:
        return self.data.pop(key, None) is not None

    def exists(self, key: str) -> bool:
        return self.read(key) is not None

    def len(self) -> int:
        return len(self.data)

    def keys(self) -> list[str]:
        return list(self.data)

    def close(self) -> None:
        self.closed = True


class Factory(hutch.StoragePluginBase):
    def open(self, namespace: str) -> Engine:
        return Engine(self)


@pytest.fixture
def engine() -> Engine:
    return Factory().open("core")


def layered(engine: hutch.StorageBase, *layers: str | LayerConfig) -> hutch.StorageBase:
    configs = tuple(LayerConfig(layer) if isinstance(layer, str) else layer for layer in layers)
    return add_layers(engine, configs, "test", "core")


def cached(engine: Engine, **options: Any) -> hutch.StorageBase:
    return layered(engine, LayerConfig("cache", {"ttl_s": HOUR_S, **options}))


# --- config ---


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["cach"], "LAYERS: no layer is called 'cach'. Did you mean 'cache'? Choose from cache, metrics, read-only"),
        (["read_only"], "Did you mean 'read-only'?"),
        (["cache", "metrics"], "cache must be the last of the list"),
        (["metrics", "metrics"], "metrics is listed 2 times"),
        ([{"name": "cache", "max_byte": 1}], "LAYERS: the cache layer has no option 'max_byte'. Did you mean 'max_b"),
        ([{"name": "cache", "ttl_s": -1}], "option 'ttl_s' of the cache layer must be at least 0"),
        ([{"name": "cache", "ttl_s": "soon"}], "option 'ttl_s' of the cache layer must be a number"),
        ([{"name": "cache", "ttl_s": float("nan")}], "option 'ttl_s' of the cache layer must be a number"),
        ([{"name": "read-only", "really": True}], "the read-only layer has no option 'really'"),
    ],
)
def test_connect_refuses_layers_that_do_not_exist_or_do_not_fit(tmp_path: Path, layers: Any, message: str) -> None:
    config = {"STORAGE": f"sqlite://{tmp_path / 'kv.db'}"}
    with pytest.raises(hutch.ConfigError) as raised:
        hutch.connect({**config, "LAYERS": layers})
    assert message in str(raised.value)
    with pytest.raises(hutch.ConfigError) as raised:
        hutch.connect({**config, "NAMESPACES": {"a*": {"LAYERS": layers}}})
    assert str(raised.value).startswith("NAMESPACES.a*.LAYERS: ")
    assert not list(tmp_path.iterdir())


def test_layers_are_those_of_the_namespace_and_the_first_is_the_outermost() -> None:
    label = uuid.uuid4().hex
    counted = {"name": "metrics", "label": label}
    config = {
        "STORAGE": "memory://",
        "LAYERS": ["read-only"],
        "NAMESPACES": {
            "counted": {"LAYERS": [counted, "read-only"]},
            "refused": {"LAYERS": ["read-only", counted]},
            "free": {"LAYERS": []},
        },
    }
    with hutch.connect(config) as store:
        for name in ("counted", "refused", "other"):
            with store.open(name) as ns, pytest.raises(hutch.CapabilityError):
                ns["k"] = 1
        with store.open("free") as ns:
            ns["k"] = 1
    assert snapshot()[label, "counted"]["set"][:2] == (1, 1)
    assert "set" not in snapshot()[label, "refused"]


def test_a_plugin_loaded_alone_refuses_a_config_with_layers_rather_than_ignoring_them() -> None:
    for config in ({"LAYERS": ["read-only"]}, {"NAMESPACES": {"a": {"LAYERS": ["read-only"]}}}):
        with pytest.raises(hutch.ConfigError, match=r"LAYERS .*hutch\.connect"):
            hutch.load_plugin("memory", config)
    with hutch.load_plugin("memory", {"LAYERS": []}) as factory:
        assert factory.namespaces() == []


def test_a_storage_that_cannot_have_its_layers_is_closed(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(hutch.ConfigError):
        layered(engine, "cach")
    assert engine.closed
    with (
        hutch.connect({"STORAGE": f"shelf://{tmp_path}", "LAYERS": ["cache"]}) as store,
        pytest.raises(hutch.CapabilityError, match=r"an engine that holds bytes.* shelf holds objects.* 'core'"),
    ):
        store.open("core")


def test_check_layers_takes_what_add_layers_takes(engine: Engine) -> None:
    layers = (LayerConfig("read-only"), LayerConfig("metrics", {"label": "x"}), LayerConfig("cache", {"ttl_s": "inf"}))
    validate_layers(layers)
    storage = add_layers(engine, layers, "test", "core")
    assert list(storage.keys()) == []
    storage.close()
    assert engine.closed


# --- read-only ---

WRITES: dict[str, Callable[[hutch.Namespace], Any]] = {
    "[]=": lambda ns: ns.__setitem__("k", 1),
    "del": lambda ns: ns.__delitem__("k"),
    "pop": lambda ns: ns.pop("k"),
    "pop of a missing key": lambda ns: ns.pop("missing", None),
    "popitem": lambda ns: ns.popitem(),
    "setdefault": lambda ns: ns.setdefault("k", 1),
    "update": lambda ns: ns.update(k=1),
    "clear": lambda ns: ns.clear(),
    "set_many": lambda ns: ns.set_many({}),
    "remove_many": lambda ns: ns.remove_many([]),
    "compare_and_set": lambda ns: ns.compare_and_set("k", 1, 2),
    "modify": lambda ns: ns.modify("k", lambda _: pytest.fail("the function was called")),
}


@pytest.fixture
def read_only() -> Iterator[hutch.Namespace]:
    url = f"memory://{uuid.uuid4().hex}"
    with hutch.connect(url) as store, store.open("core") as ns:
        ns.update(k=[1], l=2)
    with hutch.connect({"STORAGE": url, "LAYERS": ["read-only"]}) as store, store.open("core") as ns:
        yield ns
        assert dict(ns) == {"k": [1], "l": 2}


@pytest.mark.parametrize("verb", WRITES)
def test_every_verb_that_writes_is_refused_where_read_only(read_only: hutch.Namespace, verb: str) -> None:
    with pytest.raises(hutch.CapabilityError, match="namespace 'core' is configured read-only"):
        WRITES[verb](read_only)


def test_mutable_is_refused_before_its_block_where_read_only(read_only: hutch.Namespace) -> None:
    with pytest.raises(hutch.CapabilityError), read_only.mutable("k"):
        pytest.fail("the block was run")


def test_reads_pass_where_read_only(read_only: hutch.Namespace) -> None:
    assert (read_only["k"], read_only.get("x"), "k" in read_only, len(read_only)) == ([1], None, True, 2)
    assert read_only.get_many(["l", "x"]) == {"l": 2}
    assert list(read_only.scan(prefix="l")) == [("l", 2)]
    assert list(read_only.scan_keys(reverse=True)) == ["l", "k"]
    assert sorted(read_only.keys()) == ["k", "l"]
    with pytest.raises(KeyError):
        read_only["x"]


def test_a_read_only_namespace_does_not_claim_atomic_writes_and_is_not_dropped() -> None:
    config = {"STORAGE": "memory://", "NAMESPACES": {"fixed": {"LAYERS": ["read-only"]}}}
    with hutch.connect(config) as store, store.open("fixed") as fixed, store.open("free") as free:
        assert fixed.capabilities == {name for name in free.capabilities if not name.startswith("atomic-")}
        assert fixed.capabilities < free.capabilities
    with hutch.connect(config) as store:
        with pytest.raises(hutch.CapabilityError, match="'fixed' is configured read-only"):
            store.drop("fixed")
        store.drop("free")


# --- cache ---


def test_a_value_read_a_moment_ago_is_not_read_again_and_is_fresh_each_time(engine: Engine) -> None:
    storage = cached(engine)
    storage.set("k", [1])
    first = storage.get("k")
    first.append(2)
    assert (storage.get("k"), storage.contains("k"), engine.reads) == ([1], True, 1)


def test_a_missing_key_is_not_cached(engine: Engine) -> None:
    storage = cached(engine)
    for _ in range(2):
        with pytest.raises(KeyError):
            storage.get("k")
        assert not storage.contains("k")
    assert engine.reads == 4
    engine.set("k", 1)
    assert storage.get("k") == 1


def test_a_write_of_another_process_is_visible_after_ttl_s(engine: Engine) -> None:
    storage = cached(engine, ttl_s=0.2)
    engine.set("k", "old")
    began_s = time.monotonic()
    assert storage.get("k") == "old"
    engine.set("k", "new")
    while (value := storage.get("k")) == "old":
        assert time.monotonic() - began_s < 5
    assert value == "new"
    assert time.monotonic() - began_s >= 0.2


def test_the_age_of_a_value_counts_from_the_beginning_of_its_read(engine: Engine) -> None:
    storage = cached(engine, ttl_s=0.05)
    engine.set("k", 1)
    engine.after_read = lambda: time.sleep(0.06)
    assert (storage.get("k"), storage.get("k"), engine.reads) == (1, 1, 2)


@pytest.mark.parametrize("options", [{"ttl_s": 0}, {"max_bytes": 0}, {"ttl_s": "0"}])
def test_zero_switches_the_cache_off(engine: Engine, options: dict[str, Any]) -> None:
    assert cached(engine, **options) is engine


OWN_WRITES: dict[str, Callable[[hutch.StorageBase], Any]] = {
    "set": lambda storage: storage.set("k", "new"),
    "remove": lambda storage: storage.remove("k"),
    "set_many": lambda storage: storage.set_many({"k": "new", "other": 1}),
    "remove_many": lambda storage: storage.remove_many(iter(["k", "other"])),
    "clear": lambda storage: storage.clear(),
    "modify": lambda storage: storage.modify("k", lambda _: "new"),
    "compare_and_set": lambda storage: storage.compare_and_set("k", "old", "new"),
    "compare_and_swap": lambda storage: storage.compare_and_swap("k", storage.get_for_update("k")[1], "new"),
}


def stored(engine: Engine) -> Any:
    return engine.decode_value("k", engine.data["k"]) if "k" in engine.data else None


def seen(storage: hutch.StorageBase) -> Any:
    try:
        return storage.get("k")
    except KeyError:
        return None


@pytest.mark.parametrize("write", OWN_WRITES)
def test_an_own_write_is_seen_at_once(engine: Engine, write: str) -> None:
    storage = cached(engine)
    engine.set("k", "old")
    assert storage.get("k") == "old"
    OWN_WRITES[write](storage)
    assert seen(storage) == stored(engine) != "old"


class Watched(dict[str, bytes]):
    """The data of an Engine, which calls `before` and `after` when "k" is written."""

    before: Callable[[], None] = staticmethod(lambda: None)
    after: Callable[[], None] = staticmethod(lambda: None)

    def __setitem__(self, key: str, data: bytes) -> None:
        if key == "k":
            self.before()
        super().__setitem__(key, data)
        if key == "k":
            self.after()

    def pop(self, key: str, default: Any = None) -> Any:
        if key == "k":
            self.before()
        found = super().pop(key, default)
        if key == "k":
            self.after()
        return found


@pytest.mark.parametrize("write", OWN_WRITES)
def test_a_key_is_not_cached_while_it_is_written(engine: Engine, write: str) -> None:
    """After the engine took a batch, no reader may see one key new and another old."""
    storage = cached(engine)
    engine.set("k", "old")
    assert storage.get("k") == "old"
    during: list[Any] = []
    engine.data = watched = Watched(engine.data)
    watched.after = lambda: during.append((stored(engine), together(lambda: seen(storage))[0]))
    OWN_WRITES[write](storage)
    assert during
    assert all(held == found != "old" for held, found in during)
    assert seen(storage) == stored(engine) != "old"


@pytest.mark.parametrize("write", OWN_WRITES)
def test_a_read_that_began_beside_a_write_and_outlasts_it_leaves_nothing_old_behind(engine: Engine, write: str) -> None:
    storage = cached(engine)
    engine.set("k", "old")
    looked, go_on = threading.Event(), threading.Event()
    results: list[Any] = []
    reader = threading.Thread(target=lambda: results.append(storage.get("k")))

    def pause() -> None:
        if threading.current_thread() is reader:
            looked.set()
            assert go_on.wait(10)

    def read_before() -> None:
        if not looked.is_set():
            reader.start()
            assert looked.wait(10)

    engine.after_read = pause
    engine.data = watched = Watched(engine.data)
    watched.before = read_before
    OWN_WRITES[write](storage)
    go_on.set()
    reader.join()
    assert results == ["old"]
    assert seen(storage) == stored(engine) != "old"


@pytest.mark.parametrize("write", OWN_WRITES)
def test_a_written_key_is_cached_again(engine: Engine, write: str) -> None:
    storage = cached(engine)
    storage.set("k", "old")
    OWN_WRITES[write](storage)
    storage.set("k", "newer")
    before = engine.reads
    assert [storage.get("k") for _ in range(3)] == ["newer"] * 3
    assert engine.reads == before + 1


@pytest.mark.parametrize("write", OWN_WRITES)
def test_a_read_that_a_write_overtook_leaves_nothing_old_behind(engine: Engine, write: str) -> None:
    storage = cached(engine)
    engine.set("k", "old")
    looked, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        if threading.current_thread() is reader:
            looked.set()
            assert go_on.wait(10)

    results: list[Any] = []
    reader = threading.Thread(target=lambda: results.append(storage.get("k")))
    engine.after_read = pause
    reader.start()
    assert looked.wait(10)
    OWN_WRITES[write](storage)
    go_on.set()
    reader.join()
    assert results == ["old"]
    assert seen(storage) == stored(engine) != "old"


def test_a_write_that_fails_may_have_happened_so_the_engine_is_asked_again(engine: Engine) -> None:
    storage = cached(engine)
    engine.set("k", "old")
    assert storage.get("k") == "old"

    def fail() -> None:
        raise hutch.StorageTimeoutError("no answer")

    engine.after_write = fail
    with pytest.raises(hutch.StorageTimeoutError):
        storage.set("k", "new")
    assert storage.get("k") == "new"


def test_read_modify_write_begins_with_what_the_engine_holds(engine: Engine) -> None:
    storage = cached(engine)
    engine.set("k", 1)
    assert storage.get("k") == 1
    engine.set("k", 10)  # by another writer
    assert storage.modify("k", lambda n: n + 1) == 11
    assert storage.get("k") == 11
    engine.set("k", 20)
    assert not storage.compare_and_set("k", 11, 0)
    assert storage.get("k") == 20
    engine.set("k", 30)
    assert storage.get_for_update("k")[0] == 30
    assert storage.get("k") == 30, "no read goes back behind what was seen"


def test_batches_and_scans_ask_the_engine(engine: Engine) -> None:
    storage = cached(engine)
    engine.set("k", "old")
    assert storage.get("k") == "old"
    engine.set("k", "new")
    assert storage.get_many(["k"]) == dict(storage.items()) == dict(storage.scan()) == {"k": "new"}
    assert (storage.len(), list(storage.keys()), list(storage.scan_keys())) == (1, ["k"], ["k"])


def test_the_cache_keeps_max_bytes_and_those_used_last(engine: Engine) -> None:
    storage = cached(engine, max_bytes=20_000)
    for n in range(100):
        engine.set(f"k{n}", b"x" * 1000)
    for n in range(100):
        storage.get(f"k{n}")
        storage.get("k0")
    assert engine.reads == 100
    storage.get("k99")
    storage.get("k90")
    assert engine.reads == 100
    storage.get("k1")
    assert engine.reads == 101
    assert isinstance(storage, CacheLayer)
    assert 10_000 < sum(len(entry.data) for entry in storage._cached._entries.values()) <= 20_000
    engine.set("large", b"x" * 20_000)
    storage.get("large")
    storage.get("large")
    assert engine.reads == 103
    storage.get("k0")
    assert engine.reads == 103, "a value that is too large pushes nothing out"


def test_the_cache_counts_its_bytes_right_whatever_happens(engine: Engine) -> None:
    storage = cached(engine, max_bytes=50_000)
    assert isinstance(storage, CacheLayer)
    for n in range(300):
        key = f"k{n % 7}"
        storage.set(key, b"x" * (n * 37 % 9000))
        storage.get(key)
        storage.get_many([key])
        storage.contains(f"k{n % 3}")
        if n % 11 == 0:
            storage.remove(key)
    values = storage._cached
    assert 0 < values._bytes == sum(len(key) + len(entry.data) + 300 for key, entry in values._entries.items())
    storage.clear()
    assert (values._bytes, values._entries, values._readings, _writes) == (0, {}, {}, {})


def test_errors_are_those_of_the_engine(engine: Engine) -> None:
    storage = cached(engine)
    for key, error in ((1, hutch.KeyTypeError), ([], hutch.KeyTypeError), ("", hutch.KeyLimitError)):
        for verb in ("get", "contains", "remove", "get_for_update"):
            with pytest.raises(error):
                getattr(storage, verb)(key)
        with pytest.raises(error):
            storage.set(key, 1)  # type: ignore[arg-type]
    engine.data["bad"] = b"?"
    for _ in range(2):
        with pytest.raises(hutch.CorruptValueError, match=r"'bad' in namespace 'core' of the Factory storage"):
            storage.get("bad")
    engine.after_read = lambda: 1 / 0  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        storage.get("k")
    assert isinstance(storage, CacheLayer)
    assert storage._cached._readings == {}


def test_no_thread_ever_reads_behind_a_write_that_returned(engine: Engine) -> None:
    storage = cached(engine, max_bytes=2_000)
    keys = ["a", "b", "c"]
    done = dict.fromkeys(keys, 0)
    for key in keys:
        storage.set(key, 0)

    def write(key: str) -> None:
        for n in range(1, 1500):
            storage.set(key, n)
            done[key] = n

    def read() -> None:
        while any(done[key] < 1499 for key in keys):
            for key in keys:
                at_least = done[key]
                assert storage.get(key) >= at_least

    together(*[lambda key=key: write(key) for key in keys], read, read, read)
    assert {key: storage.get(key) for key in keys} == dict.fromkeys(keys, 1499)


def test_a_cached_read_does_not_contact_the_server(redis_server: RedisServer) -> None:
    url = f"{redis_server.url}?prefix={uuid.uuid4().hex}"
    with (
        hutch.connect({"STORAGE": url, "LAYERS": [{"name": "cache", "ttl_s": 0.5}]}) as store,
        hutch.connect(url) as other,
        store.open("core") as core,
        other.open("core") as theirs,
        closing(redis.Redis.from_url(redis_server.url)) as server,
    ):

        def questions() -> int:
            return int(server.info("commandstats").get("cmdstat_hget", {}).get("calls", 0))

        core["k"] = "old"
        before = questions()
        assert [core["k"] for _ in range(50)] == ["old"] * 50
        assert questions() - before <= 2
        theirs["k"] = "new"
        time.sleep(0.5)
        assert core["k"] == "new"
        assert core.modify("k", lambda value: value + "er") == "newer"
        assert core["k"] == theirs["k"] == "newer"


# --- metrics ---


def test_metrics_count_calls_errors_and_seconds_of_each_verb(engine: Engine) -> None:
    label = uuid.uuid4().hex
    storage = layered(engine, LayerConfig("metrics", {"label": label}))
    engine.after_write = lambda: time.sleep(0.02)
    storage.set("k", 1)
    storage.set("l", 2)
    storage.get("k")
    with pytest.raises(KeyError):
        storage.get("missing")
    with pytest.raises(hutch.ValueTypeError):
        storage.set("k", object())
    figures = snapshot()[label, "core"]
    assert {verb: counted[:2] for verb, counted in figures.items()} == {"set": (3, 1), "get": (2, 0)}
    assert 0.04 <= figures["set"].seconds < 5
    assert 0 < figures["get"].seconds < 0.04


def test_an_iteration_counts_once_when_it_ends_and_takes_only_the_engines_time(engine: Engine) -> None:
    label = uuid.uuid4().hex
    storage = layered(engine, LayerConfig("metrics", {"label": label}))
    engine.set_many({f"k{n}": n for n in range(3)})
    for _ in storage.items():
        time.sleep(0.05)
    for _ in storage.scan():
        break
    assert list(storage.scan_keys()) == list(storage.keys()) == ["k0", "k1", "k2"]
    engine.data["k1"] = b"?"
    with pytest.raises(hutch.CorruptValueError):
        list(storage.items())
    figures = snapshot()[label, "core"]
    counted = {verb: figures[verb][:2] for verb in figures}
    assert counted == {"items": (2, 1), "scan": (1, 0), "scan_keys": (1, 0), "keys": (1, 0)}
    assert figures["items"].seconds < 0.05


def test_figures_bear_the_engines_name_outlive_the_handle_and_are_a_copy() -> None:
    name = uuid.uuid4().hex
    with hutch.connect({"STORAGE": "memory://", "LAYERS": ["metrics"]}) as store:
        for _ in range(2):
            with store.open(name) as ns:
                ns["k"] = 1
    found = snapshot()
    assert found["memory", name]["set"][:2] == (2, 0)
    found["memory", name]["set"] = Figures()
    assert snapshot()["memory", name]["set"].calls == 2


def test_metrics_lose_no_call_of_any_thread(engine: Engine) -> None:
    label = uuid.uuid4().hex
    storage = layered(engine, LayerConfig("metrics", {"label": label}))
    together(*[lambda: [storage.contains("k") for _ in range(2000)]] * 8)
    assert snapshot()[label, "core"]["contains"].calls == 16_000


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_forked_child_has_an_empty_cache_and_figures_of_its_own_and_waits_for_no_lock_of_its_parent() -> None:
    script = """
    import os, hutch
    from hutch.layers import metrics
    with hutch.connect({"STORAGE": "memory://", "LAYERS": ["metrics", "cache"]}) as store, store.open("core") as core:
        core["k"] = 1
        core["k"]
        cached = core._store._inner._cached
        with cached._lock.current, metrics._lock.current:  # as another thread would hold them
            child = os.fork()
            if child == 0:
                fine = not cached._entries and not metrics.snapshot()
                fine = fine and core["k"] == 1 and metrics.snapshot()["memory", "core"]["get"].calls == 1
                os._exit(0 if fine else 1)
            _, status = os.waitpid(child, 0)
        assert len(cached._entries) == 1 and metrics.snapshot()["memory", "core"]["get"].calls == 1
    raise SystemExit(os.waitstatus_to_exitcode(status))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
