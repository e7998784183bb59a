"""The layer `read-only`: reads are forwarded, writes are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..contract import StorageBase
from ..contract.commit import KeyRange
from ..errors import CapabilityError
from ..verbs import Kind
from .layer import Layer, compile_verb


def refusal(namespace: str, by_option: bool = False, is_snapshot: bool = False) -> CapabilityError:
    """Return the error for a write to `namespace`: of a snapshot, or read-only by the option or LAYERS."""
    if is_snapshot:
        return CapabilityError(
            f"namespace {namespace!r} is that of a snapshot, which never changes; nothing was written. Write to the "
            "store's own namespace"
        )
    if by_option:
        return CapabilityError(
            f"namespace {namespace!r} is read-only, because its store was connected with readonly=true; nothing was "
            "written. To write to it, connect without readonly"
        )
    return CapabilityError(
        f"namespace {namespace!r} is configured read-only (LAYERS); to write to it, remove read-only from the config"
    )


class ReadOnlyLayer(Layer):
    """A layer in which every verb raises CapabilityError, except those that the table calls reads.

    Even a write that would change nothing is refused. So is `get_for_update`, so that `mutable`, `pop` and `setdefault`
    fail before they start.
    """

    keeps_values = True

    def __init__(self, inner: StorageBase, namespace: str, by_option: bool = False, is_snapshot: bool = False) -> None:
        super().__init__(inner)
        self.capabilities = frozenset(name for name in inner.capabilities if not name.startswith("atomic-"))
        self._because = namespace, by_option, is_snapshot

    @property
    def write_refusal(self) -> Exception | None:
        return refusal(*self._because)

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        if changes:
            raise refusal(*self._because)
        return self._inner.apply(changes, expected, ranges)

    @classmethod
    def generate(cls, name: str, verb: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
        if kind in (Kind.READS, Kind.ITERATES, Kind.CLOSES):
            return super().generate(name, verb, kind)
        return compile_verb(name, verb, "raise refusal(*self._because)", globals())
