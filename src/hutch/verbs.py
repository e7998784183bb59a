"""The table of verbs: what each verb of a storage does to the data. Layers and the closed state are made from it.

A verb that is missing from the table counts as a write: the layer `read-only` refuses it, `cache` drops what it may
change, `metrics` counts it, and a closed namespace refuses it.
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from .contract import StorageBase


class Kind(enum.Enum):
    """What a verb does to the data."""

    READS = "reads"
    #: Reads, and returns an iterable that reads further.
    ITERATES = "iterates"
    WRITES = "writes"
    #: A primitive of read-modify-write, which only other verbs call. Counts as a write, although one of them reads.
    PRIMITIVE = "read-modify-write"
    #: Moves deadlines between stores, and is called by `hutch.transfer` alone. Counts as a write.
    COPIES = "copies"
    CLOSES = "closes"


VERBS: Final[dict[str, Kind]] = {
    "set": Kind.WRITES,
    "get": Kind.READS,
    "remove": Kind.WRITES,
    "len": Kind.READS,
    "keys": Kind.ITERATES,
    "close": Kind.CLOSES,
    "contains": Kind.READS,
    "get_many": Kind.READS,
    "set_many": Kind.WRITES,
    "remove_many": Kind.WRITES,
    "items": Kind.ITERATES,
    "scan": Kind.ITERATES,
    "scan_keys": Kind.ITERATES,
    "clear": Kind.WRITES,
    "get_for_update": Kind.PRIMITIVE,
    "compare_and_swap": Kind.PRIMITIVE,
    "apply": Kind.PRIMITIVE,
    "compare_and_set": Kind.WRITES,
    "modify": Kind.WRITES,
    "increment": Kind.WRITES,
    "set_with_ttl": Kind.WRITES,
    "set_many_with_ttl": Kind.WRITES,
    "set_many_until": Kind.COPIES,
    "deadline": Kind.COPIES,
    "ttl_s": Kind.READS,
    "touch": Kind.WRITES,
    "expire": Kind.WRITES,
}


def storage_verbs() -> dict[str, Callable[..., Any]]:
    """Return the public methods of StorageBase by name. Each one is a verb, whether the table lists it or not."""
    return {name: verb for name, verb in vars(StorageBase).items() if name[0] != "_" and callable(verb)}


class GeneratedStorage(StorageBase):
    """A storage whose verbs are generated. A subclass defines `generate`, and only the verbs that are special.

    No default of StorageBase is inherited: it could read or write past the subclass.
    """

    #: What each generated verb of this class was made from.
    _sources: ClassVar[dict[str, tuple[Callable[..., Any], Kind]]]
    #: What StorageBase and the table had when the verbs were generated.
    _generated_from: ClassVar[list[object]] = []

    if TYPE_CHECKING:  # type checkers would take a class without them for an abstract one
        set: Any
        get: Any
        remove: Any
        len: Any
        keys: Any
        close: Any

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "generate" in vars(cls):
            cls._sources = {}
            cls._generate_verbs()

    def __new__(cls, *_: object, **__: object) -> Self:
        # A verb may have been added since the class was made.
        if [*vars(StorageBase).values(), *VERBS.values()] != cls._generated_from:
            for base in reversed(cls.__mro__):
                if issubclass(base, GeneratedStorage) and "_sources" in vars(base):
                    base._generate_verbs()
        return super().__new__(cls)

    @classmethod
    def _generate_verbs(cls) -> None:
        state = [*vars(StorageBase).values(), *VERBS.values()]
        for name, verb in storage_verbs().items():
            source = verb, VERBS.get(name, Kind.WRITES)
            is_generated = name in cls._sources
            if cls._sources.get(name) != source and (is_generated or name not in vars(cls)):
                setattr(cls, name, cls.generate(name, *source))
                cls._sources[name] = source
        cls._generated_from = state

    @classmethod
    @abstractmethod
    def generate(cls, name: str, verb: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
        """Return this class's function for the verb called `name`, which is `verb` in StorageBase."""
