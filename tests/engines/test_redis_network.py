"""Test the redis engine on an unreliable network: fail-over, dead connections, outages, limits, wrong addresses.

Limits allow for a machine ten times slower than a laptop; the exact times are printed.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

import hutch
from tests.servers import Certificates, Proxy, RedisServer, eventually, make_certificates, need_program, wait_until

SLOW_MACHINE = 10


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    with RedisServer(appendonly=True) as server:
        yield server


def connect(storage: str, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": storage, "STORAGE_CONFIG": options})


@contextmanager
def client_of(server: RedisServer) -> Iterator[redis.Redis]:
    with closing(redis.Redis(server.host, server.port)) as client:
        yield client


def pool_of(store: hutch.Store) -> Any:
    plugin: Any = store._factory
    return plugin.server._pool


@contextmanager
def measured(what: str, most_s: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    took_s = time.monotonic() - started
    print(f"{what}: {took_s:.2f} s")
    assert took_s < most_s * SLOW_MACHINE


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except hutch.StoreError as error:
        return error


# --- fail-over ---


@contextmanager
def failed_over() -> Iterator[tuple[Proxy, RedisServer, RedisServer]]:
    """Yield a name that first led to a server, now a replica, and now leads to its new primary, the second server."""
    at_once = ("repl-diskless-sync-delay 0",)
    with RedisServer(options=at_once) as one, RedisServer() as two, Proxy(one.port) as name:
        yield name, one, two


def fail_over(name: Proxy, one: RedisServer, two: RedisServer) -> None:
    with client_of(one) as old, client_of(two) as new:
        new.replicaof("NO", "ONE")
        old.replicaof(two.host, str(two.port))
    name.target_port = two.port


@pytest.mark.parametrize(
    "change",
    [
        lambda core: core.__setitem__("a", 2),
        lambda core: core.update(a=2, c=2),
        lambda core: core.update({str(i): None for i in range(100_001)}),
        lambda core: core.__delitem__("a"),
        lambda core: core.remove_many(["a"]),
        lambda core: core.pop("a"),
        lambda core: core.modify("a", lambda n: n + 1),
        lambda core: core.compare_and_set("a", 1, 2),
        lambda core: core.clear(),
    ],
)
def test_after_a_fail_over_by_name_every_change_goes_to_the_new_primary(change: Callable[[Any], Any]) -> None:
    with failed_over() as (name, one, two), connect(name.url) as store, store.open("core") as core:
        core.update(a=1, b=1)
        with client_of(two) as new:
            new.replicaof(one.host, str(one.port))
            wait_until(
                lambda: (
                    new.info("replication").get("master_link_status") == "up"
                    and bool(new.exists("hutch:{core}:values"))
                )
            )
        fail_over(name, one, two)
        change(core)
        with connect(two.url) as other, other.open("core") as same:
            assert dict(same.items()) == dict(core.items())
            assert dict(same.items()) != {"a": 1, "b": 1}


def test_a_fail_over_that_takes_a_moment_is_waited_for(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=60) as store, store.open("core") as core:
        core.update(a=1, b=1)
        for command in ("replica-serve-stale-data no", "replica-serve-stale-data yes"):
            with client_of(own_server) as admin:
                admin.config_set(*command.split())
                admin.replicaof("127.0.0.1", "1")

            def promote() -> None:
                time.sleep(0.5)
                with client_of(own_server) as admin:
                    admin.replicaof("NO", "ONE")

            with ThreadPoolExecutor(1) as pool:
                promoted = pool.submit(promote)
                core.modify("a", lambda n: n + 1)
                promoted.result()
        assert core["a"] == 3


def test_a_server_that_stays_a_replica_is_an_error_after_retry_s(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=0.5) as store, store.open("core") as core:
        with client_of(own_server) as admin:
            admin.replicaof("127.0.0.1", "1")
        started = time.monotonic()
        with measured("gave up", 0.6), pytest.raises(hutch.StorageUnavailableError, match="read-only replica"):
            core["key"] = 1
        assert time.monotonic() - started > 0.4


# --- connections that are no longer answered ---


def add_idle_connections(store: hutch.Store, count: int) -> None:
    pool = pool_of(store)
    pool._idle += [pool._connect() for _ in range(count)]


def fill_pool(core: hutch.Namespace, threads: int) -> None:
    barrier = threading.Barrier(threads)

    def use(_: int) -> None:
        barrier.wait(60)
        for _ in range(20):
            core["a"]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(use, range(threads)))


def forget_connections(firewall: Proxy, store: hutch.Store, timeout_s: float = 0.3) -> None:
    """Freeze the idle connections; a call on one of them times out after `timeout_s`, on a new one as configured."""
    for connection in pool_of(store)._idle:
        connection._socket.settimeout(timeout_s)
        connection.used_s += 3600  # however slow the machine, they are not tested before use
    firewall.freeze()


def test_of_many_forgotten_connections_one_costs_a_time_out(redis_server: RedisServer, prefix: str) -> None:
    with (
        Proxy(redis_server.port) as firewall,
        connect(firewall.url, timeout_s=60, prefix=prefix) as store,
        store.open("core") as core,
    ):
        core["a"] = 1
        add_idle_connections(store, 16)
        forget_connections(firewall, store)
        with pytest.raises(hutch.StorageTimeoutError):
            core["a"]
        assert [core["a"] for _ in range(40)] == [1] * 40


def test_of_sixteen_threads_on_forgotten_connections_each_loses_one_call_at_most(
    redis_server: RedisServer, prefix: str
) -> None:
    with (
        Proxy(redis_server.port) as firewall,
        connect(firewall.url, timeout_s=60, prefix=prefix) as store,
        store.open("core") as core,
    ):
        core["a"] = 1
        add_idle_connections(store, 16)
        forget_connections(firewall, store)

        def use(_: int) -> list[Any]:
            return [outcome(lambda: core["a"]) for _ in range(10)]

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(use, range(16)))
    for calls in found:
        errors = [one for one in calls if one != 1]
        assert len(errors) <= 1
        assert all(isinstance(one, hutch.StorageTimeoutError) for one in errors)


@pytest.mark.parametrize("queue", ["to connect", "for a place"])
def test_a_connection_that_broke_with_another_fails_no_call_that_waits_for_a_new_one(
    redis_server: RedisServer, prefix: str, queue: str
) -> None:
    with (
        Proxy(redis_server.port) as firewall,
        connect(firewall.url, timeout_s=60, retry_s=0, max_connections=2, prefix=prefix) as store,
        store.open("core") as core,
        ThreadPoolExecutor(3) as threads,
    ):
        core["a"] = 1
        add_idle_connections(store, 1)
        forget_connections(firewall, store, timeout_s=60)
        pool, release = pool_of(store), threading.Event()
        first, second = pool._idle
        try:
            on_second = threads.submit(outcome, lambda: core["a"])
            wait_until(lambda: pool._idle == [first])
            first._socket.shutdown(socket.SHUT_RDWR)
            assert isinstance(outcome(lambda: core["a"]), hutch.StorageUnavailableError)
            if queue == "to connect":
                threads.submit(pool._connect_lock.run, 60, release.wait, 60)
                wait_until(lambda: len(pool._connect_lock._tickets) == 1)
            else:
                threads.submit(pool._limit.run, release.wait, 60)
                wait_until(lambda: len(pool._limit._queue) == 2)
            waiting = threads.submit(outcome, lambda: core["a"])
            wait_until(lambda: len(pool._connect_lock._tickets) == 2 or len(pool._limit._queue) == 3)
            second._socket.shutdown(socket.SHUT_RDWR)
            assert isinstance(on_second.result(), hutch.StorageUnavailableError)
        finally:
            release.set()
        assert waiting.result() == 1


def test_a_connection_that_was_idle_is_asked_first(
    redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Proxy(redis_server.port) as firewall,
        connect(firewall.url, timeout_s=30, prefix=prefix) as store,
        store.open("core") as core,
    ):
        core["a"] = 1
        fill_pool(core, 8)
        for connection in pool_of(store)._idle:
            connection.used_s -= 60
        firewall.freeze()
        with measured("no time-out of 30 s", 1.5):
            assert core["a"] == 1
            assert core.modify("a", lambda n: n + 1) == 2
        made = firewall.accepted
        # However slow the machine, the server answers in time.
        monkeypatch.setitem(pool_of(store)._idle_connection.__func__.__globals__, "_MAX_PING_S", 30)
        for connection in pool_of(store)._idle:
            connection.used_s -= 60
        assert core["a"] == 2
        assert firewall.accepted == made  # it answered, and is kept


def test_keepalive_is_on(redis_server: RedisServer, prefix: str) -> None:
    with connect(redis_server.url, prefix=prefix) as store:
        (connection,) = pool_of(store)._idle
        assert connection._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


# --- a server that is down ---


@pytest.mark.parametrize("most", [1, 4])
def test_calls_in_the_queue_behind_a_time_out_fail_with_it(own_server: RedisServer, most: int) -> None:
    with connect(own_server.url, timeout_s=2, max_connections=most) as store, store.open("core") as core:
        core["a"] = 1
        own_server.stall()
        try:
            with measured("16 calls on a hung server", 2.5), ThreadPoolExecutor(16) as pool:
                found = list(pool.map(lambda _: outcome(lambda: core["a"]), range(16)))
            assert {type(one) for one in found} == {hutch.StorageTimeoutError}
        finally:
            own_server.resume()
        assert eventually(lambda: core["a"]) == 1


def test_while_a_server_hangs_one_call_finds_out_for_all(own_server: RedisServer) -> None:
    with connect(own_server.url, timeout_s=1) as store, store.open("core") as core:
        core["a"] = 1
        own_server.stall()
        try:
            assert isinstance(outcome(lambda: core["a"]), hutch.StorageTimeoutError)
            with measured("the next 32 calls", 1.5), ThreadPoolExecutor(32) as pool:
                found = list(pool.map(lambda _: outcome(lambda: core["a"]), range(32)))
            assert {type(one) for one in found} == {hutch.StorageTimeoutError}
        finally:
            own_server.resume()
        with ThreadPoolExecutor(32) as pool:
            assert set(pool.map(lambda _: eventually(lambda: core["a"]), range(32))) == {1}


def test_sixteen_threads_live_through_a_restart(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=60) as store, store.open("core") as core:
        core["a"] = 1
        own_server.kill()
        with ThreadPoolExecutor(17) as pool:
            found = [pool.submit(lambda: core["a"]) for _ in range(16)]
            time.sleep(1)
            own_server.start()
            assert {one.result() for one in found} == {1}


def test_a_server_that_is_away_is_an_error_after_retry_s(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=0.5) as store, store.open("core") as core:
        own_server.kill()
        started = time.monotonic()
        with measured("gave up", 0.6), pytest.raises(hutch.StorageUnavailableError, match="cannot be reached"):
            core["a"]
        assert time.monotonic() - started > 0.4


# --- how many connections, and when ---


def test_at_most_max_connections_are_open_and_a_call_waits_for_a_free_one(own_server: RedisServer) -> None:
    with connect(own_server.url, max_connections=3) as store, store.open("core") as core:
        core["a"] = 1
        fill_pool(core, 16)
        with client_of(own_server) as admin:
            assert len(admin.client_list()) <= 3 + 1


def test_a_call_that_gets_no_connection_in_time_says_so(own_server: RedisServer) -> None:
    with connect(own_server.url, max_connections=1, timeout_s=1) as store, store.open("core") as core:
        core["a"] = 1
        limit = pool_of(store)._limit
        release = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(limit.run, release.wait, 60)
            wait_until(lambda: bool(limit._queue))
            try:
                with measured("gave up", 1.1), pytest.raises(hutch.StorageTimeoutError, match="max_connections"):
                    core["a"]
            finally:
                release.set()
            assert holding.result()
        assert core["a"] == 1


def test_a_lazy_store_touches_the_server_when_it_is_first_used(own_server: RedisServer) -> None:
    own_server.kill()
    with connect(own_server.url, lazy_connect=True, retry_s=0) as store, store.open("core") as core:
        assert isinstance(outcome(lambda: core["a"]), hutch.StorageUnavailableError)
        own_server.start()
        core["a"] = 1
        assert core["a"] == 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        with (
            hutch.connect(f"redis://127.0.0.1:{listener.getsockname()[1]}?lazy_connect=true") as store,
            store.open("x"),
        ):
            pass
        with pytest.raises(TimeoutError):
            listener.accept()


# --- waits end at once ---


class Alarm(Exception):
    pass


@contextmanager
def alarm_after(seconds: float) -> Iterator[None]:
    def handle(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize("wait", ["an answer", "a connection", "a place", "the server", "its turn"])
def test_a_handler_that_raises_ends_every_wait_at_once(own_server: RedisServer, wait: str) -> None:
    options: dict[str, Any] = {"timeout_s": 60, "retry_s": 60, "max_connections": 1 if wait == "a place" else None}
    with connect(own_server.url, **options) as store, store.open("core") as core:
        core["a"] = 1
        pool, release = pool_of(store), threading.Event()
        with ThreadPoolExecutor(1) as other:
            if wait == "an answer":
                own_server.stall()
            if wait == "a connection":
                own_server.stall()
                pool.drop_idle()
            if wait == "the server":
                own_server.kill()
            if wait == "a place":
                other.submit(pool._limit.run, release.wait, 60)
                wait_until(lambda: bool(pool._limit._queue))
            if wait == "its turn":
                own_server.stall()
                pool._report(redis.exceptions.TimeoutError("of the test"), pool._outages)
                other.submit(pool._connect_lock.run, 60, release.wait, 60)
                wait_until(lambda: bool(pool._connect_lock._tickets))
            try:
                with measured(wait, 0.5), pytest.raises(Alarm), alarm_after(0.3):
                    core["a"]
            finally:
                release.set()
                if wait == "the server":
                    own_server.start()
                own_server.resume()
        assert core["a"] == 1


# --- wrong addresses and foreign options ---


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_an_error_distinguishes_tls_from_plain_ports_and_its_advice_works(
    certificates: Certificates, prefix: str
) -> None:
    own = {"cert_file": certificates.client, "key_file": certificates.client_key, "ca_file": certificates.ca}
    with RedisServer(certificates=certificates) as server:
        with pytest.raises(hutch.StoreError, match=r"start the url with rediss://") as caught:
            connect(server.tls_url.replace("rediss://", "redis://"), retry_s=0)
        advised = re.search(r"(\w+://) \(or (\w+://)", str(caught.value))
        assert advised
        for scheme in advised.groups():
            connect(server.tls_url.replace("rediss://", scheme), prefix=prefix, **own).close()
        with pytest.raises(hutch.StoreError, match=r"start the url with redis://") as caught:
            connect(server.url.replace("redis://", "rediss://"), timeout_s=0.5, retry_s=0)
        advised = re.search(r"(\w+://) \(or (\w+://)", str(caught.value))
        assert advised
        for scheme in advised.groups():
            connect(server.url.replace("redis://", scheme), prefix=prefix).close()


def accepts_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


@contextmanager
def sentinel(folder: Path) -> Iterator[int]:
    """A Sentinel on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    config = folder / "sentinel.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n")
    process = subprocess.Popen([need_program("redis-server"), config, "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts_connections(port))
        yield port
    finally:
        process.kill()
        process.wait(30)


def test_a_sentinel_is_recognised(tmp_path: Path) -> None:
    with sentinel(tmp_path) as port:
        for url in (f"redis://127.0.0.1:{port}", f"redis://127.0.0.1:{port}/1"):
            with pytest.raises(hutch.StoreError, match=r"Sentinel.* redis\+sentinel://host:26379/NAME"):
                connect(url, retry_s=0)
    with pytest.raises(hutch.StorageUnavailableError, match=r"26379 .*Sentinel"):
        connect("redis://127.0.0.1:26379", retry_s=0)


@pytest.mark.parametrize("scheme", ["valkey", "redis", "VALKEY"])
def test_valkey_is_a_scheme_of_the_same_data(redis_server: RedisServer, prefix: str, scheme: str) -> None:
    with hutch.connect(f"{redis_server.url}?prefix={prefix}") as store, store.open("core") as core:
        core["key"] = 1
        url = redis_server.url.replace("redis://", f"{scheme}://")
        with hutch.connect(f"{url}?prefix={prefix}") as other, other.open("core") as same:
            assert same["key"] == 1


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("retries", 3, "retry_s"),
        ("socket_timeout", 3, "timeout_s"),
        ("socket_connect_timeout", 3, "connect_timeout_s"),
        ("ssl_cert_reqs", "none", "verify"),
        ("ssl_ca_certs", "ca.pem", "ca_file"),
        ("decode_responses", True, "leave it out"),
        ("health_check_interval", 3, "leave it out"),
        ("host", "h", "redis://host:port/database"),
        ("port", 6379, "redis://host:port/database"),
        ("ssl", True, "rediss://"),
    ],
)
def test_options_of_other_programs_are_refused_with_the_right_ones(
    redis_server: RedisServer, prefix: str, option: str, value: object, instead: str
) -> None:
    ways: list[Callable[[], hutch.Store]] = [
        lambda: connect(redis_server.url, **{option: value}),
        lambda: hutch.connect(f"{redis_server.url}?{option}={value}"),
        lambda: connect("redis", url=f"{redis_server.url}?{option}={value}"),
    ]
    for way in ways:
        with pytest.raises(hutch.ConfigError, match=re.escape(instead)) as caught:
            way()
        assert option in str(caught.value)
    advised = re.search(r"write (\w+_s)=(\d+)", str(caught.value))
    if advised:
        with hutch.connect(f"{redis_server.url}?{advised[1]}={advised[2]}&prefix={prefix}") as store:
            assert store.namespaces() == []


