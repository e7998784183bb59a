"""Test bad input through the public API: an error of the right kind that says what and where, with all data intact.

One test per line of the list; the details are tested with the responsible module: descriptors in test_descriptor and
test_search, modules and factories in test_load, storages in test_store, configs in test_config and test_config_file,
names in test_limits and the kit, files and servers in engines/, disks in faults/.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import hutch
from tests.refused import PROMPT_S, refused

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and users")

GOOD = """
from hutch import StoragePluginBase, load_plugin
class GoodPlugin(StoragePluginBase):
    def open(self, namespace):
        return load_plugin("memory").open(namespace)
"""


class Machine:
    """A folder of plugins with one that works, and a store with data, which no bad input may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "plugins"
        self.plugins.mkdir()
        self.state = folder / "state"
        self.plugin("good", GOOD)
        with hutch.connect(f"lmdb://{self.state}") as store, store.open("core") as space:
            space["kept"] = ["value"]

    def plugin(self, name: str, code: str | None, descriptor: str | None = None) -> Path:
        path = self.plugins / f"{name}.plug"
        path.write_text(descriptor or f"[Core]\nName = {name}\nModule = {name}_storage\n", encoding="utf-8")
        if code is not None:
            (self.plugins / f"{name}_storage.py").write_text(code, encoding="utf-8")
        return path

    def config(self, name: str, **keys: Any) -> dict[str, Any]:
        return {"STORAGE": name, "EXTRA_PLUGIN_DIRS": [str(self.plugins)], **keys}

    def is_intact(self) -> None:
        """Assert that the data is there, and that the other plugins, built-in or beside the bad one, are usable."""
        with hutch.connect(f"lmdb://{self.state}") as store, store.open("core") as space:
            assert dict(space) == {"kept": ["value"]}
        for name in ("good", "memory"):
            with hutch.connect(self.config(name)) as store, store.open("core") as space:
                space["k"] = 1
                assert dict(space) == {"k": 1}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.is_intact()


def use(config: Any, namespace: str = "core") -> None:
    """Do everything that an application does with a store."""
    with hutch.connect(config) as store, store.open(namespace) as space:
        space["k"] = 1
        assert dict(space) == {"k": 1}


# --- a malformed or hostile .plug ---


def test_a_descriptor_that_is_not_utf_8(machine: Machine) -> None:
    path = machine.plugin("bad", GOOD)
    path.write_bytes(path.read_bytes() + b"# \xff\xfe\n")
    with refused(hutch.PluginLoadError, path, "UTF-8"):
        use(machine.config("bad"))


def test_a_descriptor_without_a_core_section(machine: Machine) -> None:
    path = machine.plugin("bad", GOOD, "[Documentation]\nDescription = nothing\n")
    with refused(hutch.PluginLoadError, path, "[Core]"):
        use(machine.config("bad"))


@pytest.mark.parametrize("module", ["../../x", "/etc/passwd", "..", "a/b", "a.b", "C:\\x", "x.py", "", "bad\0"])
def test_a_descriptor_whose_module_is_not_a_name_beside_it(machine: Machine, module: str) -> None:
    (machine.folder / "x.py").write_text("raise SystemExit('must not run')")
    path = machine.plugin("bad", GOOD, f"[Core]\nName = bad\nModule = {module}\n")
    with refused(hutch.PluginLoadError, path, "odule"):
        use(machine.config("bad"))


@needs_posix
def test_a_descriptor_that_is_a_loop_of_links(machine: Machine) -> None:
    (machine.plugins / "bad.plug").symlink_to(machine.plugins / "worse.plug")
    (machine.plugins / "worse.plug").symlink_to(machine.plugins / "bad.plug")
    (machine.plugins / "loop").symlink_to(machine.plugins, target_is_directory=True)
    with refused(hutch.PluginLoadError, machine.plugins / "bad.plug"):
        use(machine.config("bad"))


