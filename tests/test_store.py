"""Test connect, Store and load_plugin: opening, closing, events and release, also when a plugin misbehaves."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import stat
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.config import read_config
from hutch.testing.conformance.kit import together
from hutch.testing.signal_points import Interrupt, Visit, points, raise_interrupt, run_at

DUCK = '''
class Storage:
    """Errbot's six verbs, and no class of hutch's."""

    def __init__(self, data):
        self.data = data

    def set(self, key, value): self.data[key] = value
    def get(self, key): return self.data[key]
    def remove(self, key): del self.data[key]
    def len(self): return len(self.data)
    def keys(self): return self.data.keys()
    def close(self): CLOSED.append(id(self))

CLOSED = []

class DuckPlugin:
    def __init__(self, config):
        self.config = config
        self.spaces = {}

    def open(self, namespace):
        return Storage(self.spaces.setdefault(namespace, {}))
'''


def plugin(folder: Path, code: str = DUCK, name: str = "Duck") -> dict[str, Any]:
    """Return a config that selects a plugin with that code."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name.lower()}.plug").write_text(f"[Core]\nName = {name}\nModule = {name.lower()}_storage\n")
    (folder / f"{name.lower()}_storage.py").write_text(code)
    return {"STORAGE": name, "EXTRA_PLUGIN_DIRS": [str(folder)]}


@pytest.fixture
def duck(tmp_path: Path) -> Iterator[hutch.Store]:
    with hutch.connect(plugin(tmp_path / "plugins")) as store:
        yield store


# --- plugins of others ---


def test_a_plugin_with_six_verbs_is_a_store_with_all_of_them(duck: hutch.Store) -> None:
    with duck.open("core") as space:
        space.update(a=1, b=[2], c=None)
        assert dict(space.scan(prefix="b")) == {"b": [2]}
        assert space.modify("a", lambda n: n + 1) == 2
        with space.mutable("b") as value:
            value.append(3)
        assert space.pop("c", 1) is None
        assert space.compare_and_set("b", [2, 3], hutch.MISSING)
        assert (dict(space), len(space), space.capabilities) == ({"a": 2}, 1, frozenset())
        assert list(space) == ["a"]
        for key in list(space):
            del space[key]
        with pytest.raises(KeyError):
            del space["a"]
    assert duck.capabilities == frozenset()
    assert duck.stats() == {"engine": "Duck", "location": "Duck://"}


def test_what_a_plugin_of_six_verbs_cannot_do_is_done_or_said(duck: hutch.Store) -> None:
    with pytest.raises(hutch.CapabilityError, match="the Duck engine cannot list its namespaces"):
        duck.namespaces()
    with duck.open("core") as space:
        space.update(a=1, b=2)
        with pytest.raises(hutch.StoreAlreadyOpenError):
            duck.drop("core")
    duck.drop("core")
    with duck.open("core") as space:
        assert dict(space) == {}


def test_a_plugin_reads_the_config_of_its_host(tmp_path: Path) -> None:
    config = types.SimpleNamespace(
        STORAGE="Duck",
        STORAGE_CONFIG={"basedir": "x"},
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(tmp_path / "plugins"),
        BOT_DATA_DIR="/srv/bot",
    )
    plugin(tmp_path / "plugins")
    with hutch.connect(config) as store:
        seen = store._factory.config
        assert (seen.BOT_DATA_DIR, seen.STORAGE, seen.STORAGE_CONFIG) == ("/srv/bot", "Duck", {"basedir": "x"})
        assert seen.plugin_name == "Duck"
        with pytest.raises(AttributeError, match="BOT_IDENTITY"):
            seen.BOT_IDENTITY  # noqa: B018 - reading it is the test
    with hutch.connect(plugin(tmp_path / "plugins")) as store, pytest.raises(AttributeError):
        store._factory.config.BOT_DATA_DIR  # noqa: B018


