"""What an Errbot plugin relies on in its storage: Errbot's own storage tests and what they leave out.

Each promise is a function that opens namespaces through `World`. They are tested for Errbot's StoreMixin on the bridge,
by running this file as a script in Errbot's Python (``CONFIG_FOLDER``; one line of JSON per promise), and for hutch's
StoreMixin in its place, by test_errbot.py.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any


class World:
    """Makes mappings as a host does: `mixin` is a StoreMixin, `plugin` what its `open_storage` takes."""

    def __init__(self, mixin: Any, plugin: Any, already_open: type[Exception], not_open: type[Exception]) -> None:
        self.already_open, self.not_open = already_open, not_open
        self.plugin = plugin
        self._mixin = mixin
        self._opened: list[Any] = []

    def made(self) -> Any:
        """Return a bot's plugin, not yet open. Its class does not know where it is stored."""

        class BotPlugin(self._mixin):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.name = "a plugin"

        return BotPlugin()

    def open(self, namespace: str) -> Any:
        made = self.made()
        made.open_storage(self.plugin, namespace)
        self._opened.append(made)
        return made

    def close(self) -> None:
        for made in self._opened:
            if made.is_open_storage():
                made.close_storage()


def raises(expected: type[BaseException], work: Callable[[], object]) -> BaseException:
    try:
        work()
    except expected as error:
        return error
    raise AssertionError(f"{expected.__name__} was not raised")


def what_is_set_is_read_back(world: World) -> None:
    store = world.open("simple store")
    store["test"] = "1"
    assert store["test"] == "1"
    store["test"] = "2"
    assert store["test"] == "2"
    assert len(store) == 1


def what_was_set_is_there_when_the_namespace_is_opened_again(world: World) -> None:
    store = world.open("again")
    store["k"] = {"a": (1, {2})}
    store.close_storage()
    assert world.open("again")["k"] == {"a": (1, {2})}


def a_missing_key_is_a_key_error_and_get_has_a_default(world: World) -> None:
    store = world.open("missing")
    raises(KeyError, lambda: store["nope"])
    raises(KeyError, lambda: store.__delitem__("nope"))
    assert store.get("nope") is None
    assert store.get("nope", 3) == 3
    assert "nope" not in store


def an_empty_namespace_is_open(world: World) -> None:
    store = world.open("empty")
    assert store.is_open_storage()
    assert len(store) == 0
    assert list(store) == []
    store.close_storage()
    assert not store.is_open_storage()


def opening_twice_and_closing_twice_are_refused(world: World) -> None:
    store = world.open("twice")
    raises(world.already_open, lambda: store.open_storage(world.plugin, "twice"))
    store.close_storage()
    raises(world.not_open, store.close_storage)
    raises(world.not_open, world.made().close_storage)


def a_with_block_closes_what_is_opened_in_it(world: World) -> None:
    with world.open("with") as store:
        store["k"] = 1
    assert not store.is_open_storage()


def mutable_writes_back_what_the_block_changed(world: World) -> None:
    store = world.open("mutable")
    store["test"] = [1]
    with store.mutable("test") as value:
        value.append(2)
    assert store["test"] == [1, 2]
    with store.mutable("new", default={}) as value:
        value["k"] = {1}
    assert store["new"] == {"k": {1}}


def mutable_writes_nothing_when_the_block_raises(world: World) -> None:
    store = world.open("mutable fails")
    store["test"] = [1]

    def fail() -> None:
        with store.mutable("test") as value:
            value.append(2)
            raise ZeroDivisionError

    raises(ZeroDivisionError, fail)
    assert store["test"] == [1]


def changing_a_value_that_was_read_changes_nothing_stored(world: World) -> None:
    store = world.open("fresh")
    store["k"] = {"list": []}
    store["k"]["list"].append(1)
    assert store["k"] == {"list": []}


def it_is_a_whole_mapping(world: World) -> None:
    store = world.open("mapping")
    store.update({"a": 1, "b": 2, "c": 3}, d=4)
    assert dict(store) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert sorted(store.keys()) == ["a", "b", "c", "d"]
    assert sorted(store.values()) == [1, 2, 3, 4]
    assert sorted(store.items()) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    assert store.pop("a") == 1
    assert store.pop("a", None) is None
    assert store.setdefault("b", 9) == 2
    assert store.setdefault("e", 5) == 5
    del store["b"]
    assert sorted(store) == ["c", "d", "e"]


def clear_empties_this_namespace_and_no_other(world: World) -> None:
    one, other = world.open("clear"), world.open("clear more")
    one.update({str(number): number for number in range(30)})
    other["k"] = 1
    one.clear()
    assert len(one) == 0
    assert dict(other) == {"k": 1}


