"""Read an SQLite file without permission to write, and without writing to it.

SQLite in WAL mode writes also in order to read: to the log's index ``-shm``, which it creates with the log. Two cases:

- There is a log, because other processes have the file open, or did not close it. SQLite opens all three files for
  reading only, and its own locks keep what is read whole.
- There is no log, so the file holds everything. SQLite opens it as `immutable`, which needs no lock and no other file,
  but trusts that nothing changes. So a read counts only if the file is afterwards the same as before and there is still
  no log; otherwise it is read again through a new connection.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from sqlite3 import Connection
from typing import NoReturn, TypeVar

from hutch import StorageTimeoutError, StorageUnavailableError, StoreError
from hutch.filesystem import is_missing, reason_not_writable
from hutch.handlers import raised_by_handler, release_frames

from .errors import storage_error
from .file import DatabaseFile, NoDataError
from .paths import size_of
from .readers import Readers
from .wait import BusyWait

T = TypeVar("T")

#: What a read depends on: whether there is a log, and the identity, size and time of change of the files.
State = tuple[bool, tuple[int, ...]]

# A change within the same tick of the file system's clock may leave the time of change as it is.
_TICK_NS = 20_000_000
# For how long other processes may start or recover the log, during which SQLite refuses a reader that cannot write.
_STARTING_S = 1.0
_STARTING = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}


def reason_to_only_read(path: Path, readonly: bool) -> str | None:
    """Return why this process only reads the file at `path`; None if it may write, or if there is no file."""
    if is_missing(path):
        return None
    if readonly:
        return "the store was connected with readonly=true"
    if (reason := reason_not_writable(path)) is not None:
        return reason
    log, index = f"{path}-wal", f"{path}-shm"
    if is_missing(log) or is_missing(index):
        return reason_not_writable(path.parent)
    return reason_not_writable(log) or reason_not_writable(index)


class ReadOnlyFile(DatabaseFile):
    """A file that is only read, because of `reason`."""

    reason = ""

    def state(self) -> State:
        """Return the state of the files. Raises NoDataError if there is no file, and StorageUnavailableError."""
        try:
            status = os.stat(self.path)  # noqa: PTH116
        except FileNotFoundError:
            if self._identity is None:
                raise NoDataError from None
            raise StorageUnavailableError(f"{self.path} was removed while it was open; open the store again") from None
        except OSError as error:
            raise storage_error(self.path, "it cannot be opened", error) from error
        identity = (status.st_dev, status.st_ino)
        sizes = [size_of(f"{self.path}{suffix}") for suffix in ("-wal", "-shm", "-journal")]
        if sizes[2] > 0:
            raise StorageUnavailableError(
                f"{self.path}-journal holds an unfinished write, which SQLite must undo before the file can be read. "
                "Open the store once with permission to write to the file and its folder"
            )
        if sizes[0] > 0 or (sizes[0] == 0 and sizes[1] >= 0):
            return True, identity
        return False, (*identity, status.st_size, status.st_mtime_ns, sizes[0])

    def connect(self, connection: Connection, create: bool) -> None:
        """Connect `connection` for reading only; `create` has no effect. Raises what `DatabaseFile.connect` raises."""
        self._must_be_usable()
        has_log, _ = self.state()
        self._look()
        if has_log:
            self._must_have_index()
        self._connect(connection, "mode=ro" if has_log else "mode=ro&immutable=1")
        self.run(self._prepare_reader, connection)
        self._remember()

    def before_next_try(self, error: sqlite3.Error, wait: BusyWait | None, began_s: float | None = None) -> BusyWait:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _STARTING:
            return super().before_next_try(error, wait, began_s)
        if wait is None:
            wait = BusyWait(time.monotonic(), min(self.wait_s, _STARTING_S))
        if not wait.pause():
            raise StorageUnavailableError(
                f"{self.path}: SQLite says {str(error)!r}. A reader that only reads ({self.reason}) needs to read the "
                f"file, {self.path.name}-wal and {self.path.name}-shm. Permit that, or permit it to write to the file "
                "and its folder"
            ) from error
        return wait

    def refuse(self, *_: object) -> NoReturn:
        """Raise the StorageUnavailableError for a write."""
        raise StorageUnavailableError(
            f"{self.path}: it can only be read here: {self.reason}; nothing was written. Permit this process to write "
            "to the file and its folder, and connect again"
        )

    def _prepare_reader(self, connection: Connection) -> None:
        if not self._is_ours(connection):
            raise NoDataError
        connection.execute("PRAGMA query_only = ON")
        self._prepare_to_read(connection)

    def _must_have_index(self) -> None:
        """Raise StorageUnavailableError if SQLite would have to create the log's index and may not."""
        index = Path(f"{self.path}-shm")
        if not is_missing(index):
            return
        if (reason := reason_not_writable(self.path.parent)) is not None:
            raise StorageUnavailableError(
                f"{self.path}-wal holds writes of a process that did not close the store, and SQLite must create "
                f"{index} to read them: {reason}. Open the store once with permission to write, or copy "
                f"{self.path.name} and {self.path.name}-wal to a folder where this process may write"
            )


class _Reader(Connection):
    """A connection, and the state of the files that it was opened in."""

    state: State


class ReadOnlyReaders(Readers):
    """A pool of connections that only read. What a connection has read without a log is validated afterwards."""

    _file: ReadOnlyFile

    def run(self, work: Callable[..., T], *args: object) -> T:
        try:
            return self._run(work, *args)
        except BaseException as error:
            # A stored traceback must not seem to use a reader.
            release_frames(error, __file__)
            raise

    def _run(self, work: Callable[..., T], *args: object) -> T:
        deadline_s = time.monotonic() + self._file.wait_s
        while True:
            state = self._file.state()
            failure: StoreError | NoDataError | None = None
            reader = self._reader_of(state)
            try:
                result = self._file.run(work, reader, *args)
            except (StoreError, NoDataError) as error:
                reader.close()
                if raised_by_handler(error):
                    raise
                failure = error
            except BaseException:
                reader.close()
                raise
            if state[0] and failure is None:
                self._put_back(reader)
                return result
            is_unchanged = self._file.state() == state and not _may_be_racy(state)
            if is_unchanged and failure is not None:
                raise failure
            if is_unchanged:
                self._put_back(reader)
                return result
            reader.close()
            if time.monotonic() > deadline_s:
                raise failure or StorageTimeoutError(
                    f"{self._file.path}: other processes changed it during every try to read it for "
                    f"{self._file.wait_s:g} seconds. Try again, or permit this process to write to it"
                )
            time.sleep(0.001)

    def _reader_of(self, state: State) -> Connection:
        while True:
            try:
                reader = self.idle.pop()
            except IndexError:
                return self._opening.run(self._file.wait_s, self._open, state)
            if getattr(reader, "state", None) == state:
                return reader
            reader.close()

    def _open(self, state: State) -> Connection:
        self._close_lost()
        reader = _Reader.__new__(_Reader)
        reader.state = state
        return self._connect(reader)

    def _put_back(self, reader: Connection) -> None:
        self.idle.append(reader)
        self.trim()


def _may_be_racy(state: State) -> bool:
    """Return whether the file was changed so recently that another change would not show."""
    has_log, figures = state
    if has_log:
        return False
    age_ns = time.time_ns() - figures[3]
    if 0 <= age_ns < _TICK_NS:
        time.sleep((_TICK_NS - age_ns) / 1e9)
        return True
    return False
