"""Break real Redis servers and their network under load, on each topology: no hang, no wrong reply, nothing twice.

``HUTCH_FAULT_ROUNDS=1000`` makes the load longer. Each run appends what it counted to ``HUTCH_FAULT_RECORDS``, a file;
``python -m tests.faults.redis_fault_table FILE`` makes the table in docs/redis-faults.md from it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

import hutch
from tests.faults.load import Figures, Load
from tests.faults.topologies import PASSWORD, USER, Clustered, Monitored, Standalone, Topology, follow
from tests.redis_cluster import ask
from tests.servers import make_certificates, wait_until

pytestmark = pytest.mark.timeout(300)

# A call that takes longer hangs: the load retries for 30 s.
HANG_S = 60
UNAVAILABLE, TIMEOUT = hutch.StorageUnavailableError, hutch.StorageTimeoutError
NO_REPLICA = "no fail-over without Sentinel or cluster"
TOPOLOGIES: dict[str, type[Topology]] = {one.name: one for one in (Standalone, Monitored, Clustered)}


@dataclass(frozen=True)
class Fault:
    """A line of the table: what happens while the context is entered."""

    name: str
    happen: Callable[[Any, str], AbstractContextManager[None]]
    #: What a call raises meanwhile if it retries for half a second; nothing: no call fails.
    error: type[hutch.StoreError] | None = None
    #: Which acknowledged writes may be lost.
    may_lose: str = "nothing"
    #: Why a topology has no figures.
    reasons: dict[str, str] = field(default_factory=dict)
    #: What calls of the load may raise besides.
    load_errors: tuple[type[hutch.StoreError], ...] = ()
    #: Whether the replica takes over, so that writes that wait for it survive.
    fails_over: bool = False
    tls: bool = False


# --- faults: each takes a topology and a key of the server, whose primary it breaks ---


@contextmanager
def restarted(topology: Topology, key: str) -> Iterator[None]:
    server = topology.primary(key)
    server.kill()
    server.start()
    yield


@contextmanager
def killed(topology: Topology, key: str) -> Iterator[None]:
    old = topology.primary(key)
    topology.fail_over_after(1000)
    old.kill()
    try:
        yield
    finally:
        wait_until(lambda: topology.primary(key) is not old)
        old.start()
        topology.fail_over_after(60_000)
        if topology.name == "sentinel":
            follow(old, topology.primary(key))


@contextmanager
def ordered(topology: Topology, key: str) -> Iterator[None]:
    topology.fail_over(key)
    yield


@contextmanager
def promoted(topology: Topology, key: str) -> Iterator[None]:
    if isinstance(topology, Standalone):
        topology.promote()
    elif isinstance(topology, Clustered):
        topology.fail_over(key, "TAKEOVER")
    else:
        replica = topology.replica(key)
        ask(replica, "REPLICAOF", "NO", "ONE")
    try:
        yield
    finally:
        if isinstance(topology, Monitored):
            follow(replica, topology.primary(key))


@contextmanager
def cut(topology: Topology, key: str) -> Iterator[None]:
    wire = topology.wire(key)
    wire.is_cut = True
    wire.break_connections()
    try:
        yield
    finally:
        wire.is_cut = False


@contextmanager
def delayed(topology: Topology, key: str) -> Iterator[None]:
    wire = topology.wire(key)
    wire.delay_s = 1.5
    try:
        yield
    finally:
        wire.delay_s = 0


@contextmanager
def half_open(topology: Topology, key: str) -> Iterator[None]:
    wire = topology.wire(key)
    wire.silence()
    try:
        yield
    finally:
        wire.is_silent = False


@contextmanager
def reset(topology: Topology, key: str) -> Iterator[None]:
    wire = topology.wire(key)
    wire.resets = 10
    wait_until(lambda: not wire.resets)
    yield


@contextmanager
def secured_only(topology: Topology, key: str) -> Iterator[None]:
    """Stand for the fault that `secured` makes."""
    yield


def configured(new: dict[str, str], old: dict[str, str]) -> Any:
    @contextmanager
    def happen(topology: Topology, key: str) -> Iterator[None]:
        server = topology.primary(key)
        for name, value in new.items():
            ask(server, "CONFIG", "SET", name, value)
        try:
            yield
        finally:
            for name, value in old.items():
                ask(server, "CONFIG", "SET", name, value)

    return happen


@contextmanager
def evicted(topology: Topology, key: str) -> Iterator[None]:
    server = topology.primary(key)
    ask(server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    ask(server, "CONFIG", "SET", "maxmemory", "1mb")
    wait_until(lambda: ask(server, "INFO", "stats")["evicted_keys"] > 0)
    try:
        yield
    finally:
        ask(server, "CONFIG", "SET", "maxmemory", "0")
        ask(server, "CONFIG", "SET", "maxmemory-policy", "noeviction")


def rights(new: tuple[str, ...], old: tuple[str, ...]) -> Any:
    @contextmanager
    def happen(topology: Topology, key: str) -> Iterator[None]:
        server = topology.primary(key)
        ask(server, "ACL", "SETUSER", USER, *new)
        ask(server, "CLIENT", "KILL", "USER", USER)
        try:
            yield
        finally:
            ask(server, "ACL", "SETUSER", USER, *old)

    return happen


def commanded(*command: str, times: int = 1) -> Any:
    @contextmanager
    def happen(topology: Topology, key: str) -> Iterator[None]:
        for _ in range(times):
            ask(topology.primary(key), *command)
            time.sleep(0.02)
        yield

    return happen


@contextmanager
def busy(topology: Topology, key: str) -> Iterator[None]:
    server = topology.primary(key)
    ask(server, "CONFIG", "SET", "busy-reply-threshold", "50")

    def run() -> None:
        with suppress(redis.ResponseError):
            ask(server, "EVAL", "while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        wait_until(lambda: _is_killed(server))
        thread.join(60)


def _is_killed(server: Any) -> bool:
    try:
        ask(server, "SCRIPT", "KILL")
    except redis.ResponseError:  # not running yet
        return False
    return True


@contextmanager
def moved(topology: Clustered, key: str) -> Iterator[None]:
    slot = topology.slot(key)
    for _ in range(3):
        topology.group.move_slot(slot, next(i for i in range(6) if _is_another(topology, i, slot)))
    yield


def _is_another(topology: Clustered, i: int, slot: int) -> bool:
    role = ask(topology.servers[i], "INFO", "replication")["role"]
    return role == "master" and i != topology.group.owner(slot)


FAULTS = [
    Fault("server killed and restarted", restarted),
    Fault("network cut", cut, UNAVAILABLE),
    Fault("network delayed by 1.5 s", delayed, TIMEOUT),
    Fault("connections half-open", half_open, TIMEOUT),
    Fault("connections reset in the middle of a reply", reset),
    Fault(
        "memory full, `noeviction`",
        configured({"maxmemory": "1", "maxmemory-policy": "noeviction"}, {"maxmemory": "0"}),
        hutch.StorageFullError,
    ),
    Fault(
        "memory full, `allkeys-lru`",
        evicted,
        may_lose="what the server evicts",
        load_errors=(hutch.StorageFullError, hutch.CorruptValueError),
    ),
    Fault("password changed", rights(("resetpass", ">other"), ("resetpass", f">{PASSWORD}")), UNAVAILABLE),
    Fault("rights taken away", rights(("-eval", "-evalsha", "-hget"), ("+@all",)), UNAVAILABLE),
    Fault("certificate expired", secured_only, UNAVAILABLE, tls=True),
    Fault("`SCRIPT FLUSH`", commanded("SCRIPT", "FLUSH", times=5)),
    Fault("`FLUSHDB`", commanded("FLUSHDB"), may_lose="what was written before"),
    Fault("`CLIENT KILL TYPE normal`", commanded("CLIENT", "KILL", "TYPE", "normal", times=5)),
    Fault("`CLIENT PAUSE 1500 ALL`", commanded("CLIENT", "PAUSE", "1500", "ALL"), TIMEOUT),
    Fault("script of another client runs until `SCRIPT KILL`", busy, TIMEOUT),
    Fault("hash slot moved", moved, reasons=dict.fromkeys(("standalone", "sentinel"), "no hash slots")),
    Fault(
        "fail-over ordered",
        ordered,
        may_lose="the latest, on `sentinel`",
        reasons={"standalone": NO_REPLICA},
        fails_over=True,
    ),
    Fault("replica promoted by hand", promoted, may_lose="the latest, on `cluster`"),
    Fault(
        "primary killed",
        killed,
        UNAVAILABLE,
        may_lose="the latest",
        reasons={"standalone": f"{NO_REPLICA}; see the first line"},
        fails_over=True,
    ),
]
# A fail-over may be over before the call that shows the error; half of the calls only read.
MAY_SUCCEED = ("primary killed", "fail-over ordered")
WAITING = ", with `wait_replicas=1`"


def lines() -> dict[str, Fault]:
    """Return the names of the lines of the table, with their faults."""
    found = {}
    for fault in FAULTS:
        found[fault.name] = fault
        if fault.fails_over:
            found[fault.name + WAITING] = fault
    return found


def promise(line: str) -> str:
    """Return which acknowledged writes may be lost, in words."""
    return "nothing" if line.endswith(WAITING) else lines()[line].may_lose


def may_lose(line: str, topology: str) -> bool:
    """Return whether acknowledged writes may be lost."""
    words = promise(line)
    return words != "nothing" and ("`" not in words or f"`{topology}`" in words)


# --- the tests ---


@pytest.fixture(scope="module")
def topology(request: pytest.FixtureRequest) -> Iterator[Topology]:
    """Yield the running topology of a name; only one runs at a time."""
    running = TOPOLOGIES[request.param]()
    yield running
    running.close()


@pytest.mark.parametrize(
    "topology",
    [pytest.param(name, marks=pytest.mark.xdist_group(f"faults {name}")) for name in TOPOLOGIES],
    indirect=True,
)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_bounded_and_changes_nothing_twice(
    topology: Topology, fault: Fault, prefix: str, tmp_path: Path, record_property: Any
) -> None:
    if topology.name in fault.reasons:
        pytest.skip(fault.reasons[topology.name])
    topology.wait_ready()
    key, names = prefix_key(prefix, "n0"), ["n0", "n1"]
    options: dict[str, Any] = {"username": USER, "password": PASSWORD, "prefix": prefix}
    with ExitStack() as stack:
        stack.enter_context(topology.network.connected())
        url, happen = topology.url, fault.happen
        if fault.tls:
            url, options["ca_file"], happen = stack.enter_context(secured(topology, tmp_path))
        patient = {**options, "timeout_s": 3, "connect_timeout_s": 3, "retry_s": 30}
        impatient = {**options, "timeout_s": 1, "connect_timeout_s": 1, "retry_s": 0.5}
        stores = {fault.name: stack.enter_context(connect(url, **patient))}
        if fault.fails_over:
            # What the replica has acknowledged cannot be lost: it takes over.
            waiting = connect(url, **patient, wait_replicas=1, wait_ms=1000)
            stores[fault.name + WAITING] = stack.enter_context(waiting)
        probe = stack.enter_context(eventually_connected(url, **impatient)) if fault.error else None
        loads = {
            line: Load(store, [f"{name} {line}" for name in names] if line.endswith(WAITING) else names)
            for line, store in stores.items()
        }
        for load in loads.values():
            stack.callback(load.stop)
            load.progress()
        error_s = None
        with happen(topology, key):
            if probe is not None:
                error_s = time_to_error(probe, fault)
        for load in loads.values():
            load.progress()
        for line, load in loads.items():
            figures = load.finish()
            figures.error_s = error_s if error_s is not None else figures.error_s
            record_property("counted", f"{topology.name}, {line}: {figures}")
            append_record(topology.name, line, figures)
            judge(topology, line, fault, load, figures)


def judge(topology: Topology, line: str, fault: Fault, load: Load, figures: Figures) -> None:
    """Fail the test if a call hung, got another call's reply, was made twice or lost against the promise."""
    assert figures.acknowledged > 0
    assert figures.doubled == 0
    assert figures.lost == 0 or may_lose(line, topology.name)
    allowed = (*fault.load_errors, *([fault.error] if fault.error else []))
    for worker in load.workers:
        assert worker.mismatches == []
        assert worker.longest_s < HANG_S
        assert [kind for kind in worker.refusals if not issubclass(kind, allowed)] == []


