"""Jobs of a `Child` that fork: what a forked process may do with an inherited handle."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import hutch


def fork(store: hutch.Store, namespace: str) -> tuple[str, dict[str, Any]]:
    """Use an inherited handle in a forked child; return the child's outcome, and the parent's items afterwards."""
    with store.open(namespace) as ns:
        ns.update(before=1, shared="parent")
        steps = iter(ns.items())
        next(steps)
        outcome = forked(lambda: use_inherited(ns))
        ns["after"] = 2
        ns.modify("before", lambda n: n + 1)
        list(steps)
        return outcome, dict(ns)


def fork_amid_writes(store: hutch.Store, namespace: str, rounds: int) -> tuple[list[str], int, int]:
    """Fork while threads write. Return the children's results, the number of writes made and the number stored."""
    done = threading.Event()
    written = [0, 0]
    with store.open(namespace) as ns:
        ns.update(before=1, shared="parent")

        def write(thread: int) -> None:
            while not done.is_set():
                ns.modify(f"n{thread}", lambda n: n + 1, default=0)
                written[thread] += 1

        threads = [threading.Thread(target=write, args=(thread,), daemon=True) for thread in (0, 1)]
        for thread in threads:
            thread.start()
        outcomes = []
        for _ in range(rounds):
            time.sleep(0.003)
            outcomes.append(forked(lambda: use_inherited(ns)))
            if outcomes[-1] not in ("worked", "StoreError"):
                break
        done.set()
        for thread in threads:
            thread.join(30)
        return outcomes, sum(written), ns.get("n0", 0) + ns.get("n1", 0)


def use_inherited(ns: hutch.Namespace) -> None:
    """Read and write in a forked child through a handle inherited from the parent."""
    assert ns["shared"] == "parent"
    ns["child"] = "was here"
    assert ns["child"] == "was here"
    ns.modify("by children", lambda n: n + 1, default=0)
    assert "before" in list(ns)


def forked(work: Callable[[], None], patience_s: float = 20.0) -> str:
    """Run `work` in a fork of this process; return "worked", "StoreError", or what went wrong."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        message = "worked"
        try:
            # The parent's pipes must end with the parent, not with its forks.
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)
            work()
        except hutch.StoreError:
            message = "StoreError"
        except BaseException:
            message = traceback.format_exc()
        finally:
            os.write(writer, message.encode()[-4000:])
            # Skip atexit functions and flushes, which are the parent's to run.
            os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + patience_s
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            # faulthandler prints the child's stack.
            os.kill(pid, signal.SIGABRT)
            os.waitpid(pid, 0)
            os.close(reader)
            return "the forked child hangs"
        time.sleep(0.005)
    with os.fdopen(reader, "rb") as outcome:
        return outcome.read().decode() or "the forked child died"
