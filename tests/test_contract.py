"""Test what StorageBase and EncodedStorage make of six verbs: correct for any engine with no more than those."""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hutch
from hutch.codec.json import JsonCodec
from hutch.encoded.storage import _after_prefix
from hutch.testing.conformance.kit import together

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


class SixVerbs(hutch.StorageBase):
    """Values as pickles, in any order, with only the verbs that a plugin must have."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.closed = 0

    def set(self, key: str, value: Any) -> None:
        self.data[key] = pickle.dumps(value)

    def get(self, key: str) -> Any:
        return pickle.loads(self.data[key])

    def remove(self, key: str) -> None:
        del self.data[key]

    def len(self) -> int:
        return len(self.data)

    def keys(self) -> Iterable[str]:
        return list(self.data)

    def close(self) -> None:
        self.closed += 1


class SixVerbsPlugin(hutch.StoragePluginBase):
    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.opened: dict[str, SixVerbs] = {}

    def open(self, namespace: str) -> hutch.StorageBase:
        return self.opened.setdefault(namespace, SixVerbs())


class SixByteVerbs(hutch.EncodedStorage):
    """Bytes in a dict, with only the verbs that an engine must have."""

    def __init__(self, plugin: hutch.StoragePluginBase, namespace: str = "core") -> None:
        super().__init__(plugin, namespace)
        self.data: dict[str, bytes] = {}

    def read(self, key: str) -> bytes | None:
        return self.data.get(key)

    def write(self, key: str, data: bytes) -> None:
        self.data[key] = data

    def delete(self, key: str) -> bool:
        return self.data.pop(key, None) is not None

    def len(self) -> int:
        return len(self.data)

    def keys(self) -> Iterable[str]:
        return list(self.data)

    def close(self) -> None:
        pass


MAKERS: list[Callable[[], hutch.StorageBase]] = [SixVerbs, lambda: SixByteVerbs(SixVerbsPlugin())]
each_kind = pytest.mark.parametrize("make", MAKERS, ids=["StorageBase", "EncodedStorage"])

# --- against a model ---

ALPHABET = "ab\0é\ud7ff\ue000\uffff\U00010000\U0010ffff"
keys = st.text(ALPHABET, min_size=1, max_size=3)
bounds = st.none() | st.text(ALPHABET, max_size=3)
values = st.integers() | st.lists(st.integers() | st.booleans(), max_size=3) | st.none() | st.text(max_size=3)
contents = st.dictionaries(keys, values, max_size=12)


@each_kind
@settings(max_examples=150, deadline=None)
@given(contents=contents, prefix=st.text(ALPHABET, max_size=2), start=bounds, stop=bounds, reverse=st.booleans())
def test_scans_are_those_of_a_sorted_dict(
    make: Callable[[], hutch.StorageBase],
    contents: dict[str, Any],
    prefix: str,
    start: str | None,
    stop: str | None,
    reverse: bool,
) -> None:
    storage = make()
    storage.set_many(contents)
    expected = [
        (key, contents[key])
        for key in sorted(contents, reverse=reverse)
        if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
    ]
    assert list(storage.scan(prefix, start, stop, reverse)) == expected
    assert list(storage.scan_keys(prefix, start, stop, reverse)) == [key for key, _ in expected]


@each_kind
@settings(max_examples=150, deadline=None)
@given(contents=contents, other=contents, wanted=st.lists(keys, max_size=8))
def test_batches_are_those_of_a_dict(
    make: Callable[[], hutch.StorageBase], contents: dict[str, Any], other: dict[str, Any], wanted: list[str]
) -> None:
    storage = make()
    storage.set_many(contents)
    storage.set_many(other)
    model = contents | other
    assert dict(storage.items()) == model
    assert storage.get_many(iter(wanted)) == {key: model[key] for key in wanted if key in model}
    assert list(storage.get_many(wanted)) == list(dict.fromkeys(key for key in wanted if key in model))
    assert storage.remove_many(iter(wanted)) == len({*wanted} & {*model})
    model = {key: value for key, value in model.items() if key not in wanted}
    assert (dict(storage.items()), storage.len()) == (model, len(model))
    assert [storage.contains(key) for key in wanted] == [False] * len(wanted)
    storage.clear()
    assert storage.len() == 0


@each_kind
@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("ab"), values | st.just(hutch.MISSING), values | st.just(hutch.MISSING)), max_size=12
    )
)
def test_compare_and_set_is_that_of_a_dict(
    make: Callable[[], hutch.StorageBase], steps: list[tuple[str, Any, Any]]
) -> None:
    storage, model = make(), dict[str, Any]()
    for key, expected, value in steps:
        for guess in (expected, model.get(key, hutch.MISSING)):
            now = model.get(key, hutch.MISSING)
            hit = type(now) is type(guess) and repr(now) == repr(guess)
            assert storage.compare_and_set(key, guess, value) is hit
            if hit:
                model.pop(key, None)
                if value is not hutch.MISSING:
                    model[key] = value
            assert dict(storage.items()) == model


# --- read-modify-write ---


@each_kind
@pytest.mark.parametrize(
    ("stored", "other"),
    [
        (1, True),
        (1, 1.0),
        ([1], [True]),
        ({"a": (1,)}, {"a": (1.0,)}),
        ([1], (1,)),
        ("", b""),
        ({1: 1}, {1: 2}),
        ([1], [1, 2]),
    ],
)
def test_compare_and_set_compares_types_too(make: Callable[[], hutch.StorageBase], stored: Any, other: Any) -> None:
    storage = make()
    storage.set("k", stored)
    assert not storage.compare_and_set("k", other, "new")
    assert storage.get("k") == stored
    assert storage.compare_and_set("k", stored, other)
    assert storage.compare_and_set("k", other, stored)


@each_kind
@pytest.mark.parametrize(
    "value", [math.nan, [math.nan], {"a": {"b": (float("nan"), 1)}}, {math.nan: 1}, frozenset({math.nan})], ids=repr
)
def test_a_nan_within_a_value_is_not_taken_for_a_conflict(make: Callable[[], hutch.StorageBase], value: Any) -> None:
    """A NaN is not equal to itself after it was read again: nothing must wait for equality."""
    storage = make()
    storage.set("k", value)
    began = time.monotonic()
    assert storage.modify("k", lambda v: [v, 1])[1] == 1
    assert time.monotonic() - began < 5
    assert storage.get("k")[1] == 1


def test_values_that_cannot_be_compared_go_by_their_pickles() -> None:
    storage = SixVerbs()
    for value in (numpy.arange(3), [numpy.arange(3)], {"a": numpy.zeros((2, 2))}):
        storage.set("k", value)
        assert storage.compare_and_set("k", value, "new")
        assert not storage.compare_and_set("k", value, "newer")
        storage.set("k", value)
        assert storage.modify("k", lambda _: "done") == "done"
    looped: list[Any] = []
    looped.append(looped)
    storage.set("k", looped)
    assert storage.modify("k", lambda _: "done") == "done"


@each_kind
def test_modify_starts_from_a_copy_of_its_default_and_removes_on_missing(make: Callable[[], hutch.StorageBase]) -> None:
    storage = make()
    default: list[int] = []
    assert storage.modify("k", lambda v: [*v, 1], default) == [1]
    storage.modify("other", lambda v: v.append(1) or v, default)
    assert default == []
    assert storage.modify("k", lambda _: hutch.MISSING) is hutch.MISSING
    assert not storage.contains("k")
    assert storage.modify("k", lambda _: hutch.MISSING, 1) is hutch.MISSING
    for call in (lambda: storage.modify("k", lambda v: v), lambda: storage.remove("k"), lambda: storage.get("k")):
        with pytest.raises(KeyError) as raised:
            call()
        assert raised.value.args == ("k",)
    with pytest.raises(ZeroDivisionError):
        storage.modify("other", lambda v: 1 // 0)
    assert storage.get("other") == [1]


@each_kind
def test_modify_raises_conflict_error_after_60_s_of_lost_races(
    make: Callable[[], hutch.StorageBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.contract.storage._MODIFY_PATIENCE_S", 0.2)
    storage = make()
    storage.set("k", 0)

    def lose(value: int) -> int:
        # Somebody else is always faster.
        storage.set("k", value + 100)
        return value

    began = time.monotonic()
    with pytest.raises(hutch.ConflictError, match="key 'k' was changed by others for 0 s"):
        storage.modify("k", lose)
    assert 0.2 <= time.monotonic() - began < 5
    assert storage.get("k") % 100 == 0


@each_kind
def test_the_updates_of_threads_are_not_lost(make: Callable[[], hutch.StorageBase]) -> None:
    storage = make()
    together(*[lambda: [storage.modify("n", lambda n: n + 1, 0) for _ in range(100)]] * 6)
    assert storage.get("n") == 600


def test_what_is_changed_for_an_update_is_not_the_object_that_a_storage_holds() -> None:
    """Errbot's memory storage returns its own objects. Changing one is not a concurrent change."""

    class Own(SixVerbs):
        own: dict[str, Any]

        def get(self, key: str) -> Any:
            return self.own[key]

        def set(self, key: str, value: Any) -> None:
            self.own[key] = value

    storage = Own()
    storage.own = {"k": [1]}
    value, token = storage.get_for_update("k")
    value.append(2)
    assert storage.get("k") == [1]
    assert storage.compare_and_swap("k", token, value)
    assert storage.get("k") == [1, 2]
    value, token = storage.get_for_update("k")
    storage.set("k", [3])
    assert not storage.compare_and_swap("k", token, value)
    assert storage.get_for_update("none") == (hutch.MISSING, hutch.MISSING)
    assert storage.compare_and_swap("none", hutch.MISSING, hutch.MISSING)


