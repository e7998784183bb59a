"""Test hutch.discovery.load: a plugin's module is imported by file location, and its faults are reported by name."""

from __future__ import annotations

import importlib.machinery
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

from hutch.contract import StorageBase, StoragePluginBase
from hutch.discovery.descriptor import PluginInfo, read_descriptor
from hutch.discovery.foreign import as_storage, open_validated
from hutch.discovery.load import build_factory, load_factory
from hutch.discovery.search import discover
from hutch.errors import ConfigError, PluginError, PluginLoadError, StorageUnavailableError

FACTORY = """
from hutch import StoragePluginBase

class FilesPlugin(StoragePluginBase):
    def open(self, namespace):
        raise NotImplementedError
"""


def plugin(folder: Path, code: str, core: str = "", more: str = "", module: str = "files_storage") -> PluginInfo:
    """Return a plugin with `code` in its module."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(dedent(code), "utf-8")
    path = folder / f"{module}.plug"
    path.write_text(f"[Core]\nName = Files\nModule = {module}\n{core}\n{more}", "utf-8")
    return read_descriptor(path)


def ours() -> set[str]:
    """Return the modules that the loader has put into sys.modules."""
    return {name for name in sys.modules if name.startswith("hutch_plugin_")}


@pytest.fixture(autouse=True)
def _sys_is_as_it_was() -> Iterator[None]:
    path, modules = list(sys.path), ours()
    yield
    for name in ours() - modules:
        del sys.modules[name]
    assert sys.path == path


def refusal(info: PluginInfo, cause: type[BaseException] | tuple[type[BaseException], ...] | None = None) -> str:
    """Return the message with which loading `info` is refused."""
    with pytest.raises(PluginLoadError) as caught:
        load_factory(info)
    actual = caught.value.__cause__
    assert isinstance(actual, cause) if cause else actual is None
    message = str(caught.value)
    assert message.startswith("plugin 'Files' cannot be loaded: ")
    assert str(info.path) in message, "the message names the descriptor"
    assert caught.value.name == "Files"
    assert "\n" not in message
    assert len(message) < 1_000
    return message


# --- importing ---


def test_the_class_comes_from_the_file_beside_the_descriptor(tmp_path: Path) -> None:
    info = plugin(tmp_path, FACTORY)
    factory = load_factory(info)
    assert factory.__name__ == "FilesPlugin"
    assert issubclass(factory, StoragePluginBase)
    assert sys.modules[factory.__module__].__file__ == str(info.module_file)


def test_a_built_in_plugin_loads_builds_and_opens() -> None:
    memory = discover(environ={}).find("memory")
    factory = build_factory(memory, {})
    assert isinstance(factory, StoragePluginBase)
    with factory.open("core") as storage:
        assert as_storage(storage, "memory", "core") is storage
        storage.set("key", [1])
        assert storage.get("key") == [1]


def test_loading_twice_gives_the_same_class(tmp_path: Path) -> None:
    info = plugin(tmp_path, FACTORY)
    assert load_factory(info) is load_factory(read_descriptor(info.path))


def test_threads_load_a_module_once(tmp_path: Path) -> None:
    runs = "import time\nwith open(__file__ + '.ran', 'a') as ran:\n    ran.write('x')\ntime.sleep(0.05)\n"
    info = plugin(tmp_path, runs + FACTORY)
    classes: list[type] = []
    barrier = threading.Barrier(8)

    def load() -> None:
        barrier.wait()
        classes.append(load_factory(info))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(classes) == 8
    assert len(set(classes)) == 1
    assert Path(f"{info.module_file}.ran").read_text("utf-8") == "x"


def test_two_modules_of_one_name_do_not_clash(tmp_path: Path) -> None:
    one, two = (load_factory(plugin(tmp_path / name, FACTORY)) for name in ("a", "b"))
    assert one is not two
    assert one.__name__ == two.__name__


def test_a_module_does_not_shadow_the_library_it_is_named_after(tmp_path: Path) -> None:
    code = f"import json\nassert json.dumps([]) == '[]'\n{FACTORY}"
    assert load_factory(plugin(tmp_path, code, module="json")).__name__ == "FilesPlugin"


def test_two_plugins_of_a_folder_share_a_sibling_by_relative_import(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("shared = []\n", "utf-8")
    code = f"from . import helper\nfrom .helper import shared\n{FACTORY}"
    one, two = (
        vars(sys.modules[load_factory(plugin(tmp_path, code, module=name)).__module__]) for name in ("one", "two")
    )
    assert one["helper"] is two["helper"]
    assert one["shared"] is one["helper"].shared


def test_a_sibling_created_just_after_its_folder_was_listed_is_imported(tmp_path: Path) -> None:
    assert importlib.machinery.PathFinder.find_spec("helper", [str(tmp_path)]) is None
    listed = tmp_path.stat()
    (tmp_path / "helper.py").write_text("shared = []\n", "utf-8")
    info = plugin(tmp_path, f"from . import helper\n{FACTORY}")
    os.utime(tmp_path, ns=(listed.st_atime_ns, listed.st_mtime_ns))
    assert importlib.machinery.PathFinder.find_spec("helper", [str(tmp_path)]) is None, "Python does not see it yet"
    assert load_factory(info).__name__ == "FilesPlugin"


def test_a_plugin_that_a_sibling_imported_is_the_same_plugin(tmp_path: Path) -> None:
    base = plugin(tmp_path, FACTORY, module="base_storage")
    code = "from .base_storage import FilesPlugin\nclass MorePlugin(FilesPlugin):\n    pass\n"
    derived = plugin(tmp_path, code, module="more_storage")
    assert load_factory(derived).__mro__[1] is load_factory(base)


def test_instances_of_a_plugin_s_classes_can_be_pickled(tmp_path: Path) -> None:
    factory = load_factory(plugin(tmp_path, f"{FACTORY}\nclass Record:\n    pass\n"))
    record = vars(sys.modules[factory.__module__])["Record"]
    assert type(pickle.loads(pickle.dumps(record()))) is record
    # The one written in Python imports the parents of a module too.
    assert type(pickle._loads(pickle._dumps(record()))) is record  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "cause", "message"),
    [
        ("x = 1\n1 / 0\n", ZeroDivisionError, "files_storage.py raised ZeroDivisionError: division by zero at line 2"),
        ("def f():\n    raise OSError('no')\nf()\n", OSError, "raised OSError: no at line 2"),
        ("import sys\nsys.exit(3)\n", SystemExit, "files_storage.py called sys.exit at line 2; a plugin must not"),
        ("class Stop(BaseException): pass\nraise Stop\n", BaseException, "raised Stop at line 2"),
        ("raise GeneratorExit\n", GeneratorExit, "raised GeneratorExit at line 1"),
        ("def f(:\n", SyntaxError, "raised SyntaxError: invalid syntax (files_storage.py, line 1)"),
        ("x = '\0'\n", (SyntaxError, ValueError), "files_storage.py raised "),
        ("def f(): f()\nf()\n", RecursionError, "raised RecursionError: maximum recursion depth exceeded"),
        ("import no_such_module_at_all\n", ModuleNotFoundError, "No module named 'no_such_module_at_all'"),
        ("from . import gone\n", ImportError, "raised ImportError: cannot import name 'gone'"),
        ("class E(Exception):\n    def __str__(self): 1/0\nraise E\n", Exception, "raised E at line 3"),
        ("raise ValueError('x' * 10_000)\n", ValueError, "xxx..."),
        ("raise ValueError('a\\nb redis://u:hunter2@h/')\n", ValueError, "ValueError: a b redis://***@h/"),
    ],
)
def test_a_module_that_does_not_import_is_refused_with_its_reason(
    tmp_path: Path, code: str, cause: type[BaseException], message: str
) -> None:
    info = plugin(tmp_path / "bad", code)
    before = ours()
    assert message in refusal(info, cause)
    assert ours() == before, "nothing of it stays loaded"
    assert load_factory(plugin(tmp_path / "good", FACTORY)), "every other plugin is still usable"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permission bits")
def test_a_module_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    info = plugin(tmp_path, FACTORY)
    assert info.module_file is not None
    am_root = os.geteuid() == 0
    # Its parents are closed to the user that root becomes here, which comes to the same.
    info.module_file.chmod(0)
    if am_root:
        os.seteuid(65534)
    try:
        message = refusal(info, PermissionError)
    finally:
        if am_root:
            os.seteuid(0)
    assert "Permission denied" in message


def test_an_interrupt_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    info = plugin(tmp_path, "raise KeyboardInterrupt\n")
    before = ours()
    with pytest.raises(KeyboardInterrupt):
        load_factory(info)
    assert ours() == before


def test_a_repaired_plugin_loads(tmp_path: Path) -> None:
    good = load_factory(plugin(tmp_path, FACTORY, module="other_storage"))
    (tmp_path / "helper.py").write_text("value = 1\n", "utf-8")
    bad = plugin(tmp_path, f"from . import helper\nassert helper.value == 2\n{FACTORY}")
    assert "raised AssertionError" in refusal(bad, AssertionError)
    (tmp_path / "helper.py").write_text("value = 2  # a longer file\n", "utf-8")
    assert load_factory(bad).__name__ == "FilesPlugin"
    assert load_factory(read_descriptor(tmp_path / "other_storage.plug")) is good


def test_the_error_for_a_sibling_imported_as_in_errbot_shows_the_relative_import(tmp_path: Path) -> None:
    (tmp_path / "my_helper.py").write_text("", "utf-8")
    message = refusal(plugin(tmp_path, "import my_helper\n"), ModuleNotFoundError)
    assert "my_helper.py is beside it: write `from . import my_helper`" in message


def test_the_error_for_a_missing_driver_names_its_extra(tmp_path: Path) -> None:
    info = plugin(tmp_path, "import no_such_driver\n", "Extra = redis")
    message = refusal(info, ModuleNotFoundError)
    assert "it needs the package 'no_such_driver', which is not installed" in message
    assert 'Install it: pip install "hutch[redis]"' in message


def test_an_old_python_is_refused_before_the_module_runs(tmp_path: Path) -> None:
    code = "open(__file__ + '.ran', 'w').close()"
    info = plugin(tmp_path, code, more="[Python]\nVersion = 3.99\n")
    running = ".".join(map(str, sys.version_info[:3]))
    assert f"it needs Python 3.99 or later; this is {running}" in refusal(info)
    info = plugin(tmp_path, code, more="[Python]\nVersion = 2\n")
    assert "it is written for Python 2 alone" in refusal(info)
    assert not Path(f"{info.module_file}.ran").exists()


@pytest.mark.parametrize("version", ["2+", "3", "3.11", ".".join(map(str, sys.version_info[:3]))])
def test_a_python_that_is_new_enough_will_do(tmp_path: Path, version: str) -> None:
    assert load_factory(plugin(tmp_path, FACTORY, more=f"[Python]\nVersion = {version}\n"))


# --- choosing the factory ---

TWO = f"{FACTORY}\nclass OtherPlugin(FilesPlugin):\n    pass\n"
# As plugins for Errbot are, but for the bases, which are of Errbot.
ERRBOT = """
class Storage:
    def __init__(self, root): self.root = root
    def get(self, key): return self.root[key]
    def set(self, key, value): self.root[key] = value
    def remove(self, key): del self.root[key]
    def len(self): return len(self.root)
    def keys(self): return self.root.keys()
    def close(self): pass

