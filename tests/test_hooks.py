"""Test hutch.hooks: other packages add plugins and observe namespaces; none of them can break hutch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch import hooks
from hutch.errors import PluginError
from hutch.hooks import hooked_plugins, hookimpl, notify, plugin_manager, register_hooks, unregister_hooks


class Listener:
    """Records what it observes."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    @hookimpl
    def hutch_namespace_opened(self, store: str, namespace: str) -> None:
        self.events.append(("opened", store, namespace))

    @hookimpl
    def hutch_namespace_closed(self, namespace: str) -> None:
        self.events.append(("closed", namespace))

    @hookimpl
    def hutch_namespace_failed(self, store: str, namespace: str, error: BaseException) -> None:
        self.events.append(("failed", store, namespace, error))


class Raiser:
    @hookimpl
    def hutch_plugins(self) -> Iterable[Path | type]:
        raise RuntimeError("no plugins today")

    @hookimpl
    def hutch_namespace_opened(self) -> None:
        raise RuntimeError("not listening")


@pytest.fixture(autouse=True)
def _registered_hooks_are_unregistered() -> Iterator[None]:
    before = plugin_manager().get_plugins()
    yield
    for one in plugin_manager().get_plugins() - before:
        unregister_hooks(one)


def test_registered_hooks_get_the_arguments_that_they_name() -> None:
    listener, error = Listener(), OSError("full")
    register_hooks(listener)
    notify("hutch_namespace_opened", store="lmdb", namespace="core")
    notify("hutch_namespace_closed", store="lmdb", namespace="core")
    notify("hutch_namespace_failed", store="lmdb", namespace="core", error=error)
    assert listener.events == [("opened", "lmdb", "core"), ("closed", "core"), ("failed", "lmdb", "core", error)]
    unregister_hooks(listener)
    notify("hutch_namespace_closed", store="lmdb", namespace="more")
    assert len(listener.events) == 3


def test_a_store_calls_its_hooks() -> None:
    import hutch

    listener = Listener()
    register_hooks(listener)
    with hutch.connect("memory://") as store, store.open("core"):
        pass
    assert listener.events == [("opened", "memory", "core"), ("closed", "core")]


def test_a_hook_that_raises_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    first, last = Listener(), Listener()
    for one in (first, Raiser(), last):
        register_hooks(one)
    notify("hutch_namespace_opened", store="lmdb", namespace="core")
    assert first.events == last.events == [("opened", "lmdb", "core")]
    (record,) = caplog.records
    assert record.name == "hutch"
    assert record.getMessage() == "hook hutch_namespace_opened of an object of class Raiser failed"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


def test_hooks_give_folders_and_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def giving(value: Any) -> object:
        class Giver:
            @hookimpl
            def hutch_plugins(self) -> Any:
                return value

        return Giver()

    def interrupted() -> Iterator[Path]:
        yield tmp_path
        raise RuntimeError("no more")

    given = [[tmp_path / "a", Listener], [], None, tmp_path / "b", str(tmp_path / "c"), Raiser, interrupted(), 42]
    for value in given:
        register_hooks(giving(value))
    register_hooks(Raiser())
    assert hooked_plugins() == [tmp_path, Raiser, str(tmp_path / "c"), tmp_path / "b", tmp_path / "a", Listener]
    assert [record.getMessage() for record in caplog.records] == [
        "hook hutch_plugins of an object of class Raiser failed",
        "hook hutch_plugins gave no list of folders and classes",
        "hook hutch_plugins gave no list of folders and classes",
    ]


def test_a_hooked_folder_s_plugins_can_be_named(tmp_path: Path) -> None:
    import hutch

    (tmp_path / "mine.py").write_text("raise SystemExit\n", "utf-8")
    (tmp_path / "mine.plug").write_text("[Core]\nName = Mine\nModule = mine\n", "utf-8")

    class Giver:
        @hookimpl
        def hutch_plugins(self) -> list[Path]:
            return [tmp_path]

    register_hooks(Giver())
    assert hutch.find_plugins().find("mine").path == tmp_path / "mine.plug"


def test_hooks_are_registered_once() -> None:
    listener = Listener()
    register_hooks(listener)
    with pytest.raises(PluginError, match="registered already: an object of class Listener"):
        register_hooks(listener)
    unregister_hooks(listener)
    with pytest.raises(PluginError, match="not registered: an object of class Listener"):
        unregister_hooks(listener)
    register_hooks(listener)


class Misspelt:
    @hookimpl
    def hutch_namespace_open(self) -> None: ...


class AsksTooMuch:
    @hookimpl
    def hutch_namespace_opened(self, key: str) -> None: ...