def test_keys_that_vanish_while_they_are_listed_are_left_out() -> None:
    class Vanishing(SixVerbs):
        def keys(self) -> Iterable[str]:
            yield from ["a", "gone", "b"]

    storage = Vanishing()
    storage.set_many({"a": 1, "b": 2})
    assert list(storage.items()) == [("a", 1), ("b", 2)]
    assert list(storage.scan()) == [("a", 1), ("b", 2)]
    encoded = SixByteVerbs(SixVerbsPlugin())
    encoded.set_many({"a": 1, "b": 2})
    encoded.keys = lambda: ["a", "gone", "b"]  # type: ignore[method-assign]
    assert list(encoded.items()) == [("a", 1), ("b", 2)]


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@each_kind
def test_a_child_forked_while_a_thread_held_the_lock_does_not_hang(
    make: Callable[[], hutch.StorageBase], unmeasured: None
) -> None:
    storage = make()
    storage.set("k", 0)
    inside, leave = threading.Event(), threading.Event()
    verb = "write" if isinstance(storage, hutch.EncodedStorage) else "set"
    slow = getattr(storage, verb)

    def wait(*arguments: Any) -> None:
        inside.set()
        leave.wait(30)
        slow(*arguments)

    setattr(storage, verb, wait)
    thread = threading.Thread(target=lambda: storage.modify("k", lambda n: n + 1))
    thread.start()
    assert inside.wait(10)
    pid = os.fork()
    if not pid:
        setattr(storage, verb, slow)
        os._exit(0 if storage.modify("k", lambda n: n + 10) == 10 else 1)
    deadline = time.monotonic() + 20
    ended = (0, 0)
    while ended == (0, 0) and time.monotonic() < deadline:
        ended = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    leave.set()
    thread.join()
    if ended == (0, 0):
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert ended == (pid, 0)
    assert storage.get("k") == 1