class _Base:
    def __init__(self, bot_config): self._storage_config = bot_config.STORAGE_CONFIG

class Plugin(_Base):
    def open(self, namespace): return Storage({})
"""


def test_two_factories_in_one_module_are_named(tmp_path: Path) -> None:
    message = refusal(plugin(tmp_path, TWO))
    assert "has 2 factories: FilesPlugin, OtherPlugin; choose one with Class" in message


def test_class_chooses_among_them(tmp_path: Path) -> None:
    assert load_factory(plugin(tmp_path, TWO, "Class = OtherPlugin")).__name__ == "OtherPlugin"


def test_the_error_for_a_missing_class_names_the_nearest(tmp_path: Path) -> None:
    message = refusal(plugin(tmp_path, TWO, "Class = FilePlugin"))
    assert "has no class 'FilePlugin'. Did you mean 'FilesPlugin'?" in message
    assert message.count("Factories there: FilesPlugin, OtherPlugin") == 1
    message = refusal(plugin(tmp_path / "none", "x = 1", "Class = FilePlugin"))
    assert "has no class 'FilePlugin'. Factories there: none" in message


def test_a_class_that_is_not_a_factory_is_refused(tmp_path: Path) -> None:
    message = refusal(plugin(tmp_path, f"{FACTORY}\nclass Other:\n    pass\n", "Class = Other"))
    assert "Other in" in message
    assert "is not a factory: a factory is a subclass of hutch.StoragePluginBase, or has open(namespace)" in message
    assert "Factories there: FilesPlugin" in message


def test_a_module_without_a_factory_is_refused(tmp_path: Path) -> None:
    assert "files_storage.py has no factory: a factory is" in refusal(plugin(tmp_path, "class Storage:\n    pass\n"))


def test_the_error_for_an_incomplete_factory_names_what_it_lacks(tmp_path: Path) -> None:
    code = "from hutch import StoragePluginBase\nclass FilesPlugin(StoragePluginBase):\n    pass\n"
    message = refusal(plugin(tmp_path, code))
    assert "FilesPlugin lacks open" in message
    assert message == refusal(plugin(tmp_path, code))
    assert "FilesPlugin lacks open" in refusal(plugin(tmp_path, code, "Class = FilesPlugin"))


def test_an_abstract_base_is_not_taken_for_a_second_factory(tmp_path: Path) -> None:
    code = "from hutch import StoragePluginBase\nclass Base(StoragePluginBase):\n    pass\n"
    code += "class FilesPlugin(Base):\n    def open(self, namespace):\n        raise NotImplementedError\n"
    assert load_factory(plugin(tmp_path, code)).__name__ == "FilesPlugin"


def test_imported_classes_and_second_names_do_not_count(tmp_path: Path) -> None:
    plugin(tmp_path, FACTORY, module="base_storage")
    code = f"from .base_storage import FilesPlugin as Imported\n{FACTORY}\nSecondName = FilesPlugin\n"
    info = plugin(tmp_path, code)
    assert load_factory(info).__module__.endswith(".files_storage")
    # Named, an imported one will do.
    assert load_factory(plugin(tmp_path, code, "Class = Imported")).__module__.endswith(".base_storage")


def test_a_plugin_written_for_errbot_loads_builds_and_opens(tmp_path: Path) -> None:
    info = plugin(tmp_path, ERRBOT)
    factory: Any = build_factory(info, SimpleNamespace(STORAGE_CONFIG={"basedir": "x"}))
    assert type(factory).__name__ == "Plugin"
    storage = as_storage(factory.open("core"), "Errbot", "core")
    storage.set("key", 1)
    assert (storage.get("key"), storage.len()) == (1, 1)


def test_a_storage_with_a_method_open_is_not_taken_for_a_factory(tmp_path: Path) -> None:
    code = f"{ERRBOT}\nclass Reopening(Storage):\n    def open(self): pass\n"
    assert load_factory(plugin(tmp_path, code)).__name__ == "Plugin"


def test_objects_that_answer_everything_are_left_alone(tmp_path: Path) -> None:
    code = f"""{FACTORY}
