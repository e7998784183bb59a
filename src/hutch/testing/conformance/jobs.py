"""Run the jobs that a `Child` sends over stdin: ``python -m hutch.testing.conformance.jobs``."""

from __future__ import annotations

import faulthandler
import pickle
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hutch

from ..crash.kills import KillPlan, Kills
from .fairness import write_all_the_time, write_from_time_to_time
from .forks import fork, fork_amid_writes
from .interrupt_jobs import interrupt_at_each_point, interrupt_at_random
from .nested_jobs import finalize_at_random, nest_at_each_point, nest_at_random
from .wait_jobs import interrupt_a_write, interrupt_waits_for_a_key


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


def count(store: hutch.Store, namespace: str, seconds: float) -> int:
    """Raise a counter by modify for so long; how often."""
    times = 0
    with store.open(namespace) as ns:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ns.modify("n", lambda n: n + 1, default=0)
            times += 1
    return times


def race(store: hutch.Store, namespace: str, rounds: int, me: int, start: float) -> list[int]:
    """Return the rounds in which this process created the key, took the token, and set the default.

    All begin the first round at the time `start`, and each later one together if they are in time for it.
    """
    won = []
    with store.open(namespace) as ns:
        for number in range(rounds):
            time.sleep(max(0.0, start + number * 0.003 - time.time()))
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


def kill_at_random(store: hutch.Store, config: Any, plan: KillPlan) -> dict[str, int]:
    """Start processes on `config`, which may be another store of the engine, and kill them: what was counted."""
    capabilities = store.capabilities
    # A process that will be forked holds no store open. It is closed already when this is not the first run.
    with suppress(hutch.StoreNotOpenError):
        store.close()
    return Kills(config, capabilities, plan).run()


def close_under_use(store: hutch.Store) -> list[str]:
    """Close handles and then the store while threads work: the errors of theirs that were not StoreErrors."""
    wrong: list[str] = []
    sys.setswitchinterval(1e-4)

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


def acknowledge(message: object) -> None:
    """Say something to the `Child` and be sure that it left this process."""
    _answers.write(pickle.dumps(message))
    _answers.flush()


JOBS: dict[str, Callable[..., Any]] = {
    job.__name__: job
    for job in (
        *(get_all, update, remove, drop, namespaces, count, race, write_batches, grow, kill_at_random),
        *(close_under_use, fork, fork_amid_writes, interrupt_at_random, interrupt_at_each_point),
        *(nest_at_each_point, nest_at_random, finalize_at_random),
        *(write_all_the_time, write_from_time_to_time, interrupt_waits_for_a_key, interrupt_a_write),
    )
}
_answers = sys.stdout.buffer


def main() -> None:
    """Connect, then do one job after the other until stdin ends."""
    faulthandler.enable()
    orders = sys.stdin.buffer
    # What a plugin prints must not get between the answers.
    sys.stdout = sys.stderr
    config = pickle.load(orders)
    try:
        store = hutch.connect(config)
    except Exception:
        acknowledge(("raised", traceback.format_exc()))
        return
    acknowledge(("ready", None))
    while True:
        try:
            job, arguments = pickle.load(orders)
        except EOFError:
            break
        try:
            acknowledge(("done", JOBS[job](store, *arguments)))
        except BaseException:
            acknowledge(("raised", traceback.format_exc()))
    try:
        store.close()
    except hutch.StoreNotOpenError:
        return


if __name__ == "__main__":
    main()
