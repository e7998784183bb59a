"""Test `hutch.config`: every form of a config, and its guarantees. test_config_file.py tests files."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hutch.config import CodecConfig, LayerConfig, NamespaceRule, StoreConfig, read_config, url_path
from hutch.errors import ConfigError

NOWHERE = Path(__file__).parent / "no-such-folder"


def read(config: object, **environ: str) -> StoreConfig:
    """Read `config` with these variables only, in an empty folder."""
    return read_config(config, environ=environ, cwd=NOWHERE)


def error_of(config: object, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(config, **environ)
    return str(caught.value)


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "storage", "without_query", "options"),
    [
        ("memory://", "memory", "memory://", {}),
        ("memory://shared", "memory", "memory://shared", {}),
        ("lmdb:///srv/state?durability=strict", "lmdb", "lmdb:///srv/state", {"durability": "strict"}),
        ("lmdb://a b/ü#1%20%3F+x", "lmdb", "lmdb://a b/ü#1%20%3F+x", {}),
        ("lmdb://C:\\x y\\z", "lmdb", "lmdb://C:\\x y\\z", {}),
        ("Redis://u:p%3Fw@Host:1/0?prefix=a+b", "Redis", "Redis://u:p%3Fw@Host:1/0", {"prefix": "a+b"}),
        ("redis+cluster://h1,h2:7000", "redis+cluster", "redis+cluster://h1,h2:7000", {}),
        ("my_own.kv-2://x://y", "my_own.kv-2", "my_own.kv-2://x://y", {}),
        ("x://h?a=1&b=%26%3D%40%C3%BC&c=d=e&d=&", "x", "x://h", {"a": "1", "b": "&=@ü", "c": "d=e", "d": ""}),
        ("x://h?a=://", "x", "x://h", {"a": "://"}),
        ("x://h?", "x", "x://h", {}),
        ("x://h?a=/b?c", "x", "x://h", {"a": "/b?c"}),
    ],
)
def test_a_url_is_split_without_losing_a_character(
    url: str, storage: str, without_query: str, options: dict[str, str]
) -> None:
    config = read(url)
    assert (config.storage, config.url, dict(config.options)) == (storage, without_query, options)
    assert config.codec == CodecConfig("msgpack")


def test_the_codec_of_a_url_is_no_option_of_its_engine() -> None:
    config = read("lmdb://x?codec=json&durability=strict")
    assert config.codec == CodecConfig("json")
    assert config.options == {"durability": "strict"}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("://x", "starts with the name of a storage"),
        (" lmdb://x", "starts with the name of a storage"),
        ("a/b://x", "starts with the name of a storage"),
        ("x?y://z", "starts with the name of a storage"),
        ("x" * 101 + "://z", "starts with the name of a storage"),
        ("x://h?a=1&b=2&a=1", "option 'a' twice"),
        ("x://h?a", "must be name=value"),
        ("x://h?=1", "must be name=value"),
        ("x://h?a%20b=1", "must be name=value"),
        ("x://h?a=%FF", "option 'a' of the storage URL is not UTF-8"),
        ("x://h?a=%00", "option 'a' of the storage URL may not hold NUL"),
        ("x://h\0", "may not hold NUL"),
        ("x://h?codec=", "the URL option 'codec': expected a name"),
        ("redis://:half?other-half@h", "write a '?' in a password or a path as %3F"),
        ("redis://:half?other=half@h", "write a '?' in a password or a path as %3F"),
    ],
)
def test_a_bad_url_is_refused_with_the_way_to_write_it(url: str, problem: str) -> None:
    message = error_of(url)
    assert problem in message
    assert message.startswith("argument: ")
    assert error_of(None, HUTCH_STORAGE=url if "://" in url else "").startswith("$HUTCH_STORAGE: ")
    assert "half" not in message


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("lmdb:///srv/x", "/srv/x"),
        ("lmdb://data", "data"),
        ("lmdb://./data", "./data"),
        ("lmdb://", ""),
        ("lmdb:///a b/ü#%23%3F%25", "/a b/ü##?%"),
        ("lmdb:///100%/x", "/100%/x"),
        ("lmdb:///a+b", "/a+b"),
        ("lmdb:///C:/x", "C:/x"),
        ("lmdb:///c:\\x", "c:\\x"),
        ("lmdb://C:\\x", "C:\\x"),
        ("lmdb:///C:x", "/C:x"),
        ("lmdb:///CC:/x", "/CC:/x"),
    ],
)
def test_the_path_of_a_url_is_all_that_follows_decoded(url: str, path: str) -> None:
    assert url_path(url) == path


def test_a_path_that_is_not_utf8_keeps_its_bytes() -> None:
    assert url_path("lmdb:///%FF/x").encode("utf-8", "surrogateescape") == b"/\xff/x"


@pytest.mark.parametrize(("text", "problem"), [("lmdb", "'://'"), ("lmdb://a%00b", "NUL")])
def test_what_has_no_path_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        url_path(text)


@settings(deadline=None)  # a loaded machine must not fail the test
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(lambda path: f"/srv/{path}"))
def test_every_path_can_be_written_in_a_url(path: str) -> None:
    config = read(f"lmdb://{quote(path)}?durability=strict")
    assert config.url is not None
    assert url_path(config.url) == path


# --- mappings ---


def test_a_mapping_sets_everything() -> None:
    config = read(
        {
            "STORAGE": "Redis",
            "STORAGE_CONFIG": {"host": "h", "port": 6379, "nodes": [{"host": "${HOST}"}, ("b", 1.5, None)]},
            "EXTRA_PLUGIN_DIRS": ["plugins", NOWHERE / "more"],
            "CODEC": {"name": "pickle", "key": "${KEY}"},
            "LAYERS": ["read-only", {"name": "cache", "max_bytes": 1000}],
            "NAMESPACES": {"tmp-*": {"codec": "json"}, "log": {"LAYERS": [], "CODEC": None}},
        },
        HOST="a",
        KEY="k" * 32,
    )
    assert config == StoreConfig(
        storage="Redis",
        options={"host": "h", "port": 6379, "nodes": [{"host": "a"}, ("b", 1.5, None)]},
        url=None,
        extra_plugin_dirs=(NOWHERE / "plugins", NOWHERE / "more"),
        codec=CodecConfig("pickle", {"key": "k" * 32}),
        layers=(LayerConfig("read-only"), LayerConfig("cache", {"max_bytes": 1000})),
        namespaces=(NamespaceRule("tmp-*", CodecConfig("json"), None), NamespaceRule("log", None, ())),
        base_dir=NOWHERE,
        source="argument",
        host_config=None,
    )


def test_keys_are_upper_or_lower_case_and_empty_sections_count_as_absent() -> None:
    nothing = dict.fromkeys(["storage_config", "extra_plugin_dirs", "codec", "layers", "namespaces"])
    assert read({"storage": "memory", **nothing}) == read({"STORAGE": "memory"})


@pytest.mark.parametrize("storage", ["lmdb", "My Files", "büro", "x", "a" * 100])
def test_a_storage_is_named_as_its_plugin_is(storage: str) -> None:
    config = read({"STORAGE": storage})
    assert (config.storage, config.url) == (storage, None)


def test_a_url_and_options_add_up() -> None:
    config = read({"STORAGE": "redis://h?prefix=p&codec=json", "STORAGE_CONFIG": {"timeout_s": 1}})
    assert (config.storage, config.url, config.codec.name) == ("redis", "redis://h", "json")
    assert config.options == {"prefix": "p", "timeout_s": 1}


def test_what_the_caller_changes_later_changes_no_config() -> None:
    hosts, tags = ["a"], {"x"}
    options: dict[str, Any] = {"hosts": hosts, "tags": tags, "raw": bytearray(b"x")}
    config = read({"STORAGE": "redis", "STORAGE_CONFIG": options, "CODEC": {"name": "json", "x": hosts}})
    hosts.append("b")
    tags.add("y")
    options["raw"].append(0)
    options["port"] = 1
    assert config.options == {"hosts": ["a"], "tags": {"x"}, "raw": b"x"}
    assert config.codec.options == {"x": ["a"]}


def test_a_config_cannot_be_changed() -> None:
    config = read({"STORAGE": "redis", "CODEC": "json", "LAYERS": ["cache"]})
    for part, name in ((config, "storage"), (config.codec, "name"), (config.layers[0], "name")):
        with pytest.raises(AttributeError):  # FrozenInstanceError is one
            setattr(part, name, "x")
    for options in (config.options, config.codec.options, config.layers[0].options, StoreConfig("lmdb").options):
        with pytest.raises(TypeError):
            options["x"] = 1  # type: ignore[index]


def test_an_object_among_the_options_arrives_as_it_is() -> None:
    client = object()
    assert read({"STORAGE": "redis", "STORAGE_CONFIG": {"client": client}}).options["client"] is client


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "argument: STORAGE: it is missing; expected the name of a storage such as lmdb, or a URL"),
        ({"STORAGE": 1}, "STORAGE: it is a number; expected the name"),
        ({"STORAGE": ""}, "STORAGE: expected the name"),
        ({"STORAGE": " lmdb"}, "STORAGE: expected the name"),
        ({"STORAGE": "a" * 101}, "STORAGE: expected the name"),
        ({"STORAGE": "/srv/x"}, "STORAGE: expected the name"),
        ({"STORAGE": "l\nmdb"}, "STORAGE: expected the name"),
        ({"STORAGE": "lmdb://x?a"}, "argument: STORAGE: what follows the '?'"),
        (
            {"STORGE": "x"},
            "argument: unknown key 'STORGE'. Did you mean 'STORAGE'? The keys are STORAGE, STORAGE_CONFIG",
        ),
        ({"Storage": "x"}, "unknown key 'Storage'. Did you mean 'STORAGE'?"),
        ({"ſtorage": "x"}, "unknown key 'ſtorage'"),
        ({"x" * 99: "x"}, "unknown key '" + "x" * 60 + "...'"),
        ({"redis://u:hidden@h": "x"}, "unknown key 'redis://***@h'"),
        ({1: "x"}, "argument: a key must be text, not a number"),
        ({"": "x"}, "a key must be text, not an empty text"),
        ({"STORAGE": "x", "storage": "y"}, "both STORAGE and storage are given"),
        ({"STORAGE": "x", "STORAGE_CONFIG": "y"}, "STORAGE_CONFIG: expected a mapping of options, not text"),
        ({"STORAGE": "x", "STORAGE_CONFIG": {None: 1}}, "STORAGE_CONFIG: a key must be text, not nothing"),
        (
            {"STORAGE": "x://h?a=1", "STORAGE_CONFIG": {"a": 1}},
            "STORAGE_CONFIG.a: the URL in STORAGE has this option too",
        ),
        ({"STORAGE": "x://h?codec=json", "CODEC": "json"}, "CODEC: the URL in STORAGE chooses a codec too"),
        ({"STORAGE": "x://h?codec=/"}, "the URL option 'codec': expected a name such as json"),
        (
            {"STORAGE": "x", "CODEC": ["json"]},
            "CODEC: expected a name such as json, or a mapping with 'name' and options; found a list",
        ),
        ({"STORAGE": "x", "CODEC": {"key": "k"}}, "found a mapping without a name"),
        ({"STORAGE": "x", "CODEC": {"name": 1}}, "found a mapping without a name"),
        ({"STORAGE": "x", "CODEC": "two words"}, "found text without a name"),
        ({"STORAGE": "x", "CODEC": False}, "found true or false"),
        ({"STORAGE": "x", "LAYERS": "cache"}, "LAYERS: expected a list such as [read-only], not text"),
        ({"STORAGE": "x", "LAYERS": ["a", {"cache": {}}]}, "LAYERS[1]: expected a name such as cache"),
        ({"STORAGE": "x", "NAMESPACES": ["a"]}, "NAMESPACES: expected a mapping from patterns"),
        ({"STORAGE": "x", "NAMESPACES": {1: {}}}, "NAMESPACES: a key must be text"),
        (
            {"STORAGE": "x", "NAMESPACES": {"a*": "json"}},
            "NAMESPACES.a*: expected a mapping with CODEC, LAYERS or TTL_S, not text",
        ),
        ({"STORAGE": "x", "NAMESPACES": {"a": {"CODE": 1}}}, "NAMESPACES.a: unknown key 'CODE'. Did you mean 'CODEC'?"),
        ({"STORAGE": "x", "NAMESPACES": {"a": {"LAYERS": 1}}}, "NAMESPACES.a.LAYERS: expected a list"),
        ({"STORAGE": "x", "TTL_S": 0}, "TTL_S: expected a number of seconds above 0 and up to the year 9999"),
        ({"STORAGE": "x", "TTL_S": "soon"}, "or inf for never, not text"),
        ({"STORAGE": "x", "TTL_S": float("nan")}, "or inf for never, not this number"),
        ({"STORAGE": "x", "TTL_S": 10**5000}, "or inf for never, not this number"),
        ({"STORAGE": "x", "TTL_S": [1]}, "TTL_S: expected a number of seconds above 0"),
        ({"STORAGE": "x", "NAMESPACES": {"a": {"TTL_S": 1e300}}}, "NAMESPACES.a.TTL_S: expected a number of seconds"),
        ({"STORAGE": "x", "EXTRA_PLUGIN_DIRS": 1}, "EXTRA_PLUGIN_DIRS: expected a path, not a number"),
        ({"STORAGE": "x", "EXTRA_PLUGIN_DIRS": ["a", ""]}, "EXTRA_PLUGIN_DIRS[1]: expected a path, not an empty text"),
        ({"STORAGE": "x", "EXTRA_PLUGIN_DIRS": "a\0"}, "EXTRA_PLUGIN_DIRS: expected a path"),
    ],
)
def test_a_mistake_is_named_with_its_place(config: dict[Any, Any], problem: str) -> None:
    message = error_of(config)
    assert problem in message
    assert "hidden" not in message


def test_a_mapping_that_holds_itself_is_refused() -> None:
    deep: dict[str, Any] = {}
    deep["again"] = deep
    assert "nest deeper than 32" in error_of({"STORAGE": "x", "STORAGE_CONFIG": deep})
    wide: Any = 1
    for _ in range(20):
        wide = [wide] * 20
    assert "more than 10,000 values" in error_of({"STORAGE": "x", "STORAGE_CONFIG": {"a": wide}})


# --- overrides of single namespaces ---


def test_the_first_rule_that_fits_and_sets_it_wins() -> None:
    config = read(
        {
            "STORAGE": "memory",
            "CODEC": "json",
            "LAYERS": ["cache"],
            "NAMESPACES": {
                "a*": {"LAYERS": []},
                "a1": {"CODEC": "pickle", "LAYERS": ["read-only"]},
                "[ab]*": {"codec": "msgpack"},
                "empty": {},
            },
        }
    )
    codecs = {name: config.codec_for(name).name for name in ("a1", "a2", "b", "A1", "empty", "c")}
    layers = {name: [layer.name for layer in config.layers_for(name)] for name in ("a1", "b", "A1", "c")}
    assert codecs == {"a1": "pickle", "a2": "msgpack", "b": "msgpack", "A1": "json", "empty": "json", "c": "json"}
    assert layers == {"a1": [], "b": ["cache"], "A1": ["cache"], "c": ["cache"]}


@settings(deadline=None)  # a loaded machine must not fail the test
@given(st.text("ab[]!-*?^&|~\\(", min_size=1), st.text())
def test_any_text_is_a_pattern(pattern: str, namespace: str) -> None:
    config = read({"STORAGE": "memory", "NAMESPACES": {pattern: {"CODEC": "json"}}})
    assert config.codec_for(namespace).name in ("json", "msgpack")


# --- variables ---


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${A}", "1"),
        ("x${A}y${A}", "x1y1"),
        ("${UNSET:-2}", "2"),
        ("${EMPTY:-2}", "2"),
        ("${EMPTY}", ""),
        ("${UNSET:-}", ""),
        ("${A:-2}", "1"),
        ("${UNSET:-$A {b:-}", "$A {b:-"),
        ("$${A}", "${A}"),
        ("$A $ {A} $$ }", "$A $ {A} $$ }"),
        ("${NESTED}", "${A}"),
    ],
)
def test_variables_expand_once(text: str, expanded: str) -> None:
    config = read(
        {
            "STORAGE": "x",
            "STORAGE_CONFIG": {"${A}": [{"a": text}]},
            "NAMESPACES": {"${A}": {"CODEC": {"name": "c", "k": text}}},
        },
        A="1",
        EMPTY="",
        NESTED="${A}",
    )
    assert config.options == {"${A}": [{"a": expanded}]}
    assert config.codec_for("${A}").options == {"k": expanded}


def test_names_urls_and_paths_may_hold_variables() -> None:
    config = read(
        {
            "STORAGE": "${ENGINE}://${HOST:-localhost}/0?password=${PASSWORD}",
            "EXTRA_PLUGIN_DIRS": "${DIR}/plugins",
            "CODEC": "${CODEC}",
            "LAYERS": ["${LAYER}"],
        },
        ENGINE="redis",
        PASSWORD="50%25",
        DIR="x",
        CODEC="json",
        LAYER="cache",
    )
    assert (config.storage, config.url, config.options) == ("redis", "redis://localhost/0", {"password": "50%"})
    assert config.extra_plugin_dirs == (NOWHERE / "x" / "plugins",)
    assert (config.codec.name, config.layers[0].name) == ("json", "cache")


def test_a_variable_may_be_a_whole_url() -> None:
    config = read({"STORAGE": "${URL}"}, URL="redis://u:p@h?prefix=x&timeout_s=1")
    assert config.url == "redis://u:p@h"
    assert config.options == {"prefix": "x", "timeout_s": "1"}
    assert read({"STORAGE": "${UNSET:-lmdb://x?a=1}"}).options == {"a": "1"}


@pytest.mark.parametrize("password", ["hidden?prefix=x", "hidden&prefix=x"])
@pytest.mark.parametrize("url", ["redis://:${PASSWORD}@h", "redis://h?password=${PASSWORD}"])
def test_a_variable_within_a_url_cannot_add_options(url: str, password: str) -> None:
    message = error_of({"STORAGE": url}, PASSWORD=password)
    assert "STORAGE: the value of ${PASSWORD} holds one of ? &" in message
    assert "hidden" not in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "${UNSET}",
            "STORAGE_CONFIG.a[0]: the environment variable UNSET is not set; set it, or write a default: ${UNSET:-...}",
        ),
        ("${}", "starts no variable"),
        ("${1A}", "starts no variable"),
        ("${A-b}", "starts no variable"),
        ("${A", "starts no variable"),
        ("${A:-${B}}", "starts no variable"),
    ],
)
def test_a_variable_that_cannot_expand_is_named(text: str, problem: str) -> None:
    assert problem in error_of({"STORAGE": "x", "STORAGE_CONFIG": {"a": [text]}}, B="1")


def test_a_variable_expands_in_a_url_and_in_a_path_given_as_text() -> None:
    assert read("lmdb://${A}?durability=${D:-strict}", A="1").url == "lmdb://1"
    assert read("lmdb://${A}?durability=${D:-strict}", A="1").options == {"durability": "strict"}
    assert read(None, HUTCH_STORAGE="lmdb://${A}", A="1").url == "lmdb://1"
    assert read("${URL}", URL="redis://u:p@h?prefix=x").options == {"prefix": "x"}
    assert read("${URL}", URL="lmdb://${A}").url == "lmdb://${A}", "a value is not expanded again"
    assert read("${FOLDER}/state", FOLDER="/srv").options == {"path": "/srv/state"}
    assert read("lmdb://$${A}", A="1").url == "lmdb://${A}"


@pytest.mark.parametrize("text", ["redis://:${SECRET_NAME}@h", "${SECRET_NAME}", "./${SECRET_NAME}"])
def test_a_variable_of_a_url_that_is_not_set_is_named(text: str) -> None:
    assert "argument: the environment variable SECRET_NAME is not set; set it" in error_of(text)
    shown = error_of(None, HUTCH_STORAGE="redis://:${SECRET_NAME}@h")
    assert "$HUTCH_STORAGE: the environment variable SECRET_NAME is not set" in shown


def test_the_value_of_a_variable_is_in_no_message() -> None:
    assert "hunter2" not in error_of("${SECRET_NAME}", SECRET_NAME="hunter2")
    message = error_of("redis://:${SECRET_NAME}@h", SECRET_NAME="hunter2?x")
    assert "SECRET_NAME" in message
    assert "hunter2" not in message


def test_python_objects_are_taken_literally() -> None:
    assert read(Path("${A}"), A="1").options == {"path": "${A}"}
    assert read(SimpleNamespace(STORAGE="x", STORAGE_CONFIG={"p": "${A}"}), A="1").options == {"p": "${A}"}


# --- Python modules and objects ---


def errbot_config(**names: object) -> ModuleType:
    """Return what Errbot's template makes of a config.py: dozens of names, few of them for a storage."""
    module = ModuleType("config")
    template = """
import logging
BACKEND = "Text"
BOT_DATA_DIR = r"/srv/bot/data"
BOT_EXTRA_PLUGIN_DIR = r"/srv/bot/plugins"
BOT_EXTRA_STORAGE_PLUGINS_DIR = None
BOT_LOG_FILE = r"/srv/bot/errbot.log"
BOT_LOG_LEVEL = logging.INFO
BOT_ADMINS = ("@admin",)
BOT_IDENTITY = {"token": "xoxb-hidden"}
ACCESS_CONTROLS = {"*": {"allowrooms": ("room",)}}
def storage(): ...
"""
    exec(template, vars(module))
    vars(module).update(names)
    return module