class Lazy:
    @property
    def __class__(self): raise RuntimeError("loaded too early")
    def __getattr__(self, name): raise RuntimeError("loaded too early")
lazy = Lazy()
"""
    assert load_factory(plugin(tmp_path, code)).__name__ == "FilesPlugin"


# --- classes without a descriptor ---


def entry_point(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> PluginInfo:
    """A distribution installed in `folder` whose entry point names the class FilesPlugin of its module `name`."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(f"[hutch.plugins]\nFiles = {name}:Outer.FilesPlugin\n", "utf-8")
    (folder / f"{name}.py").write_text(code, "utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return discover(environ={}).find("files")


@pytest.fixture
def _forgets_installed() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("installed_"):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _path_is_mended_first(_sys_is_as_it_was: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order the teardown: undo a test's changes of sys.path before comparing the path."""


@pytest.mark.usefixtures("_forgets_installed")
def test_an_entry_point_s_class_is_imported_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"{FACTORY}\nclass Outer:\n    FilesPlugin = FilesPlugin\n"
    info = entry_point(tmp_path, monkeypatch, "installed_one", code)
    assert "installed_one" not in sys.modules
    assert load_factory(info) is sys.modules["installed_one"].FilesPlugin
    assert isinstance(build_factory(info, {}), StoragePluginBase)


@pytest.mark.usefixtures("_forgets_installed")
@pytest.mark.parametrize(
    ("name", "code", "cause", "message"),
    [
        ("installed_two", "1 / 0", ZeroDivisionError, "raised ZeroDivisionError: division by zero"),
        ("installed_three", "import sys; sys.exit()", SystemExit, "called sys.exit; a plugin must not"),
        ("installed_four", "", AttributeError, "raised AttributeError: "),
        ("installed_five", "class Outer:\n    FilesPlugin = 1", None, "is not a factory: "),
    ],
)
def test_an_entry_point_that_cannot_be_loaded_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: str,
    cause: type[BaseException] | None,
    message: str,
) -> None:
    text = refusal(entry_point(tmp_path, monkeypatch, name, code), cause)
    assert message in text
    assert f"entry point Files = {name}:Outer.FilesPlugin" in text


@pytest.mark.usefixtures("_forgets_installed")
def test_an_interrupt_passes_through_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = entry_point(tmp_path, monkeypatch, "installed_six", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_factory(info)


def test_a_class_from_a_hook_is_validated() -> None:
    class FilesPlugin(StoragePluginBase):
        def open(self, namespace: str) -> StorageBase:
            raise NotImplementedError

    class Files: ...

    assert load_factory(discover(environ={}, hooked=[FilesPlugin]).find("files")) is FilesPlugin
    assert "Files is not a factory: a factory is" in refusal(discover(environ={}, hooked=[Files]).find("files"))


# --- building ---


def raising(folder: Path, error: str, core: str = "") -> PluginInfo:
    """A plugin whose factory raises `error`, an expression, when it is built; `config` is at hand."""
    code = f"class FilesPlugin:\n    def __init__(self, config):\n        {error}\n    def open(self, name): pass\n"
    return plugin(folder, f"import sys\nfrom hutch import StorageUnavailableError\n{code}", core)


def test_an_error_of_hutch_passes(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError, match=r"^no server$"):
        build_factory(raising(tmp_path, "raise StorageUnavailableError('no server')"), {})


@pytest.mark.parametrize(
    ("error", "message"),
    [("config['basedir']", "KeyError: 'basedir'"), ("int('many')", "ValueError: invalid literal for int()")],
)
def test_options_that_are_not_accepted_are_a_config_error(tmp_path: Path, error: str, message: str) -> None:
    info = raising(tmp_path, error)
    with pytest.raises(ConfigError) as caught:
        build_factory(info, {})
    assert f"plugin 'Files' did not accept its options: {message}" in str(caught.value)
    assert str(info.path) in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError | ValueError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        # What Errbot's own shelf does.
        ("raise Exception('no basedir specified in the storage config')", "Exception: no basedir specified in the"),
        ("config.no_such_thing", "AttributeError: 'dict' object has no attribute"),
        ("sys.exit(1)", "SystemExit: 1"),
    ],
)
def test_a_factory_that_cannot_be_built_is_a_load_error(tmp_path: Path, error: str, message: str) -> None:
    info = raising(tmp_path, error)
    with pytest.raises(PluginLoadError) as caught:
        build_factory(info, {})
    assert f"its factory raised {message}" in str(caught.value)
    assert str(info.path) in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_factory_that_takes_no_config_is_a_load_error(tmp_path: Path) -> None:
    info = plugin(tmp_path, "class FilesPlugin:\n    def open(self, namespace): pass\n")
    with pytest.raises(PluginLoadError, match="its factory raised TypeError: FilesPlugin"):
        build_factory(info, {})


