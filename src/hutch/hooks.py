"""Hooks: functions with which other packages add plugins and receive events. The only module that imports pluggy.

A package registers with an entry point of group ``hutch`` that names a module or an object with functions
marked `hookimpl`; a program calls `register_hooks`. Hooks run when a namespace opens, closes or fails to open, never
per key. A hook that raises is logged, and opening continues.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pluggy

from .errors import PluginError, nearest
from .fork import ForkSafeLock
from .handlers import passes_through, raised_by_handler

PROJECT = "hutch"

#: Marks a function as the implementation of the hook with the same name.
hookimpl = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)
_log = logging.getLogger(PROJECT)


class HookSpecs:
    """The available hooks. An implementation may omit arguments that it does not need."""

    @_hookspec
    def hutch_plugins(self) -> Iterable[Path | type]:  # type: ignore[empty-body]
        """Return storage plugins: folders of descriptors, or factory classes. Called at each search for plugins."""

    @_hookspec
    def hutch_namespace_opened(self, store: str, namespace: str) -> None:
        """Receive the event that `namespace` was opened; `store` is the name of the storage plugin."""

    @_hookspec
    def hutch_namespace_closed(self, store: str, namespace: str) -> None:
        """Receive the event that the handle on `namespace` was closed."""

    @_hookspec
    def hutch_namespace_failed(self, store: str, namespace: str, error: BaseException) -> None:
        """Receive the event that opening `namespace` failed; `error` is raised to the caller afterwards."""


_lock = ForkSafeLock()
_manager: pluggy.PluginManager | None = None
_is_loaded = _is_loading = False


def plugin_manager() -> pluggy.PluginManager:
    """Return the process-wide plugin manager. The first call loads the entry points of group ``hutch``.

    An entry point that cannot be loaded causes a RuntimeWarning that names it; the others are loaded.
    """
    global _manager, _is_loaded, _is_loading  # noqa: PLW0603 - one manager per process, by design
    if _is_loaded and _manager is not None:
        return _manager  # without the lock: a finalizer may close a namespace while another thread holds it
    with _lock.current:
        if _manager is None:
            manager = pluggy.PluginManager(PROJECT)
            manager.add_hookspecs(HookSpecs)
            # Set before loading, because a package may call register_hooks while it is imported.
            _manager = manager
        if _is_loaded or _is_loading:
            return _manager
        try:
            _is_loading = True
            problems = _load_entry_points(_manager)
            _is_loaded = True
        finally:
            # If a signal handler interrupted the loading, the next call loads.
            _is_loading = False
    # Warn last, because a program may turn warnings into errors.
    for problem in problems:
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    return _manager


def register_hooks(hooks: object) -> None:
    """Register `hooks`, a module or an object with functions marked `hookimpl`.

    Raises PluginError if `hooks` is registered already, or one of its hooks is unknown or takes unknown arguments.
    """
    _register(plugin_manager(), hooks, None)


def unregister_hooks(hooks: object) -> None:
    """Unregister `hooks`. Raises PluginError if it is not registered."""
    manager = plugin_manager()
    with _lock.current:
        if not manager.is_registered(hooks):
            raise PluginError(f"these hooks are not registered: {_shown(hooks)}")
        manager.unregister(hooks)


def hooked_plugins() -> list[Path | type]:
    """Return the results of all `hutch_plugins` hooks in one list; a hook that raises is logged and left out.

    `discover` validates the items of the list.
    """
    plugins: list[Any] = []
    for given in _call("hutch_plugins"):
        try:
            # A single plugin may be returned without a list.
            plugins.extend([given] if isinstance(given, str | os.PathLike | type) else given)
        except Exception as error:
            if passes_through(error):
                raise
            _log.exception("hook hutch_plugins gave no list of folders and classes")
    return plugins


def notify(hook: str, **event: Any) -> None:
    """Call every implementation of `hook` with `event`; one that raises is logged and does not stop the others."""
    _call(hook, **event)


def _call(hook: str, **arguments: Any) -> list[Any]:
    """Return the results of `hook`, last registered first. Calls each itself: pluggy stops at the first that raises."""
    results = []
    for implementation in reversed(getattr(plugin_manager().hook, hook).get_hookimpls()):
        try:
            result = implementation.function(*[arguments[name] for name in implementation.argnames])
        except Exception as error:
            if passes_through(error):
                raise
            _log.exception("hook %s of %s failed", hook, _shown(implementation.plugin))
            continue
        if result is not None:
            results.append(result)
    return results


def _load_entry_points(manager: pluggy.PluginManager) -> list[str]:
    """Register every entry point of group ``hutch`` and return the problems found."""
    try:
        entry_points = list(importlib.metadata.entry_points(group=PROJECT))
    except Exception as error:  # site-packages may contain anything
        if passes_through(error):
            raise
        return [f"the entry points of group {PROJECT} cannot be read: {error!r}"]
    problems = []
    for entry_point in entry_points:
        try:
            hooks = entry_point.load()
            # It may be registered already: installed twice, or by its own module.
            if not manager.is_registered(hooks):
                _register(manager, hooks, entry_point.name)
        except BaseException as error:  # a module may raise anything, or call sys.exit
            if isinstance(error, KeyboardInterrupt | MemoryError) or raised_by_handler(error):
                raise
            problems.append(f"hooks of entry point {entry_point.name} = {entry_point.value} cannot be used: {error!r}")
    return problems


def _register(manager: pluggy.PluginManager, hooks: object, name: str | None) -> None:
    with _lock.current:
        try:
            manager.register(hooks, name)
        except ValueError as error:
            if passes_through(error):
                raise
            raise PluginError(f"these hooks are registered already: {_shown(hooks)}") from None
        except pluggy.PluginValidationError as error:
            problem: str | None = " ".join(str(error).split())
        else:
            problem = _misfit(manager, hooks)
        if problem:
            if manager.is_registered(hooks):  # pluggy 1.5 and 1.6 keep hooks that failed validation
                manager.unregister(hooks)
            raise PluginError(f"hooks {_shown(hooks)} do not fit: {problem}")


def _misfit(manager: pluggy.PluginManager, hooks: object) -> str | None:
    """Return the problem with registered `hooks` that pluggy does not report, or None."""
    known = [hook for hook in vars(HookSpecs) if hook.startswith("hutch_")]
    callers = manager.get_hookcallers(hooks)
    if not callers:
        return f"there is no function marked hutch.hookimpl; the hooks are {', '.join(known)}"
    for caller in callers:
        if caller.name not in known:
            return f"there is no hook {caller.name}.{nearest(caller.name, known)} The hooks are {', '.join(known)}"
        for implementation in caller.get_hookimpls():
            if implementation.plugin is hooks and (implementation.wrapper or implementation.hookwrapper):
                return f"{caller.name} is a wrapper; each hook is called by itself, so there is nothing to wrap"
    return None


def _shown(hooks: object) -> str:
    """Return a name for `hooks` without its repr, which may contain anything."""
    name = getattr(hooks, "__name__", None)
    return name if isinstance(name, str) else f"an object of class {type(hooks).__qualname__}"