def test_a_folder_that_is_called_like_a_descriptor(machine: Machine) -> None:
    (machine.plugins / "bad.plug").mkdir()
    with refused(hutch.PluginLoadError, machine.plugins / "bad.plug", "directory"):
        use(machine.config("bad"))


def test_ten_thousand_descriptors(machine: Machine) -> None:
    for number in range(10_000):
        (machine.plugins / f"n{number}.plug").write_text("[Core]\nName = n\nModule = m\n" if number % 2 else "junk")
    began = time.monotonic()
    with pytest.raises(hutch.PluginError):
        use(machine.config("no such plugin"))
    assert time.monotonic() - began < 3 * PROMPT_S, "ten thousand files are read, but no module of theirs"
    for path in machine.plugins.glob("n*.plug"):
        path.unlink()


def test_two_descriptors_of_one_name(machine: Machine) -> None:
    one = machine.plugin("bad", GOOD)
    other = machine.plugins / "other.plug"
    other.write_text(one.read_text())
    with refused(hutch.PluginConflictError, "bad", one, other):
        use(machine.config("bad"))


def test_a_name_that_no_plugin_has(machine: Machine) -> None:
    with refused(hutch.PluginNotFoundError, "goood", "Did you mean 'good'?", machine.plugins, "lmdb"):
        use(machine.config("goood"))


# --- modules and factories ---


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('at import')", "RuntimeError"),
        ("import sys; sys.exit(3)", "sys.exit"),
        ("def broken(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("x = 1\0", "null bytes"),
        ("class A: pass", "no factory"),
    ],
)
def test_a_module_that_does_not_give_a_factory(machine: Machine, code: str, message: str) -> None:
    path = machine.plugin("bad", code)
    for _ in range(2):
        with refused(hutch.PluginLoadError, message, path.with_name("bad")):
            use(machine.config("bad"))


def test_a_descriptor_without_its_module(machine: Machine) -> None:
    path = machine.plugin("bad", None)
    with refused(hutch.PluginLoadError, path, "bad_storage.py"):
        use(machine.config("bad"))


def test_two_factories_in_one_module(machine: Machine) -> None:
    path = machine.plugin("bad", GOOD + "class Second(GoodPlugin): pass\n")
    with refused(hutch.PluginLoadError, path, "GoodPlugin", "Second"):
        use(machine.config("bad"))


def test_a_factory_that_raises_when_it_is_built(machine: Machine) -> None:
    machine.plugin("bad", GOOD + "    def __init__(self, config): raise LookupError('no such disk')\n")
    with refused(hutch.PluginLoadError, "bad", "LookupError", "no such disk"):
        use(machine.config("bad"))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "None"),
        ("5", "an int without set, get, remove, len, keys, close"),
        ("object", "the class object"),
        ("type('Half', (), dict.fromkeys(('set', 'get', 'remove', 'len', 'close'), print))()", "a Half without keys"),
    ],
)
def test_an_open_that_returns_nonsense_or_a_storage_that_lacks_a_verb(
    machine: Machine, returned: str, message: str
) -> None:
    machine.plugin("bad", GOOD.replace('load_plugin("memory").open(namespace)', returned))
    with refused(hutch.PluginError, "the bad plugin's open('core') returned", message):
        use(machine.config("bad"))


# --- config and names ---


def test_a_config_with_unknown_keys(machine: Machine) -> None:
    with refused(hutch.ConfigError, "STORAGE_CONFG", "Did you mean", "STORAGE_CONFIG"):
        use(machine.config("good", STORAGE_CONFG={}))
    with refused(hutch.ConfigError, "lmdb", "durabilty", "Did you mean 'durability'?"):
        use(machine.config("lmdb", STORAGE_CONFIG={"path": str(machine.folder / "new"), "durabilty": "strict"}))
    assert not (machine.folder / "new").exists()
    file = machine.folder / "hutch.yaml"
    file.write_text("STORAGE: memory\nCODECS: json\n")
    with refused(hutch.ConfigError, file, "CODECS", "Did you mean 'CODEC'?"):
        use(file)
    file.write_text("STORAGE: [memory\n")
    with refused(hutch.ConfigError, file, "line"):
        use(file)
    with refused(hutch.ConfigError, machine.folder / "none.yaml"):
        use(machine.folder / "none.yaml")