def test_the_error_for_a_driver_imported_late_names_its_extra(tmp_path: Path) -> None:
    info = raising(tmp_path, "import no_such_driver", "Extra = redis")
    with pytest.raises(PluginLoadError, match=r'which is not installed. Install it: pip install "hutch\[redis\]"'):
        build_factory(info, {})


OPTIONS: dict[str, Any] = {
    "password": "hunter2",
    "pin": 48213,
    "quoted": "it's\\secret",
    "url": "redis://adm1n:p%40ssw0rd@host/0?x=1",
    "nested": {"deep": ["t0ken", ("s3cret",)]},
    "db": "0",
}


@pytest.mark.parametrize("config", [OPTIONS, {"STORAGE_CONFIG": OPTIONS}, SimpleNamespace(STORAGE_CONFIG=OPTIONS)])
@pytest.mark.parametrize("error", ["ValueError", "RuntimeError", "KeyError"])
def test_the_error_of_a_factory_is_shown_without_option_values(tmp_path: Path, config: object, error: str) -> None:
    text = "login adm1n with p@ssw0rd, hunter2 or 48213, {0!r} at redis://adm1n:p%40ssw0rd@host/0?x=1, t0ken s3cret"
    code = f"raise {error}({text!r}.format({OPTIONS['quoted']!r}) + ' x' * 500)"
    with pytest.raises((ConfigError, PluginLoadError)) as caught:
        build_factory(raising(tmp_path, code), config)
    message = str(caught.value)
    assert f"{error}: " in message
    assert "login *** with ***, *** or ***, " in message
    for secret in ("hunter2", "48213", "secret", "adm1n", "p%40ssw0rd", "p@ssw0rd", "t0ken", "s3cret"):
        assert secret not in message


