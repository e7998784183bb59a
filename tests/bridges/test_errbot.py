"""Test the bridge to Errbot with the real Errbot: its bot, its command line, its loader and its own storages."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from datetime import UTC, date, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import hutch
from hutch.bridges.errbot import plugin_dir
from tests.bridges.bot import ROOT, Bot, BotFolder, environment, errbot, errbot_python, hutch_command
from tests.bridges.conftest import url_of
from tests.bridges.store_promises import BRIDGE_PROMISES, PROMISES, World

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("errbot")]

BENCH = "Test Bench"


# An editable install has a copy of the bridge, as old as the install; test this checkout's instead.
FROM_HERE = f"BOT_EXTRA_STORAGE_PLUGINS_DIR = {plugin_dir!r}"


def on_lmdb(folder: Path) -> BotFolder:
    """Return a bot whose state is in LMDB in the folder ``state`` beside its config."""
    return with_hutch(folder, {"url": state_of(folder)})


def with_hutch(folder: Path, options: dict[str, Any]) -> BotFolder:
    """Return a bot with these options as its STORAGE_CONFIG."""
    return BotFolder(folder, FROM_HERE, 'STORAGE = "Hutch"', f"STORAGE_CONFIG = {options!r}")


def state_of(folder: Path) -> str:
    return f"lmdb://{(folder / 'state').as_posix()}"


def stored(url: str, namespace: str = BENCH) -> dict[str, Any]:
    """Return what another program with the default codec sees, also while the bot runs."""
    with hutch.connect(url) as store, store.open(namespace) as handle:
        return dict(handle)


# --- a bot ---


def test_the_example_bot_keeps_its_state_through_kill_9_and_is_changed_from_outside_while_it_runs(
    tmp_path: Path,
) -> None:
    example = tmp_path / "example"
    shutil.copytree(ROOT / "examples" / "errbot", example, ignore=shutil.ignore_patterns("data", "__pycache__"))
    config, url = example / "config.py", f"lmdb://{(example / 'data' / 'state').as_posix()}"
    before = datetime.now(UTC)
    with Bot(config) as bot:
        bot.say("!karma up ada", "ada has 1 karma")
        bot.say("!note add water the ferns #garden", "Note 1 is stored")
        bot.kill()
    with Bot(config) as bot:
        bot.say("!note list garden", "water the ferns")
        bot.say("!karma up ada", "ada has 2 karma")

        listed = [line.split("\t") for line in hutch_command("-s", url, "ls").splitlines()]
        assert ["Karma", "1"] in listed
        assert ["Notes", "1"] in listed
        note = json.loads(hutch_command("-s", url, "get", "Notes", "notes", "--json"))[0]
        assert note["tags"] == {"$set": ["garden"]}
        assert before < datetime.fromisoformat(note["at"]["$datetime"]) < datetime.now(UTC)

        hutch_command("-s", url, "set", "Karma", "ada", "41")
        bot.say("!karma up ada", "ada has 42 karma")
        assert hutch_command("-s", url, "get", "Karma", "ada").strip() == "42"

        message = errbot(config, "--storage-get", "Karma")
        assert ast.literal_eval(message.stdout) == {"ada": 42}, message.stderr
        assert errbot(config, "--storage-merge", "Karma", stdin="{'bob': {}}").returncode == 0
        assert stored(url, "Karma") == {"ada": 42, "bob": {}}
        assert errbot(config, "--storage-set", "Karma", stdin="{'eve': 99}").returncode == 0
        bot.say("!karma up eve", "eve has 100 karma")
        bot.say("!karma top", "eve: 100")
        assert stored(url, "Karma") == {"eve": 100}


def test_the_bot_of_the_page_works_and_is_looked_into_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "bridges" / "errbot.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"^```\w+\n[#;] ([\w./]+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    config = (tmp_path / "config.py").read_text(encoding="utf-8")
    (tmp_path / "config.py").write_text(f"{config}{FROM_HERE}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with Bot(tmp_path / "config.py") as bot:
        bot.say("!vote tea", "1 for tea")
        shown = re.findall(r"^hutch (-s lmdb://data/.*)$", page, re.MULTILINE)
        listed, got = [hutch_command(*line.split()) for line in shown]
        assert "Votes\t1\n" in listed
        assert "@admin" in got
        assert "@admin" in errbot(tmp_path / "config.py", "--storage-get", "Votes").stdout


def test_a_bot_runs_on_every_engine(tmp_path: Path, url: str) -> None:
    folder = with_hutch(tmp_path, {"url": url})
    with Bot(folder.config) as bot:
        bot.do("self.update(a={1}, b=OrderedDict(k=1), who=msg.frm)")
        assert bot.do("sorted(self), self['a'], self['b']['k'], self['who'] == msg.frm, 'c' in self") == (
            "(['a', 'b', 'who'], {1}, 1, True, False)"
        )
        # After a restart, a plugin opens its storage again, and closes it less often.
        plugins = "self._bot.plugin_manager"
        bot.do(f"({plugins}.deactivate_plugin('Test Bench'), {plugins}.activate_plugin('Test Bench'))")
        assert bot.do("len(self), self['a']") == "(3, {1})"
        bot.do("self.clear()")
        assert bot.do("len(self), list(self)") == "(0, [])"


def test_a_bot_keeps_every_acknowledged_write_after_kill_9_and_continues(tmp_path: Path, lasting_url: str) -> None:
    folder = with_hutch(tmp_path, {"url": lasting_url})
    counting = "[(self.__setitem__(f'n{i}', {'n': {i}}), print(f'[stored {i}]', flush=True)) for i in range(1000000)]"
    with Bot(folder.config) as bot:
        bot.say(f"!do 1 {counting}", r"\[stored 150\]")
        bot.kill()
        acknowledged = max(map(int, re.findall(r"\[stored (\d+)\]", bot.output)))
    with Bot(folder.config) as bot:
        found = int(bot.do("len(self)"))
        assert acknowledged + 1 <= found <= acknowledged + 2  # the last one may have been stored but not acknowledged
        assert bot.do(f"all(self[f'n{{i}}'] == {{'n': {{i}}}} for i in range({found}))") == "True"
        bot.do("self.__setitem__('more', 1)")
        seen = stored(lasting_url)
        assert len(seen) == found + 1
        assert seen[f"n{acknowledged}"] == {"n": {acknowledged}}


def test_a_bot_s_values_are_msgpack_where_possible_and_pickles_otherwise(tmp_path: Path) -> None:
    folder = on_lmdb(tmp_path)
    with Bot(folder.config) as bot:
        bot.do("self.update(plain={'on': {'Help'}, 'since': (date(2024, 2, 29), 1)}, ordered=OrderedDict(a=1))")
        bot.do("self.update(thing=Thing(3), who={msg.frm: 'admin'}, room=self.query_room('#lobby'))")
        bot.kill()
    url = state_of(tmp_path)
    with hutch.connect(url) as store, store.open(BENCH) as bench:
        assert bench["plain"] == {"on": {"Help"}, "since": (date(2024, 2, 29), 1)}
        assert sorted(bench) == ["ordered", "plain", "room", "thing", "who"]
        with pytest.raises(hutch.CorruptValueError, match=r"'who' in namespace 'Test Bench'.*written with the pickle"):
            bench["who"]
    with hutch.connect(f"{url}?codec=pickle") as store, store.open(BENCH) as bench:
        assert type(bench["ordered"]) is OrderedDict
        with pytest.raises(hutch.CorruptValueError, match=r"cannot be unpickled here.*(errbot|TextBackend)"):
            bench["who"]  # a class of a bot that does not run here
    with Bot(folder.config) as bot:
        assert bot.do("[self['who'][msg.frm], self['thing'].size, self['room'] == self.query_room('#lobby')]") == (
            "['admin', 3, True]"
        )
        assert bot.do("type(self['ordered']).__name__") == "'OrderedDict'"
        assert "cannot be pickled" in bot.do("self.__setitem__('f', lambda: 0)")
        assert bot.do("'f' in self") == "False"


def test_with_a_key_a_bot_unpickles_nothing_that_it_did_not_sign(tmp_path: Path) -> None:
    url, trap = state_of(tmp_path), tmp_path / "sprung"
    codec = {"name": "pickle", "prefer": "msgpack", "key": "0123456789abcdef"}
    folder = with_hutch(tmp_path, {"url": url, "CODEC": codec})
    with hutch.connect(f"{url}?codec=pickle") as store, store.open(BENCH) as bench:
        bench["forged"] = Trap(trap)
    with Bot(folder.config) as bot:
        assert bot.do("self['forged']").startswith("CorruptValueError: ")
        assert bot.do("self.update(thing=Thing(3), plain={1})") == "None"
        assert bot.do("(self['thing'].size, self['plain'])") == "(3, {1})"
    assert not trap.exists()
    with hutch.connect(f"{url}?codec=pickle") as store, store.open(BENCH) as bench:
        bench["forged"]
    assert trap.exists(), "the trap never worked"


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_bot_that_names_no_place_keeps_its_state_in_its_data_folder(tmp_path: Path) -> None:
    folder = with_hutch(tmp_path, {})
    with Bot(folder.config) as bot:
        bot.do("self.__setitem__('k', 1)")
    assert "Process exiting" in (folder.data / "log").read_text()
    assert stored(f"lmdb://{(folder.data / 'hutch').as_posix()}") == {"k": 1}


def test_a_program_that_connects_with_the_bot_s_config_sees_what_the_bot_sees(tmp_path: Path) -> None:
    folder = on_lmdb(tmp_path)
    with Bot(folder.config) as bot:
        bot.do("self.update(a={1, 2}, b=OrderedDict(k=1))")
        config = ModuleType("config")
        exec(folder.config.read_text(), config.__dict__)
        with hutch.connect(config) as store, store.open(BENCH) as bench:
            assert bench["a"] == {1, 2}
            assert type(bench["b"]) is OrderedDict
            bench["c"] = OrderedDict(x=2)
        assert bot.do("self['c']['x']") == "2"


# --- Errbot's storages, and the way from them ---


@pytest.mark.parametrize("storage", ["Shelf", "Memory"])
def test_errbot_s_own_storages_work_as_before_where_hutch_is_installed(tmp_path: Path, storage: str) -> None:
    folder = BotFolder(tmp_path, f"STORAGE = {storage!r}")
    with Bot(folder.config) as bot:
        bot.do("self.__setitem__('k', {1})")
        assert bot.do("self['k'], type(self._store).__module__") == f"({{1}}, 'errbot.storage.{storage.lower()}')"
    message = errbot(folder.config, "--storage-get", BENCH)
    assert message.stdout.strip() == ("{'k': {1}}" if storage == "Shelf" else "{}"), message.stderr


def test_a_bot_s_shelf_is_copied_to_lmdb_by_the_command(tmp_path: Path) -> None:
    folder = BotFolder(tmp_path)
    with Bot(folder.config) as bot:
        bot.do("self.update(a={'since': datetime(2024, 1, 2), 'on': {1, 2}}, b=[(1, 'x')])")
    shelf, url = f"shelf://{folder.data.as_posix()}", state_of(tmp_path)
    hutch_command("copy", shelf, url, "--verify")
    assert stored(url) == {"a": {"since": datetime(2024, 1, 2), "on": {1, 2}}, "b": [(1, "x")]}
    on_lmdb(tmp_path)
    with Bot(folder.config) as bot:
        assert bot.do("sorted(self['a']['on']), self['b']") == "([1, 2], [(1, 'x')])"


def test_identifiers_in_a_shelf_stop_a_copy_and_are_used_in_place(tmp_path: Path) -> None:
    folder = BotFolder(tmp_path)
    with Bot(folder.config) as bot:
        bot.do("self.update(who=msg.frm, plain=1)")
    shelf = f"shelf://{folder.data.as_posix()}"
    command = [sys.executable, "-m", "hutch", "copy", shelf, state_of(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "'who'" in done.stderr
    assert f"'{BENCH}'" in done.stderr
    assert len(done.stderr.splitlines()) <= 2, done.stderr
    with_hutch(tmp_path, {"url": shelf})
    with Bot(folder.config) as bot:
        assert bot.do("self['who'] == msg.frm, self['plain']") == "(True, 1)"


# --- Errbot's loader ---


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hutch installed from its wheel into a folder of its own, for PYTHONPATH; what it needs is in Errbot's Python."""
    errbot_python()
    uv = (
        shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])) or "uv"
    )
    built, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    for command in (
        [uv, "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", str(built), str(ROOT)],
        [uv, "pip", "install", "--quiet", "--no-deps", "--python", errbot_python(), "--target", str(site)],
    ):
        wheels = [str(file) for file in built.glob("*.whl")] if "install" in command else []
        done = subprocess.run([*command, *wheels], check=False, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    return site


def test_errbot_finds_the_bridge_of_a_wheel_and_stumbles_over_no_descriptor_in_it(tmp_path: Path, wheel: Path) -> None:
    folder = BotFolder(tmp_path, 'STORAGE = "Hutch"', f'STORAGE_CONFIG = {{"url": {state_of(tmp_path)!r}}}')
    listed = errbot(folder.config, "--list", PYTHONPATH=str(wheel))  # reads every descriptor there is
    assert listed.returncode == 0, listed.stderr
    assert {"Text", "Hutch", "lmdb"} <= set(listed.stdout.split())
    with Bot(folder.config, PYTHONPATH=str(wheel)) as bot:
        bot.do("self.__setitem__('k', {1})")
        assert bot.do("hutch.__file__") == repr(str(wheel / "hutch" / "__init__.py"))
        assert bot.do("type(self._store).__module__") == "'errbot.storage.hutch_storage'"
    assert stored(state_of(tmp_path)) == {"k": {1}}


def test_errbot_finds_the_bridge_by_its_folder_too_and_that_folder_shadows_nothing(tmp_path: Path) -> None:
    folder = BotFolder(
        tmp_path,
        "from hutch.bridges.errbot import plugin_dir",
        "BOT_EXTRA_STORAGE_PLUGINS_DIR = plugin_dir",
        'STORAGE = "Hutch"',
    )
    with Bot(folder.config) as bot:
        assert bot.do("self._store.set('k', 1)") == "None"
        assert bot.do("__import__('sys').modules[type(self._store).__module__].__file__") == repr(
            str(Path(plugin_dir) / "hutch_storage.py")
        )
    # Errbot puts the folder on sys.path, where these names must hide no module of the bot.
    modules = {file.stem for file in Path(plugin_dir).glob("*.py")}
    assert modules == {"__init__", "hutch_storage", "pickle_constructors", "plain_pickle", "shelf_files"}
    assert not modules & sys.stdlib_module_names
    config = ModuleType("config")  # hutch reads that folder too, and must not raise
    exec(folder.config.read_text(), config.__dict__)
    with hutch.connect(config) as store, store.open(BENCH) as bench:
        assert dict(bench) == {"k": 1}


def test_a_config_that_does_not_fit_stops_the_bot_with_a_reason_and_shows_no_secret(tmp_path: Path) -> None:
    folder = with_hutch(tmp_path, {"ulr": "redis://:hunter2@localhost/0"})
    done = errbot(folder.config)
    assert done.returncode != 0
    assert "STORAGE_CONFIG has the unknown key 'ulr'. Did you mean 'url'?" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr + (folder.data / "log").read_text()


# --- what plugins of a bot rely on ---


@pytest.fixture(scope="module", params=["memory", "lmdb", "sqlite", "redis"])
def kit_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    """Return the result of each promise in Errbot's Python, with Errbot's StoreMixin, and the other output."""
    folder = tmp_path_factory.mktemp("promises")
    url = url_of(request, folder)
    with_hutch(folder, {"url": url})
    script = Path(__file__).with_name("store_promises.py")
    done = subprocess.run(
        [errbot_python(), "-W", "always::ResourceWarning", str(script), str(folder)],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        cwd=folder,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines()), done.stderr


@pytest.mark.parametrize("promise", [promise.__name__ for promise in PROMISES + BRIDGE_PROMISES])
def test_with_errbot_s_store_mixin(promise: str, kit_results: tuple[dict[str, str], str]) -> None:
    failure = kit_results[0][promise]
    assert not failure, failure


def test_a_bot_that_closes_nothing_ends_silently(kit_results: tuple[dict[str, str], str]) -> None:
    assert "Warning" not in kit_results[1]
    assert "Exception" not in kit_results[1]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_with_hutch_s_store_mixin_in_its_place(promise: Any, tmp_path: Path) -> None:
    with hutch.load_plugin("lmdb", {"path": tmp_path / "state"}) as factory:
        world = World(hutch.StoreMixin, factory, hutch.StoreAlreadyOpenError, hutch.StoreNotOpenError)
        try:
            promise(world)
        finally:
            world.close()


# --- the config, and the codec that the bridge asks for ---


def bot_config(**settings: Any) -> Any:
    return SimpleNamespace(STORAGE="Hutch", **settings)


@pytest.mark.parametrize(
    "options",
    [
        lambda path: {"url": f"lmdb://{path.as_posix()}"},
        lambda path: {"STORAGE": f"lmdb://{path.as_posix()}"},
        lambda path: {"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": str(path)}},
        lambda path: {"storage": "lmdb", "storage_config": {"path": path}, "codec": "msgpack"},
    ],
)
def test_storage_config_is_a_url_or_a_config_of_hutch(options: Any, tmp_path: Path) -> None:
    with hutch.connect(bot_config(STORAGE_CONFIG=options(tmp_path / "s"))) as store, store.open("core") as core:
        core["k"] = 1
    assert stored(f"lmdb://{(tmp_path / 's').as_posix()}", "core") == {"k": 1}


