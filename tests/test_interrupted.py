"""Test that a signal handler's exception comes out of hutch unchanged, from opening, plugins' code and hooks.

Each test raises at every point at which CPython may run a handler, one after the other. The conformance kit tests the
same for the verbs of each engine.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytest

import hutch
from hutch.discovery import entry_points, factory
from hutch.hooks import notify, register_hooks, unregister_hooks
from hutch.testing.signal_points import Interrupt, Visit, count_points, points, raise_interrupt, run_at

# The files that the interrupted call had open are closed by the collector.
pytestmark = [
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

#: One of each class that some `except` in hutch catches.
KINDS: list[BaseException] = [
    ValueError("limit"),
    KeyError("limit"),
    TimeoutError("limit"),
    PermissionError("limit"),
    FileNotFoundError("limit"),
    ImportError("limit"),
    SystemExit(1),
    MemoryError(),
]

DUCK = """
class Storage:
    def __init__(self): self.data = {}
    def set(self, key, value): self.data[key] = value
    def get(self, key): return self.data[key]
    def remove(self, key): del self.data[key]
    def len(self): return len(self.data)
    def keys(self): return self.data.keys()
    def close(self): pass

class Duck:
    def __init__(self, config): self.spaces = {}
    def open(self, namespace): return self.spaces.setdefault(namespace, Storage())
"""


@pytest.fixture
def duck(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "duck.plug").write_text("[Core]\nName = Duck\nModule = duck\nClass = Duck\n")
    (tmp_path / "duck.py").write_text(DUCK)
    return {"STORAGE": "Duck", "EXTRA_PLUGIN_DIRS": [str(tmp_path)]}


@pytest.fixture(autouse=True)
def _drop_tracebacks() -> Iterator[None]:
    yield
    for error in KINDS:
        error.__traceback__ = error.__context__ = None
    gc.collect()


def interrupt_everywhere(work: Callable[[], object], most: int = 150) -> None:
    """Raise each class at points of `work`, and see that it comes out of it."""
    work()
    number = count_points(work)
    assert number
    for at in range(1, number + 1, -(-number // most)):
        # A different class at each point of a run, so that over the runs each is raised at many.
        error = KINDS[at % len(KINDS)]

        def handler(_frame: object = None, error: BaseException = error) -> None:
            raise error.with_traceback(None)

        visit = Visit(at, handler)
        came_out: BaseException | None = None
        dropped: list[Any] = []
        sys.unraisablehook = dropped.append
        try:
            visit.run(work)
        except BaseException as raised:
            came_out = raised
        finally:
            sys.unraisablehook = sys.__unraisablehook__
        # Python drops what is raised while an object is collected; copy.py and os.environ catch KeyError, pathlib and
        # posixpath catch OSError and ValueError.
        if (
            visit.where is not None
            and "/copy.py:" not in visit.where
            and "<frozen os>:" not in visit.where
            and "<frozen _collections_abc>:" not in visit.where
            and "/pathlib" not in visit.where
            and "posixpath" not in visit.where
            and all(one.exc_value is not error for one in dropped)
        ):
            assert came_out is error, f"{came_out!r} in place of {error!r}, at {visit.where}"


def test_connect_and_open(duck: dict[str, object]) -> None:
    def work() -> None:
        with hutch.connect(duck) as store, store.open("core"):
            pass

    interrupt_everywhere(work)


def test_the_verbs_of_a_plugin_with_six_of_them(duck: dict[str, object]) -> None:
    with hutch.connect(duck) as store, store.open("core") as ns:

        def work() -> None:
            ns["k"] = [1]
            ns["k"]
            ns.get("missing")
            "missing" in ns  # noqa: B015 - asking is what is tested
            ns.get_many(["k", "missing"])
            ns.remove_many(["missing"])
            list(ns.items())
            list(ns.scan())
            ns.compare_and_set("k", [1], [2])
            ns.modify("k", lambda value: [*value, 3])
            with ns.mutable("k") as value:
                value.append(4)
            ns.setdefault("s", 1)
            ns.pop("s", None)
            ns.popitem()
            len(ns)

        interrupt_everywhere(work, most=400)


def test_a_search_for_plugins_and_a_missing_one() -> None:
    def work() -> None:
        with pytest.raises(hutch.PluginNotFoundError):
            hutch.connect("memry://")

    interrupt_everywhere(work)


def test_reads_with_a_key_that_is_wrong(duck: dict[str, object]) -> None:
    with hutch.connect(duck) as store, store.open("core") as ns:
        for key in ("", 7):

            def work(key: Any = key) -> None:
                with pytest.raises(hutch.StoreError):
                    ns[key]

            interrupt_everywhere(work)


class Listener:
    @hutch.hookimpl
    def hutch_namespace_opened(self, namespace: str) -> None:
        str(namespace)

    @hutch.hookimpl
    def hutch_plugins(self) -> Iterator[Path]:
        return iter(())


def test_hooks() -> None:
    listener = Listener()

    def work() -> None:
        register_hooks(listener)
        notify("hutch_namespace_opened", store="memory", namespace="core")
        unregister_hooks(listener)

    def once() -> None:
        from contextlib import suppress

        with suppress(hutch.PluginError):
            unregister_hooks(listener)
        work()

    interrupt_everywhere(once)


def test_whether_there_are_entry_points() -> None:
    def work() -> None:
        factory._hooks_are_installed.cache_clear()
        entry_points._known.clear()
        factory.hooks_are_used()
        entry_points.may_have_entry_points(entry_points.PLUGINS_GROUP)

    interrupt_everywhere(work)


VALUE = [(number, {number}, date(2024, 2, 29)) for number in range(3)]
LEFT_ALONE: dict[str, Callable[[hutch.Namespace], object]] = {
    "get": lambda core: core["k"],
    "set": lambda core: core.__setitem__("k", VALUE),
    "items": lambda core: list(core.items()),
    "update": lambda core: core.update(k=VALUE, other=VALUE),
    "modify": lambda core: core.modify("k", lambda value: value),
    "pop": lambda core: core.pop("gone", None),
}


@pytest.mark.parametrize("verb", LEFT_ALONE)
@pytest.mark.parametrize("engine", ["memory", "sqlite", "lmdb", "shelf"])
def test_an_exception_that_left_a_verb_is_freed_without_the_garbage_collector(
    engine: str, verb: str, tmp_path: Path
) -> None:
    """In a reference cycle it would keep its stack frames, and so a closed store, until the collector runs.

    The collector would then run the store's finalizer within some later verb, and Python drops what a signal handler
    raises in a finalizer.
    """
    url = "memory://" if engine == "memory" else f"{engine}://{tmp_path}/state"
    with hutch.connect(url) as store, store.open("core") as core:
        core["k"] = VALUE

        def work() -> object:
            return LEFT_ALONE[verb](core)

        places = points(work, 60)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for point in places:
                with suppress(Interrupt):
                    run_at(point, raise_interrupt, work)
            gc.collect()
            left = [item for item in gc.garbage if isinstance(item, BaseException | FrameType | TracebackType)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert left == []