FAULTS = {
    "raises": ("raise OSError('disk of redis://user:hunter2@host is gone')", "open('core') raised OSError: disk of"),
    "exits": ("raise SystemExit(3)", "open('core') raised SystemExit"),
    "key error": ("raise KeyError('x')", "open('core') raised KeyError"),
    "nothing": ("pass", "returned None; does it lack a return?"),
    "number": ("return 5", "returned an int without set, get, remove, len, keys, close"),
    "class": ("return Storage", "returned the class Storage, not an instance of it"),
    "dict": ("return {}", "returned a dict without set, remove, len, close"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_open_that_fails_names_the_plugin_and_opens_nothing(tmp_path: Path, fault: str) -> None:
    body, message = FAULTS[fault]
    config = plugin(tmp_path / "plugins", DUCK.replace("return Storage(self.spaces.setdefault(namespace, {}))", body))
    with hutch.connect(config) as store:
        for _ in range(2):
            with pytest.raises(hutch.PluginError) as raised:
                store.open("core")
            assert "Duck" in str(raised.value)
            assert message in str(raised.value)
            assert "hunter2" not in str(raised.value)
        with pytest.raises(hutch.PluginError):
            store.drop("core")
    # Other plugins are as usable as ever.
    with hutch.connect("memory://") as store, store.open("core") as space:
        space["k"] = 1


def test_an_async_open_is_refused_and_leaves_no_coroutine_unawaited(tmp_path: Path) -> None:
    config = plugin(tmp_path / "plugins", DUCK.replace("def open", "async def open"))
    with hutch.connect(config) as store, pytest.raises(hutch.PluginError, match="open must not be async"):
        store.open("core")
    gc.collect()


VERBS: dict[str, tuple[str, Callable[[hutch.Namespace], object]]] = {
    "set": ("def set(self, key, value)", lambda space: space.__setitem__("k", 1)),
    "get": ("def get(self, key)", lambda space: space["k"]),
    "remove": ("def remove(self, key)", lambda space: space.__delitem__("k")),
    "len": ("def len(self)", len),
    "keys": ("def keys(self)", list),
    "close": ("def close(self)", lambda space: space.close()),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_verb_of_a_plugin_raises_is_a_plugin_error_that_names_it(tmp_path: Path, verb: str) -> None:
    head, use = VERBS[verb]
    code = DUCK.replace(f"{head}: ", f"{head}: raise RuntimeError('secret'); ")
    with hutch.connect(plugin(tmp_path / "plugins", code)) as store:
        space = store.open("core")
        with pytest.raises(hutch.PluginError) as raised:
            use(space)
        where = f"{verb} of key 'k'" if verb in ("set", "get", "remove") else verb
        assert f"the Duck plugin, namespace 'core': {where} raised RuntimeError" in str(raised.value)
        assert isinstance(raised.value.__cause__, RuntimeError)
        if verb in ("get", "set"):
            assert "secret" not in str(raised.value), "it may be the value"
        if verb == "close":
            assert not space.is_open_storage()
            with pytest.raises(hutch.PluginError):
                store.open("core").close()
        else:
            space.close()


@pytest.mark.parametrize("verb", ["set", "len", "keys"])
def test_a_key_error_where_no_key_can_be_missing_is_a_fault_of_the_plugin(tmp_path: Path, verb: str) -> None:
    head, use = VERBS[verb]
    code = DUCK.replace(f"{head}: ", f"{head}: raise KeyError('k'); ")
    with (
        hutch.connect(plugin(tmp_path / "plugins", code)) as store,
        store.open("core") as space,
        pytest.raises(hutch.PluginError, match=rf"{verb}( of key 'k')? raised KeyError"),
    ):
        use(space)


def test_nonsense_that_a_verb_returns_is_a_plugin_error(tmp_path: Path) -> None:
    code = DUCK.replace("return len(self.data)", "return 'many'").replace("return self.data.keys()", "return 5")
    with hutch.connect(plugin(tmp_path / "plugins", code)) as store, store.open("core") as space:
        for use, verb in ((len, "len"), (list, "keys")):
            with pytest.raises(hutch.PluginError, match=f"{verb} raised"):
                use(space)


def test_keys_that_a_plugin_lists_twice_are_given_once(tmp_path: Path) -> None:
    code = DUCK.replace("return self.data.keys()", "return [*self.data, *self.data]")
    with hutch.connect(plugin(tmp_path / "plugins", code)) as store, store.open("core") as space:
        space.update(a=1, b=2)
        assert list(space) == ["a", "b"]


def test_a_plugin_that_iterates_over_its_live_dict_may_be_changed_meanwhile(duck: hutch.Store) -> None:
    with duck.open("core") as space:
        space.update(dict.fromkeys("abc", 1))
        for key in space:
            space[key + "+"] = 2
            del space[key]
        assert sorted(space) == ["a+", "b+", "c+"]


# --- closing ---


def test_a_store_closes_its_handles_and_its_factory_also_when_one_raises(tmp_path: Path) -> None:
    code = DUCK.replace("CLOSED.append(id(self))", "raise RuntimeError('stuck')") + (
        "\n    def close(self):\n        CLOSED.append('factory')\n"
    )
    store = hutch.connect(plugin(tmp_path / "plugins", code))
    spaces = [store.open("a"), store.open("b")]
    module = sys.modules[type(store._factory).__module__]
    with pytest.warns(ResourceWarning, match="was still open when its store closed"), pytest.raises(hutch.PluginError):
        store.close()
    assert module.CLOSED == ["factory"]
    store.close()
    assert module.CLOSED == ["factory"], "a second close does nothing"
    assert [space.is_open_storage() for space in spaces] == [False, False], "closed, whatever the first one raised"


def test_a_collected_store_closes_its_factory_silently(tmp_path: Path) -> None:
    code = DUCK + "\n    def close(self):\n        CLOSED.append('factory')\n"
    store = hutch.connect(plugin(tmp_path / "plugins", code))
    module = sys.modules[type(store._factory).__module__]
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    assert module.CLOSED == ["factory"]


def test_a_handle_keeps_its_store_alive() -> None:
    space = hutch.connect("memory://").open("core")
    gc.collect()
    space["k"] = 1
    assert space["k"] == 1
    space.close()


def test_a_handle_that_is_forgotten_together_with_its_store_warns_once() -> None:
    spaces = [hutch.connect("memory://").open("core")]
    with pytest.warns(
        ResourceWarning, match="unclosed <hutch.Namespace 'core' of memory://, open>; use it in a with block"
    ) as warned:
        spaces.clear()
    assert len(warned) == 1


def test_a_handle_that_outlives_the_interpreter_s_modules_ends_silently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hutch.connect("memory://") as store, store.open("core") as core, monkeypatch.context() as end:
        end.setattr("hutch.namespace.lifecycle._Closed", None)  # the interpreter sets the names of modules to None
        core.__del__()


def test_a_store_is_used_no_more_once_it_is_closed() -> None:
    store = hutch.connect("memory://")
    store.close()
    uses: list[Callable[[], object]] = [
        *(store.namespaces, store.stats, lambda: store.open("a"), lambda: store.drop("a")),
    ]
    for use in uses:
        with pytest.raises(hutch.StoreNotOpenError, match="this store is closed; connect again"):
            use()


def test_closing_twice_is_harmless_and_close_storage_alone_is_strict() -> None:
    store = hutch.connect("memory://")
    with store, store.open("core") as core:
        core["k"] = 1
        core.close()
        core.close()
        with core:
            pass
        with pytest.raises(hutch.StoreNotOpenError, match="'core' is closed"):
            core.close_storage()
        with store.open("core") as again:
            assert again["k"] == 1
        store.close()
    store.close()
    with store:
        pass


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_is_refused_with_the_way_out(make: Callable[[Any], Any]) -> None:
    with hutch.connect("memory://") as store, store.open("core") as core:
        core["k"] = [1]
        with pytest.raises(TypeError, match=r"a namespace cannot be copied.*dict\(namespace\) is a copy of its items"):
            make(core)
        assert make(dict(core)) == {"k": [1]}
        with pytest.raises(TypeError, match=r"a store cannot be copied.*hutch.connect\(\) makes another one"):
            make(store)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_wherever_a_handler_raises_in_open_and_close_the_name_is_free_and_nothing_stays_open(tmp_path: Path) -> None:
    """With the traceback kept, as a notebook keeps the last one."""
    code = DUCK.replace("return Storage(", "OPENED.append(namespace); return Storage(").replace(
        "CLOSED = []", "CLOSED, OPENED = [], []"
    )
    config = plugin(tmp_path / "plugins", code)
    kept: list[BaseException] = []
    in_plugin = 0
    with hutch.connect(config) as store:

        def work() -> None:
            store.open("core").close()

        for point in points(work):
            visit = Visit(point, raise_interrupt)
            with contextlib.suppress(Interrupt):
                try:
                    visit.run(work)
                except Interrupt as error:
                    kept.append(error)
                    raise
            in_plugin += "duck_storage.py" in str(visit.where)
            # If the handler raised before `close` began, the handle is open, and can be closed.
            for handle in store._left_open():
                assert handle.is_open_storage(), visit.where
                assert any(frame.name == "close" for frame in traceback.extract_tb(kept[-1].__traceback__)), visit.where
                handle.close()
            store.open("core").close()
        module = sys.modules[type(store._factory).__module__]
        assert len(kept) > 20
        # The plugin must close what its own interrupted code had opened.
        assert len(module.OPENED) - len(module.CLOSED) <= in_plugin


def test_a_handler_that_opens_and_closes_namespaces_meanwhile(tmp_path: Path) -> None:
    """The same namespace is refused, or opened before or after; another one opens and closes as usual."""
    with hutch.connect(plugin(tmp_path / "plugins")) as store:
        outcomes: set[str] = set()

        def work() -> None:
            with store.open("core") as core:
                core["k"] = 1

        def nested() -> None:
            with store.open("other") as other:
                other["k"] = 2
            try:
                with store.open("core") as core:
                    core["k"] = 3
                outcomes.add("open")
            except hutch.StoreAlreadyOpenError:
                outcomes.add("refused")

        for point in points(work):
            run_at(point, nested, work)
            assert store._left_open() == []
            assert not store._claims
        assert outcomes == {"open", "refused"}


def test_a_store_says_what_it_is_and_no_secret() -> None:
    with hutch.connect("memory://") as store:
        assert repr(store) == "<hutch.Store memory://, open>"
        with store.open("a b") as space:
            assert repr(space) == "<hutch.Namespace 'a b' of memory://, open>"
    assert repr(store) == "<hutch.Store memory://, closed>"
    assert repr(space) == "<hutch.Namespace 'a b' of memory://, closed>"


# --- one handle a namespace ---


def test_of_threads_that_open_one_namespace_at_once_one_gets_it(tmp_path: Path) -> None:
    """Also while the engine's own open is slow, and after one that failed."""
    code = "import time\nFAIL = []\n" + DUCK.replace(
        "    def open(self, namespace):",
        "    def open(self, namespace):\n        time.sleep(0.05)\n        if FAIL: raise OSError(FAIL.pop())",
    )
    with hutch.connect(plugin(tmp_path / "plugins", code)) as store:
        outcomes: list[str] = []

        def work() -> None:
            try:
                space = store.open("core")
            except hutch.StoreError as error:
                outcomes.append(type(error).__name__)
            else:
                outcomes.append("open")
                spaces.append(space)

        for fail in (False, True):
            outcomes.clear()
            spaces: list[hutch.Namespace] = []
            if fail:
                sys.modules[type(store._factory).__module__].FAIL.append("once")
            together(*[work] * 8)
            if fail:
                assert outcomes.count("PluginError") == 1
            else:
                assert sorted(outcomes) == ["StoreAlreadyOpenError"] * 7 + ["open"]
            for space in spaces:
                space.close()
        store.open("core").close()
        # Different namespaces do not wait for each other.
        began = time.monotonic()
        for space in together(*[lambda n=n: store.open(f"n{n}") for n in range(8)]):
            space.close()
        assert time.monotonic() - began < 0.3


def test_a_store_that_is_closed_while_a_thread_opens_closes_what_was_opened(tmp_path: Path) -> None:
    code = "import threading\nINSIDE, GO = threading.Event(), threading.Event()\n" + DUCK.replace(
        "    def open(self, namespace):", "    def open(self, namespace):\n        INSIDE.set(); GO.wait(20)"
    )
    store = hutch.connect(plugin(tmp_path / "plugins", code))
    module = sys.modules[type(store._factory).__module__]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            store.open("core")
        except hutch.StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert module.INSIDE.wait(10)
    store.close()
    module.GO.set()
    thread.join(10)
    assert [type(error) for error in errors] == [hutch.StoreNotOpenError]
    assert len(module.CLOSED) == 1, "what was opened too late was closed"


# --- hooks ---


def test_hooks_run_per_namespace_and_never_per_key() -> None:
    events: list[tuple[Any, ...]] = []

    class Listener:
        @hutch.hookimpl
        def hutch_namespace_opened(self, store: str, namespace: str) -> None:
            events.append(("opened", store, namespace))

        @hutch.hookimpl
        def hutch_namespace_closed(self, store: str, namespace: str) -> None:
            events.append(("closed", store, namespace))

        @hutch.hookimpl
        def hutch_namespace_failed(self, store: str, namespace: str, error: BaseException) -> None:
            events.append(("failed", store, namespace, type(error)))

    listener = Listener()
    hutch.register_hooks(listener)
    try:
        with hutch.connect("memory://") as store:
            with store.open("a") as space:
                space["k"] = 1
                space.update(l=2)
                dict(space)
                with pytest.raises(hutch.StoreAlreadyOpenError):
                    store.open("a")
            store._factory.open = lambda namespace: None
            with pytest.raises(hutch.PluginError):
                store.open("b")
    finally:
        hutch.unregister_hooks(listener)
    assert events == [
        ("opened", "memory", "a"),
        ("closed", "memory", "a"),
        ("failed", "memory", "b", hutch.PluginError),
    ]


# --- per namespace ---


def test_each_namespace_has_the_codec_of_the_first_rule_that_fits() -> None:
    config = {
        "STORAGE": "memory",
        "CODEC": "json",
        "NAMESPACES": {"bot:*": {"CODEC": "msgpack"}, "bot:old": {"CODEC": "json"}, "pickles": {"CODEC": "pickle"}},
    }
    with hutch.connect(config) as store:
        for name, header in (("core", 0x4A), ("bot:a", 0x92), ("bot:old", 0x92), ("pickles", 0x50)):
            with store.open(name) as space:
                space["k"] = [1]
                assert space["k"] == [1]
                assert store._factory._root[name].frames["k"][0] == header


@pytest.mark.parametrize(
    "wrong",
    [
        {"CODEC": "msgpak"},
        {"CODEC": {"name": "pickle", "key": "hush"}},
        {"NAMESPACES": {"a": {"CODEC": {"name": "json", "key": "hush"}}}},
        {"LAYERS": ["cash"]},
        {"NAMESPACES": {"a": {"LAYERS": ["cash"]}}},
    ],
    ids=str,
)
def test_an_unavailable_codec_or_layer_is_refused_before_anything_is_opened(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    path = tmp_path / "state"
    with pytest.raises(hutch.ConfigError) as raised:
        hutch.connect({"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": path}, **wrong})
    assert "hush" not in str(raised.value)
    assert not path.exists()


# --- stage 1 alone ---


def test_load_plugin_takes_options_or_any_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    (tmp_path / "hutch.toml").write_text('STORAGE = "memory"\nCODEC = "json"\n[STORAGE_CONFIG]\n')
    host = types.SimpleNamespace(STORAGE="Nothing", STORAGE_CONFIG={"path": path}, BOT_DATA_DIR="/srv")
    monkeypatch.chdir(tmp_path)
    forms: list[Any] = [
        {"path": path},
        {"path": "state"},
        {"STORAGE_CONFIG": {"path": path}},
        {"storage": "memory", "storage_config": {"path": path}, "codec": "json"},
        host,
        {"STORAGE_CONFIG": {"path": str(path)}, "CODEC": "msgpack"},
    ]
    for form in forms:
        factory = hutch.load_plugin("LMDB", form)
        with factory.open("core") as storage:
            storage.set("k", [1])
            assert storage.get("k") == [1]
        factory.close()
        assert factory._storage_config["path"] == path
    memory = hutch.load_plugin("memory", tmp_path / "hutch.toml")
    with memory.open("core") as storage:
        storage.set("k", [1])
        assert storage.read("k")[0] == 0x4A, "the codec of the file"
    assert type(hutch.load_plugin("memory")).__name__ == "MemoryPlugin"
    with pytest.raises(hutch.PluginNotFoundError, match=r"lmbd.*Did you mean 'lmdb'\?"):
        hutch.load_plugin("lmbd")
    with pytest.raises(hutch.ConfigError, match="'paht'"):
        hutch.load_plugin("lmdb", {"paht": path})


def test_a_factory_alone_opens_what_a_store_opens(tmp_path: Path) -> None:
    with hutch.load_plugin("lmdb", {"path": tmp_path}) as factory:
        factory.open("x").set("k", [1])
        with hutch.connect(f"lmdb://{tmp_path}") as store, store.open("x") as space:
            assert space["k"] == [1]


def test_plugins_can_be_listed_without_a_config() -> None:
    found = hutch.find_plugins()
    assert isinstance(found, hutch.Discovery)
    assert found.find("lmdb").name == "lmdb"


# --- the default store ---


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o377])
def test_the_default_store_is_its_owner_s_alone(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUTCH_STORAGE", "HUTCH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "share").mkdir()
    before = os.umask(umask)
    try:
        with hutch.connect() as store, store.open("core") as core:
            core["k"] = 1
    finally:
        os.umask(before)
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folders if path.name in ("hutch", "store")}
    assert made == {"hutch": 0o700, "store": 0o700}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")