@pytest.mark.parametrize("name", ["with space", "odd %3F?&name", "Über"])
def test_the_data_folder_of_a_bot_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with hutch.connect(bot_config(BOT_DATA_DIR=str(tmp_path / name))) as store, store.open("core") as core:
        core["k"] = 1
    assert (tmp_path / name / "hutch").is_dir()
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("codec", ["url", "key"])
def test_a_codec_that_the_bot_names_counts(tmp_path: Path, codec: str) -> None:
    url = f"lmdb://{(tmp_path / 's').as_posix()}"
    options = {"url": f"{url}?codec=msgpack"} if codec == "url" else {"url": url, "CODEC": "msgpack"}
    with (
        hutch.connect(bot_config(STORAGE_CONFIG=options)) as store,
        store.open("core") as core,
        pytest.raises(hutch.ValueTypeError),
    ):
        core["k"] = bytearray(b"a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither STORAGE_CONFIG nor BOT_DATA_DIR"),
        ({"STORAGE_CONFIG": ["lmdb"]}, "STORAGE_CONFIG must be a mapping, not list"),
        ({"STORAGE_CONFIG": {"url": "hunter2"}}, "url must be text such as"),
        ({"STORAGE_CONFIG": {"url": "lmdb:///a", "STORAGE": "lmdb"}}, "more than one storage"),
        ({"STORAGE_CONFIG": {"url": "lmdb:///a", "URL": "lmdb:///a"}}, "more than one storage"),
        ({"STORAGE_CONFIG": {"url": "lmdb:///a", "CODECS": "json"}}, "unknown key 'CODECS'. Did you mean 'CODEC'"),
        ({"STORAGE_CONFIG": {1: 2}}, "unknown key '1'"),
        ({"STORAGE_CONFIG": {"url": "lmdb:///a"}, "CODEC": "json"}, "CODEC is a key of STORAGE_CONFIG; move it there"),
        ({"STORAGE_CONFIG": {"url": "memory://", "CODEC": {"name": "pickle", "prefer": "json"}}}, "only be msgpack"),
    ],
)
def test_a_bot_s_config_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(hutch.ConfigError) as refused:
        hutch.connect(bot_config(**settings))
    assert message in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("key", [None, "0123456789abcdef"])
