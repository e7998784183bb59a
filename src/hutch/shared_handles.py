"""The shared handles of a store, ``store[name]``, and the refusal of everything else that looks like a mapping."""

from __future__ import annotations

from typing import Any, NoReturn

from .discovery.foreign import close_interrupted
from .errors import StoreAlreadyOpenError
from .fork import ForkSafeLock
from .handle import Claim, Namespace
from .limits import validate_namespace


class SharedHandles:
    """The part of a `hutch.Store` that opens each namespace once for all threads."""

    _lock: ForkSafeLock
    #: Held while a shared handle is opened or closed. Acquired before `_lock`.
    _opening: ForkSafeLock
    _claims: dict[str, Claim]
    _shared: dict[str, Namespace[Any]]

    def __getitem__(self, name: str) -> Namespace[Any]:
        """Return the shared handle on the namespace `name`, opened when it is first used: the same for every thread.

        Its `close` does nothing, nor does leaving its `with` block: the store closes it. Meanwhile `open(name)` raises
        StoreAlreadyOpenError. After `drop(name)` it is closed until ``store[name]`` opens it again. Raises what
        `open` raises.
        """
        handle = self._shared.get(name) if name.__class__ is str else None
        if handle is not None and handle.is_open_storage():
            return handle
        return self._open_shared(validate_namespace(name))

    def __setitem__(self, name: str, value: object) -> NoReturn:
        raise TypeError("`store[name] = items` is not possible; use `store[name].update(items)`")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError("`del store[name]` is not possible; use `store.drop(name)`")

    def __contains__(self, name: object) -> NoReturn:
        raise TypeError("`name in store` is not possible, because every name can be opened; use store.namespaces()")

    def __iter__(self) -> NoReturn:
        raise TypeError("a store cannot be iterated over; use `for name in store.namespaces()`")

    def _open_shared(self, name: str) -> Namespace[Any]:
        with self._opening.current:
            handle = self._shared.get(name)
            if handle is not None and handle.is_open_storage():
                return handle
            self._must_be_open()
            if name in self._claims and not self._claims[name].ended:
                raise self._is_claimed(name)
            if handle is None:
                handle = Namespace()
            # The name is claimed only once the handle is open: a fork of another thread, or a signal handler that
            # uses store[name] meanwhile, finds no claim that will never end.
            claim = Claim(handle)
            try:
                handle.open_storage(self._layered(), name)
                self._share(name, handle, claim)
            except BaseException as error:
                if handle._claim is not claim:
                    used = self._shared.get(name)
                    if handle is not used or handle._claim is Namespace._claim:
                        close_interrupted(handle)
                    if isinstance(error, StoreAlreadyOpenError) and used is not None and used.is_open_storage():
                        return used  # a signal handler opened it meanwhile
                    self._notify("hutch_namespace_failed", namespace=name, error=error)
                raise
            self._notify("hutch_namespace_opened", namespace=name)
            return handle

    def _share(self, name: str, handle: Namespace[Any], claim: Claim) -> None:
        claims = self._claims
        with self._lock.current:
            self._must_be_open()
            # No call between the test and the last assignment, so no signal handler can run in between.
            if name not in claims or claims[name].ended:
                claims[name] = handle._claim = claim
                handle._owner = self  # type: ignore[assignment]  # the Store, whose part this is
                handle._is_shared = handle._is_of_store = True
                self._shared[name] = handle
                return
        raise self._is_claimed(name)

    def _close_shared(self, name: str) -> None:
        """Close the shared handle on `name`, if there is one; `store[name]` opens the same object again."""
        handle = self._shared.get(name)
        if handle is not None:
            handle._is_shared = False
            try:
                handle.close()
            finally:
                handle._is_shared = True

    def _is_claimed(self, name: str) -> StoreAlreadyOpenError:
        shared = self._shared.get(name)
        if shared is not None and shared.is_open_storage():
            return StoreAlreadyOpenError(
                f"namespace {name!r} is open in this store as its shared handle, which any thread may use; use "
                f"store[{name!r}] here too"
            )
        return StoreAlreadyOpenError(
            f"namespace {name!r} has a live handle in this store; share it between threads, or close it"
        )

    def _layered(self) -> Any:
        raise NotImplementedError

    def _must_be_open(self) -> None:
        raise NotImplementedError

    def _notify(self, hook: str, **event: Any) -> None:
        raise NotImplementedError
