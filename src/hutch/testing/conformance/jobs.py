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
from .nested_jobs import finalize_at_random, nest_at_each_point, nest_at_random, nest_increments
from .wait_jobs import interrupt_a_write, interrupt_waits_for_a_key


def get_all(store: hutch.Store, namespace: str) -> dict[str, Any]:
    """Return all items."""
    with store.open(namespace) as ns:
        return dict(ns.items())


def update(store: hutch.Store, namespace: str, items: dict[str, Any]) -> None:
    """Set `items` one by one."""
    with store.open(namespace) as ns:
        for key, value in items.items():
            ns[key] = value


def remove(store: hutch.Store, namespace: str, keys: list[str]) -> int:
    """Remove `keys` as one batch; return how many were there."""
    with store.open(namespace) as ns:
        return ns.remove_many(keys)


def drop(store: hutch.Store, namespace: str) -> None:
    """Drop a namespace."""
    store.drop(namespace)


def namespaces(store: hutch.Store) -> list[str]:
    """Return the namespaces that hold data."""
    return store.namespaces()


def count(store: hutch.Store, namespace: str, seconds: float) -> int:
    """Increment a counter by modify for `seconds`; return how often."""
    times = 0
    with store.open(namespace) as ns:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ns.modify("n", lambda n: n + 1, default=0)
            times += 1
    return times


def increment(store: hutch.Store, namespace: str, seconds: float) -> int:
    """Increment a counter for `seconds`; return how often."""
    times = 0
    with store.open(namespace) as ns:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ns.increment("n")
            times += 1
    return times


def race(store: hutch.Store, namespace: str, rounds: int, me: int, start: float) -> list[int]:
    """Race other processes for one key per round and verb; return the numbers of the races that this one won.

    Rounds begin at fixed times after `start`, so that all processes begin a round together.
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
    """Set all `keys` to the number of the round, as one batch per round."""
    with store.open(namespace) as ns:
        for number in range(1, rounds + 1):
            ns.update(dict.fromkeys(keys, number))


def grow(store: hutch.Store, namespace: str, prefix: str, count: int, size: int) -> None:
    """Set `count` values of `size` bytes."""
    with store.open(namespace) as ns:
        for number in range(count):
            ns[f"{prefix}{number}"] = prefix.encode() * (size // len(prefix))


def kill_at_random(store: hutch.Store, config: Any, plan: KillPlan) -> dict[str, int]:
    """Kill processes that use `config`, which may be another store of the engine; return the counts."""
    capabilities = store.capabilities
    # A process that forks must not have the store open. An earlier run may have closed it.
    with suppress(hutch.StoreNotOpenError):
        store.close()
    return Kills(config, capabilities, plan).run()


def close_under_use(store: hutch.Store) -> list[str]:
    """Close handles and then the store while threads use them; return the errors that were not StoreErrors."""
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
    # Closing a store warns of open handles; here they are open on purpose.
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
                wrong.append("a thread still runs 30 s after its handle was closed")
    return wrong


def acknowledge(message: object) -> None:
    """Send `message` to the `Child` and flush it."""
    _answers.write(pickle.dumps(message))
    _answers.flush()


JOBS: dict[str, Callable[..., Any]] = {
    job.__name__: job
    for job in (
        *(get_all, update, remove, drop, namespaces, count, increment, race, write_batches, grow, kill_at_random),
        *(close_under_use, fork, fork_amid_writes, interrupt_at_random, interrupt_at_each_point),
        *(nest_at_each_point, nest_at_random, nest_increments, finalize_at_random),
        *(write_all_the_time, write_from_time_to_time, interrupt_waits_for_a_key, interrupt_a_write),
    )
}
_answers = sys.stdout.buffer


def main() -> None:
    """Connect, then run jobs until stdin ends."""
    faulthandler.enable()
    orders = sys.stdin.buffer
    # The output of a plugin must not mix with the answers.
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
    with suppress(hutch.StoreNotOpenError):
        store.close()


if __name__ == "__main__":
    main()