def test_a_folder_that_exists_and_one_that_the_caller_named_keep_to_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HUTCH_STORAGE", "HUTCH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    default = Path(str(read_config(None, environ={"XDG_DATA_HOME": str(tmp_path)}).options["path"]))
    default.mkdir(parents=True)
    default.chmod(0o750)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    before = os.umask(0o002)
    try:
        for config in (None, f"lmdb://{tmp_path}/named"):
            with hutch.connect(config) as store, store.open("core") as core:
                core["k"] = 1
    finally:
        os.umask(before)
    assert stat.S_IMODE(default.stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "named").stat().st_mode) == 0o775


@pytest.mark.parametrize(
    "config",
    [
        "lmbd://state",
        "files://state",
        "missing.yaml",
        "lmdb://file/state",
        "sqlite://file/state.db",
        "sqlite://file",
        "shelf://file/state",
        "redis://127.0.0.1:1/0?retry_s=0",
        {"STORAGE": "nothing", "EXTRA_PLUGIN_DIRS": ["no-folder"]},
    ],
    ids=str,
)
def test_a_store_that_cannot_be_opened_prints_one_traceback(
    config: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a database")
    with pytest.raises(hutch.StoreError) as caught, hutch.connect(config) as store:
        assert store["core"].get("key") is None
    assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1
