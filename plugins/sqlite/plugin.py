"""The SQLite engine: all namespaces in one file, in WAL mode, through the standard library's sqlite3.

file.py describes the layout of the file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hutch import ConfigError, Option, StoragePluginBase, StorageUnavailableError, deadlines
from hutch.filesystem import is_missing, total_bytes
from hutch.fork import WeakRefs

from .commits import apply
from .copying import backup, vacuum
from .database import Database, leave_all
from .deadlines import LIVE_NAMES, NAMES, time_bytes
from .file import SYNCHRONOUS, NoDataError
from .read_only import reason_to_only_read
from .statements import REMOVE_ALL
from .storage import SqliteStorage

if TYPE_CHECKING:
    from hutch import Commit, Finding

    from .database import Settings
    from .pinned import SqliteSnapshot


class SqlitePlugin(StoragePluginBase):
    """The sqlite engine: the namespaces of one SQLite file, which the first write creates with its folders.

    A killed process loses nothing that was set, whatever the `durability`; that option decides what a power cut or a
    system crash may lose. Stores of one process share their connections to a file.

    If several processes write without pause, prefer SQLite 3.51.3 or later (`sqlite3.sqlite_version`): earlier versions
    have a very rare race between two checkpoints that can damage the file (sqlite.org/wal.html#walresetbug).
    """

    OPTIONS = {  # noqa: RUF012 - never changed
        "path": Option(Path, required=True, help="the file, for example /srv/app/state.db"),
        "durability": Option(
            str,
            default="normal",
            choices=tuple(SYNCHRONOUS),
            help="what a power cut may take. strict: nothing that was set, each write waits for the disk. "
            "normal: the latest writes, while the file stays whole. relaxed: it may damage the file",
        ),
        "wait_s": Option(
            float,
            default=60.0,
            minimum=0,
            maximum=86_400,
            help="how many seconds a call waits for other writers, threads and processes, before StorageTimeoutError; "
            "0 does not wait",
        ),
        "mmap_bytes": Option(
            int,
            default=0,
            minimum=0,
            help="how much of the file is mapped into memory: a third faster where it is much larger than the cache of "
            "64 MiB, but another program that cuts the file short then ends this process (SIGBUS)",
        ),
        "create": Option(bool, default=True, help="false: a file that is not there is StoreMissingError at connect"),
        "readonly": Option(
            bool, default=False, help="refuse every write; needs no permission to write, and never creates the file"
        ),
    }
    capabilities = frozenset(
        {
            *("ordered", "atomic-batch", "atomic-store", "atomic-modify", "atomic-modify:host"),
            *("durable", "shared", "snapshot", "ttl"),
        }
    )

    # Here for __del__, should __init__ fail.
    _database: Database | None = None

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        # Represents this factory in its databases, which must not keep the factory itself alive.
        self._user = object()
        self._snapshots: WeakRefs[SqliteSnapshot] = WeakRefs()
        path: Path = self._storage_config["path"]
        if path.name == ":memory:":
            raise ConfigError(
                "the sqlite engine needs the path of a file, not ':memory:'; for data that lives in this process "
                "only, use memory://, or memory://NAME to share it between stores"
            )
        self._path = Path(os.path.realpath(path))
        self.must_exist(path, lambda: not is_missing(self._path))

    def open(self, namespace: str) -> SqliteStorage:
        """Return a storage for `namespace`, after validating the file if it exists. Creates nothing.

        Raises CorruptValueError if the file is incomplete, not of this engine or of an unknown format;
        StorageUnavailableError, StorageTimeoutError.
        """
        database = self._shared()
        database.validate()
        return SqliteStorage(self, namespace, database)

    def namespaces(self) -> list[str]:
        return self.list_namespaces(self._shared(), deadlines.now_ms())

    @staticmethod
    def list_namespaces(database: Database, now_ms: int) -> list[str]:
        """Return the names of the namespaces that hold keys that had not expired at `now_ms`."""
        try:
            rows = database.rows(NAMES)
            if any(expiring for _, expiring in rows):
                rows = database.rows(LIVE_NAMES, (time_bytes(now_ms),))
            return [row[0] for row in rows]
        except NoDataError:
            return []

    def stored_namespaces(self) -> list[str]:
        try:
            return [name for name, _ in self._shared().rows(NAMES)]
        except NoDataError:
            return []

    def stats(self) -> dict[str, object]:
        files = (self._path.with_name(self._path.name + suffix) for suffix in ("", "-wal", "-shm"))
        return {"path": str(self._path), "bytes": total_bytes(files), "version": sqlite3.sqlite_version}

    def drop(self, namespace: str) -> None:
        database = self._shared()
        number = database.number_of(namespace)
        if number is not None:
            database.change(REMOVE_ALL, (number,))

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        database = self._database
        # `_shared` validates again what a writer needs, which takes a third of the time of a small commit.
        if database is None or not database.is_writable_by(self._user):
            database = self._shared()
        return apply(database, commits)

    def snapshot(self) -> SqliteSnapshot:
        from .pinned import SqliteSnapshot

        view = SqliteSnapshot(self, self._settings())
        try:
            self._snapshots.add(view)
        except BaseException:
            # A stored traceback would keep the view open.
            view.close()
            raise
        return view

    def backup(self, dest: Path) -> None:
        database = self._shared()
        try:
            database.read(backup, dest)
        except NoDataError as error:
            raise StorageUnavailableError(
                f"{self._path}: nothing was stored there yet, so there is nothing to copy. Check the path"
            ) from error

    def compact(self) -> tuple[int, int]:
        if not self._path.exists():
            return 0, 0
        return self._shared().write(vacuum, self._path)

    def verify(self, repair: bool = False) -> list[Finding]:
        from .integrity import verify

        return verify(self._shared(), repair)

    def close(self) -> None:
        for view in self._snapshots.live():
            view.close()
        leave_all(self._user)
        self._database = None

    def __del__(self) -> None:
        if hasattr(self, "_user"):
            leave_all(self._user, 0)

    def _settings(self) -> Settings:
        options = self._storage_config
        reason = reason_to_only_read(self._path, options["readonly"])
        return self._path, options["durability"], options["wait_s"], options["mmap_bytes"], reason

    def _shared(self) -> Database:
        database = Database.join(self, self._user, self._settings())
        former, self._database = self._database, database
        if former is not None and former is not database:
            former.leave(self._user)
        return database
