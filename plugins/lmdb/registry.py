"""The LMDB environments of this process: one per folder, shared by all stores, closed when its last user leaves."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

from hutch import ConfigError
from hutch.fork import ForkSafeLock

from .environment import Environment, hold_lock, release_lock
from .files import identities

_environments: dict[str, Environment] = {}
# Not a WeakSet: a signal handler can break its iteration.
_all: list[weakref.ref[Environment]] = []
# Held only for a few lookups and never during a wait: a finalizer may run anywhere, and close a store.
_lock = ForkSafeLock()
_FORK_ATTEMPTS = 3
_FORK_WAIT_S = 60.0
_fork_lock: list[Any] = []


def shared_environment(
    user: object, path: Path, durability: str, map_size_bytes: int, wait_s: float = 60
) -> Environment:
    """Return the environment of `path`, in use by `user` until `release` or until `user` is collected.

    Raises ConfigError if it is open in this process with another durability.
    """
    # An existing folder is identified by its real path; a missing one has no other name yet.
    place = os.path.realpath(path)
    while True:
        with _lock.current:
            environment = _find(place)
            if environment is None:
                real = path if place == str(path) else Path(place)
                environment = _environments[place] = Environment(real, durability, map_size_bytes, wait_s)
                _all.append(weakref.ref(environment))
            if environment.durability == durability:
                environment.users.add(weakref.ref(user))
                if _environments.get(place) is environment:
                    return environment
                environment.users.discard(weakref.ref(user))  # a handler has used and closed it
                continue
            if environment.is_wanted():
                raise ConfigError(
                    f"option 'durability' of the lmdb engine: {path} is open in this process with "
                    f"{environment.durability!r}; use the same everywhere, not {durability!r}"
                )
        _close_unused(environment)


def release(user: object) -> None:
    """Release the environment of `user`, if any; the last user's release closes it. Raises StoreError."""
    reference = weakref.ref(user)
    for environment in _alive():
        environment.users.discard(reference)
        _close_unused(environment)


def _alive() -> list[Environment]:
    """Return all live environments, and drop dead references."""
    alive = []
    for reference in list(_all):
        if (environment := reference()) is not None:
            alive.append(environment)
        elif reference in _all:
            _all.remove(reference)
    return alive


def _find(place: str) -> Environment | None:
    environment = _environments.get(place)
    if environment is None or environment.has_lost_its_files():
        # The same files under another path, such as a second mount, are the same environment.
        alive = _alive()
        files = identities(place) if alive else None
        environment = next((one for one in alive if files and one.files == files and one.is_wanted()), None)
        if environment is not None:
            _environments[place] = environment
    return environment


def _close_unused(environment: Environment) -> None:
    if environment.is_wanted():
        return
    try:
        if environment.is_open():
            environment.close()
    finally:
        with _lock.current:
            _forget_closed(environment)


def _forget_closed(environment: Environment) -> None:
    """Remove the environment from the registry, unless a handler that raised has left it open for the next user."""
    # A separate function: on Python 3.13 an exception at the end of a loop can bypass the `with` around it.
    if not environment.is_wanted() and not environment.is_open():
        for place in [place for place, one in list(_environments.items()) if one is environment]:
            _environments.pop(place, None)
        # It lives on in a cycle until the collector runs; every release and fork until then would visit it.
        reference = weakref.ref(environment)
        if reference in _all:
            _all.remove(reference)
        if environment.is_wanted() or environment.is_open():  # a handler has opened it again
            _all.append(reference)


# --- fork ---


def _before_fork() -> None:
    failure: BaseException | None = None
    pending: list[Environment] | None = None
    for _ in range(_FORK_ATTEMPTS):
        # Python forks even if a signal handler raises here, and the child must not inherit open files.
        try:
            hold_lock(_fork_lock, _lock.current, _FORK_WAIT_S)
            pending = _alive() if pending is None else pending
            _prepare_fork(pending)
            break
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure


def _prepare_fork(pending: list[Environment]) -> None:
    """Prepare each of `pending`, and take it out of the list when that is done."""
    while pending:
        pending[-1].before_fork()
        pending.pop()


def _after_fork_in_parent() -> None:
    try:
        _end_fork()
    finally:
        release_lock(_fork_lock)


def _end_fork() -> None:
    for environment in _alive():
        environment.after_fork_in_parent()


def _after_fork_in_child() -> None:
    _fork_lock.clear()
    for environment in _alive():
        environment.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