# --- what open returns ---


class SixVerbs:
    """Errbot's storage, in outline."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...
    def remove(self, key: str) -> None: ...
    def len(self) -> Any: ...
    def keys(self) -> Any: ...
    def close(self) -> None: ...


class WithoutTwo(SixVerbs):
    remove = None  # type: ignore[assignment]


async def opened_async() -> SixVerbs:
    return SixVerbs()


def test_six_verbs_make_a_storage() -> None:
    adapted = as_storage(SixVerbs(), "Files", "core")
    assert isinstance(adapted, StorageBase)
    adapted.close()


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (None, "returned None; does it lack a return?"),
        (42, "returned an int without set, get, remove, len, keys, close."),
        ({}, "returned a dict without set, remove, len, close."),
        (WithoutTwo(), "returned a WithoutTwo without remove."),
        (SixVerbs, "returned the class SixVerbs, not an instance of it"),
        (StorageBase, "returned the class StorageBase, not an instance of it"),
    ],
)
def test_nonsense_is_refused_with_what_it_lacks(storage: object, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        as_storage(storage, "Files", "core")
    assert f"the Files plugin's open('core') {message}" in str(caught.value)
    assert "the six verbs set, get, remove, len, keys, close" in str(caught.value)


def test_an_async_open_is_refused_and_leaves_no_coroutine_unawaited() -> None:
    storage: object = opened_async()
    with pytest.raises(PluginError, match="returned an awaitable; open must not be async"):
        as_storage(storage, "Files", "core")


@pytest.mark.parametrize("stray", [RuntimeError("boom"), SystemExit(3), TypeError("open() takes no namespace")])
def test_what_open_raises_is_a_plugin_error_with_its_cause(stray: BaseException) -> None:
    class Factory:
        def open(self, namespace: str) -> object:
            raise stray

    with pytest.raises(PluginError, match=r"the Files plugin's open\('core'\) raised") as caught:
        open_validated(Factory(), "Files", "core")
    assert caught.value.__cause__ is stray
