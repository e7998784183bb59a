"""The lmdb engine: all namespaces of a store in one LMDB environment (https://www.symas.com/lmdb).

layout.py describes the stored data; open_files.py, commit_queue.py and writer_gate.py the rules of access.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from hutch import CapabilityError, Option, StoragePluginBase, StoreError, StoreLockedError, deadlines

from .commits import apply_all
from .deadline_index import count_live
from .files import is_there, reason_to_read_pages
from .layout import AFTER_NAMES, NAME, decode_text, read_count, validate_format
from .open_files import DURABILITY
from .registry import release, shared_environment
from .storage import LmdbStorage

if TYPE_CHECKING:
    from hutch import Commit, Finding

    from .environment import Environment
    from .page_reader import PageEnvironment
    from .pinned import LmdbSnapshot
    from .slot import Txn

# On Windows the file has the size of its map from the start; elsewhere it grows with its data.
_MAP_SIZE_BYTES = 16 << 20 if sys.platform == "win32" else 1 << 30


class LmdbPlugin(StoragePluginBase):
    """The lmdb engine: `lmdb://PATH` is a folder, created if missing. Readers never wait for a writer.

    Any number of processes may use a store. A write commits before it returns. After that, by durability:

    - `strict` (2 flushes per write): nothing is lost, neither by a killed process nor by a power cut.
    - `normal` (1 flush): a killed process loses nothing; a power cut may lose the last write, never the integrity.
    - `relaxed` (no flush): a killed process loses nothing; a power cut may lose the last seconds, or the whole store
      if the file system reorders writes.
    """

    OPTIONS: ClassVar = {
        "path": Option(Path, required=True, help="the folder that holds the store"),
        "durability": Option(str, default="normal", choices=tuple(DURABILITY), help="what a power cut can cost"),
        "wait_s": Option(
            float, default=60.0, minimum=0, help="seconds that a write waits for other writers, threads and processes"
        ),
        "map_size_bytes": Option(
            int, default=_MAP_SIZE_BYTES, minimum=1 << 20, help="how much is mapped at first; it grows by itself"
        ),
        "cache_bytes": Option(
            int,
            default=8 << 20,
            minimum=0,
            help="how much one open namespace keeps in memory of what is read while no process writes; it is never "
            "stale, whichever process writes; 0 keeps nothing",
        ),
        "verify": Option(
            bool,
            default=False,
            help="read all pages before LMDB does, and refuse a damaged file, which can crash LMDB; 0.1 s for each "
            "100,000 keys at every connect",
        ),
        "max_age_s": Option(
            float,
            default=3600.0,
            minimum=0,
            help="seconds after which a snapshot ends with an error; until then the file grows with each write",
        ),
        "create": Option(bool, default=True, help="false: a store that is not there is StoreMissingError at connect"),
        "readonly": Option(
            bool, default=False, help="refuse every write; needs no permission to write, and never creates a store"
        ),
    }
    capabilities = frozenset(
        {
            *("ordered", "atomic-batch", "atomic-store", "atomic-modify", "atomic-modify:host"),
            *("durable", "shared", "snapshot", "ttl"),
        }
    )

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        options = self._storage_config
        self.must_exist(options["path"], lambda: is_there(options["path"]))
        if options["verify"]:
            from .integrity import refuse_unreadable

            refuse_unreadable(options["path"])
        self.cache_bytes: int = options["cache_bytes"]
        self._environment: Environment | PageEnvironment | None = None
        try:
            self._environment = _environment_of(self, options)
            self._environment.read(validate_format, None)
            if options["verify"]:
                from .integrity import refuse_damaged

                refuse_damaged(self._environment)
        except BaseException:
            self.close()
            raise

    def open(self, namespace: str) -> LmdbStorage:
        environment = self._shared
        if self.is_readonly and environment.is_shared:
            return LmdbStorage(self, namespace, cast("Environment", _Reading(cast("Environment", environment))))
        return LmdbStorage(self, namespace, environment)

    def namespaces(self) -> list[str]:
        return self.list_namespaces(self._shared, deadlines.now_ms())

    def stored_namespaces(self) -> list[str]:
        return self.list_namespaces(self._shared, None)

    def list_namespaces(self, environment: Environment | PageEnvironment, now_ms: int | None) -> list[str]:
        """Return the names of the namespaces with keys that have not expired by `now_ms` (None: with any keys)."""

        def listing(txn: Txn) -> list[str]:
            names = []
            cursor = txn.cursor()
            has_entry = cursor.set_range(NAME)
            while has_entry and cursor.key() < AFTER_NAMES:
                id_ = cursor.value()
                if read_count(txn, id_) and (now_ms is None or count_live(txn, id_, now_ms)):
                    names.append(decode_text(cursor.key(), len(NAME), "the name of a namespace"))
                has_entry = cursor.next()
            return names

        return environment.read(listing, [])

    def drop(self, namespace: str) -> None:
        # The name keeps its id: other handles continue to work, on an empty namespace.
        LmdbStorage(self, namespace, self._shared).clear()

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        return apply_all(self._shared, commits)

    def snapshot(self) -> LmdbSnapshot:
        from .pinned import LmdbSnapshot

        environment = self._shared
        if not environment.is_shared:
            raise CapabilityError(
                f"lmdb {environment.path}: it is read without a lock here, so nothing keeps a snapshot's pages. Permit "
                "this process to write to the folder and its files, and connect again"
            )
        return LmdbSnapshot(self, cast("Environment", environment), self._storage_config["max_age_s"])

    def stats(self) -> Mapping[str, object]:
        return self._shared.figures()

    def backup(self, dest: Path) -> None:
        self._shared.copy_to(dest)

    def compact(self) -> tuple[int, int]:
        environment = self._shared
        if len(environment.users) > 1:
            raise StoreLockedError(
                f"lmdb {environment.path}: another store of this process has it open, and its file can be replaced "
                "only while none has; nothing was changed. Close the other store first"
            )
        return environment.compact()

    @classmethod
    def verify_files(cls, options: Mapping[str, Any]) -> list[Finding]:
        from .integrity import structure, unreadable

        if finding := unreadable(options["path"] / "data.mdb"):
            return [finding]
        user = cls.__new__(cls)
        try:
            user._environment = _environment_of(user, options)
            return structure(user._environment)
        finally:
            user.close()

    def verify(self, repair: bool = False) -> list[Finding]:
        from .integrity import contents

        return contents(self._shared, repair)

    def close(self) -> None:
        try:
            if self._environment is not None:
                release(self)
                if not self._environment.is_shared:
                    self._environment.close()
        except StoreError:
            self._environment = None
            raise
        # Skipped if a handler raised; then the last reference to go closes it.
        self._environment = None

    def __del__(self) -> None:
        release(self)
        environment = getattr(self, "_environment", None)
        if environment is not None and not environment.is_shared:
            environment.close()

    @property
    def _shared(self) -> Environment | PageEnvironment:
        assert self._environment is not None, "a closed factory"
        return self._environment


class _Reading:
    """The reading half of an environment through which others of this process may write."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.path, self.read = environment.path, environment.read
        self.reads_large_chunks, self.expiring = environment.reads_large_chunks, environment.expiring

    @property
    def begin(self) -> Callable[..., Any]:
        # Another function after the files were opened, or opened anew.
        return self._environment.begin

    def write(self, *_: object) -> NoReturn:
        raise CapabilityError(
            f"lmdb {self.path}: the store was connected with readonly=true; nothing was written. To write to it, "
            "connect without readonly"
        )


def _environment_of(user: LmdbPlugin, options: Mapping[str, Any]) -> Environment | PageEnvironment:
    """Return what `user` reads and writes through, by what this process may do."""
    path, durability, wait_s = options["path"], options["durability"], options["wait_s"]
    reason = reason_to_read_pages(path, options["readonly"])
    if reason is not None:
        from .page_reader import PageEnvironment

        return PageEnvironment(path, durability, wait_s, reason)
    return shared_environment(user, path, durability, options["map_size_bytes"], wait_s)
