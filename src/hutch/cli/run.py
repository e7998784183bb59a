"""Run the command: turn every outcome into an exit code and, for an error, one line on standard error."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings

import click

from . import backup, expiry, frameworks, inspect, items, shell, transfer  # noqa: F401 - each adds its commands
from .app import Call, hutch
from .complete import complete_word
from .failures import print_failure


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
                complete_word(hutch, arguments, call)
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
    try:
        sys.stdout.flush()
    except OSError:
        _abandon_output()
    return print_failure(error, call.debug)


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
