"""Run the command: turn every outcome into an exit code and, for an error, one line on standard error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
import warnings

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
from . import backup, frameworks, inspect, items, transfer  # noqa: F401 - each adds its commands
from .app import Call, hutch
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


def run(arguments: list[str]) -> int:
    """Run the command with `arguments` and return its exit code. Raises nothing."""
    call = Call(debug=os.environ.get("HUTCH_DEBUG", "0") not in ("", "0"))
    _prepare_streams()
    with warnings.catch_warnings():
        # Warnings are for developers; a user of the command cannot act on them.
        if not sys.warnoptions and not call.debug:
            warnings.simplefilter("ignore")
        try:
            if "_HUTCH_COMPLETE" in os.environ:
                hutch.main(arguments, prog_name="hutch")
            # Not click's own `main`, which has other exit codes.
            with hutch.make_context("hutch", list(arguments), obj=call) as context:
                code: int | None = hutch.invoke(context)
            sys.stdout.flush()
            return code or 0
        except click.exceptions.Exit as end:  # --help, --version
            return end.exit_code
        except SystemExit as end:  # shell completion
            return end.code if isinstance(end.code, int) else 0
        except BaseException as error:
            return _end(error, call)


def _end(error: BaseException, call: Call) -> int:
    """Print one line that describes `error` and return the exit code for it."""
    if isinstance(error, BrokenPipeError):
        # The reader of the output, such as `head`, has read enough.
        _abandon_output()
        return 0
    if isinstance(error, KeyboardInterrupt | click.Abort) and threading.current_thread() is threading.main_thread():
        # A second Ctrl-C must not interrupt the shutdown.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    code, message = _judge(error)
    try:
        sys.stdout.flush()
    except OSError:
        _abandon_output()
    if call.debug and not isinstance(error, click.ClickException):
        _print_error(_traceback(error))
    _print_error(f"hutch: {printable(redact(message))}")
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
    if isinstance(error, click.ClickException):
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "hutch"
        return _USAGE, f"{' '.join(error.format_message().split()).rstrip('.')}. See {command} --help"
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


def _print_error(text: str) -> None:
    # If standard error is closed too, there is nowhere to print.
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            # Escape characters that the terminal's encoding lacks, instead of failing.
            stream.reconfigure(errors="backslashreplace")


def _abandon_output() -> None:
    """Redirect standard output to the null device, because the interpreter would fail to flush it at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except OSError:
        pass
