"""Copy an SQLite file by SQLite's backup API, and shrink it by VACUUM, so that Ctrl-C ends either."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection

from hutch import StorageUnavailableError
from hutch.filesystem import create_file

from .file import fetch
from .paths import uri_of

# Pages per step of a backup. Signal handlers run between two steps.
_STEP_PAGES = 1024
_POLL_S = 0.1
# How long a compaction waits for readers of old states, which prevent SQLite from emptying the log.
_READERS_S = 5.0
_PAUSE_S = 0.02


def backup(connection: Connection, dest: Path) -> None:
    """Write the file as of one moment to the new file `dest`, flushed, and verify it by opening it.

    Other connections may write meanwhile. May be called again after a failure.
    """
    dest.unlink(missing_ok=True)
    create_file(dest, 0o600).close()
    # An open read transaction keeps SQLite from starting the backup again after each write of another process.
    connection.execute("BEGIN")
    try:
        counted = fetch(connection, "SELECT name, entries FROM namespaces")
        with closing(sqlite3.connect(uri_of(dest), uri=True, isolation_level=None)) as target:
            target.execute("PRAGMA journal_mode = MEMORY")
            target.execute("PRAGMA synchronous = FULL")
            # The progress function is Python code, so a signal handler can run and raise between two steps.
            connection.backup(target, pages=_STEP_PAGES, progress=lambda *_: None)
    finally:
        connection.rollback()
    with closing(sqlite3.connect(f"{uri_of(dest)}?mode=ro&immutable=1", uri=True)) as target:
        if fetch(target, "SELECT name, entries FROM namespaces") != counted:
            raise StorageUnavailableError(f"{dest}: the copy lacks what was written to it; the disk lost it")


def vacuum(connection: Connection, path: Path) -> tuple[int, int]:
    """Rewrite the file without its free pages; return its bytes, log included, before and after.

    SQLite commits the new content like any transaction: a killed process leaves the old file or the new one.
    """
    before = _size(path)
    # The copy may be as large as the file: not in memory.
    connection.execute("PRAGMA temp_store = FILE")
    try:
        _run_in_thread(connection, "VACUUM")
    finally:
        connection.execute("PRAGMA temp_store = MEMORY")
    deadline_s = time.monotonic() + _READERS_S
    while fetch(connection, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] and time.monotonic() < deadline_s:
        time.sleep(_PAUSE_S)
    return before, _size(path)


def _run_in_thread(connection: Connection, statement: str) -> None:
    """Execute `statement` in another thread: a signal handler runs meanwhile, and if it raises, SQLite rolls back."""
    errors: list[sqlite3.Error] = []
    worker = threading.Thread(target=_execute, args=(connection, statement, errors), name="hutch-vacuum")
    worker.start()
    try:
        _wait_for(worker)
    finally:
        _wait_for(worker, connection.interrupt)
    if errors:
        raise errors[0]


def _wait_for(worker: threading.Thread, hurry: Callable[[], object] | None = None) -> None:
    """Wait for the end of `worker`; call `hurry` until then."""
    # A function of its own: CPython may raise at the end of a loop outside the `try` around the loop.
    while worker.is_alive():
        if hurry is not None:
            hurry()
        worker.join(_POLL_S)


def _execute(connection: Connection, statement: str, errors: list[sqlite3.Error]) -> None:
    try:
        connection.execute(statement)
    except sqlite3.Error as error:
        errors.append(error)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")) if file.exists())
