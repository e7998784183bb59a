"""Storages of others: what a plugin's `open` may return, checked and brought to StorageBase."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from ..contract import StorageBase
from ..errors import PluginError, StoreError, redact
from ..handlers import passes_through, raised_by_handler

T = TypeVar("T")

_VERBS = ("set", "get", "remove", "len", "keys", "close")


def open_checked(factory: Any, plugin: str, namespace: str, opened: list[Any] | None = None) -> StorageBase:
    """Stage 2: what `factory.open` returns, as a StorageBase. It is put into `opened`, too, before anything can raise.

    A StoreError passes, and so does MemoryError and what a signal handler raised while `open` ran; anything else that
    `open` raises, its `SystemExit` included, becomes a PluginError, and so does a result that is not a storage.
    """
    try:
        opened = [] if opened is None else opened
        # `extend` and `map` run no Python code of their own: no signal handler comes between `open` and the list.
        opened.extend(map(factory.open, [namespace]))
        return as_storage(opened[0], plugin, namespace)
    except StoreError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError) or raised_by_handler(error):
            raise
        raise PluginError(
            f"the {plugin} plugin's open({namespace!r}) raised {type(error).__name__}: {redact(str(error))[:300]}"
        ) from error


def as_storage(storage: Any, plugin: str, namespace: str) -> StorageBase:
    """`storage` itself if it is a StorageBase, a wrapper if it merely has the six verbs (Errbot's plugins).

    Raises PluginError that lists what is missing.
    """
    if isinstance(storage, StorageBase):
        return storage
    missing = [verb for verb in _VERBS if not callable(getattr(storage, verb, None))]
    if not missing and not isinstance(storage, type):
        return AdaptedStorage(storage, plugin, namespace)
    if storage is None:
        found = "None; does it lack a return?"
    elif isinstance(storage, type):
        found = f"the class {storage.__qualname__}, not an instance of it"
    elif hasattr(storage, "__await__"):
        found = "an awaitable; open must not be async"
        if callable(close := getattr(storage, "close", None)):
            close()  # a coroutine that nobody will await would warn
    else:
        found = f"a {type(storage).__qualname__} without {', '.join(missing)}"
    raise PluginError(
        f"the {plugin} plugin's open({namespace!r}) returned {found}. Expected a storage with the six verbs "
        f"{', '.join(_VERBS)}"
    )


def close_interrupted(storage: Any) -> None:
    """Close `storage`, which is in nobody's hands because a signal handler raised; what else it raises is dropped.

    That may be the second call: whether the handler raised before or after the first had done it cannot be known.
    """
    try:
        if not isinstance(storage, type) and callable(close := getattr(storage, "close", None)):
            close()
    except Exception as error:
        if passes_through(error):
            raise


class AdaptedStorage(StorageBase):
    """A storage with the six verbs of Errbot, as a StorageBase. Its stray errors become PluginErrors."""

    def __init__(self, inner: Any, plugin: str, namespace: str) -> None:
        self._inner = inner
        self._where = f"the {plugin} plugin, namespace {namespace!r}"

    def set(self, key: str, value: Any) -> None:
        self._call("set", key, value)

    def get(self, key: str) -> Any:
        return self._call("get", key)

    def remove(self, key: str) -> None:
        self._call("remove", key)

    def len(self) -> int:
        count: int = self._call("len", result=int)
        return count

    def keys(self) -> Iterable[str]:
        # Complete before the first key is given: such storages often iterate over a live dict.
        keys: list[str] = self._call("keys", result=lambda given: list(dict.fromkeys(given)))
        return keys

    def close(self) -> None:
        self._call("close")

    @property
    def lock_scope(self) -> Hashable:
        # Which of its storages share their data, such a plugin does not tell: all of one name are taken to.
        return ("adapted", self._where)

    def _call(self, verb: str, *arguments: Any, result: Callable[[Any], Any] = lambda given: given) -> Any:
        try:
            return result(getattr(self._inner, verb)(*arguments))
        except StoreError:
            raise
        except Exception as error:
            # A missing key, but where there is a key to be missing.
            if (isinstance(error, KeyError) and verb in ("get", "remove")) or passes_through(error):
                raise
            # Where a value is at hand an error may quote it; it is in the cause.
            told = "" if verb in ("get", "set") else f": {redact(str(error))[:300]}"
            raise PluginError(f"{self._where}: {verb} raised {type(error).__name__}{told}") from error