def test_an_errbot_config_without_storage_opens_its_shelves() -> None:
    module = errbot_config()
    config = read(module)
    assert (config.storage, config.options, config.url) == ("shelf", {"basedir": "/srv/bot/data"}, None)
    assert (config.extra_plugin_dirs, config.base_dir, config.source) == ((), NOWHERE, "module 'config'")
    assert config.host_config is module


@pytest.mark.parametrize(
    ("names", "storage", "options"),
    [
        ({"STORAGE": "Shelf"}, "Shelf", {"basedir": "/srv/bot/data"}),
        ({"STORAGE": "Shelf", "BOT_DATA_DIR": Path("data")}, "Shelf", {"basedir": "data"}),
        ({"STORAGE": "Shelf", "STORAGE_CONFIG": {"basedir": "x"}}, "Shelf", {"basedir": "x"}),
        ({"STORAGE": "shelf://x"}, "shelf", {}),
        ({"STORAGE": "Memory", "STORAGE_CONFIG": None}, "Memory", {}),
        (
            {"STORAGE": "Redis", "STORAGE_CONFIG": {"host": "h", "port": 1, "password": "${"}},
            "Redis",
            {"host": "h", "port": 1, "password": "${"},
        ),
        ({"STORAGE": "Shelf", "BOT_DATA_DIR": None}, "Shelf", {}),
    ],
)
def test_an_errbot_config_works_unchanged(names: dict[str, object], storage: str, options: dict[str, object]) -> None:
    config = read(errbot_config(**names))
    assert (config.storage, config.options) == (storage, options)


