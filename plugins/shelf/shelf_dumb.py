"""The dialect dumb, written so that a process killed at any moment leaves whole files.

`dbm.dumb` itself overwrites values in place, and is without an index for a moment. What is written here is what it
reads, in its own format.
"""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hutch import CorruptValueError

from .shelf_database import Database, flush_folder, take_place
from .shelf_files import Place, storage_errors

_BLOCK_BYTES: Final = 512
# The index grows by a line a write; it is written anew when this many more lines than keys are in it.
_SPARE_LINES: Final = 1000


class DumbDatabase(Database):
    """The files of `dbm.dumb`: values in ``.dat``, an index of lines ``'key', (position, size)`` in ``.dir``.

    A value is never overwritten. A new one goes to blocks that no key uses, then a line is added to the index: of
    two lines for one key the last counts, for every version of `dbm.dumb`. Removing, and setting several keys in one
    step, put a new index in the place of the old one.
    """

    def __init__(self, place: Place, scratch: Path, *, to_read: bool = False) -> None:
        self._dat, self._dir, self._bak = (place.file(suffix) for suffix in (".dat", ".dir", ".bak"))
        self._scratch = scratch
        self._index: dict[bytes, tuple[int, int]] = {}
        self._lines = 0
        self._wrote = False
        with storage_errors(self._dat):
            self._file = open(self._dat, "rb" if to_read else "r+b", buffering=0)  # noqa: SIM115, PTH123 - closed in close()
        try:
            with storage_errors(self._dir):
                self._load()
            self._find_free()
        except BaseException:
            self._file.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        place = self._index.get(key)
        if place is None:
            return None
        position, size = place
        with storage_errors(self._dat):
            self._file.seek(position)
            data = self._file.read(size) or b""
            while len(data) < size and (more := self._file.read(size - len(data))):
                data += more
        if len(data) != size:
            raise self._cut_short(position + size)
        return data

    def contains(self, key: bytes) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    def keys(self) -> list[bytes]:
        return list(self._index)

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        end = self._end
        index = self._index
        try:
            with storage_errors(self._dat):
                placed = {key: self._put(value) for key, value in changes.items() if value is not None}
            removed = {key for key, value in changes.items() if value is None and key in index}
            if len(placed) == 1 and not removed and self._lines < 2 * len(index) + _SPARE_LINES:
                self._add_line(*next(iter(placed.items())))
            elif placed or removed:
                index = {key: at for key, at in {**index, **placed}.items() if key not in removed}
                self._write_index(index)
        except BaseException:
            self._find_free()
            with contextlib.suppress(OSError):
                if os.fstat(self._file.fileno()).st_size > end:
                    self._file.truncate(end)
            raise
        if self._is_tidy:
            freed = (self._index[key] for key in changes if key in self._index)
            self._free += [(position, _blocks(size)) for position, size in freed]
        index.update(placed)
        self._index = index

    def clear(self) -> None:
        self._write_index({})
        self._index = {}
        with storage_errors(self._dat):
            self._file.truncate(0)
        self._find_free()

    def close(self) -> None:
        try:
            if self._wrote:
                with storage_errors(self._dat):
                    os.fsync(self._file.fileno())
                with storage_errors(self._dir), self._dir.open("r+b") as file:
                    os.fsync(file.fileno())
                with storage_errors(self._dir.parent):
                    flush_folder(self._dir.parent)
        finally:
            self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _load(self) -> None:
        with self._dir.open(encoding="latin-1") as file:
            self._ends_with_newline = True
            for number, line in enumerate(file, 1):
                try:
                    key, (position, size) = ast.literal_eval(line.rstrip())
                    encoded = key.encode("latin-1")
                    if type(position) is not int or type(size) is not int or position < 0 or size < 0:
                        raise ValueError("expected a position and a size")
                except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError) as error:
                    raise CorruptValueError(
                        f"line {number} of {self._dir} is no entry of an index of dbm.dumb; it was cut short or "
                        "damaged. Restore it, or remove that line and with it one key"
                    ) from error
                self._index[encoded] = position, size
                self._lines = number
                self._ends_with_newline = line.endswith("\n")
        needed = max((position + size for position, size in self._index.values()), default=0)
        if os.fstat(self._file.fileno()).st_size < needed:
            raise self._cut_short(needed)

    def _cut_short(self, needed: int) -> CorruptValueError:
        return CorruptValueError(
            f"{self._dat} was cut short: by its index {self._dir.name} it has at least {needed:,} bytes, and it has "
            f"{os.fstat(self._file.fileno()).st_size:,}; restore it from a backup"
        )

    def _find_free(self) -> None:
        """Find the runs of blocks that no key uses, from the index."""
        self._free: list[tuple[int, int]] = []
        # Nothing that dbm.dumb writes is otherwise; if it is, what one key leaves may still be another's.
        self._is_tidy = True
        end = 0
        for position, size in sorted(self._index.values()):
            start = position - position % _BLOCK_BYTES
            if start > end:
                self._free.append((end, (start - end) // _BLOCK_BYTES))
            if start < end or start != position:
                self._is_tidy = False
            end = max(end, start + _blocks(position - start + size) * _BLOCK_BYTES)
        self._end = end

    def _put(self, value: bytes) -> tuple[int, int]:
        """Write `value` to free blocks."""
        wanted = _blocks(len(value))
        for i, (position, blocks) in enumerate(self._free):
            if blocks >= wanted:
                self._free[i : i + 1] = [(position + wanted * _BLOCK_BYTES, blocks - wanted)] if blocks > wanted else []
                break
        else:
            position = self._end
            self._end += wanted * _BLOCK_BYTES
        if not self._wrote:
            self._bak.unlink(missing_ok=True)  # it speaks of blocks that others use from now on
            self._wrote = True
        self._file.seek(position)
        _write_all(self._file, value)
        return position, len(value)

    def _add_line(self, key: bytes, place: tuple[int, int]) -> None:
        line = _line(key, place) if self._ends_with_newline else f"\n{_line(key, place)}"
        with storage_errors(self._dir), open(self._dir, "ab", buffering=0) as file:  # noqa: PTH123
            end = file.seek(0, os.SEEK_END)
            try:
                _write_all(file, line.encode("latin-1"))
            except BaseException:
                file.truncate(end)
                raise
        self._lines += 1
        self._ends_with_newline = True

    def _write_index(self, index: Mapping[bytes, tuple[int, int]]) -> None:
        with storage_errors(self._dir):
            self._bak.unlink(missing_ok=True)
            try:
                with self._scratch.open("w", encoding="latin-1", newline="\n") as file:
                    file.writelines(_line(key, place) for key, place in index.items())
                take_place(self._scratch, self._dir)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._scratch.unlink(missing_ok=True)
                raise
        self._wrote = True
        self._lines = len(index)
        self._ends_with_newline = True


def _line(key: bytes, place: tuple[int, int]) -> str:
    return f"{key.decode('latin-1')!r}, {place!r}\n"


def _blocks(size: int) -> int:
    return max(1, -(-size // _BLOCK_BYTES))


def _write_all(file: Any, data: bytes) -> None:
    # An unbuffered file may write a part, and says so; the next call then has the error, if there was one.
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
