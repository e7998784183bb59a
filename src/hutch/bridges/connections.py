"""One connection for each URL in a process, shared by all bridges, in any thread.

Frameworks make a storage where they need one, as often as they like, and few of them ever close it. So the connection
outlives them all: it is made when a URL is first used, and closed when the process ends in its own way. Nothing depends
on that: what a bridge wrote is stored when its call returns, as durable as the engine is configured.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import hutch

if TYPE_CHECKING:
    from ..workers import Calls, WorkerPool

# The threads of all bridges that are awaited: few, for most of them wait for one server.
_THREADS = 8

# What a URL may begin with where a framework chooses its storage by a scheme: ``hutch://sqlite:///x.db``.
_SCHEME = "hutch://"

_lock = threading.RLock()
# With the config, so that no other object has its id meanwhile.
_stores: dict[tuple[str | int | None, ...], tuple[object, hutch.Store]] = {}
_handles: dict[tuple[hutch.Store, str], hutch.Namespace] = {}
_pool: WorkerPool | None = None


def shared_store(url: str | object | None = None) -> hutch.Store:
    """The store of `url`, connected once in this process. Never close it: others have it too.

    `url` is a storage's URL or the path of a config file, with or without ``hutch://`` before it; ``${NAME}`` and
    ``${NAME:-default}`` in a URL stand for environment variables, so that a password need not be written where a
    framework would record it. None, "" and ``hutch://`` alone stand for what ``hutch.connect()`` takes:
    `$HUTCH_STORAGE` and so on. A mapping, Python module or object, such as a bot's config.py, is a config as for
    `hutch.connect`, and stands for itself: for the same object it is the same store. Raises what `hutch.connect`
    raises.
    """
    config = (url or "").removeprefix(_SCHEME) or None if url is None or isinstance(url, str) else url
    with _lock:
        key = _key(config)
        if key not in _stores:
            # A URL within a mapping has its variables expanded, one by itself has not.
            form = {"STORAGE": config} if isinstance(config, str) and "://" in config else config
            made = config, hutch.connect(form)
            # A signal handler or finalizer may have connected meanwhile: its store stays, for it may be in use.
            if _stores.setdefault(key, made) is not made:
                made[1].close()
        return _stores[key][1]


def shared_namespace(url: str | object | None, namespace: str) -> hutch.Namespace:
    """The one handle of this process on `namespace` of `shared_store(url)`. Any thread may use it, nobody closes it.

    Raises what `hutch.connect` and `hutch.Store.open` raise.
    """
    with _lock:
        store = shared_store(url)
        handle = _handles.get((store, namespace))
        if handle is None or not handle.is_open_storage():
            handle = _handles[store, namespace] = store.open(namespace)
        return handle


def shared_calls(handle: hutch.Namespace, store: hutch.Store) -> Calls:
    """Return what runs the blocking calls of a bridge on `handle`, in threads of hutch's own that all bridges share.

    The default executor of the event loop is the application's: a server that hangs must not stop its look-ups.
    """
    # Not before: it imports asyncio, which most bridges do without.
    from ..workers import Calls, WorkerPool, patience_s

    global _pool  # noqa: PLW0603
    with _lock:
        if _pool is None:
            _pool = WorkerPool(_THREADS, "hutch.bridges")
        namespace = str(handle.namespace)
        options = getattr(store._factory, "_storage_config", {})
        return Calls(_pool, lambda key: f"{key!r} of namespace {namespace!r}", patience_s(options))


def close_shared() -> None:
    """Close all of them; what is used afterwards is connected anew. For the end of the process, and for tests.

    Calls whose callers gave up are waited for a second at most; what they use is closed when they are done.
    """
    global _pool
    with _lock:
        pool, _pool = _pool, None
        stores, handles = [store for _, store in _stores.values()], list(_handles.values())
        _stores.clear()
        _handles.clear()
    if pool is None or pool.drain():
        _close_all(stores, handles)
    else:

        def close_if_done() -> None:
            if not pool.unfinished():
                _close_all(stores, handles)

        for call in pool.unfinished():
            pool.watch(call, close_if_done)
        close_if_done()
    if pool is not None:
        pool.shut_down()


def _close_all(stores: list[hutch.Store], handles: list[hutch.Namespace]) -> None:
    with ExitStack() as closing:
        for store in stores:
            closing.callback(_close, store)
        for handle in handles:
            closing.callback(_close, handle)


def _close(one: hutch.Store | hutch.Namespace) -> None:
    with suppress(hutch.StoreNotOpenError):
        one.close()


def _key(config: object) -> tuple[str | int | None, ...]:
    """What tells one connection from another: a relative path leads elsewhere from another working folder."""
    if config is None:
        return None, os.environ.get("HUTCH_STORAGE"), os.environ.get("HUTCH_CONFIG"), _working_folder()
    if isinstance(config, str):
        return config, _working_folder()
    return (id(config),)


def _working_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - as it is, not made absolute
    except OSError:
        return None  # removed; a relative path will be refused by whoever resolves it


def _fresh_lock_after_fork() -> None:
    # A thread that held it does not exist in the child. The engines see to their connections themselves.
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock_after_fork)
atexit.register(close_shared)
