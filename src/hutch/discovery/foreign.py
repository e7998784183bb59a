"""Adapt third-party storages: validate what a plugin's `open()` returned and wrap it as a `StorageBase`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from ..contract import StorageBase, StoragePluginBase
from ..errors import PluginError, StoreError, a_or_an, redact
from ..handlers import passes_through, raised_by_handler

T = TypeVar("T")

_VERBS = ("set", "get", "remove", "len", "keys", "close")


def is_readonly(factory: Any) -> bool:
    """Return whether the option `readonly` of `factory` is set; False for a factory that knows no such option."""
    return isinstance(factory, StoragePluginBase) and factory.is_readonly


def open_validated(factory: Any, plugin: str, namespace: str, opened: list[Any] | None = None) -> StorageBase:
    """Call `factory.open` and return its result as a StorageBase (stage 2).

    Appends it to `opened` before anything can raise. A StoreError, MemoryError or signal handler's exception passes
    through. Any other, SystemExit included, becomes a PluginError, as does a result that is not a storage.
    """
    try:
        opened = [] if opened is None else opened
        # `extend` and `map` are C code, so no signal handler can run between the return of `open` and the append.
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
    """Return `storage` if it is a StorageBase, or a wrapper if it just has the six verbs (as Errbot's plugins do).

    An engine of bytes that declares `ttl` and keeps no index of deadlines is wrapped too.

    Raises PluginError that lists the missing verbs.
    """
    if isinstance(storage, StorageBase):
        if "ttl" in storage.capabilities:
            from ..encoded import EncodedStorage

            if isinstance(storage, EncodedStorage) and type(storage).reclaim is EncodedStorage.reclaim:
                from ..encoded.frame_deadlines import FrameDeadlines

                return FrameDeadlines(storage)
        return storage
    missing = [verb for verb in _VERBS if not callable(getattr(storage, verb, None))]
    if not missing and not isinstance(storage, type):
        return AdaptedStorage(storage, plugin, namespace)
    if storage is None:
        returned = "None; does it lack a return?"
    elif isinstance(storage, type):
        returned = f"the class {storage.__qualname__}, not an instance of it"
    elif hasattr(storage, "__await__"):
        returned = "an awaitable; open must not be async"
        if callable(close := getattr(storage, "close", None)):
            close()  # an unclosed coroutine would warn that it was never awaited
    else:
        returned = f"{a_or_an(type(storage).__qualname__)} without {', '.join(missing)}"
    raise PluginError(
        f"the {plugin} plugin's open({namespace!r}) returned {returned}. Expected a storage with the six verbs "
        f"{', '.join(_VERBS)}"
    )


def live_namespaces(factory: Any, plugin: str, names: list[str]) -> list[str]:
    """Return `names`, which `factory` listed, without those all of whose keys have expired."""
    stored = getattr(type(factory), "stored_namespaces", StoragePluginBase.stored_namespaces)
    if stored is not StoragePluginBase.stored_namespaces:
        return names  # `namespaces` of such an engine leaves them out, without opening one
    from ..encoded.frame_deadlines import FrameDeadlines

    live: list[str] = []
    for name in names:
        with open_validated(factory, plugin, name) as storage:
            if not isinstance(storage, FrameDeadlines):
                return names  # an engine that keeps an index of deadlines lists no such namespace
            if next(iter(storage.keys()), None) is not None:
                live.append(name)
    return live


def close_interrupted(storage: Any) -> None:
    """Close `storage`, which has no owner because a signal handler raised; ignore its own errors.

    This may be a second close: it is unknown whether the handler raised before or after a first one completed.
    """
    try:
        if not isinstance(storage, type) and callable(close := getattr(storage, "close", None)):
            close()
    except Exception as error:
        if passes_through(error):
            raise


class AdaptedStorage(StorageBase):
    """A StorageBase around an object with Errbot's six verbs. Its unexpected errors become PluginErrors."""

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
        # Listed in full before the first key is returned: such storages often iterate over a live dict.
        keys: list[str] = self._call("keys", result=lambda given: list(dict.fromkeys(given)))
        return keys

    def close(self) -> None:
        self._call("close")

    @property
    def lock_scope(self) -> Hashable:
        # Such a plugin cannot say which storages share data, so all with the same name are assumed to.
        return ("adapted", self._where)

    def _call(self, verb: str, *arguments: Any, result: Callable[[Any], Any] = lambda given: given) -> Any:
        try:
            return result(getattr(self._inner, verb)(*arguments))
        except StoreError:
            raise
        except Exception as error:
            # A KeyError means a missing key only from a verb that takes an existing key.
            if (isinstance(error, KeyError) and verb in ("get", "remove")) or passes_through(error):
                raise
            # The text of an error may quote the value, so it stays in the cause.
            message = "" if verb in ("get", "set") else f": {redact(str(error))[:300]}"
            call = f"{verb} of key {arguments[0]!r}" if arguments else verb
            raise PluginError(f"{self._where}: {call} raised {type(error).__name__}{message}") from error