def test_pickle_that_prefers_msgpack_writes_what_msgpack_takes_as_msgpack_does(tmp_path: Path, key: str | None) -> None:
    url = f"sqlite://{(tmp_path / 's').as_posix()}"
    codec = {"name": "pickle", "prefer": "msgpack", **({"key": key} if key else {})}
    typed = {"a": {1}, "b": (1, 2), "c": None}
    with hutch.connect({"STORAGE": url, "CODEC": codec}) as store, store.open("core") as core:
        core.update(typed, d=bytearray(b"x"))
        assert dict(core) == {**typed, "d": bytearray(b"x")}
        assert type(core["d"]) is bytearray
    with hutch.connect(url) as store, store.open("core") as core:
        assert core.get_many(["a", "b", "c"]) == typed
        with pytest.raises(hutch.CorruptValueError, match="signed pickle codec" if key else "the pickle codec"):
            core["d"]
    with hutch.connect(f"{url}?codec=json") as store, store.open("core") as core:
        core["e"] = [1, "json"]
    with hutch.connect({"STORAGE": url, "CODEC": codec}) as store, store.open("core") as core:
        assert core["e"] == [1, "json"]


def test_pickle_that_prefers_msgpack_reads_no_pickle_signed_with_another_key(tmp_path: Path) -> None:
    url = f"sqlite://{(tmp_path / 's').as_posix()}"
    for key in ("another key of 16", None):
        codec = {"name": "pickle", **({"key": key} if key else {})}
        with hutch.connect({"STORAGE": url, "CODEC": codec}) as store, store.open("core") as core:
            core["k"] = OrderedDict(x=1)
        mine = {"name": "pickle", "prefer": "msgpack", "key": "0123456789abcdef"}
        with (
            hutch.connect({"STORAGE": url, "CODEC": mine}) as store,
            store.open("core") as core,
            pytest.raises(hutch.CorruptValueError, match="sign"),
        ):
            core["k"]