@pytest.mark.parametrize("engine", ["lmdb", "sqlite", "shelf"])
@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", ".", "a/../b", "C:\\x", "CON", "~root", "a\nb"]
)
def test_a_name_that_looks_like_a_path_is_a_name(machine: Machine, engine: str, name: str) -> None:
    outside = set(machine.folder.rglob("*"))
    inside = machine.folder / "engine"
    use(f"{engine}://{inside}/data", name)
    with hutch.connect(f"{engine}://{inside}/data") as store:
        assert store.namespaces() == [name]
    assert {path for path in machine.folder.rglob("*") if inside not in (path, *path.parents)} == outside


@needs_posix
@pytest.mark.parametrize("engine", ["lmdb", "sqlite", "shelf"])
@pytest.mark.parametrize("in_url", [False, True], ids=["option", "url"])
def test_a_path_with_a_lone_surrogate_is_one_error_and_makes_nothing(
    machine: Machine, engine: str, in_url: bool
) -> None:
    path = f"{machine.folder}/a\ud800b"
    option = "basedir" if engine == "shelf" else "path"
    before = sorted(os.listdir(machine.folder))
    with pytest.raises(hutch.ConfigError, match=f"'{option}' of the {engine} engine must be a path") as caught:
        use(f"{engine}://{path}" if in_url else {"STORAGE": engine, "STORAGE_CONFIG": {option: path}})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert str(caught.value).isascii()
    assert sorted(os.listdir(machine.folder)) == before


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256, "\ud800", 5, None])
def test_an_impossible_name(machine: Machine, name: Any) -> None:
    with hutch.connect(f"lmdb://{machine.state}") as store, refused(hutch.NamespaceError, "a namespace m"):
        store.open(name)


# --- files ---


def file_of(engine: str, place: Path) -> Path:
    return {"lmdb": place / "data.mdb", "sqlite": place, "shelf": place / "core.db"}[engine]


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_truncated_or_foreign_database_file(machine: Machine, engine: str, damage: str) -> None:
    place = machine.folder / "place"
    with hutch.connect(f"{engine}://{place}") as store, store.open("core") as space:
        space.update({f"k{number}": "x" * 1000 for number in range(300)})
    file = file_of(engine, place)
    content = file.read_bytes()[:20_000] if damage == "truncated" else b"Dear diary, \n" * 5000
    file.write_bytes(content)
    with refused(hutch.CorruptValueError, file):
        use(f"{engine}://{place}")
    assert file.read_bytes() == content, "unchanged, so that it can be repaired"


def test_a_foreign_shelf(machine: Machine) -> None:
    place = machine.folder / "place"
    place.mkdir()
    (place / "core.db").write_bytes(b"Dear diary, \n" * 5000)
    with refused(hutch.CorruptValueError, place / "core.db"):
        use(f"shelf://{place}")
    use(f"shelf://{place}", "another")