def connect(url: str, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": url, "STORAGE_CONFIG": options})


def eventually_connected(url: str, **options: Any) -> hutch.Store:
    """Return a store with short time-outs, and a connection: however slow the machine."""
    deadline = time.monotonic() + 60
    while True:
        try:
            store = connect(url, **options)
            store["n0"]["probe"] = 1
        except (hutch.StorageTimeoutError, hutch.StorageUnavailableError):
            assert time.monotonic() < deadline
        else:
            return store


def time_to_error(store: hutch.Store, fault: Fault) -> float | None:
    """Return the longest time to an error of a read, a set and an increment at once; fail if all of them succeed."""
    namespace = store["n0"]
    calls: list[Callable[[], Any]] = [
        lambda: namespace.get("probe"),
        lambda: namespace.set("probe", 1),
        lambda: namespace.increment("probe count"),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        times = [one for one in pool.map(lambda call: _time_to_error(call, fault), calls) if one is not None]
    assert times or fault.name in MAY_SUCCEED
    assert all(one < HANG_S for one in times)
    return max(times, default=None)


def _time_to_error(call: Callable[[], Any], fault: Fault) -> float | None:
    assert fault.error is not None
    began_s = time.monotonic()
    try:
        call()
    except (fault.error, hutch.StorageUnavailableError):
        return time.monotonic() - began_s
    return None


@contextmanager
def secured(topology: Topology, folder: Path) -> Iterator[tuple[str, Path, Any]]:
    """Put TLS in front of the servers; yield the URL, the authorities and a fault that lets the certificate expire."""
    made = {}
    for name, days in (("valid", 2), ("expired", -1)):
        (folder / name).mkdir()
        made[name] = make_certificates(folder / name, days)
    authorities = folder / "authorities"
    authorities.write_text("".join(one.ca.read_text() for one in made.values()))
    secure = topology.network.secure

    @contextmanager
    def expired(_: Topology, __: str) -> Iterator[None]:
        secure(made["expired"].server, made["expired"].server_key)
        try:
            yield
        finally:
            secure(made["valid"].server, made["valid"].server_key)

    secure(made["valid"].server, made["valid"].server_key)
    try:
        yield topology.url.replace("redis", "rediss", 1), authorities, expired
    finally:
        topology.network.unsecure()


def prefix_key(prefix: str, namespace: str) -> str:
    return f"{prefix}:{{{namespace}}}:values"


def append_record(topology: str, line: str, figures: Figures) -> None:
    """Append what was counted to the file of records, if there is one."""
    file = os.environ.get("HUTCH_FAULT_RECORDS")
    if file:
        with Path(file).open("a", encoding="utf-8") as records:
            records.write(json.dumps({"topology": topology, "fault": line, **asdict(figures)}) + "\n")
