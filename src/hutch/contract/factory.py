"""StoragePluginBase: the factory of a storage plugin (stage 1)."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from ..codec.codec import Codec
from ..errors import CapabilityError, StoreMissingError
from ..options import Option, read_options
from .storage import StorageBase

if TYPE_CHECKING:
    from ..finding import Finding
    from .commit import Commit


class SnapshotView(Protocol):
    """All namespaces of a store at one moment. Its storages need not refuse writes; `Store.snapshot` does."""

    #: The moment, in milliseconds since 1970 UTC, by the clock that judges deadlines.
    now_ms: int

    def open(self, namespace: str) -> StorageBase:
        """Return a storage that reads `namespace` as it was at that moment."""

    def namespaces(self) -> Iterable[str]:
        """Return the names of the namespaces that held data at that moment."""

    def close(self) -> None:
        """Release what the view holds. Reading from its storages is an error then."""


class StoragePluginBase(ABC):
    """A factory (stage 1): built once from the config, it opens namespaces.

    `config` is an object with a `STORAGE_CONFIG` attribute (such as an Errbot config), a mapping with that key, or
    a plain mapping of options. Raises ConfigError if `OPTIONS` is declared and an option does not fit it.
    """

    #: The options the engine takes. If declared, they are validated, converted and filled with their defaults.
    OPTIONS: ClassVar[Mapping[str, Option] | None] = None

    #: Advice for options that the engine does not take but that users of its driver may expect, by option name.
    OPTION_HINTS: ClassVar[Mapping[str, str]] = {}

    capabilities: frozenset[str] = frozenset()

    def __init__(self, config: object = None) -> None:
        self._config = config
        self._storage_config: dict[str, Any] = read_options(config, self.OPTIONS, self.name, hints=self.OPTION_HINTS)

    def __repr__(self) -> str:
        return f"<{' '.join(filter(None, (type(self).__name__, self._location)))}>"

    @property
    def is_readonly(self) -> bool:
        """Whether the option `readonly` is set, of an engine that declares it. Its namespaces then refuse writes."""
        return bool(self.OPTIONS and "readonly" in self.OPTIONS and self._storage_config["readonly"])

    def must_exist(self, path: os.PathLike[str], exists: Callable[[], bool]) -> None:
        """Raise StoreMissingError if an option forbids to create a store at `path`, and none `exists`."""
        if (self._storage_config["create"] and not self.is_readonly) or exists():
            return
        raise StoreMissingError(
            f"there is no {self.name} store at {os.fspath(path)!r}: expected an existing one. Nothing was created. "
            "Correct the path; or, to begin a new store there, write to it without create=false and readonly=true"
        )

    @property
    def name(self) -> str:
        """The plugin's name from its descriptor, or the class's name without a descriptor."""
        return str(getattr(self._config, "plugin_name", None) or type(self).__name__)

    @property
    def _location(self) -> str:
        """Where the data is, for people: a URL without a secret. Empty for a factory that hutch did not build."""
        return str(getattr(getattr(self, "_config", None), "plugin_location", ""))

    def codec_for(self, namespace: str) -> Codec | None:
        """Return the codec configured for `namespace`; None means hutch's default."""
        choose: Callable[[str], Codec] | None = getattr(self._config, "codec_for", None)
        return choose(namespace) if callable(choose) else None

    def codec_of_header(self, header: int) -> str | None:
        """Return the name of the installed codec that writes `header`, for an error; None if no codec does."""
        name_of: Callable[[int], str | None] | None = getattr(self._config, "codec_of_header", None)
        return name_of(header) if callable(name_of) else None

    @abstractmethod
    def open(self, namespace: str) -> StorageBase:
        """Return the open storage of `namespace`; on an error release everything. Create only what reading needs."""

    def namespaces(self) -> Iterable[str]:
        """Return the names of the namespaces that hold data. Raises CapabilityError if the engine cannot list them."""
        raise CapabilityError(f"the {self.name} engine cannot list its namespaces")

    def stored_namespaces(self) -> Iterable[str]:
        """Return the names of the namespaces that hold keys, expired ones too, in which `hutch expire` looks.

        An engine overrides it whose `namespaces` leaves out a namespace all of whose keys have expired.
        """
        return self.namespaces()

    def drop(self, namespace: str) -> None:
        """Remove `namespace` and all its data; does nothing if it does not exist. As atomic as `clear`."""
        with self.open(namespace) as storage:
            storage.clear()

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        """Apply the `commits` of several namespaces in one step, as `StorageBase.apply` does; return whether it did.

        An engine that declares `atomic-store` overrides it.
        """
        raise CapabilityError(f"the {self.name} engine has no transactions over several namespaces")

    def stats(self) -> Mapping[str, object]:
        """Return figures for `hutch stats` by name: text, numbers or booleans, never a secret.

        The conformance kit asks for `bytes`, the size of the stored data, `version`, that of the engine's software,
        and for `path` or `server` if the data outlives the process. Leave out what the engine cannot find out.
        """
        return {}

    def snapshot(self) -> SnapshotView:
        """Return a view of all namespaces as of now, which later writes do not change, for `Store.snapshot`.

        A class that overrides `open` of an engine with snapshots overrides this too: its values may be others.
        """
        raise CapabilityError(f"the {self.name} engine has no snapshots")

    def backup(self, dest: Path) -> None:
        """Write everything, as of one moment, to the new file or folder `dest`, flushed; verify it by opening it.

        Others may write meanwhile. `Store.backup` then renames `dest`, or removes it if this raises.
        """
        raise CapabilityError(f"the {self.name} engine has no backup of its own")

    def compact(self) -> tuple[int, int] | None:
        """Shrink the files, whole at every moment; return their bytes before and after, None if there are no files."""
        raise CapabilityError(f"the {self.name} engine cannot compact its files")

    @classmethod
    def verify_files(cls, options: Mapping[str, Any]) -> Iterable[Finding]:
        """Return the problems in the files that `options` name, for an engine that damaged files can crash.

        `hutch.verify` calls this before it builds the factory, and does not build it if there is a finding.
        """
        return ()

    def verify(self, repair: bool = False) -> Iterable[Finding]:
        """Return the problems beyond single values: in counters, unnamed namespaces, indexes. Changes nothing.

        With `repair`, repair them without losing data, in one transaction if the engine has transactions. Runs while
        others read and write, and must not report their changes as problems.
        """
        return ()

    def close(self) -> None:  # noqa: B027 - optional by contract
        """Release what the namespaces share."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
