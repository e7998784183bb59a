"""What the other process does: ``python -m hutch.testing.promises.jobs``, told by a `Child` over stdin."""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import hutch


def get_all(store: hutch.Store, namespace: str) -> dict[str, Any]:
    """All items."""
    with store.open(namespace) as ns:
        return dict(ns.items())


def update(store: hutch.Store, namespace: str, items: dict[str, Any]) -> None:
    """Set items, one by one."""
    with store.open(namespace) as ns:
        for key, value in items.items():
            ns[key] = value


def remove(store: hutch.Store, namespace: str, keys: list[str]) -> int:
    """Remove keys, as a batch."""
    with store.open(namespace) as ns:
        return ns.remove_many(keys)


def drop(store: hutch.Store, namespace: str) -> None:
    """Drop a namespace."""
    store.drop(namespace)


def namespaces(store: hutch.Store) -> list[str]:
    """Those that hold data."""
    return store.namespaces()


def count(store: hutch.Store, namespace: str, times: int) -> None:
    """Raise a counter by modify."""
    with store.open(namespace) as ns:
        for _ in range(times):
            ns.modify("n", lambda n: n + 1, default=0)


def race(store: hutch.Store, namespace: str, rounds: int, me: int) -> list[int]:
    """The rounds in which this process was the one that created the key, took the token, and set the default."""
    won = []
    with store.open(namespace) as ns:
        for number in range(rounds):
            if ns.compare_and_set(f"cas {number}", hutch.MISSING, me):
                won.append(number)
            if ns.pop(f"token {number}", None) is not None:
                won.append(rounds + number)
            if ns.setdefault(f"default {number}", me) == me:
                won.append(2 * rounds + number)
    return won


def write_batches(store: hutch.Store, namespace: str, keys: list[str], rounds: int) -> None:
    """Set all keys to one number after the other, as batches."""
    with store.open(namespace) as ns:
        for number in range(1, rounds + 1):
            ns.update(dict.fromkeys(keys, number))


def grow(store: hutch.Store, namespace: str, prefix: str, count: int, size: int) -> None:
    """Set many large values."""
    with store.open(namespace) as ns:
        for number in range(count):
            ns[f"{prefix}{number}"] = prefix.encode() * (size // len(prefix))


def write_until_killed(store: hutch.Store, namespace: str, first: int) -> None:
    """Write for ever, and say after each write that it returned. What is written tells its own number."""
    with store.open(namespace) as ns:
        number = first
        while True:
            ns[f"key {number}"] = number
            ns["newest"] = number
            acknowledge(("set", number))
            if number % 3 == 0:
                ns.update({f"batch {number} {n}": number for n in range(12)})
                acknowledge(("batch", number))
            if number % 5 == 4:
                del ns[f"key {number - 1}"]
                acknowledge(("removed", number - 1))
            if number % 7 == 6:
                ns.modify("counter", lambda n: n + 1, default=0)
                acknowledge(("counted", number))
            number += 1


def close_under_use(store: hutch.Store) -> list[str]:
    """Close handles and then the store while threads work: the errors of theirs that were not StoreErrors."""
    wrong: list[str] = []

    def work(ns: hutch.Namespace, use: Callable[[hutch.Namespace, int], object]) -> None:
        turn = 0
        try:
            while True:
                use(ns, turn)
                turn += 1
        except hutch.StoreError:
            pass
        except BaseException:
            wrong.append(traceback.format_exc())

    uses: list[Callable[[hutch.Namespace, int], object]] = [
        lambda ns, turn: ns.__setitem__(f"k{turn % 50}", turn),
        lambda ns, turn: ns.get(f"k{turn % 50}"),
        lambda ns, _: list(ns.items()),
        lambda ns, _: list(ns.scan(reverse=True)),
        lambda ns, turn: ns.update({f"k{n}": turn for n in range(20)}),
        lambda ns, _: ns.modify("n", lambda n: n + 1, default=0),
    ]
    # A handle closed here is closed on purpose, also where its store closes first and warns.
    import warnings

    warnings.simplefilter("ignore", ResourceWarning)
    for turn in range(12):
        ns = store.open(f"turn {turn}")
        threads = [threading.Thread(target=work, args=(ns, use), daemon=True) for use in uses]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        if turn < 11:
            ns.close()
        else:
            store.close()
        for thread in threads:
            thread.join(30)
            if thread.is_alive():
                wrong.append("a thread goes on, or hangs, 30 s after its handle was closed")
    return wrong


def fork(store: hutch.Store, namespace: str) -> tuple[str, dict[str, Any]]:
    """Use an inherited handle in a forked child: what came of it there, and what the parent has afterwards."""
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
    """Fork while threads write: what came of it in the children; the writes made and the writes there."""
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
        done.set()
        for thread in threads:
            thread.join(30)
        return outcomes, sum(written), ns.get("n0", 0) + ns.get("n1", 0)


def use_inherited(ns: hutch.Namespace) -> None:
    """What a forked child does with a handle of its parent's."""
    assert ns["shared"] == "parent"
    ns["child"] = "was here"
    assert ns["child"] == "was here"
    ns.modify("by children", lambda n: n + 1, default=0)
    assert "before" in list(ns)


def forked(work: Callable[[], None], patience_s: float = 30.0) -> str:
    """Run `work` in a fork of this process: "worked", "StoreError", or what went wrong."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = "worked"
        try:
            faulthandler.dump_traceback_later(patience_s - 5)
            work()
        except hutch.StoreError:
            told = "StoreError"
        except BaseException:
            told = traceback.format_exc()
        finally:
            os.write(writer, told.encode()[-4000:])
            # Without the parent's atexit and flush: it still has them to do itself.
            os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + patience_s
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(reader)
            return "the forked child hangs"
        time.sleep(0.005)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read().decode() or "the forked child died"


def acknowledge(told: object) -> None:
    """Say something to the `Child` and be sure that it left this process."""
    _answers.write(pickle.dumps(told))
    _answers.flush()


JOBS: dict[str, Callable[..., Any]] = {
    job.__name__: job
    for job in (
        *(get_all, update, remove, drop, namespaces, count, race, write_batches, grow, write_until_killed),
        *(close_under_use, fork, fork_amid_writes),
    )
}
_answers = sys.stdout.buffer


def main() -> None:
    """Connect, then do one job after the other until stdin ends."""
    orders = sys.stdin.buffer
    # What a plugin prints must not get between the answers.
    sys.stdout = sys.stderr
    config = pickle.load(orders)  # noqa: S301 - from the process that started this one
    try:
        store = hutch.connect(config)
    except Exception:
        acknowledge(("raised", traceback.format_exc()))
        return
    acknowledge(("ready", None))
    while True:
        try:
            job, arguments = pickle.load(orders)  # noqa: S301
        except EOFError:
            break
        try:
            acknowledge(("done", JOBS[job](store, *arguments)))
        except Exception:
            acknowledge(("raised", traceback.format_exc()))
    try:
        store.close()
    except hutch.StoreNotOpenError:
        return


if __name__ == "__main__":
    main()