# --- factories ---


def test_what_a_factory_need_not_write_works_all_the_same() -> None:
    with SixVerbsPlugin() as factory:
        assert factory.name == "SixVerbsPlugin"
        assert factory.codec_for("core") is None
        assert factory.stats() == {}
        with factory.open("core") as storage:
            storage.set("k", 1)
        assert factory.opened["core"].closed == 1
        with pytest.raises(hutch.CapabilityError, match="the SixVerbsPlugin engine cannot list its namespaces"):
            factory.namespaces()
        factory.drop("core")
        assert factory.opened["core"].len() == 0
        assert factory.opened["core"].closed == 2


def test_a_storage_is_closed_by_its_with_block_also_when_that_raises() -> None:
    storage = SixVerbs()
    with pytest.raises(LookupError), storage:
        raise LookupError
    assert storage.closed == 1


def test_an_abstract_storage_cannot_be_made() -> None:
    class Half(hutch.StorageBase):
        def get(self, key: str) -> Any:
            return key

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_the_config_of_a_factory_may_have_any_of_its_forms() -> None:
    class Errbots:
        STORAGE_CONFIG: Mapping[str, Any] = {"basedir": "/x"}

    for config in (
        Errbots,
        Errbots(),
        {"STORAGE_CONFIG": {"basedir": "/x"}},
        {"storage_config": {"basedir": "/x"}},
        {"basedir": "/x"},
    ):
        assert SixVerbsPlugin(config)._storage_config == {"basedir": "/x"}
    for nothing in (None, object(), {}, {"STORAGE_CONFIG": None}):
        assert SixVerbsPlugin(nothing)._storage_config == {}
    with pytest.raises(
        hutch.ConfigError, match="STORAGE_CONFIG of the SixVerbsPlugin engine must be a mapping, not list"
    ):
        SixVerbsPlugin({"STORAGE_CONFIG": [1]})


