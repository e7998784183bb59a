"""Test StoreMixin in a host's own class, over any storage and factory, across threads and forks."""

# ruff: noqa: PT012 - what is raised on the way out of a block is what is tested here

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hutch
from hutch import keylocks
from hutch.testing.conformance.kit import together

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


class Greeter(hutch.StoreMixin):
    """A host's plugin class, whose own __init__ does not call the mixin's."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def factory() -> Iterator[Any]:
    with hutch.load_plugin("memory") as factory:
        yield factory


@pytest.fixture
def plugin(factory: Any) -> Iterator[Greeter]:
    plugin = Greeter("greeter")
    plugin.open_storage(factory, "core")
    yield plugin
    if plugin.is_open_storage():
        plugin.close_storage()


class Recording:
    """A factory whose storages count their closings and may raise at any time."""

    def __init__(self) -> None:
        self.opened: list[Any] = []
        self.fail_close = False
        self.before_return: Callable[[], object] = lambda: None

    def open(self, namespace: str) -> Any:
        recording = self
        inner = hutch.load_plugin("memory").open(namespace)

        class Storage:
            closed = 0
            set, get, remove, len, keys = inner.set, inner.get, inner.remove, inner.len, inner.keys

            def close(self) -> None:
                self.closed += 1
                if recording.fail_close:
                    raise OSError("on purpose")

        storage = Storage()
        self.opened.append(storage)
        self.before_return()
        return storage


def test_it_mixes_into_a_class_that_never_initialises_it(factory: Any) -> None:
    greeter = Greeter("a")
    assert not greeter.is_open_storage()
    assert greeter.namespace is None
    assert repr(greeter) == "<Greeter closed>"
    greeter.open_storage(factory, "core")
    with greeter:
        greeter["k"] = 1
        assert repr(greeter) == "<Greeter 'core', open>"
        assert (greeter.name, dict(greeter)) == ("a", {"k": 1})
    assert not greeter.is_open_storage()
    with pytest.raises(hutch.StoreNotOpenError, match="namespace 'core' is closed; open it again"):
        greeter["k"]


def test_two_instances_do_not_share_their_storage(factory: Any) -> None:
    one, other = Greeter("a"), Greeter("b")
    one.open_storage(factory, "a")
    assert not other.is_open_storage()
    other.open_storage(factory, "b")
    one["k"], other["k"] = 1, 2
    assert (one["k"], other["k"]) == (1, 2)
    one.close_storage()
    assert other["k"] == 2
    other.close_storage()


@pytest.mark.parametrize("wrong", ["", "a\0b", "x" * 256, "\ud800", 5, None])
def test_an_impossible_name_opens_nothing(wrong: Any) -> None:
    recording = Recording()
    greeter = Greeter("a")
    with pytest.raises(hutch.NamespaceError):
        greeter.open_storage(recording, wrong)
    assert not greeter.is_open_storage()
    assert recording.opened == []


def test_a_factory_that_is_not_a_factory_is_refused_with_the_reason() -> None:
    greeter = Greeter("a")
    for nothing in (None, 5, object()):
        with pytest.raises(hutch.PluginError, match="open"):
            greeter.open_storage(nothing, "core")
        assert not greeter.is_open_storage()


def test_of_threads_that_open_one_mixin_one_wins_and_the_rest_is_closed() -> None:
    """All of them have passed the first test when one of them wins."""
    recording = Recording()
    barrier = threading.Barrier(5)
    recording.before_return = lambda: barrier.wait(10)
    greeter = Greeter("a")

    def work() -> bool:
        try:
            greeter.open_storage(recording, "core")
        except hutch.StoreAlreadyOpenError:
            return False
        return True

    assert together(*[work] * 5).count(True) == 1
    assert sorted(storage.closed for storage in recording.opened) == [0, 1, 1, 1, 1]
    greeter["k"] = 1
    greeter.close_storage()
    assert [storage.closed for storage in recording.opened] == [1] * 5


def test_of_threads_that_close_one_mixin_one_does() -> None:
    recording = Recording()
    greeter = Greeter("a")
    greeter.open_storage(recording, "core")

    def work() -> bool:
        try:
            greeter.close_storage()
        except hutch.StoreNotOpenError:
            return False
        return True

    assert together(*[work] * 8).count(True) == 1
    assert recording.opened[0].closed == 1


def test_a_with_block_that_raises_shows_its_own_error_and_that_of_close() -> None:
    recording = Recording()
    recording.fail_close = True
    greeter = Greeter("a")
    greeter.open_storage(recording, "core")
    with pytest.raises(hutch.PluginError, match="close raised OSError") as raised, greeter:
        raise LookupError("of the block")
    context = raised.value.__cause__
    assert isinstance(context, OSError)
    assert isinstance(context.__context__, LookupError)
    assert not greeter.is_open_storage()


# --- mutable, modify ---


def test_mutable_waits_for_a_thread_that_modifies_and_the_other_way_round(plugin: Greeter) -> None:
    plugin["k"] = []
    order: list[str] = []
    inside = threading.Event()

    def slow() -> None:
        with plugin.mutable("k") as value:
            inside.set()
            time.sleep(0.2)
            value.append("slow")
            order.append("slow")

    def fast() -> None:
        assert inside.wait(10)
        plugin.modify("k", lambda value: [*value, "fast"])
        order.append("fast")

    together(slow, fast)
    assert order == ["slow", "fast"]
    assert plugin["k"] == ["slow", "fast"]
    # Another key is not locked.
    with plugin.mutable("k"):
        assert together(lambda: plugin.modify("other", lambda n: n + 1, 0), patience_s=10) == [1]


def test_a_write_past_the_locks_within_mutable_is_a_conflict(plugin: Greeter) -> None:
    plugin["k"] = [1]
    message = "key 'k' of namespace 'core' was changed by someone else"
    with pytest.raises(hutch.ConflictError, match=message), plugin.mutable("k") as value:
        plugin["k"] = ["theirs"]
        value.append(2)
    assert plugin["k"] == ["theirs"]
    with pytest.raises(hutch.ConflictError), plugin.mutable("k") as value:
        del plugin["k"]
    assert "k" not in plugin
    with pytest.raises(hutch.ConflictError), plugin.mutable("k", default=[]) as value:
        plugin["k"] = 1
    assert plugin["k"] == 1


def test_a_mutable_block_that_raises_writes_nothing_and_releases_the_key(plugin: Greeter) -> None:
    plugin["k"] = [1]
    with pytest.raises(LookupError), plugin.mutable("k") as value:
        value.append(2)
        raise LookupError
    assert plugin["k"] == [1]
    assert together(lambda: plugin.modify("k", lambda v: [*v, 3]), patience_s=10) == [[1, 3]]


def test_a_storage_closed_within_mutable_says_so_and_a_reopened_one_too(factory: Any, plugin: Greeter) -> None:
    plugin["k"] = [1]
    with pytest.raises(hutch.StoreNotOpenError, match="'core' is closed"), plugin.mutable("k") as value:
        value.append(2)
        plugin.close_storage()
    plugin.open_storage(factory, "core")
    message = r"was closed and reopened inside mutable\('k'\)"
    with pytest.raises(hutch.StoreNotOpenError, match=message), plugin.mutable("k") as value:
        value.append(2)
        plugin.close_storage()
        plugin.open_storage(factory, "core")
    assert plugin["k"] == [1]


def test_defaults_of_mutable_modify_and_setdefault_are_copied(plugin: Greeter) -> None:
    default: list[int] = []
    with plugin.mutable("a", default=default) as value:
        value.append(1)
    plugin.modify("b", lambda v: v.append(1) or v, default)
    plugin.setdefault("c", default).append(1)
    assert (plugin["a"], plugin["b"], plugin["c"]) == ([1], [1], [])
    with plugin.mutable("none", default=None) as value:
        assert value is None
    assert plugin["none"] is None


def test_keys_without_a_holder_have_no_lock(plugin: Greeter) -> None:
    before = keylocks.waiters()
    for number in range(50):
        plugin.modify(f"k{number}", lambda n: n + 1, 0)
        with pytest.raises(LookupError), plugin.mutable(f"k{number}"):
            raise LookupError
    together(*[lambda: [plugin.modify("k", lambda n: n + 1, 0) for _ in range(50)]] * 4)
    assert keylocks.waiters() == before
    assert plugin["k"] == 200


@pytest.mark.usefixtures("unmeasured")
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_a_thread_held_a_key_does_not_wait_for_it(plugin: Greeter) -> None:
    plugin["k"] = [1]
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with plugin.mutable("k") as value:
            inside.set()
            leave.wait(30)
            value.append("parent")

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(10)
    pid = os.fork()
    if not pid:
        os._exit(0 if plugin.modify("k", lambda v: [*v, "child"]) == [1, "child"] else 1)
    deadline = time.monotonic() + 20
    ended = (0, 0)
    while ended == (0, 0) and time.monotonic() < deadline:
        ended = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    leave.set()
    thread.join()
    assert ended == (pid, 0)
    assert plugin["k"] == [1, "parent"]


@pytest.mark.usefixtures("unmeasured")
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_within_mutable_releases_the_key_like_its_parent(plugin: Greeter) -> None:
    plugin["k"] = [1]
    pid = -1
    with plugin.mutable("k") as value:
        pid = os.fork()
        value.append("child" if not pid else "parent")
    if not pid:
        os._exit(0 if plugin["k"] == [1, "child"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert plugin["k"] == [1, "parent"]


# --- the mapping, where the kit does not look ---


def test_update_takes_anything_with_keys_and_refuses_before_it_writes(plugin: Greeter) -> None:
    class Keyed:
        def keys(self) -> list[str]:
            return ["a", "b"]

        def __getitem__(self, key: str) -> str:
            return key * 2

    plugin.update(Keyed(), c=3)
    assert dict(plugin) == {"a": "aa", "b": "bb", "c": 3}
    refused: list[tuple[Any, type[Exception]]] = [
        ({"a": 1, 5: 2}, hutch.KeyTypeError),
        ({"a": 1, "b": object()}, hutch.ValueTypeError),
        ([("a", 1), ("", 2)], hutch.KeyLimitError),
        ([("a", 1), ("b",)], ValueError),
        (OrderedDict(a=1, b=object()), hutch.ValueTypeError),
    ]
    for bad, error in refused:
        with pytest.raises(error):
            plugin.update(bad)
    assert dict(plugin) == {"a": "aa", "b": "bb", "c": 3}


def test_an_iteration_ends_with_the_storage_it_began_with(factory: Any, plugin: Greeter) -> None:
    plugin.update(a=1, b=2, c=3)
    running = [iter(plugin), iter(plugin.items()), iter(plugin.values()), plugin.scan()]
    for iterator in running:
        next(iterator)
    plugin.close_storage()
    plugin.open_storage(factory, "core")
    for iterator in running:
        with pytest.raises(hutch.StoreNotOpenError, match="was closed during an iteration over it"):
            next(iterator)
    assert sorted(plugin.values()) == [1, 2, 3]


def test_popitem_takes_another_key_when_its_key_is_removed(plugin: Greeter) -> None:
    plugin.update(a=1, b=2)
    listed = list(plugin)
    really_keys = plugin._store.keys

    def keys() -> Iterator[str]:
        for key in really_keys():
            if key == listed[0]:
                plugin.pop(key, None)
            yield key

    plugin._store.keys = keys  # type: ignore[method-assign]
    assert plugin.popitem()[0] == listed[1]
    with pytest.raises(KeyError, match="popitem: the namespace is empty"):
        plugin.popitem()


def test_a_key_error_of_get_never_hides_a_key_that_is_wrong(plugin: Greeter) -> None:
    wrong: list[tuple[Any, type[Exception]]] = [
        (5, hutch.KeyTypeError),
        ("", hutch.KeyLimitError),
        ([], hutch.KeyTypeError),
    ]
    uses: list[Callable[[Any], Any]] = [plugin.get, plugin.__getitem__, plugin.__contains__, plugin.pop]
    for bad, error in wrong:
        for use in uses:
            with pytest.raises(error):
                use(bad)


def test_capabilities_are_those_of_the_engine(plugin: Greeter) -> None:
    assert "atomic-modify:process" in plugin.capabilities
    with pytest.raises(hutch.StoreNotOpenError, match="not open yet"):
        _ = Greeter("new").capabilities