def a_namespace_may_have_any_name(world: World) -> None:
    names = ("Chat Room", "text_backend", "Über-Plugin", "a/b", "a:b", "..", "a", "A")
    for name in names:
        with world.open(name) as store:
            store["name"] = name
    for name in names:
        assert dict(world.open(name)) == {"name": name}


def types_come_back_as_they_were(world: World) -> None:
    values = [
        None,
        {"enabled": {"Help", "Health"}, "since": datetime(2024, 2, 29, 23, 59, 59, 999999, UTC)},
        (1, 2.5, (b"x", [True])),
        frozenset({1, "a"}),
        datetime(2024, 10, 27, 2, 30, fold=1),
        timedelta(days=1, microseconds=1),
        10**40,
        {1: "a", ("b", 2): "c"},
    ]
    store = world.open("types")
    for number, value in enumerate(values):
        store[str(number)] = value
        read = store[str(number)]
        assert (read, type(read)) == (value, type(value)), value


def ten_threads_share_what_one_opened(world: World) -> None:
    store = world.open("threads")
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(50):
                store[f"{thread}-{number}"] = {"n": number}
                assert store[f"{thread}-{number}"] == {"n": number}
                assert f"{thread}-no" not in store
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert len(store) == 500


#: Promises of all hosts.
PROMISES = [
    what_is_set_is_read_back,
    what_was_set_is_there_when_the_namespace_is_opened_again,
    a_missing_key_is_a_key_error_and_get_has_a_default,
    an_empty_namespace_is_open,
    opening_twice_and_closing_twice_are_refused,
    a_with_block_closes_what_is_opened_in_it,
    mutable_writes_back_what_the_block_changed,
    mutable_writes_nothing_when_the_block_raises,
    changing_a_value_that_was_read_changes_nothing_stored,
    it_is_a_whole_mapping,
    clear_empties_this_namespace_and_no_other,
    a_namespace_may_have_any_name,
    types_come_back_as_they_were,
    ten_threads_share_what_one_opened,
]


def two_openings_of_one_namespace_share_it(world: World) -> None:
    one, other = world.open("shared"), world.open("shared")
    one["k"] = 1
    assert other["k"] == 1
    one.close_storage()
    other["k"] = 2
    assert world.open("shared")["k"] == 2
    other.close_storage()


def two_plugins_of_one_config_share_one_connection(world: World) -> None:
    store = world.open("one connection")
    store["k"] = 1
    again = type(world.plugin)(world.plugin._bot_config).open("one connection")
    assert again._namespace is store._store._namespace
    again.close()
    store["k"] = 2  # closed there, open here
    assert store["k"] == 2


def a_storage_is_true_also_when_it_is_empty(world: World) -> None:
    storage = world.plugin.open("true")
    assert storage
    assert storage.len() == 0
    storage.close()


def what_msgpack_refuses_is_pickled(world: World) -> None:
    store = world.open("pickled")
    store["k"] = [bytearray(b"x")]
    assert type(store["k"][0]) is bytearray
    error = raises(Exception, lambda: store.__setitem__("k", lambda: None))
    assert type(error).__name__ == "ValueTypeError"
    assert store["k"] == [bytearray(b"x")]


def a_closed_storage_says_so_to_a_thread_that_is_late(world: World) -> None:
    storage = world.plugin.open("late")
    storage.close()
    error = raises(Exception, lambda: storage.get("k"))
    assert type(error).__name__ == "StoreNotOpenError"


#: Promises of the bridge alone.
BRIDGE_PROMISES = [
    two_openings_of_one_namespace_share_it,
    two_plugins_of_one_config_share_one_connection,
    a_storage_is_true_also_when_it_is_empty,
    what_msgpack_refuses_is_pickled,
    a_closed_storage_says_so_to_a_thread_that_is_late,
]


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from errbot.bootstrap import get_storage_plugin
    from errbot.storage import StoreAlreadyOpenError, StoreMixin, StoreNotOpenError

    import config  # type: ignore[import-not-found]  # the bot's

    plugin = get_storage_plugin(config)
    for promise in PROMISES + BRIDGE_PROMISES:
        world = World(StoreMixin, plugin, StoreAlreadyOpenError, StoreNotOpenError)
        message = ""
        try:
            promise(world)
        except Exception:
            message = traceback.format_exc()
        # Nothing is closed: Errbot closes less than it opens, and must still end cleanly.
        print(json.dumps([promise.__name__, message]))


if __name__ == "__main__":
    main()
