"""Share one connection per URL among all bridges and threads of a process.

Frameworks make a storage wherever they need one, as often as they like, and rarely close it. So a connection is made
when its URL is first used and closed when the process exits normally. No data depends on that: what a bridge wrote is
stored when its call returns, as durably as the engine is configured.
"""

from __future__ import annotations

import atexit
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import hutch
from hutch.fork import ForkSafeLock

if TYPE_CHECKING:
    from ..workers import Calls, WorkerPool

# Threads shared by the calls of all asyncio bridges. A few suffice: most calls wait for the same server.
_THREADS = 8

# The prefix of a URL where a framework selects its storage by scheme: ``hutch://sqlite:///x.db``.
_SCHEME = "hutch://"

_lock = ForkSafeLock()  # the engines handle forks of their connections themselves
# Holds the config too, so that its id is not reused.
_stores: dict[tuple[str | int | None, ...], tuple[object, hutch.Store]] = {}
_handles: dict[tuple[hutch.Store, str], hutch.Namespace] = {}
_pool: WorkerPool | None = None


def shared_store(url: str | object | None = None) -> hutch.Store:
    """Return the store of `url`, connected once per process. Never close it: other callers share it.

    `url` is a storage URL or the path of a config file, optionally prefixed with ``hutch://``; ``${NAME}`` and
    ``${NAME:-default}`` in a URL stand for environment variables, so that a password need not be written where a
    framework would record it. None, "" and ``hutch://`` alone select the default of ``hutch.connect()``:
    `$HUTCH_STORAGE` and so on. A mapping, Python module or object, such as a bot's config.py, is a config as for
    `hutch.connect`; the same object always gives the same store. Raises what `hutch.connect` raises.
    """
    config = (url or "").removeprefix(_SCHEME) or None if url is None or isinstance(url, str) else url
    with _lock.current:
        key = _key(config)
        if key not in _stores:
            made = config, hutch.connect(config)
            # A signal handler or finalizer may have connected meanwhile; keep its store, which may be in use.
            if _stores.setdefault(key, made) is not made:
                made[1].close()
        return _stores[key][1]


def shared_namespace(url: str | object | None, namespace: str) -> hutch.Namespace:
    """Return this process's only handle on `namespace` of `shared_store(url)`. Thread-safe; never close it.

    Raises what `hutch.connect` and `hutch.Store.open` raise.
    """
    with _lock.current:
        store = shared_store(url)
        handle = _handles.get((store, namespace))
        if handle is None or not handle.is_open_storage():
            handle = _handles[store, namespace] = store.open(namespace)
        return handle


def shared_calls(handle: hutch.Namespace, store: hutch.Store) -> Calls:
    """Return the `Calls` that runs a bridge's blocking calls on `handle`, in hutch's threads shared by all bridges.

    The event loop's default executor belongs to the application: a hanging server must not block its DNS look-ups.
    """
    # Imported late: it imports asyncio, which most bridges do not need.
    from ..workers import Calls, WorkerPool, patience_s

    global _pool  # noqa: PLW0603
    with _lock.current:
        if _pool is None:
            _pool = WorkerPool(_THREADS, "hutch.bridges")
        namespace = str(handle.namespace)
        options = getattr(store.factory, "_storage_config", {})
        return Calls(_pool, lambda key: f"{key!r} of namespace {namespace!r}", patience_s(options))


def close_shared() -> None:
    """Close all shared connections; later use reconnects. Called at exit and by tests.

    Waits at most a second for calls whose callers gave up; what they use is closed when they finish.
    """
    global _pool
    with _lock.current:
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
    """Return the key of a connection. It includes the working folder, which relative paths depend on."""
    if config is None:
        return None, os.environ.get("HUTCH_STORAGE"), os.environ.get("HUTCH_CONFIG"), _working_folder()
    if isinstance(config, str):
        return config, _working_folder()
    return (id(config),)


def _working_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - as it is, not made absolute
    except OSError:
        return None  # removed; resolving a relative path will fail later


atexit.register(close_shared)