@pytest.mark.parametrize("engine", ["lmdb", "sqlite", "memory"])
def test_a_value_with_one_byte_flipped(machine: Machine, engine: str) -> None:
    url = {"memory": f"memory://{machine.folder.name}"}.get(engine, f"{engine}://{machine.folder / 'place'}")
    with hutch.connect(url) as store:
        with store.open("core") as space:
            space.update(bad={"secret": [1]}, good=[2])
        with closing(store._factory.open("core")) as storage:
            data = bytearray(storage.read("bad"))
            data[len(data) // 2] ^= 0x20
            storage.write("bad", bytes(data))
        with store.open("core") as space:
            with refused(hutch.CorruptValueError, "'bad'", "'core'", engine):
                space["bad"]
            assert (space["good"], sorted(space)) == ([2], ["bad", "good"])
            space["bad"] = "repaired"
            assert dict(space) == {"bad": "repaired", "good": [2]}


FILE_ENGINES = ["lmdb", "sqlite", "shelf"]


@pytest.mark.parametrize("engine", FILE_ENGINES)
def test_a_full_disk(machine: Machine, small_disk: Path, engine: str) -> None:
    url = f"{engine}://{small_disk / 'place'}"
    with hutch.connect(url) as store, store.open("core") as space:
        space["kept"] = "old"
        filling = small_disk / "filling"
        with filling.open("wb", buffering=0) as file, suppress(OSError):
            for _ in range(1000):
                file.write(bytes(4096))
        with refused(hutch.StorageFullError, str(small_disk)):
            space["large"] = os.urandom(500_000)
        assert space["kept"] == "old"
        filling.unlink()
        space["after"] = "room"
    with hutch.connect(url) as store, store.open("core") as space:
        assert dict(space) == {"kept": "old", "after": "room"}


@pytest.mark.parametrize("engine", FILE_ENGINES)
def test_a_read_only_disk(machine: Machine, small_disk: Path, engine: str) -> None:
    url = f"{engine}://{small_disk / 'place'}"
    with hutch.connect(url) as store, store.open("core") as space:
        space["kept"] = "old"
    subprocess.run(["mount", "-o", "remount,ro", "tmpfs", small_disk], check=True)
    with refused(hutch.StorageUnavailableError, str(small_disk)):
        use(url)
    subprocess.run(["mount", "-o", "remount,rw", "tmpfs", small_disk], check=True)
    with hutch.connect(url) as store, store.open("core") as space:
        assert dict(space) == {"kept": "old"}


_AS_NOBODY = """
import os, sys, tempfile, hutch  # tempfile: a shelf that can only be read is copied
engine, warm, place = sys.argv[1:]
with hutch.connect(f"{engine}://{warm}") as store, store.open("core") as space:
    space["k"] = 1  # everything is imported while it still may be
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    with hutch.connect(f"{engine}://{place}") as store, store.open("core") as space:
        space["k"] = 2
except hutch.StoreError as error:
    print(type(error).__name__, place in str(error))
"""


@needs_posix
@pytest.mark.parametrize("engine", FILE_ENGINES)
def test_no_permission(machine: Machine, engine: str) -> None:
    # Not within pytest's folders, which other users cannot reach.
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        place, warm = Path(name) / "place", Path(name) / "warm"
        with hutch.connect(f"{engine}://{place}") as store, store.open("core") as space:
            space["kept"] = "old"
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, engine, warm, place],
            capture_output=True, text=True, timeout=60, check=False,
            # Coverage would have to write where it may not.
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")},
        )  # fmt: skip
        assert time.monotonic() - began < PROMPT_S
        assert (done.stdout, done.stderr) == ("StorageUnavailableError True\n", "")
        with hutch.connect(f"{engine}://{place}") as store, store.open("core") as space:
            assert dict(space) == {"kept": "old"}


# --- servers ---


def test_a_server_that_is_not_there(machine: Machine) -> None:
    with closing(socket.socket()) as taken:
        # Bound but not listening: no other process gets the port, and none answers.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with refused(hutch.StorageUnavailableError, f"127.0.0.1:{port}") as _:
            use(f"redis://:hunter2@127.0.0.1:{port}/0?retry_s=0")
    with pytest.raises(hutch.StorageUnavailableError) as raised:
        use(f"redis://:hunter2@127.0.0.1:{port}/0?retry_s=0")
    assert "hunter2" not in str(raised.value)


def test_every_kind_of_error_of_the_list_is_a_store_error() -> None:
    """A host that catches StoreError around its storage has caught all of the above."""
    kinds: list[Callable[..., Exception]] = [
        *(hutch.PluginLoadError, hutch.PluginConflictError, hutch.PluginNotFoundError, hutch.PluginError),
        *(hutch.ConfigError, hutch.NamespaceError, hutch.CorruptValueError, hutch.StorageFullError),
        hutch.StorageUnavailableError,
    ]
    assert all(isinstance(kind("x"), hutch.StoreError) for kind in kinds)