@pytest.mark.parametrize(
    ("dirs", "expected"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("plugins", ["plugins"]),
        (["a", Path("b")], ["a", "b"]),
        ({"a"}, ["a"]),
    ],
)
def test_the_plugin_directories_of_a_bot_are_searched(dirs: object, expected: list[str]) -> None:
    config = read(errbot_config(BOT_EXTRA_STORAGE_PLUGINS_DIR=dirs, EXTRA_PLUGIN_DIRS="mine"))
    assert config.extra_plugin_dirs == tuple(NOWHERE / name for name in ("mine", *expected))


def test_any_object_with_the_attributes_will_do() -> None:
    class Settings:
        STORAGE = "memory"
        CODEC = "json"
        LAYERS = ("cache",)
        NAMESPACES: Mapping[str, object] = {"a": {"codec": "pickle"}}

    for host in (Settings, Settings()):
        config = read(host)
        assert (config.storage, config.codec.name, config.layers[0].name) == ("memory", "json", "cache")
        assert config.codec_for("a").name == "pickle"
        assert config.host_config is host


class Broken:
    @property
    def STORAGE(self) -> str:  # noqa: N802
        raise RuntimeError("hidden")


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"hutch.yaml"


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (ModuleType("empty"), "module 'empty': it has neither STORAGE nor BOT_DATA_DIR"),
        (SimpleNamespace(STORAGE_CONFIG={}), "object of type SimpleNamespace: it has neither STORAGE nor BOT_DATA_DIR"),
        (SimpleNamespace(STORAGE=1), "object of type SimpleNamespace: STORAGE: it is a number"),
        (SimpleNamespace(STORAGE="Shelf", BOT_DATA_DIR=1), "BOT_DATA_DIR: expected a path, not a number"),
        (
            SimpleNamespace(STORAGE="x", BOT_EXTRA_STORAGE_PLUGINS_DIR=1),
            "BOT_EXTRA_STORAGE_PLUGINS_DIR: expected a path",
        ),
        (
            SimpleNamespace(STORAGE="x", EXTRA_PLUGIN_DIRS=BytesPath()),
            "EXTRA_PLUGIN_DIRS: expected a path, not a bytes",
        ),
        (Broken(), "object of type Broken: reading its attribute STORAGE raised RuntimeError"),
    ],
)
def test_an_object_that_says_too_little_is_refused(host: object, problem: str) -> None:
    message = error_of(host)
    assert problem in message
    assert "hidden" not in message


