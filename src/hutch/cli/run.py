"""One run of the command: how it ends, whatever happens. Exit codes and the one line that an error gets."""

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
from . import frameworks, inspect, items, transfer  # noqa: F401 - each adds its commands
from .app import Call, hutch
from .output import printable

# Packages whose errors say what is wrong with a file or a server, and quote no value.
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
    """Run the command with `arguments`; its exit code. Prints, and raises nothing."""
    call = Call(debug=os.environ.get("HUTCH_DEBUG", "0") not in ("", "0"))
    _prepare_streams()
    with warnings.catch_warnings():
        # A warning is for developers; nobody who runs a command can act on it.
        if not sys.warnoptions and not call.debug:
            warnings.simplefilter("ignore")
        try:
            if "_HUTCH_COMPLETE" in os.environ:
                hutch.main(arguments, prog_name="hutch")
            # Not click's own `main`: it has exit codes of its own.
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
    """The exit code for `error`, after the one line that says what it was."""
    if isinstance(error, BrokenPipeError):
        # Whoever read the output, `head` perhaps, has what they wanted.
        _abandon_output()
        return 0
    if isinstance(error, KeyboardInterrupt | click.Abort) and threading.current_thread() is threading.main_thread():
        # Said once is enough: a second Ctrl-C shall not tear the end apart.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    code, told = _judge(error)
    try:
        sys.stdout.flush()
    except OSError:
        _abandon_output()
    if call.debug and not isinstance(error, click.ClickException):
        _tell(_traceback(error))
    _tell(f"hutch: {printable(redact(told))}")
    return code


def _traceback(error: BaseException) -> str:
    """The tracebacks of `error` and of what led to it, fit for a terminal, without the text that may quote a value."""
    told: list[str] = []
    following: BaseException | None = error
    seen: set[int] = set()
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        lines = ["Traceback (most recent call last):\n", *traceback.format_tb(following.__traceback__)]
        told.append("".join(lines) + _described(following))
        suppressed = following.__suppress_context__ or following.__cause__ is not None
        following = following.__cause__ if suppressed else following.__context__
    text = redact("\n\nThis led to:\n\n".join(reversed(told)))
    return "\n".join(map(printable, text.split("\n")))


def _described(error: BaseException) -> str:
    """The type of `error`, and its text unless that may quote a value, as that of an application's code may."""
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
    told = str(error) or type(error).__name__
    if isinstance(error, _USAGE_ERRORS):
        return _USAGE, told
    if isinstance(error, CorruptValueError | ValueTypeError):
        hint = (
            ". On the command line: hutch --import MODULE, the one that registers it" if "register_type" in told else ""
        )
        return _UNREADABLE, told + hint
    if isinstance(error, StoreError):
        return _STORAGE, told
    if isinstance(error, OSError):
        return _STORAGE, f"{error.filename or 'input or output failed'}: {error.strerror or told}"
    return _STORAGE, f"unexpected {type(error).__name__}. HUTCH_DEBUG=1 shows where; please report it"


def _tell(text: str) -> None:
    # Where standard error is closed too there is nobody to tell.
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            # A character that the terminal's encoding lacks is no reason to fail.
            stream.reconfigure(errors="backslashreplace")


def _abandon_output() -> None:
    """Let what is still buffered go nowhere, or the interpreter would complain when it flushes at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except OSError:
        pass
