"""The layer `read-only`: reads pass, writes are refused."""

from __future__ import annotations

from typing import NoReturn

from ..contract import StorageBase
from ..errors import CapabilityError
from .layer import Layer


def refusal(namespace: str) -> CapabilityError:
    """The error for a write to `namespace`."""
    return CapabilityError(
        f"namespace {namespace!r} is configured read-only (LAYERS); to write to it, take read-only out of the config"
    )


class ReadOnlyLayer(Layer):
    """Every verb that writes raises CapabilityError, also where there would be nothing to write.

    `get_for_update` is among them, so that `mutable`, `pop` and `setdefault` are refused before they begin.
    """

    def __init__(self, inner: StorageBase, namespace: str) -> None:
        super().__init__(inner)
        self.capabilities = frozenset(name for name in inner.capabilities if not name.startswith("atomic-"))
        self._namespace = namespace

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise refusal(self._namespace)

    set = remove = set_many = remove_many = clear = _refuse
    get_for_update = set_if_unchanged = compare_and_set = modify = _refuse
