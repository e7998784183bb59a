"""Read a config: extract the seven keys from any form, then let `Checker` build a `StoreConfig` from them.

``${NAME}`` and ``${NAME:-default}`` expand in every text value of a file or a mapping, and in a URL or a path that is
passed as text; never in a key, a path object, or a Python object (an Errbot config is Python, and may have a ``${`` in
a password). ``$${`` stands for a plain ``${``. The default applies if the variable is unset or empty. The value of a
variable is not expanded again, and within a URL it must be escaped as URLs are (``%3F`` for ``?``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from ..errors import ConfigError, nearest
from ..handlers import passes_through
from .model import CodecConfig, FrozenDict, StoreConfig
from .url import shown_name
from .validate import KEYS, Checker
from .variables import expand, without_variables

# STORAGE in an Errbot config that uses hutch.bridges.errbot; its STORAGE_CONFIG is then a hutch config.
_BRIDGE = "hutch"
# A bot's plugins may store any picklable value, as in Errbot's own storages; msgpack is preferred where it suffices.
_BRIDGE_CODEC = CodecConfig("pickle", FrozenDict({"prefer": "msgpack"}))
_BRIDGE_FORMS = "Expected a URL, as in {'url': 'lmdb:///srv/bot/state'}, or keys of a hutch config: " + ", ".join(KEYS)
_FORMS = (
    "Expected a URL such as lmdb:///srv/state, a path such as ./state (LMDB) or ./state.db (SQLite), the path of a "
    ".yaml or .toml file, a mapping with the key STORAGE, a Python module or object with the attribute STORAGE, or "
    "None for the defaults"
)


def read_config(
    config: object = None, *, app: str | None = None, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> StoreConfig:
    """Return the `StoreConfig` that `config` describes, in any form.

    `config` is a URL, a path (`str` or path object: a YAML or TOML file, a SQLite file, or else the folder of an LMDB
    store), a mapping with a file's keys, a Python module or object (an Errbot ``config.py``), a `StoreConfig` (returned
    unchanged), or None. None means ``$HUTCH_STORAGE`` (a URL), else ``$HUTCH_CONFIG`` (a file), else LMDB in the folder
    `app` (default: ``hutch``) of the user's data directory; an empty variable counts as unset. The working folder is
    never searched for a file. `environ` and `cwd` replace `os.environ` and the working folder. Relative paths in a file
    are relative to the file; in every other form, Python modules included, to the working folder, as in Errbot.

    Opens only the config file and writes nothing. Raises ConfigError that names the place, what was expected and the
    nearest valid name, and shows no value.
    """
    if app is not None:
        from .path import validate_app

        validate_app(app)
    if isinstance(config, StoreConfig):
        return config
    environ = os.environ if environ is None else environ
    try:
        here = (cwd or Path()).absolute()
    except OSError as error:
        if passes_through(error):
            raise
        raise ConfigError("the working folder no longer exists; change to one that does") from None
    if config is None:
        return _from_surroundings(environ, here, app or "hutch")
    if isinstance(config, Mapping):
        return Checker("argument", here, environ).read(config)
    path = os.fspath(config) if isinstance(config, os.PathLike) else None
    if isinstance(path, str):
        return _from_path(path, environ, here)
    if isinstance(config, str):
        return _from_text(config, environ, here)
    return _from_object(config, here)


def _from_surroundings(environ: Mapping[str, str], here: Path, app: str) -> StoreConfig:
    if url := environ.get("HUTCH_STORAGE"):
        if "://" not in url:
            raise ConfigError(
                "$HUTCH_STORAGE: expected a URL such as lmdb:///srv/state; the path of a file goes into $HUTCH_CONFIG"
            )
        return _from_url(url, "$HUTCH_STORAGE", environ, here)
    if path := environ.get("HUTCH_CONFIG"):
        if "://" in path:
            raise ConfigError("$HUTCH_CONFIG: expected the path of a file; a URL goes into $HUTCH_STORAGE")
        return _from_file(path, f"$HUTCH_CONFIG ({path})", environ, here)
    options = FrozenDict({"path": str(_data_dir(environ) / app / "store")})
    return StoreConfig("lmdb", options, base_dir=here, source="default", private=True)


def _data_dir(environ: Mapping[str, str]) -> Path:
    platform: str = sys.platform  # a plain str, because mypy would otherwise check only one platform's branch
    if platform == "win32":
        local = environ.get("LOCALAPPDATA")
        return Path(local) if local else _home(environ, "USERPROFILE") / "AppData" / "Local"
    if platform == "darwin":
        return _home(environ, "HOME") / "Library" / "Application Support"
    data_home = environ.get("XDG_DATA_HOME", "")
    # The XDG specification says to ignore a relative path.
    return Path(data_home) if Path(data_home).is_absolute() else _home(environ, "HOME") / ".local" / "share"


def _home(environ: Mapping[str, str], variable: str) -> Path:
    try:
        return Path(environ.get(variable) or Path.home())
    except RuntimeError as error:
        if passes_through(error):
            raise
        raise ConfigError(
            f"no config is given, and there is no home directory to keep a store in; set ${variable}, or set "
            "$HUTCH_STORAGE to a URL such as lmdb:///srv/state"
        ) from error


def _from_url(url: str, source: str, environ: Mapping[str, str] | None, here: Path) -> StoreConfig:
    return Checker(source, here, environ, keyed=False).read({"STORAGE": url})


def _from_text(given: str, environ: Mapping[str, str], here: Path) -> StoreConfig:
    if "://" in without_variables(given):
        return _from_url(given, "argument", environ, here)
    text = expand(given, environ, "argument") if "${" in given else given
    if "://" in text:  # the value of a variable
        return _from_url(text, "argument", None, here)
    from .path import is_config_file, is_path

    if is_config_file(text) or is_path(text):
        return _from_path(text, environ, here)
    # Show the text only if it is a plain word: it could be a URL that lacks a slash and contains a password.
    if text.isidentifier() and text is given:
        raise ConfigError(
            f"argument: {text!r} is neither a URL nor a path. For a store in the folder {text!r} write './{text}'; for "
            f"the storage {text!r} write '{text}://PATH'"
        )
    raise ConfigError(
        "argument: this text is neither a URL (it has no '://') nor a path (a path without a folder starts with './'). "
        f"{_FORMS}"
    )


def _from_path(path: str, environ: Mapping[str, str], here: Path) -> StoreConfig:
    from .path import is_config_file, store_at  # here, because a URL needs none of it

    if is_config_file(path):
        return _from_file(path, path, environ, here)
    engine, options = store_at(path, here)
    return StoreConfig(engine, FrozenDict(options), base_dir=here)


def _from_file(path: str, source: str, environ: Mapping[str, str], here: Path) -> StoreConfig:
    source = source if source.isprintable() else ascii(source)
    file = here / path
    from .file import read_file

    return Checker(source, file.parent, environ).read(read_file(file, source))


def _from_object(host: object, here: Path) -> StoreConfig:
    is_module = isinstance(host, ModuleType)
    source = f"module {host.__name__!r}" if isinstance(host, ModuleType) else f"object of type {type(host).__name__}"
    attributes: dict[str, object] = {}
    for name in (*KEYS, "BOT_EXTRA_STORAGE_PLUGINS_DIR", "BOT_DATA_DIR"):
        try:
            value = getattr(host, name, None)
        except Exception as error:
            if passes_through(error):
                raise
            raise ConfigError(f"{source}: reading its attribute {name} raised {type(error).__name__}") from error
        if value is not None:
            attributes[name] = value
    if not attributes and not is_module:
        raise ConfigError(f"argument: a config cannot be of type {type(host).__name__}. {_FORMS}")
    data_dir = attributes.pop("BOT_DATA_DIR", None)
    bot_dirs = attributes.pop("BOT_EXTRA_STORAGE_PLUGINS_DIR", None)
    if "STORAGE" not in attributes:
        if data_dir is None:
            raise ConfigError(f"{source}: it has neither STORAGE nor BOT_DATA_DIR; one must say where data is kept")
        attributes["STORAGE"] = "shelf"  # Errbot's default
    checker = Checker(source, here)
    if str(attributes["STORAGE"]).casefold() == _BRIDGE:
        checker = Checker(f"{source}: STORAGE_CONFIG", here, default_codec=_BRIDGE_CODEC)
        attributes = _for_bridge(attributes, data_dir, source)
    config = checker.read(attributes)
    options = config.options
    if (
        config.storage.casefold() == "shelf"
        and config.url is None
        and "basedir" not in options
        and data_dir is not None
    ):
        options = FrozenDict({**options, "basedir": checker.path(data_dir, "BOT_DATA_DIR")})
    # Bots write "" or [] for "none".
    dirs = checker.dirs(bot_dirs or None, "BOT_EXTRA_STORAGE_PLUGINS_DIR")
    return replace(config, options=options, extra_plugin_dirs=config.extra_plugin_dirs + dirs, host_config=host)


def _for_bridge(attributes: Mapping[str, object], data_dir: object, source: str) -> dict[str, object]:
    """Return the hutch keys in a bot's STORAGE_CONFIG, where ``url`` may replace STORAGE.

    Without either, STORAGE is LMDB in the folder ``hutch`` of BOT_DATA_DIR.
    """
    misplaced = [name for name in attributes if name not in ("STORAGE", "STORAGE_CONFIG")]
    if misplaced:
        raise ConfigError(f"{source}: with STORAGE = 'Hutch', {misplaced[0]} is a key of STORAGE_CONFIG; move it there")
    given = attributes.get("STORAGE_CONFIG", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"{source}: STORAGE_CONFIG must be a mapping, not {type(given).__name__}. {_BRIDGE_FORMS}")
    known = ("url", *KEYS)
    for key in given:
        if not isinstance(key, str) or key.upper() not in (*KEYS, "URL"):
            raise ConfigError(
                f"{source}: STORAGE_CONFIG has the unknown key {shown_name(key)}.{nearest(str(key), known)} "
                f"{_BRIDGE_FORMS}"
            )
    keys = {key: value for key, value in given.items() if key.upper() != "URL"}
    urls = [value for key, value in given.items() if key.upper() == "URL"]
    named = any(key.upper() == "STORAGE" for key in keys)
    if len(urls) + named > 1:
        raise ConfigError(f"{source}: STORAGE_CONFIG names more than one storage; keep either url or STORAGE")
    if urls:
        if not isinstance(urls[0], str) or "://" not in urls[0]:
            raise ConfigError(f"{source}: STORAGE_CONFIG: url must be text such as lmdb:///srv/bot/state")
        return {"STORAGE": urls[0], **keys}
    if named:
        return keys
    if not isinstance(data_dir, str | os.PathLike):
        raise ConfigError(f"{source}: neither STORAGE_CONFIG nor BOT_DATA_DIR says where data is kept. {_BRIDGE_FORMS}")
    from urllib.parse import quote

    path = quote(os.fsdecode(Path(data_dir) / "hutch"), errors="surrogateescape")
    return {"STORAGE": f"lmdb://{path}", **keys}