@pytest.mark.parametrize("config", [0, 1.5, True, b"lmdb://x", [], ("lmdb://x",), {"lmdb"}, object(), int, BytesPath()])
def test_the_error_for_any_other_config_lists_the_valid_forms(config: object) -> None:
    message = error_of(config)
    for form in ("lmdb:///srv/state", ".yaml", ".toml", "mapping", "module", "None"):
        assert form in message


def test_a_config_passes_through() -> None:
    config = read("memory://")
    assert read(config) is config


# --- paths ---


@pytest.mark.parametrize(
    ("path", "engine"),
    [
        (Path("state"), "lmdb"),
        ("./state", "lmdb"),
        ("/srv/state", "lmdb"),
        ("../state", "lmdb"),
        ("data/state", "lmdb"),
        ("state/", "lmdb"),
        (".state", "lmdb"),
        ("/srv/a b/ü%20", "lmdb"),
        ("/srv/state.v2", "lmdb"),
        ("C:\\data\\state", "lmdb"),
        ("C:/data/state", "lmdb"),
        ("data\\state", "lmdb"),
        ("kv.db", "sqlite"),
        (Path("kv.sqlite"), "sqlite"),
        ("/srv/kv.sqlite3", "sqlite"),
        ("C:\\data\\KV.DB", "sqlite"),
        ("./user@host/kv.db", "sqlite"),
    ],
)
def test_a_path_is_a_store_whose_engine_its_ending_chooses(path: str | Path, engine: str) -> None:
    config = read(path)
    assert (config.storage, config.url, dict(config.options)) == (engine, None, {"path": str(path)})
    assert (config.base_dir, config.private) == (NOWHERE, False)


