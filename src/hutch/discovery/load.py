"""Load a plugin: import its module, choose its factory class and build the factory. Only here is plugin code imported.

A module is loaded by file location, as a member of a package that hutch creates for its folder: `sys.path` is not
changed, modules of the same name do not clash, and ``from . import helper`` finds a sibling.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from ..codec.codec import Codec
from ..contract import StoragePluginBase
from ..errors import ConfigError, PluginLoadError, StoreError, nearest, redact
from ..filesystem import hex_digest
from ..fork import ForkSafeLock
from ..handlers import passes_through, raised_by_handler
from .descriptor import PluginInfo, shown
from .foreign import close_interrupted

_lock = ForkSafeLock()
# Modules whose import has begun but not completed. A name that is not in `_importing` too was interrupted.
_unfinished: set[str] = set()
_importing: set[str] = set()
# The module and class of each plugin with a descriptor that was loaded.
_loaded: dict[PluginInfo, tuple[ModuleType, type]] = {}
# Shorter option values are not treated as secrets: replacing them would garble words at random.
_SHORTEST_SECRET = 3
_LONGEST_TEXT = 300


def load_factory(info: PluginInfo) -> type:
    """Import the plugin if it is not imported yet, and return its factory class.

    Loading twice returns the same class; any thread may call it. Raises PluginLoadError, with the cause, if the
    module cannot be imported (it is then removed from `sys.modules`) or has no such factory.
    """
    if info.factory is not None:
        if not _is_factory(info.factory):
            raise load_error(info, f"{info.factory.__qualname__} is not a factory: {_FACTORY.rule}")
        return info.factory
    return _load_class(info, _FACTORY)


def load_codec(info: PluginInfo) -> type[Codec]:
    """Import the plugin if it is not imported yet, and return its codec class. Raises as `load_factory` does."""
    return _load_class(info, _CODEC)


def _load_class(info: PluginInfo, wanted: _Wanted) -> type:
    if info.entry_point is not None:
        return _entry_point_class(info, wanted)
    if (loaded := _loaded.get(info)) is not None and sys.modules.get(loaded[0].__name__) is loaded[0]:
        return loaded[1]
    _check_python(info)
    module = _load_module(info)
    chosen = _choose_class(info, module, wanted)
    _loaded[info] = module, chosen
    return chosen


def build_factory(info: PluginInfo, config: object) -> object:
    """Return the plugin's factory, built with `config` (stage 1).

    A StoreError that the factory raises passes through. KeyError and ValueError become ConfigError, because a factory
    reads the config; anything else becomes PluginLoadError. Its message is quoted without the values of the options.
    """
    factory = load_factory(info)
    built: list[object] = []
    try:
        # `extend` and `map` are C code, so no signal handler can run between the factory's return and the append.
        built.extend(map(factory, [config]))
        return built[0]
    except StoreError:
        raise
    except (KeyError, ValueError) as error:
        if passes_through(error):
            if built:
                close_interrupted(built[0])
            raise
        raise ConfigError(
            f"plugin {info.name!r} did not accept its options: {error_text(error, config)} ({_origin(info)})"
        ) from error
    except BaseException as error:
        if built:
            close_interrupted(built[0])
        if not isinstance(error, Exception | SystemExit) or isinstance(error, MemoryError) or raised_by_handler(error):
            raise
        if _lacks_driver(error, info):
            raise _not_installed(info, error) from error
        raise load_error(info, f"its factory raised {error_text(error, config)}") from error


# --- importing ---


def _load_module(info: PluginInfo) -> ModuleType:
    file = info.module_file
    assert info.module is not None
    assert file is not None
    package_name = _package_name(file.parent)
    name = f"{package_name}.{info.module}"
    with _lock.current:
        if name in sys.modules and name not in _unfinished:
            return sys.modules[name]
        if name in _importing:
            raise load_error(info, f"its module {shown(file)} is being imported by the call that was interrupted")
        before = set(sys.modules)
        try:
            _importing.add(name)
            _unfinished.add(name)
            package = _package(package_name, file.parent)
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            setattr(package, info.module, module)
            _unfinished.discard(name)
            return sys.modules.get(name, module)
        except BaseException as error:  # a module may raise anything, or call sys.exit
            _forget(package_name, set(sys.modules) - before)
            _unfinished.discard(name)
            if isinstance(error, KeyboardInterrupt | MemoryError) or raised_by_handler(error):
                raise
            if _lacks_driver(error, info):
                raise _not_installed(info, error) from error
            raise load_error(info, _import_failure(info, file, error), file) from error
        finally:
            _importing.discard(name)


def _package_name(folder: Path) -> str:
    """Return a name for `folder` that is the same in every process, so that instances of its classes can be pickled."""
    return f"hutch_plugin_{hex_digest(os.fsencode(os.path.normcase(folder)))[:16]}"


def _package(name: str, folder: Path) -> ModuleType:
    """Return the package that represents `folder`, created on first use; an ``__init__.py`` is ignored."""
    package = sys.modules.get(name)
    if package is None:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        package = sys.modules[name] = importlib.util.module_from_spec(spec)
        # The folder may have changed within the clock tick of its last listing. Invalidate this folder's finders only:
        # importlib.invalidate_caches() would import importlib.metadata.
        for place, finder in list(sys.path_importer_cache.items()):
            if finder is not None and os.fsdecode(place).startswith(str(folder)):
                getattr(finder, "invalidate_caches", lambda: None)()
    return package


def _forget(package_name: str, added: set[str]) -> None:
    """Remove from `sys.modules` a module whose import failed, and the siblings that it imported."""
    package = sys.modules.get(package_name)
    for name in added:
        if name == package_name:
            del sys.modules[name]
        elif name.startswith(f"{package_name}."):
            del sys.modules[name]
            vars(package).pop(name.rpartition(".")[2], None)


def _import_failure(info: PluginInfo, file: Path, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"its module {shown(file)} called sys.exit{_line(file, error)}; a plugin must not"
    message = f"its module {shown(file)} raised {error_text(error)}{_line(file, error)}"
    if isinstance(error, ModuleNotFoundError) and error.name and (file.parent / f"{error.name}.py").is_file():
        message += f". {error.name}.py is beside it: write `from . import {error.name}`; sys.path is not changed"
    return message


def _line(file: Path, error: BaseException) -> str:
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" at line {line}" if line else ""


def _lacks_driver(error: BaseException, info: PluginInfo) -> TypeGuard[ModuleNotFoundError]:
    return info.extra is not None and isinstance(error, ModuleNotFoundError)


def _not_installed(info: PluginInfo, error: ModuleNotFoundError) -> PluginLoadError:
    message = f"it needs the package {error.name!r}, which is not installed. Install it: "
    raised = load_error(info, f'{message}pip install "hutch[{info.extra}]"')
    raised.is_not_installed = True
    return raised


def _check_python(info: PluginInfo) -> None:
    if info.python_min is None:
        return
    wanted = ".".join(map(str, info.python_min))
    if info.python_min < (3,):
        raise load_error(info, f"it is written for Python {wanted} alone")
    if sys.version_info[:3] < info.python_min:
        running = ".".join(map(str, sys.version_info[:3]))
        raise load_error(info, f"it needs Python {wanted} or later; this is {running}")


# --- choosing the factory ---


def _entry_point_class(info: PluginInfo, wanted: _Wanted) -> type:
    assert info.module is not None
    assert info.class_name is not None
    try:
        target: object = importlib.import_module(info.module)
        for name in info.class_name.split("."):
            target = getattr(target, name)
    except BaseException as error:  # as in _load_module
        if isinstance(error, KeyboardInterrupt | MemoryError) or raised_by_handler(error):
            raise
        message = (
            "called sys.exit; a plugin must not" if isinstance(error, SystemExit) else f"raised {error_text(error)}"
        )
        raise load_error(info, f"importing {info.module}:{info.class_name} {message}") from error
    if not wanted.accepts(target):
        raise load_error(info, f"{info.module}:{info.class_name} is not a {wanted.noun}: {wanted.rule}")
    assert isinstance(target, type)
    return target


def _choose_class(info: PluginInfo, module: ModuleType, wanted: _Wanted) -> type:
    classes = [value for value in vars(module).values() if issubclass(type(value), type)]
    # Deduplicated by identity, because one class may have two names.
    own: list[type] = list({id(cls): cls for cls in classes if cls.__module__ == module.__name__}.values())
    factories = [cls for cls in own if wanted.accepts(cls)]
    names = ", ".join(cls.__name__ for cls in factories)
    file = module.__file__ or module.__name__
    if info.class_name is not None:
        chosen = vars(module).get(info.class_name)
        if wanted.accepts(chosen):
            assert isinstance(chosen, type)
            return chosen
        if chosen is None:
            message = f"its module {shown(file)} has no class {info.class_name!r}."
            message += nearest(info.class_name, [cls.__name__ for cls in own])
        else:
            message = f"{info.class_name} in {shown(file)} is not a {wanted.noun}: {wanted.rule}{_abstract(chosen)}."
        raise load_error(info, f"{message} {wanted.plural.capitalize()} there: {names or 'none'}")
    if len(factories) == 1:
        return factories[0]
    if factories:
        raise load_error(
            info,
            f"its module {shown(file)} has {len(factories)} {wanted.plural}: {names}; "
            "choose one with Class in [Core] of the descriptor",
        )
    unfinished = "".join(_abstract(cls) for cls in own)
    raise load_error(info, f"its module {shown(file)} has no {wanted.noun}: {wanted.rule}{unfinished}")


def _is_factory(value: object) -> TypeGuard[type]:
    # Test the type, because isinstance on a lazy proxy may run the proxy's code.
    if not issubclass(type(value), type) or getattr(value, "__abstractmethods__", None):
        return False
    assert isinstance(value, type)
    if issubclass(value, StoragePluginBase):
        return True
    return _defines(value, "open") and not (_defines(value, "get") and _defines(value, "set"))


def _is_codec(value: object) -> bool:
    return issubclass(type(value), type) and issubclass(value, Codec) and not value.__abstractmethods__  # type: ignore[arg-type, attr-defined]


class _Wanted:
    """What a plugin must define, in words for messages and as a test."""

    def __init__(self, noun: str, plural: str, rule: str, accepts: Callable[[object], bool]) -> None:
        self.noun, self.plural, self.rule, self.accepts = noun, plural, rule, accepts


_FACTORY = _Wanted(
    "factory",
    "factories",
    "a factory is a subclass of hutch.StoragePluginBase, or has open(namespace) and is not itself a storage",
    _is_factory,
)
_CODEC = _Wanted("codec", "codecs", "a codec is a subclass of hutch.Codec with encode and decode", _is_codec)


def _defines(cls: type, method: str) -> bool:
    return any(callable(vars(base).get(method)) for base in cls.__mro__)


def _abstract(value: object) -> str:
    if not isinstance(value, type) or not issubclass(value, StoragePluginBase | Codec) or not value.__abstractmethods__:
        return ""
    return f". {value.__name__} lacks {', '.join(sorted(value.__abstractmethods__))}"


# --- error messages ---


def load_error(info: PluginInfo, message: str, file: Path | None = None) -> PluginLoadError:
    return PluginLoadError(
        f"plugin {info.name!r} cannot be loaded: {message} ({_origin(info)})",
        name=info.name,
        path=None if file is None else str(file),
    )


def _origin(info: PluginInfo) -> str:
    return f"descriptor {shown(info.path)}" if info.module_file is not None else shown(info.path)


# Patterns for a character that repr escapes, as it appears in a message after any number of reprs.
_QUOTED = {"\\": r"\\+", "'": r"\\*'", '"': r'\\*"', "\n": r"(?:\n|\\+n)", "\r": r"(?:\r|\\+r)", "\t": r"(?:\t|\\+t)"}


def error_text(error: BaseException, config: object = None) -> str:
    """Return the text of `error` for a message: one line, truncated, without the credentials of a URL.

    The values of the options in `config` are replaced too: any of them may be a password.
    """
    try:
        text = str(error)
    except Exception as second:  # its __str__ is third-party code too
        if passes_through(second):
            raise
        return type(error).__name__
    options = config if isinstance(config, Mapping) else getattr(config, "STORAGE_CONFIG", None)
    secrets = sorted({given for given in _texts_in(options) if len(given) >= _SHORTEST_SECRET}, key=len, reverse=True)
    if secrets:
        text = re.sub(
            "|".join("".join(_QUOTED.get(c) or re.escape(c) for c in secret) for secret in secrets), "***", text
        )
    text = " ".join(redact(text).split())
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _texts_in(options: object) -> Iterator[str]:
    """Yield every text and number in `options` as text, and the credentials of each URL, also decoded."""
    if isinstance(options, Mapping):
        options = list(options.values())
    if isinstance(options, list | tuple | set | frozenset):
        for option in options:
            yield from _texts_in(option)
        return
    text = str(options) if isinstance(options, str | int | float) else ""
    yield text
    _, is_url, rest = text.partition("://")
    if is_url:  # a driver may quote only a part of the URL
        from urllib.parse import unquote

        user, _, password = rest.rpartition("@")[0].partition(":")
        yield from (user, password, unquote(user), unquote(password))
