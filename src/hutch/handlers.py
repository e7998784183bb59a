"""Distinguish an exception of a signal handler from one that the interrupted call raised itself.

A signal handler runs in the middle of whatever the main thread is doing, so its exception comes out of a driver or a
decoder as if that had failed: a time limit could be mistaken for a damaged value. Code that must catch a class as wide
as `Exception` or `OSError`, because the call may raise nearly anything, tests the exception here first and re-raises
one that is not the call's own::

    try:
        value = pickle.loads(data)
    except Exception as error:
        if raised_by_handler(error):
            raise
        raise CorruptValueError(...) from error
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def raised_by_handler(error: BaseException) -> bool:
    """Return whether a signal handler, or a function that it called, raised `error`.

    The interpreter passes a handler the frame that it interrupted, and so does `sys.setprofile`: a function in the
    traceback of `error` with a frame as an argument is a handler. A handler that is not a Python function leaves no
    trace and is not recognised; the one in the standard library raises KeyboardInterrupt, which is not an `Exception`.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
        if _has_frame_as_argument(traceback.tb_frame):
            return True
    return False


def runs_in_handler() -> bool:
    """Return whether a signal handler, or a function that it called, called this function."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _has_frame_as_argument(frame):
            return True
        frame = frame.f_back
    return False


def passes_through(error: BaseException) -> bool:
    """Return whether `error` must leave hutch unchanged, because it does not concern the value or storage in use.

    True if it is not an `Exception` (Ctrl-C), is a MemoryError, or was raised by a signal handler.
    """
    return not isinstance(error, Exception) or isinstance(error, MemoryError) or raised_by_handler(error)


def is_missing(error: KeyError, key: object) -> bool:
    """Return whether `error` says that `key` is missing; False for a KeyError that a signal handler raised."""
    return bool(error.args and error.args[0] is key) or not passes_through(error)


def release_frames(error: BaseException, file: str) -> None:
    """Clear the variables of the functions that `error` has left, so that its traceback keeps no resource alive.

    Only functions of files in the folder of `file`, the caller's ``__file__``. The caller's frame and those of other
    code, such as a signal handler, stay as they are.
    """
    folder = os.path.dirname(file) + os.sep  # noqa: PTH120 - a comparison of text, as in the code objects
    traceback = error.__traceback__ and error.__traceback__.tb_next
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_filename.startswith(folder):
            try:
                frame.clear()
            except RuntimeError as running:  # a handler raised a stored exception, whose frames still run
                if raised_by_handler(running):
                    raise
        traceback = traceback.tb_next


@contextmanager
def suppress_own(*kinds: type[Exception]) -> Iterator[None]:
    """Suppress exceptions of `kinds` that the block itself raises, but not those of a signal handler."""
    try:
        yield
    except kinds as error:
        if raised_by_handler(error):
            raise


def _has_frame_as_argument(called: FrameType) -> bool:
    code, values = called.f_code, called.f_locals
    variadic = bool(code.co_flags & 0x04)  # inspect.CO_VARARGS; importing inspect costs more than opening a store
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + variadic]:
        value = values.get(name)
        if isinstance(value, FrameType) or (type(value) is tuple and any(isinstance(one, FrameType) for one in value)):
            return True
    return False


def guard_entry(function: _Function) -> _Function:
    """Extend the `try` that is the whole body of `function` to cover its entry too, and return `function`.

    The interpreter may run a signal handler as a function begins, before the first line of its body. The handler's
    exception then leaves the function without reaching its `except`. That matters if no other code sees the exception:
    ormsgpack discards what its hooks raise. The exception table in the code object lists which instructions a `try`
    covers; this adds the instructions before it.

    Has no effect if the code has another form, as in an interpreter that is not CPython.
    """
    changed: Any = function
    code = changed.__code__
    table = getattr(code, "co_exceptiontable", b"")
    # An entry is four numbers of six bits per byte: start (marked by 0x80), length, handler, depth.
    # 0x40 means that the number continues. See InternalDocs/exception_handling.md of CPython.
    if not table or table[0] & 0xC0 != 0x80:
        return function
    ends = [index + 1 for index, byte in enumerate(table) if not byte & 0x40][:4]
    entry = bytes([0x80, table[0] & 0x3F]) + table[ends[1] : ends[3]]
    changed.__code__ = code.replace(co_exceptiontable=entry + table)
    return function