@pytest.mark.parametrize("name", ["app.yaml", "app.yml", "app.toml"])
def test_a_path_with_the_ending_of_a_config_file_is_read(name: str) -> None:
    assert "there is no such file" in error_of(name)
    assert "there is no such file" in error_of(Path(name))


@pytest.mark.parametrize("text", ["state", "core"])
def test_the_error_for_a_bare_word_shows_both_spellings(text: str) -> None:
    assert f"write './{text}'" in error_of(text)
    assert f"write '{text}://PATH'" in error_of(text)


@pytest.mark.parametrize("text", ["~/state", Path("~/state"), "~ada/state.db"])
def test_a_tilde_is_not_a_folder(text: str | Path) -> None:
    assert "expanduser()" in error_of(text)
    assert read("./~/state").options == {"path": "./~/state"}


def test_a_path_that_no_file_can_have_is_refused() -> None:
    assert "NUL" in error_of(Path("a\0b"))
    assert "NUL" in error_of("./a\0b")


# --- the folder of an application ---


def test_app_names_the_folder_of_the_default_store() -> None:
    environ = {"XDG_DATA_HOME": "/data", "LOCALAPPDATA": "/data", "HOME": "/home/ada"}
    config = read_config(app="bot", environ=environ, cwd=NOWHERE)
    assert Path(str(config.options["path"])).parts[-2:] == ("bot", "store")
    assert config.private
    given = read_config(None, app="bot", environ={"HUTCH_STORAGE": "memory://"}, cwd=NOWHERE)
    assert given.url == "memory://", "what the operator names comes first"
    assert read_config("memory://", app="bot", environ={}, cwd=NOWHERE).url == "memory://"


