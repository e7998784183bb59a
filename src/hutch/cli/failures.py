"""Describe a failed command: its exit code and one line, which quotes no stored value and no secret."""

from __future__ import annotations

import contextlib
import traceback

import click

from .. import (
    CapabilityError,
    ConfigError,
    CorruptValueError,
    KeyLimitError,
    KeyTypeError,
    NamespaceError,
    PluginConflictError,
    PluginLoadError,
    PluginNotFoundError,
    StoreError,
    ValueLimitError,
    ValueTypeError,
)
from ..errors import redact
from .output import printable

# Packages whose errors describe a file or server and quote no stored value.
_DRIVERS = frozenset({"lmdb", "sqlite3", "redis", "click"})
_USAGE, _STORAGE, _UNREADABLE, _INTERRUPTED = 2, 3, 4, 130
_USAGE_ERRORS = (
    ConfigError,
    PluginNotFoundError,
    PluginConflictError,
    PluginLoadError,
    NamespaceError,
    KeyTypeError,
    KeyLimitError,
    ValueLimitError,
    CapabilityError,
)


class LineError(click.ClickException):
    """A line of `hutch shell` that names no verb of it. The message says what to do."""


def print_failure(error: BaseException, debug: bool, where: str = "") -> int:
    """Print one line that describes `error`, after `where`, and return the exit code for it."""
    code, message = _judge(error)
    if debug and not isinstance(error, click.ClickException):
        _print_error(_traceback(error))
    _print_error(f"hutch: {where}{printable(redact(message))}")
    return code


def _traceback(error: BaseException) -> str:
    """Return the printable tracebacks of `error` and its causes, without error texts that may quote a value."""
    parts: list[str] = []
    following: BaseException | None = error
    seen: set[int] = set()
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        lines = ["Traceback (most recent call last):\n", *traceback.format_tb(following.__traceback__)]
        parts.append("".join(lines) + _described(following))
        suppressed = following.__suppress_context__ or following.__cause__ is not None
        following = following.__cause__ if suppressed else following.__context__
    text = redact("\n\nThis led to:\n\n".join(reversed(parts)))
    return "\n".join(map(printable, text.split("\n")))


def _described(error: BaseException) -> str:
    """Return the type of `error`, and its text unless it may quote a value, as an application's error may."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, StoreError | OSError | ImportError) or kind.partition(".")[0] in _DRIVERS:
        return printable(f"{kind}: {error}")
    return f"{printable(kind)} (its text may quote a value and is not shown)"


def _judge(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LineError):
        return _USAGE, error.message
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        message = _sentence(error.format_message())
        if message.startswith("Got unexpected extra") and any(one.name == "storage" for one in _parameters(context)):
            message += " The store is given by -s, before or after the verb."
        return _USAGE, f"{message} See {context.command_path if context else 'hutch'} --help"
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _INTERRUPTED, "interrupted"
    message = str(error) or type(error).__name__
    if isinstance(error, _USAGE_ERRORS):
        return _USAGE, message
    if isinstance(error, CorruptValueError | ValueTypeError):
        hint = (
            ". On the command line: hutch --import MODULE, where MODULE registers it"
            if "register_type" in message
            else ""
        )
        return _UNREADABLE, message + hint
    if isinstance(error, StoreError):
        return _STORAGE, message
    if isinstance(error, OSError):
        return _STORAGE, f"{error.filename or 'input or output failed'}: {error.strerror or message}"
    return _STORAGE, f"unexpected {type(error).__name__}. HUTCH_DEBUG=1 shows where; please report it"


def _parameters(context: click.Context | None) -> list[click.Parameter]:
    return context.command.params if context else []


def _sentence(text: str) -> str:
    """Return `text` on one line, ended by a mark; click ends some of its messages with "?."."""
    line = " ".join(text.split()).rstrip(".")
    return line if line.endswith(("?", "?)")) else f"{line}."


def _print_error(text: str) -> None:
    # If standard error is closed too, there is nowhere to print.
    with contextlib.suppress(OSError):
        click.echo(text, err=True)