class Wrapper:
    @hookimpl(wrapper=True)
    def hutch_plugins(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Misspelt, "there is no hook hutch_namespace_open. Did you mean 'hutch_namespace_opened'? The hooks are "),
        (AsksTooMuch, "Argument(s) {'key'} are declared in the hookimpl but can not be found in the hookspec"),
        (object, "there is no function marked hutch.hookimpl; the hooks are hutch_plugins, hutch_namespace_opened"),
        (Wrapper, "hutch_plugins is a wrapper; each hook is called by itself"),
    ],
)
def test_invalid_hooks_are_refused_and_not_registered(wrong: type, message: str) -> None:
    instance = wrong()
    with pytest.raises(PluginError, match="do not fit: ") as caught:
        register_hooks(instance)
    assert message in str(caught.value)
    assert not plugin_manager().is_registered(instance)
    notify("hutch_namespace_opened", store="lmdb", namespace="core")
    assert hooked_plugins() == []
    register_hooks(Listener())


def test_threads_get_one_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_manager", None)
    barrier = threading.Barrier(8)
    managers: list[object] = []

    def ask() -> None:
        barrier.wait()
        managers.append(plugin_manager())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(managers) == 8
    assert len(set(managers)) == 1


# --- entry points, in a process of their own ---


def site(folder: Path, project: str, entry_points: str, code: str) -> None:
    """Make `folder` look like a site-packages into which `project`, one module, was installed."""
    info = folder / f"{project}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(f"[hutch]\n{entry_points}\n", "utf-8")
    (folder / f"{project}.py").write_text(code, "utf-8")


def ran(program: str, *sites: Path) -> Any:
    """Return what `program` prints as JSON, with the packages in `sites`; a warning ends it."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sites))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


LISTENING = """
import hutch
events = []
@hutch.hookimpl
def hutch_namespace_opened(store, namespace):
    events.append([store, namespace])
"""


def test_entry_points_are_loaded_when_a_store_opens(tmp_path: Path) -> None:
    site(tmp_path, "listening", "listening = listening", LISTENING)
    program = """
import hutch, json, sys
with hutch.connect("memory://") as store, store.open("core"):
    pass
print(json.dumps(sys.modules["listening"].events))
"""
    assert ran(program, tmp_path) == [["memory", "core"]]


def test_a_module_may_register_hooks_while_it_is_loaded(tmp_path: Path) -> None:
    code = f"{LISTENING}\nimport sys\nhutch.register_hooks(sys.modules[__name__])\n"
    site(tmp_path, "listening", "listening = listening", code)
    program = """
import json
from hutch.hooks import notify
notify("hutch_namespace_opened", store="s", namespace="n")
import listening
print(json.dumps(listening.events))
"""
    assert ran(program, tmp_path) == [["s", "n"]]


def test_hooks_that_are_installed_twice_are_called_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        site(tmp_path / name, "listening", "listening = listening", LISTENING)
    site(tmp_path / "b", "another", "other_name = listening", "")
    program = """
import json
from hutch.hooks import notify
notify("hutch_namespace_opened", store="s", namespace="n")
import listening
print(json.dumps(listening.events))
"""
    assert ran(program, tmp_path / "a", tmp_path / "b") == [["s", "n"]]


def test_a_broken_entry_point_is_a_warning_and_the_others_are_loaded(tmp_path: Path) -> None:
    site(tmp_path, "broken_one", "one = broken_one", "1 / 0\n")
    site(tmp_path, "broken_two", "two = broken_two", "import sys\nsys.exit()\n")
    site(tmp_path, "broken_three", "three = broken_three:gone", "")
    misspelt = "import hutch\n@hutch.hookimpl\ndef hutch_namespace_opens(): pass\n"
    site(tmp_path, "broken_two_b", "four = broken_two_b", misspelt)
    site(tmp_path, "listening", "listening = listening", LISTENING)
    program = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from hutch.hooks import notify
    notify("hutch_namespace_opened", store="s", namespace="n")
    notify("hutch_namespace_opened", store="s", namespace="n")
import listening
print(json.dumps([listening.events, [[w.category.__name__, str(w.message)] for w in caught]]))
"""
    message, warned = ran(program, tmp_path)
    assert message == [["s", "n"]] * 2
    assert {category for category, _ in warned} == {"RuntimeWarning"}
    texts = sorted(text for _, text in warned)
    assert len(texts) == 4
    assert texts[0].startswith("hooks of entry point four = broken_two_b cannot be used: PluginError(")
    assert texts[1:] == [
        "hooks of entry point one = broken_one cannot be used: ZeroDivisionError('division by zero')",
        "hooks of entry point three = broken_three:gone cannot be used: "
        "AttributeError(\"module 'broken_three' has no attribute 'gone'\")",
        "hooks of entry point two = broken_two cannot be used: SystemExit()",
    ]


def test_entry_points_that_cannot_be_read_are_a_warning(tmp_path: Path) -> None:
    site(tmp_path, "garbled", "x = y", "")
    (tmp_path / "garbled-1.0.dist-info" / "entry_points.txt").write_bytes(b"[hutch]\n\xff = x\n")
    program = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from hutch.hooks import hooked_plugins
    found = hooked_plugins()
print(json.dumps([found, [str(w.message) for w in caught]]))
"""
    found, (warned,) = ran(program, tmp_path)
    assert found == []
    assert warned.startswith("the entry points of group hutch cannot be read: UnicodeDecodeError")
