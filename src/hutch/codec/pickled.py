"""The value that the passthrough codec reads and writes, without the codec: others refuse it by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True, repr=False)
class Pickled:
    """A value in the form of its pickle, which is never loaded. Two are equal if their bytes are."""

    body: bytes

    def __repr__(self) -> str:
        return f"<a pickle of {len(self.body):,} bytes>"

    def __deepcopy__(self, memo: object) -> Pickled:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "it is moved as it is; choose CODEC: passthrough"
        )  # a pickle of a pickle would be another value