# --- EncodedStorage ---


def test_a_factory_chooses_the_codec_of_each_namespace() -> None:
    class Config:
        STORAGE_CONFIG: Mapping[str, Any] = {}

        @staticmethod
        def codec_for(namespace: str) -> hutch.Codec | None:
            return JsonCodec() if namespace == "json" else None

    plugin = SixVerbsPlugin(Config)
    plain, json = SixByteVerbs(plugin, "core"), SixByteVerbs(plugin, "json")
    plain.set("k", (1,))
    json.set("k", [1])
    assert (plain.data["k"][0], json.data["k"][0]) == (0x92, 0x4A)
    with pytest.raises(hutch.ValueTypeError, match="tuple"):
        json.set("k", (1,))


def test_a_batch_with_one_bad_item_writes_none() -> None:
    storage = SixByteVerbs(SixVerbsPlugin())
    storage.set("a", 1)
    batches: list[tuple[dict[Any, Any], type[Exception]]] = [
        ({"a": 2, "b": object()}, hutch.ValueTypeError),
        ({"a": 2, "": 3}, hutch.KeyLimitError),
        ({"a": 2, 5: 3}, hutch.KeyTypeError),
    ]
    for batch, error in batches:
        with pytest.raises(error):
            storage.set_many(batch)
    assert dict(storage.items()) == {"a": 1}
    storage.set_many({})
    assert storage.remove_many([]) == 0


def test_damage_is_reported_with_plugin_namespace_and_key() -> None:
    storage = SixByteVerbs(SixVerbsPlugin(), "my namespace")
    storage.set_many({"bad": "secret", "good": 1})
    storage.data["bad"] = b"secret" + storage.data["bad"]
    ways: list[Callable[[], object]] = [
        *(lambda: storage.get("bad"), lambda: list(storage.items()), lambda: list(storage.scan("b"))),
        *(lambda: storage.get_many(["bad"]), lambda: storage.get_for_update("bad"), lambda: storage.modify("bad", str)),
    ]
    for way in ways:
        with pytest.raises(hutch.CorruptValueError) as raised:
            way()
        message = str(raised.value)
        assert "key 'bad' in namespace 'my namespace' of the SixVerbsPlugin storage" in message
        assert "secret" not in message
    assert storage.get("good") == 1


def test_an_engine_that_fails_on_an_impossible_key_is_not_to_blame() -> None:
    class Strict(SixByteVerbs):
        def read(self, key: str) -> bytes | None:
            return self.data[key.encode().decode()] if len(key) < 5 else 1 // 0  # type: ignore[return-value]

    storage = Strict(SixVerbsPlugin())
    for key, error in (("\ud800", hutch.KeyLimitError), (5, hutch.KeyTypeError), ("x" * 2000, hutch.KeyLimitError)):
        with pytest.raises(error):
            storage.get(key)  # type: ignore[arg-type]
        with pytest.raises(error):
            storage.contains(key)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        storage.get("possible")


@given(st.text(min_size=1, max_size=4), st.text(max_size=4))
def test_no_key_with_a_prefix_lies_beyond_its_end(prefix: str, tail: str) -> None:
    after = _after_prefix(prefix)
    if after is None:
        assert set(prefix) == {"\U0010ffff"}
    else:
        assert prefix + tail < after
        assert not after.startswith(prefix)
        after.encode()


def test_missing_is_itself_and_says_so() -> None:
    assert repr(hutch.MISSING) == "hutch.MISSING"
    assert pickle.loads(pickle.dumps(hutch.MISSING)) is hutch.MISSING