@pytest.mark.parametrize(
    "app", ["", ".", "..", ".bot", "a/b", "a\\b", "a\0b", " bot", "bot.", "C:x", "x" * 101, 7, b"bot"]
)
def test_an_app_that_cannot_name_a_folder_is_refused(app: Any) -> None:
    with pytest.raises(ConfigError, match="app: expected the name of"):
        read_config("memory://", app=app, environ={}, cwd=NOWHERE)


# --- text that is not a URL ---


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lmdb", "'lmdb://PATH'"),
        ("", "neither a URL"),
        ("two words", "neither a URL"),
        ("redis:/u:hidden@h/0", "neither a URL (it has no '://')"),
        ("/srv/bot/config.py", "/srv/bot/config.py is Python"),
        ("my-bot.py", "import config; hutch.connect(config)"),
        ("bot.py", "import bot; hutch.connect(bot)"),
    ],
)
def test_the_error_for_text_that_is_not_a_config_shows_valid_forms(text: str, problem: str) -> None:
    message = error_of(text)
    assert problem in message
    assert "hidden" not in message


# --- nothing given ---


def test_an_environment_variable_may_name_the_storage() -> None:
    config = read(None, HUTCH_STORAGE="lmdb://data?durability=strict", HUTCH_CONFIG="ignored.yaml")
    assert (config.url, config.options, config.source) == ("lmdb://data", {"durability": "strict"}, "$HUTCH_STORAGE")


