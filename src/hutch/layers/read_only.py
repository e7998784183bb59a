"""The layer `read-only`: reads are forwarded, writes are refused."""

from __future__ import annotations

from typing import NoReturn

from ..contract import StorageBase
from ..errors import CapabilityError
from .layer import Layer


def refusal(namespace: str) -> CapabilityError:
    """Return the error for a write to `namespace`."""
    return CapabilityError(
        f"namespace {namespace!r} is configured read-only (LAYERS); to write to it, take read-only out of the config"
    )


class ReadOnlyLayer(Layer):
    """A layer in which every writing verb raises CapabilityError, even if there is nothing to write.

    `get_for_update` is refused too, so that `mutable`, `pop` and `setdefault` fail before they start.
    """

    def __init__(self, inner: StorageBase, namespace: str) -> None:
        super().__init__(inner)
        self.capabilities = frozenset(name for name in inner.capabilities if not name.startswith("atomic-"))
        self._namespace = namespace

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise refusal(self._namespace)

    set = remove = set_many = remove_many = clear = _refuse
    get_for_update = compare_and_swap = compare_and_set = modify = _refuse