def test_options_in_the_url_option_are_named_without_their_values(redis_server: RedisServer, prefix: str) -> None:
    with pytest.raises(hutch.ConfigError, match=r"give 'db', 'password' as options outside the url") as caught:
        connect("redis", url=f"{redis_server.url[:-2]}?db=1&password=hunter2&hunter3")
    assert "hunter" not in str(caught.value)
    connect("redis", url=redis_server.url[:-2], db=1, prefix=prefix).close()


# --- speed ---


def test_items_cost_about_what_reading_all_at_once_and_decoding_does(redis_server: RedisServer, prefix: str) -> None:
    with connect(redis_server.unix_url, prefix=prefix) as store, store.open("core") as core:
        core.update({f"key{i:06}": {"n": i, "s": "x" * 60} for i in range(10_000)})
        storage: Any = hutch.load_plugin("redis", {"url": redis_server.unix_url, "prefix": prefix}).open("core")

        def ours() -> None:
            for _ in core.items():
                pass

        with closing(redis.Redis(unix_socket_path=str(redis_server.socket))) as client:

            def theirs() -> None:
                found: Any = client.hgetall(f"{prefix}:{{core}}:values")
                keys = [key.decode() for key in found]
                dict(
                    zip(
                        keys,
                        storage.frame_codec.decode_many(list(found.values()), storage.key_crcs_of(keys)),
                        strict=True,
                    )
                )

            times: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
            for _ in range(7):
                for work, took in times.items():
                    started = time.perf_counter()
                    work()
                    took.append(time.perf_counter() - started)
        storage._plugin.close()
    ratio = min(times[ours]) / min(times[theirs])
    print(f"items(): {ratio:.2f} of HGETALL and decoding")
    assert ratio < 1.15 * 3