def test_an_environment_variable_of_the_wrong_kind_says_which_is_right() -> None:
    assert "goes into $HUTCH_CONFIG" in error_of(None, HUTCH_STORAGE="hutch.yaml")
    assert "goes into $HUTCH_STORAGE" in error_of(None, HUTCH_CONFIG="lmdb://x")
    assert "$HUTCH_CONFIG (x.yaml): there is no such file" in error_of(None, HUTCH_CONFIG="x.yaml")


@pytest.mark.parametrize(
    ("platform", "environ", "path"),
    [
        ("linux", {"XDG_DATA_HOME": "/xdg", "HOME": "/home/u"}, "/xdg/hutch/store"),
        ("linux", {"XDG_DATA_HOME": "relative", "HOME": "/home/u"}, "/home/u/.local/share/hutch/store"),
        ("linux", {"HOME": "/home/u"}, "/home/u/.local/share/hutch/store"),
        ("linux", {}, str(Path.home() / ".local/share/hutch/store")),
        ("darwin", {"XDG_DATA_HOME": "/xdg", "HOME": "/Users/u"}, "/Users/u/Library/Application Support/hutch/store"),
        ("win32", {"LOCALAPPDATA": "C:/Users/u/AppData/Local"}, "C:/Users/u/AppData/Local/hutch/store"),
        ("win32", {"USERPROFILE": "C:/Users/u"}, "C:/Users/u/AppData/Local/hutch/store"),
    ],
)
def test_the_default_is_lmdb_in_the_data_directory_of_the_user(
    platform: str, environ: dict[str, str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform == "win32" and platform != "win32":
        pytest.skip("a path of another platform is not absolute here")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", platform)
        config = read(None, HUTCH_STORAGE="", HUTCH_CONFIG="", **environ)
    assert (config.storage, config.url, config.source) == ("lmdb", None, "default")
    assert Path(config.options["path"]) == Path(path)


def test_without_a_home_the_default_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert "set $" in error_of(None)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not remove the working folder of a process")
def test_a_working_folder_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="the working folder no longer exists"):
        read_config("memory://", environ={})


def test_the_environment_and_the_working_folder_are_those_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HUTCH_STORAGE", "memory://here")
    config = read_config()
    assert (config.url, config.base_dir) == ("memory://here", Path.cwd())


# --- secrets ---

SECRET = "s3cr3t/Pa:ss"


def with_secrets() -> dict[str, Any]:
    return {
        "STORAGE": f"redis://user:{SECRET}@host:6379/0?password={SECRET}&note={SECRET}",
        "STORAGE_CONFIG": {"x": SECRET, "deep": [{"y": SECRET}, (SECRET, SECRET.encode())], "env": "${SECRET}"},
        "CODEC": {"name": "pickle", "key": SECRET},
        "LAYERS": [{"name": "encrypt", "key": SECRET}],
        "NAMESPACES": {"a": {"CODEC": {"name": "pickle", "key": SECRET}, "LAYERS": [{"name": "x", "key": SECRET}]}},
    }


def test_no_repr_shows_a_secret() -> None:
    config = read(with_secrets(), SECRET=SECRET)
    assert config.url is not None
    assert config.options["env"] == config.codec_for("a").options["key"] == SECRET
    host = read(SimpleNamespace(STORAGE="x", BOT_IDENTITY=SECRET, STORAGE_CONFIG={"p": SECRET}))
    for shown in (repr(config), str(config), f"{config}", repr(config.namespaces), repr(config.layers), repr(host)):
        assert SECRET not in shown
        assert "s3cr3t" not in shown
    assert "url='redis://***@host:6379/0'" in repr(config)
    assert "options=<x, deep, env, password, note>" in repr(config)
    assert "CodecConfig(name='pickle', options=<key>)" in repr(config)
    assert "host_config=<SimpleNamespace>" in repr(host)


@pytest.mark.parametrize("url", [f"x://u:{SECRET} #a@b@h", f"x://u:p@{SECRET}@h", f"x://h/;token={SECRET}"])
def test_no_repr_shows_a_password_that_is_badly_quoted(url: str) -> None:
    assert "s3cr3t" not in repr(read(url))


def plant(config: dict[str, Any], place: tuple[Any, ...], value: object) -> dict[str, Any]:
    """Return `config` with `value` at `place`."""
    target: Any = config
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    return config


PLACES: list[tuple[Any, ...]] = [
    ("STORAGE",),
    ("STORAGE_CONFIG",),
    ("STORAGE_CONFIG", "deep"),
    ("EXTRA_PLUGIN_DIRS",),
    ("CODEC",),
    ("CODEC", "name"),
    ("LAYERS",),
    ("LAYERS", 0),
    ("LAYERS", 0, "name"),
    ("NAMESPACES",),
    ("NAMESPACES", "a"),
    ("NAMESPACES", "a", "CODEC"),
    ("NAMESPACES", "a", "LAYERS"),
    ("UNKNOWN",),
]
SHAPES: list[Callable[[str], object]] = [
    str,
    lambda secret: secret.encode(),
    lambda secret: [secret],
    lambda secret: [[secret]],
    lambda secret: {"name": secret},
    lambda secret: {"name": [secret]},
    lambda secret: {"other": secret},
    lambda secret: {1: secret},
    lambda secret: SimpleNamespace(secret=secret),
    lambda secret: f"redis://u:{secret}@h?a",
    lambda secret: f"redis://h?password={secret}&password={secret}",
    lambda secret: f"redis://h?{secret}",
    lambda secret: f"${{UNSET}}{secret}",
    lambda secret: f"${{{secret}}}",
    lambda secret: f"redis://:${{SECRET}}@h?{secret}@",
    lambda secret: "${SECRET}",
    lambda secret: ["${SECRET}", 1],
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_no_error_shows_a_secret_wherever_it_was_put(place: tuple[Any, ...], shape: int) -> None:
    config = plant(with_secrets(), place, SHAPES[shape](SECRET))
    try:
        shown = repr(read(config, SECRET=SECRET).codec)
    except ConfigError as error:
        shown = "".join(traceback.format_exception(error))
    assert "s3cr3t" not in shown


# --- anything at all ---

FRAGMENTS = st.sampled_from(
    [
        "://",
        "?",
        "&",
        "=",
        "@",
        "%",
        "%00",
        "%FF",
        "lmdb",
        "codec=",
        "pickle",
        "${",
        "}",
        ":-",
        "$${",
        "/",
        "\\",
        ".yaml",
        ".py",
        "\0",
        "\ud800",
        " ",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(st.one_of(FRAGMENTS, st.text(max_size=3)), max_size=8).map("".join))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary(), st.dates())
NAMES = st.sampled_from(["STORAGE", "STORAGE_CONFIG", "EXTRA_PLUGIN_DIRS", "CODEC", "LAYERS", "NAMESPACES", "name"])
KEYS = st.one_of(NAMES, NAMES.map(str.lower), TEXTS, st.integers())
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def is_config_or_error(config: object) -> None:
    """Assert that `config` gives a StoreConfig that can be shown and queried, or a ConfigError of one line."""
    try:
        result = read(config, A="a", SECRET=SECRET)
    except ConfigError as caught:
        shown = str(caught)
    else:
        assert result.codec_for("a").name
        assert all(layer.name for layer in result.layers_for("a"))
        shown = repr(result)
    assert len(shown.splitlines()) == 1


@settings(deadline=None)  # a loaded machine must not fail the test
@given(TEXTS)
@example("lmdb://?")
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    is_config_or_error(text)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.dictionaries(KEYS, VALUES, max_size=6), VALUES))
def test_any_value_is_a_config_or_a_config_error(value: object) -> None:
    is_config_or_error(value)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"STORAGE": st.one_of(st.just("lmdb"), TEXTS)},
        optional=dict.fromkeys(("STORAGE_CONFIG", "EXTRA_PLUGIN_DIRS", "CODEC", "LAYERS", "NAMESPACES"), VALUES),
    )
)
def test_any_config_and_any_object_is_a_config_or_a_config_error(keys: dict[str, Any]) -> None:
    is_config_or_error(keys)
    is_config_or_error(SimpleNamespace(**keys, BOT_DATA_DIR="data"))


def test_reading_a_config_writes_nothing(tmp_path: Path) -> None:
    read_config("lmdb://data", environ={}, cwd=tmp_path)
    read_config({"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": "data"}}, environ={}, cwd=tmp_path)
    read_config(None, environ={"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}, cwd=tmp_path)
    assert os.listdir(tmp_path) == []
