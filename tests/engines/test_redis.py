"""Test the redis engine on real servers: foreign keys it leaves alone, faults it survives, and its errors.

The promises that all engines share are in the conformance kit.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import redis

import hutch
from hutch.testing.conformance.interrupt_jobs import open_files
from hutch.testing.signal_points import Interrupt, points, raise_interrupt, run_at
from tests.servers import Certificates, RedisServer, eventually, make_certificates, wait_until

SECRET = "s3cret/with@every:thing#in%it"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[RedisServer]:
    with RedisServer(certificates=certificates) as server:
        yield server


@pytest.fixture(scope="module")
def locked_server() -> Iterator[RedisServer]:
    with RedisServer(password=SECRET) as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """Yield a server that the test may kill, which persists its data on disk."""
    with RedisServer(appendonly=True) as server:
        yield server


def connect(storage: str, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": storage, "STORAGE_CONFIG": options})


def raw(server: RedisServer, *command: Any) -> Any:
    """Return the server's answer to another application."""
    with application(server) as execute:
        return execute(*command)


@contextmanager
def application(server: RedisServer) -> Iterator[Callable[..., Any]]:
    """Yield a function that sends commands as another application, with one connection."""
    with closing(redis.Redis(server.host, server.port, password=server.password, single_connection_client=True)) as one:
        execute: Any = one.execute_command
        yield execute


def calls(server: RedisServer) -> dict[str, int]:
    """Return how often each command was run since `CONFIG RESETSTAT`, inside scripts too."""
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in raw(server, "INFO", "commandstats").items()}


def everything(server: RedisServer) -> dict[bytes, bytes]:
    return {key: raw(server, "DUMP", key) for key in raw(server, "KEYS", "*")}


def all_that_is_said(error: BaseException) -> str:
    """Return an error with its causes and contexts, as a traceback shows them and as they are."""
    said: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        said += [*traceback.format_exception_only(seen), repr(seen), repr(seen.args)]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(said)


@contextmanager
def in_background(work: Callable[[], Any]) -> Iterator[Any]:
    """Run `work` in a thread; yield its future, and wait for it at the end."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


# --- ways to a server ---


def use(store: hutch.Store) -> None:
    with store, store.open("core") as core:
        core["key"] = {"a": {1}}
        assert core["key"] == {"a": {1}}
        assert store.namespaces() == ["core"]


@pytest.mark.parametrize("way", ["url", "unix_url"])
def test_it_is_reached_over_tcp_and_over_a_unix_socket(redis_server: RedisServer, prefix: str, way: str) -> None:
    use(connect(getattr(redis_server, way), prefix=prefix))


def test_stats_name_the_server_and_the_versions(redis_server: RedisServer, prefix: str) -> None:
    with connect(redis_server.url, prefix=prefix) as store:
        store["core"]["key"] = 1
        found = store.stats()
    assert (found["namespaces"], found["keys"]) == (1, 1)
    assert str(found["driver"]).startswith("redis-py ")
    assert str(found["version"])[0].isdigit()
    assert int(str(found["server_bytes"])) > int(str(found["bytes"])) > 0
    assert str(redis_server.url).split(":")[-1].split("/")[0] in str(found["server"])


def test_both_names_of_the_unix_scheme_mean_the_same_data(redis_server: RedisServer, prefix: str) -> None:
    with connect(redis_server.unix_url, prefix=prefix, db=2) as store, store.open("core") as core:
        core["key"] = 1
        with hutch.connect(f"redis+{redis_server.unix_url}?prefix={prefix}&db=2") as other, other.open("core") as same:
            assert same["key"] == 1
        with connect(redis_server.unix_url, prefix=prefix) as other_database:
            assert other_database.namespaces() == []


def test_a_database_is_chosen_by_the_url(redis_server: RedisServer, prefix: str) -> None:
    with connect(redis_server.url, prefix=prefix) as zero, connect(f"{redis_server.url[:-1]}3", prefix=prefix) as three:
        with zero.open("core") as core:
            core["key"] = 1
        assert three.namespaces() == []
    with pytest.raises(hutch.ConfigError, match="no such database"):
        connect(f"{redis_server.url[:-1]}999")


def test_tls_is_verified_against_the_given_authority(
    tls_server: RedisServer, certificates: Certificates, prefix: str
) -> None:
    own = {"cert_file": certificates.client, "key_file": certificates.client_key, "prefix": prefix, "retry_s": 0}
    use(connect(tls_server.tls_url, ca_file=certificates.ca, **own))
    use(connect(tls_server.tls_url, verify=False, **own))
    with pytest.raises(hutch.StorageUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(tls_server.tls_url, **own)
    with pytest.raises(hutch.StorageUnavailableError):
        connect(tls_server.tls_url, ca_file=certificates.ca, retry_s=0)  # the server requires a client certificate
    elsewhere = tls_server.tls_url.replace("localhost", "127.0.0.2")
    with pytest.raises(hutch.StorageUnavailableError):
        connect(elsewhere, ca_file=certificates.ca, **own)


def test_tls_to_a_port_without_it_fails_and_so_does_the_reverse(tls_server: RedisServer) -> None:
    with pytest.raises(hutch.StorageTimeoutError):  # to Redis the greeting of TLS is an unfinished command
        connect(tls_server.url.replace("redis://", "rediss://"), timeout_s=0.5)
    with pytest.raises(hutch.StorageUnavailableError):
        connect(tls_server.tls_url.replace("rediss://", "redis://"), retry_s=0)


@pytest.mark.parametrize(
    ("in_url", "options"),
    [
        (f"default:{quote(SECRET, safe='')}@", {}),
        (f":{quote(SECRET, safe='')}@", {}),
        ("", {"password": SECRET}),
        ("default@", {"password": SECRET}),
        ("", {"username": "default", "password": SECRET}),
    ],
)
def test_a_login_comes_from_the_url_or_from_options(
    locked_server: RedisServer, prefix: str, in_url: str, options: dict[str, str]
) -> None:
    use(connect(locked_server.url.replace("://", f"://{in_url}"), prefix=prefix, **options))
    use(connect(locked_server.unix_url.replace("://", f"://{in_url}"), prefix=f"{prefix}u", **options))


@pytest.mark.parametrize("options", [{}, {"password": f"not {SECRET}"}, {"username": "who", "password": SECRET}])
def test_a_refused_login_says_so_and_shows_no_password(locked_server: RedisServer, options: dict[str, str]) -> None:
    with pytest.raises(hutch.StorageUnavailableError, match="refuses the login") as caught:
        connect(locked_server.url, **options)
    assert SECRET not in all_that_is_said(caught.value)


def test_no_repr_shows_a_password(locked_server: RedisServer) -> None:
    url = locked_server.url.replace("://", f"://:{quote(SECRET, safe='')}@")
    plugin = hutch.load_plugin("redis", {"url": url, "prefix": "repr"})
    with plugin, hutch.connect({"STORAGE": url}) as store, store.open("core") as core:
        core["key"] = 1
        things = [
            store,
            core,
            plugin,
            plugin.server,
            *vars(plugin.server).values(),
            *vars(plugin.server._pool).values(),
        ]
        shown = " ".join(map(repr, things))
    assert SECRET not in shown
    assert quote(SECRET, safe="") not in shown


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("redis+cluster://h1,h2/1", {}, "database 0 only"),
        ("valkeys+cluster://h1,h2", {"db": 1}, "database 0 only"),
        ("redis+cluster://h1,h2/hunter2", {}, "database 0 only"),
        ("redis+cluster://h1,h2:0", {}, "port"),
        ("redis+cluster://h1,h2", {"verify": False}, "verify"),
        ("redis+cluster://h1,,h2", {}, "before and after each comma"),
        ("redis+cluster://h1, ,h2", {}, "before and after each comma"),
        ("redis+cluster://h1,", {}, "before and after each comma"),
        ("redis+sentinel://,h1/main", {}, "before and after each comma"),
        ("redis://h1:1,h2", {}, r"several hosts.*redis\+cluster://"),
        ("rediss://h1,h2/hunter2", {}, r"several hosts.*rediss\+sentinel://"),
        ("redis+sentinel://h1,h2", {}, "name the primary"),
        ("redis+sentinel://h1,h2//0", {}, "name the primary"),
        ("redis+sentinel://h1,h2/main/hunter2", {}, "number of a database"),
        ("redis+sentinel://h1,h2/main/1", {"db": 1}, "twice"),
        ("redis://h", {"sentinel_password": "hunter2"}, "redis\\+sentinel://"),
        ("redis", {"url": "redis+unknown://h"}, "must start with redis://"),
        ("redis", {"url": "http://hunter2"}, "must start with redis://"),
        ("redis", {"url": "hunter2"}, "must start with redis://"),
        ("redis", {"url": "redis://h?password=hunter2"}, "may not hold a '\\?'"),
        ("redis://:hunter2", {}, "port"),
        ("redis://h:0", {}, "port"),
        ("redis://h:65536", {}, "port"),
        ("redis://h:\u0661", {}, "port"),
        (f"redis://{'h' * 64}", {}, "host"),
        ("redis://h/hunter2", {}, "number of a database"),
        ("redis://h/-1", {}, "number of a database"),
        ("redis://h/1", {"db": 1}, "twice"),
        ("redis://:hunter2@h", {"password": "hunter2"}, "password .* twice"),
        ("redis://hunter2@h", {"username": "hunter2"}, "username .* twice"),
        ("redis://:%FF@h", {}, "UTF-8"),
        ("redis://:hunter2%00@h", {}, "NUL"),
        ("redis", {"password": "hunter2\udc80"}, "not valid Unicode"),
        ("unix://run/hunter2", {}, "full path"),
        ("redis://h", {"ca_file": "ca.pem"}, "ca_file"),
        ("redis://h", {"verify": False}, "verify"),
        ("unix:///s", {"key_file": "key.pem"}, "key_file"),
        ("rediss://h", {"ca_file": "not-there.pem"}, "not a file"),
        ("redis://h", {"prefix": ""}, "prefix"),
        ("redis://h", {"prefix": "a{b"}, "prefix"),
        ("redis://h", {"prefix": "a b"}, "prefix"),
        ("redis://h", {"retry_s": -1}, "retry_s"),
        ("redis://h", {"timeout_s": 0}, "timeout_s"),
        ("redis://h", {"wait_replicas": -1}, "wait_replicas"),
        ("redis://h", {"wait_replicas": 1, "wait_ms": 0}, "wait_ms"),
        ("redis://h", {"wait_replicas": 1, "wait_ms": 2000, "timeout_s": 2}, "shorter than timeout_s"),
        ("redis://h", {"pasword": "hunter2"}, "password"),
    ],
)
def test_a_config_that_cannot_be_is_refused_without_showing_it(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(hutch.ConfigError, match=message) as caught:
        connect(url, **options)
    assert "hunter2" not in all_that_is_said(caught.value)


def test_no_server_is_an_error_of_connect(own_server: RedisServer) -> None:
    own_server.kill()
    for url in (own_server.url, own_server.unix_url, "unix:///not/there", "redis://no-such-host.invalid"):
        with pytest.raises(hutch.StorageUnavailableError, match="cannot be reached") as caught:
            connect(url, retry_s=0)
        assert ". Start the server, or correct the url" in str(caught.value)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$hunter2\r\n", b"", None])
def test_a_server_that_is_not_redis_is_an_error_that_quotes_nothing(answer: bytes | None) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(connection.recv(1000) if answer is None else answer)

    with socket.create_server(("127.0.0.1", 0)) as listener, in_background(serve):
        port = listener.getsockname()[1]
        with pytest.raises(hutch.StorageUnavailableError) as caught:
            connect(f"redis://:hunter2@127.0.0.1:{port}", retry_s=0)
    assert "hunter2" not in all_that_is_said(caught.value)


def test_a_server_that_accepts_and_never_answers_is_a_timeout(own_server: RedisServer) -> None:
    own_server.stall()
    started = time.monotonic()
    with pytest.raises(hutch.StorageTimeoutError, match="no answer in time"):
        connect(own_server.url, timeout_s=0.3)
    assert time.monotonic() - started < 9  # the default is 10 s


# --- the keys on the server ---


def test_a_database_shared_with_other_applications_stays_as_it_was(own_server: RedisServer) -> None:
    names = ["hutch", "hutch:", "hutch:{a}", "hutch:{a}:value", "hutch:{a}:values:x", "hutch:{ab}:values", "a:values"]
    names += [
        "hutch:{*}:values",
        "hutch:{}:values",
        "hutch:{a}",
        "hutch:namespaces:a",
        "hutch2:{a}:values",
        "{a}:order",
    ]
    for name in names:
        raw(own_server, "SET", name, "foreign")
    raw(own_server, "HSET", "session:1", "a", "b")
    raw(own_server, "ZADD", "hutch:order", 1, "a")
    before = everything(own_server)
    with connect(own_server.url) as store:
        for namespace in ("a", "ab*", "a:b", "b"):
            with store.open(namespace) as opened:
                opened.update(dict.fromkeys("xyz", 1))
        assert store.namespaces() == ["a", "a:b", "ab*", "b"]
        assert len(everything(own_server)) == len(before) + 9
        with store.open("a") as opened:
            opened.clear()
        store.drop("ab*")
        store.drop("never written")
        for namespace in ("a:b", "b"):
            with store.open(namespace) as opened:
                for key in list(opened):
                    del opened[key]
        assert store.namespaces() == []
        left = everything(own_server)
        # A namespace that was emptied key by key may stay in the index, which is hutch's own.
        left.pop(b"hutch:namespaces", None)
        assert left == before


@pytest.mark.parametrize("part", ["values", "order"])
def test_a_foreign_key_under_a_name_of_hutch_is_reported_and_left_alone(
    redis_server: RedisServer, prefix: str, part: str
) -> None:
    key = f"{prefix}:{{core}}:{part}"
    raw(redis_server, "SET", key, "foreign")
    with connect(redis_server.url, prefix=prefix) as store, store.open("core") as core:
        changes: list[Callable[[], Any]] = [
            lambda: core.update(a=1, b=2),
            lambda: core.__setitem__("a", 1),
            lambda: core.__delitem__("a"),
            lambda: core.remove_many(["a", "b"]),
            lambda: core.compare_and_set("a", hutch.MISSING, 1),
            core.clear,
            lambda: list(core.items()),
        ]
        for change in changes:
            with pytest.raises(hutch.CorruptValueError, match="did not write") as caught:
                change()
            assert key in str(caught.value)
    with connect(redis_server.url, prefix=prefix) as store, pytest.raises(hutch.CorruptValueError):
        store.drop("core")
    assert raw(redis_server, "GET", key) == b"foreign"
    # Nothing was written on the way to the error.
    assert raw(redis_server, "KEYS", f"{prefix}*") == [key.encode()]


def test_a_foreign_key_in_place_of_the_index_stops_writes_before_they_begin(
    redis_server: RedisServer, prefix: str
) -> None:
    raw(redis_server, "SET", f"{prefix}:namespaces", "foreign")
    with connect(redis_server.url, prefix=prefix) as store:
        with store.open("core") as core, pytest.raises(hutch.CorruptValueError, match="namespaces"):
            core["a"] = 1
        with pytest.raises(hutch.CorruptValueError, match="namespaces"):
            store.namespaces()
    assert raw(redis_server, "KEYS", f"{prefix}*") == [f"{prefix}:namespaces".encode()]


def test_a_foreign_name_or_key_among_ours_is_an_error_that_names_the_place(
    redis_server: RedisServer, prefix: str
) -> None:
    with connect(redis_server.url, prefix=prefix) as store, store.open("core") as core:
        core["key"] = 1
        raw(redis_server, "SADD", f"{prefix}:namespaces", b"\xff")
        with pytest.raises(hutch.CorruptValueError, match=f"{prefix}:namespaces"):
            store.namespaces()
        raw(redis_server, "ZADD", f"{prefix}:{{core}}:order", 0, b"\xff")
        raw(redis_server, "HSET", f"{prefix}:{{core}}:values", b"\xff", b"x")
        with pytest.raises(hutch.CorruptValueError, match="core"):
            list(core)
        with pytest.raises(hutch.CorruptValueError, match="core"):
            list(core.scan())


HOSTILE = [
    *("a", "A", "a:b", "a/b", "a b", "a{b", "a}b", "{a}", "}{", "{}", "a%3Ab", "a*", "[a]", "?", "\\", "a\nb", "\r\n"),
    *(
        "../../etc/passwd",
        "values",
        "order",
        "namespaces",
        "hutch",
        ":",
        "%",
        "CON",
        ".",
        " ",
        "é",
        "e\u0301",
        "\ufeff",
    ),
    *("\U0010ffff", "🐇" * 63, "n" * 255, "\x01", "$", "'", '"', "${x}", "KEYS[1]"),
]


def test_every_name_is_a_namespace_of_its_own(redis_server: RedisServer, prefix: str) -> None:
    with connect(redis_server.url, prefix=prefix) as store:
        for name in HOSTILE:
            with store.open(name) as opened:
                opened["key"] = name
        assert store.namespaces() == sorted(HOSTILE)
        for name in HOSTILE:
            with store.open(name) as opened:
                assert dict(opened) == {"key": name}
        left = set(HOSTILE)
        for name in HOSTILE:
            store.drop(name)
            left.discard(name)
            assert store.namespaces() == sorted(left)
    assert raw(redis_server, "KEYS", f"{prefix}*") == []


def test_the_name_of_a_namespace_can_be_read_from_its_key(redis_server: RedisServer, prefix: str) -> None:
    with connect(redis_server.url, prefix=prefix) as store:
        for name in HOSTILE:
            with store.open(name) as opened:
                opened["key"] = 1
    start, end = f"{prefix}:{{", "}:values"
    keys = [key.decode() for key in raw(redis_server, "KEYS", f"{prefix}*")]
    encoded = [key[len(start) : -len(end)] for key in keys if key.endswith(end)]
    assert sorted(map(unquote, encoded)) == sorted(HOSTILE)
    # What a cluster hashes is the first thing in braces: the namespace, for both of its keys.
    assert all(key.count("{") == key.count("}") == 1 for key in keys if key != f"{prefix}:namespaces")


def test_one_prefix_does_not_see_another_that_starts_alike(redis_server: RedisServer, prefix: str) -> None:
    prefixes = [prefix, f"{prefix}:", f"{prefix}:namespaces", f"{prefix}:a", f"{prefix}*"]
    for one in prefixes:
        with connect(redis_server.url, prefix=one) as store, store.open("a") as opened:
            opened["key"] = one
    with connect(redis_server.url, prefix=prefix) as store:
        store.drop("a")
    for one in prefixes[1:]:
        with connect(redis_server.url, prefix=one) as store, store.open("a") as opened:
            assert dict(opened) == {"key": one}


# The permissions that docs/redis.md gives an administrator; inside scripts too.
ALLOWED = [
    "ping",
    "select",
    "eval",
    "evalsha",
    "multi",
    "exec",
    "hget",
    "hmget",
    "hset",
    "hdel",
    "hlen",
    "hexists",
    "zadd",
    "zrem",
    "zcard",
    "zrangebylex",
]
ALLOWED += ["zrevrangebylex", "sadd", "srem", "scard", "sscan", "hscan", "exists", "unlink"]
ALLOWED += ["time", "zcount", "zscore", "zrangebyscore"]


def use_everything(store: hutch.Store) -> None:
    with store.open("core") as core:
        core.update({f"k{i:04}": i for i in range(3000)})
        core["one"] = 1
        assert core["one"] == 1
        assert "one" in core
        assert "two" not in core
        assert len(core) == len(list(core)) == len(list(core.items())) == 3001
        assert [*core.scan_keys("k000", reverse=True)][-1] == "k0000"
        assert [*core.scan("k000", reverse=True)][-1] == ("k0000", 0)
        assert core.get_many(["one", "k0001"]) == {"one": 1, "k0001": 1}
        assert core.modify("one", lambda n: n + 1) == 2
        with core.mutable("list", []) as changed:
            changed.append(1)
        assert core.compare_and_set("list", [1], hutch.MISSING)
        assert core.pop("one") == 2
        del core["k0000"]
        assert core.remove_many(["k0001", "k0002", "one"]) == 2
        assert store.namespaces() == ["core"]
        core.set("later", 1, ttl_s=1000)
        core.set_many({f"gone {n}": n for n in range(5)}, ttl_s=0.001)
        time.sleep(0.02)
        assert (core.get("gone 4"), "gone 4" in core, len(core)) == (None, False, 2998)
        assert core.expire() > 0
        assert core.touch("later", 2000)
        assert (core.ttl_s("later") or 0) > 1000
        assert len(list(core)) == len(list(core.items())) == 2998
        with core.transaction() as change:
            del change["later"]
            change.set("brief", 1, ttl_s=1000)
        if "atomic-store" in store.capabilities:
            with store.transaction() as tx:
                del tx["core"]["brief"]
                tx["other"].set("brief", 1, ttl_s=1000)
        core.clear()
    store.drop("core")
    store.drop("other")
    assert store.namespaces() == []


def test_nothing_ever_asks_the_server_for_all_of_something(own_server: RedisServer) -> None:
    raw(own_server, "CONFIG", "RESETSTAT")
    with connect(own_server.url) as store:
        use_everything(store)
    called = set(calls(own_server))
    assert not called & {"keys", "hkeys", "hvals", "hgetall", "smembers", "scan", "flushdb", "del", "rename"}
    # The other calls are the driver's greeting, the query for durability, and this test's own.
    assert called - set(ALLOWED) <= {"info", "config|get", "config|resetstat", "hello", "client|setinfo"}


def test_a_user_who_may_do_only_what_the_manual_lists_can_use_everything(
    redis_server: RedisServer, prefix: str
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")
    rights = [f"+{name}" for name in ALLOWED]
    assert " ".join(rights) in " ".join(page.split())
    raw(redis_server, "ACL", "SETUSER", prefix, "on", f">{SECRET}", f"~{prefix}:*", *rights)
    try:
        with connect(redis_server.url, prefix=prefix, username=prefix, password=SECRET) as store:
            assert "durable" not in store.capabilities
            use_everything(store)
            store["core"]["key"] = 1
            assert not {"bytes", "version"} & store.stats().keys()
            raw(redis_server, "ACL", "SETUSER", prefix, "+memory|usage")
            assert "bytes" in store.stats()
        with (
            connect(redis_server.url, prefix=f"not-{prefix}", username=prefix, password=SECRET) as store,
            store.open("core") as core,
            pytest.raises(hutch.StorageUnavailableError, match="does not allow"),
        ):
            core["key"] = "a value"
    finally:
        raw(redis_server, "ACL", "DELUSER", prefix)


def test_a_hundred_thousand_keys_are_listed_in_order_in_chunks_that_are_asked_for_when_needed(
    own_server: RedisServer,
) -> None:
    expected = [f"key{i:06}" for i in range(100_000)]
    with connect(own_server.url) as store, store.open("core") as core:
        core.update(dict.fromkeys(reversed(expected)))
        raw(own_server, "CONFIG", "RESETSTAT")
        keys = core.scan_keys()
        assert next(keys) == expected[0]
        assert calls(own_server)["zrangebylex"] == 1
        # Nothing is locked on the server meanwhile: the handle is free for other calls.
        core["zzz"] = 1
        assert list(keys) == [*expected[1:], "zzz"]
        assert 200 <= calls(own_server)["zrangebylex"] <= 205
        slowest_us = raw(own_server, "INFO", "commandstats")["cmdstat_zrangebylex"]["usec_per_call"]
        assert slowest_us < 10_000
        assert sum(1 for _ in core.items()) == 100_001


def test_values_are_read_in_chunks_of_about_a_mebibyte(own_server: RedisServer) -> None:
    with connect(own_server.url) as store, store.open("core") as core:
        big = b"x" * 256 * 1024
        for i in range(32):
            core[f"{i:02}"] = big
        raw(own_server, "CONFIG", "RESETSTAT")
        assert [key for key, value in core.items() if value == big] == [f"{i:02}" for i in range(32)]
        # Four of them are more than a page. The first page comes with its keys, the last one with the sizes of all; the
        # count is a script too. The server knows neither script at its first call.
        assert 7 <= calls(own_server)["hmget"] <= 10
        assert calls(own_server)["evalsha"] + calls(own_server).get("eval", 0) <= 5
        assert [key for key, _ in core.scan(reverse=True)] == [f"{i:02}" for i in reversed(range(32))]


def test_a_batch_of_any_size_is_one_step(redis_server: RedisServer, prefix: str) -> None:
    items = {f"{i}": None for i in range(150_000)}
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        with connect(redis_server.url, prefix=prefix) as store, store.open("core") as core:
            while not done.is_set():
                seen.add(len(core))

    with connect(redis_server.url, prefix=prefix) as store, store.open("core") as core, in_background(watch) as watched:
        try:
            core.update(items)
            assert core.get_many(["0", "149999"]) == {"0": None, "149999": None}
            assert len(core.get_many(items)) == len(items)
            assert core.remove_many(items) == len(items)
        finally:
            done.set()
        watched.result()
    assert seen <= {0, len(items)}


# --- faults ---


def test_a_killed_server_is_an_error_and_the_same_handle_works_when_it_is_back(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=0.2) as store, store.open("core") as core:
        core["key"] = 1
        own_server.kill()
        attempts: list[Callable[[], Any]] = [
            lambda: core["key"],
            lambda: core.__setitem__("key", 2),
            lambda: core.__delitem__("key"),
            lambda: core.update(key=2),
            lambda: core.modify("key", lambda n: n + 1),
            lambda: list(core),
            lambda: len(core),
            store.namespaces,
        ]
        started = time.monotonic()
        for attempt in attempts:
            with pytest.raises(hutch.StorageUnavailableError, match="cannot be reached") as caught:
                attempt()
            # It was never sent, so the outcome is certain.
            assert "may have been made" not in str(caught.value)
        assert time.monotonic() - started < 30  # by default, each call retries for 5 s
        own_server.start()
        assert core["key"] == 1
        core["key"] = 2
        assert dict(core) == {"key": 2}
        assert store.namespaces() == ["core"]


@pytest.mark.parametrize("change", ["remove", "modify", "remove_many"])
def test_after_a_restart_the_first_change_that_must_not_run_twice_just_works(
    own_server: RedisServer, change: str
) -> None:
    with connect(own_server.url) as store, store.open("core") as core:
        core["key"] = 1
        own_server.kill()
        own_server.start()
        if change == "remove":
            del core["key"]
        elif change == "remove_many":
            assert core.remove_many(["key"]) == 1
        else:
            assert core.modify("key", lambda n: n + 1) == 2


def test_a_restart_that_is_shorter_than_the_retries_is_not_noticed(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=60) as store, store.open("core") as core:
        core.update({f"{i:05}": i for i in range(5000)})
        keys = core.scan_keys()
        got = [next(keys) for _ in range(100)]

        def restart() -> None:
            time.sleep(0.3)
            own_server.start()

        for use_it in (lambda: core.__setitem__("key", 1), lambda: core["key"], lambda: got.extend(keys)):
            own_server.kill()
            with in_background(restart) as restarted:
                use_it()
                restarted.result()
        # "key", which was set meanwhile, comes last.
        assert got == [*(f"{i:05}" for i in range(5000)), "key"]


def is_answer_awaited() -> bool:
    """Return whether a thread has sent a command and reads the answer."""
    return any(frame.f_code.co_name == "_receive" for frame in sys._current_frames().values())


def lose_the_answer(server: RedisServer, change: Callable[[], Any]) -> Any:
    """Run `change`; the server dies after receiving it and before answering, and restarts at once."""
    server.stall()
    with in_background(change) as changing:
        wait_until(is_answer_awaited)
        server.kill()
        server.start()
    return changing


def test_an_idempotent_call_is_resent_after_a_lost_answer(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=60) as store, store.open("core") as core:
        core["key"] = 1
        assert lose_the_answer(own_server, lambda: core.__setitem__("key", 2)).result() is None
        assert core["key"] == 2
        assert lose_the_answer(own_server, lambda: core.update(key=3, other=4)).result() is None
        assert dict(core) == {"key": 3, "other": 4}
        assert lose_the_answer(own_server, lambda: core["key"]).result() == 3
        assert lose_the_answer(own_server, core.clear).result() is None
        assert len(core) == 0


def test_a_call_that_is_not_idempotent_is_not_resent_after_a_lost_answer(own_server: RedisServer) -> None:
    plugin: Any = hutch.load_plugin("redis", {"url": own_server.url, "retry_s": 60})
    with plugin.open("core") as core:
        core.set("key", 1)
        changes: list[Callable[[], Any]] = [
            lambda: core.remove("key"),
            lambda: core.remove_many(["key", "other"]),
            lambda: core.compare_and_swap("other", None, 2),
            lambda: plugin.apply({"core": hutch.Commit({"other": b"frame"}, {})}),
        ]
        for change in changes:
            core.len()  # so that there is a connection, and the change is sent
            error = lose_the_answer(own_server, change).exception()
            assert isinstance(error, hutch.StorageUnavailableError)
            assert "may have been made or not" in str(error)
        assert dict(core.items()) == {"key": 1}


def test_a_hung_server_is_a_timeout_and_its_late_answer_is_dropped(own_server: RedisServer) -> None:
    store = eventually(lambda: connect(own_server.url, timeout_s=0.3))
    with store, store.open("core") as core:
        eventually(lambda: core.update(a="a", b="b"))
        own_server.stall()
        started = time.monotonic()
        with pytest.raises(hutch.StorageTimeoutError, match="may have been made or not"):
            core["c"] = "c"
        with pytest.raises(hutch.StorageTimeoutError, match="no answer in time"):
            core["a"]
        assert time.monotonic() - started < 9  # by default, each takes 10 s
        own_server.resume()
        assert eventually(lambda: core["b"]) == "b"
        assert eventually(lambda: core["a"]) == "a"


def test_what_was_acknowledged_survives_kill_9_of_a_server_that_writes_through(own_server: RedisServer) -> None:
    acknowledged: list[str] = []
    with connect(own_server.url, retry_s=0) as store, store.open("core") as core:
        assert "durable" in store.capabilities
        for round_ in range(5):

            def work(first: str = f"{round_}") -> None:
                for key in (f"{first}:{i}" for i in range(1_000_000)):
                    core[key] = None
                    acknowledged.append(key)

            def is_going_on(least: int = len(acknowledged) + 30) -> bool:
                return len(acknowledged) >= least

            with in_background(work) as working:
                wait_until(is_going_on)
                own_server.kill()
            assert isinstance(working.exception(), hutch.StorageUnavailableError)
            own_server.start()
        found = core.get_many(acknowledged)
        assert len(acknowledged) > 100
        assert [*found] == acknowledged
        # The three parts of a namespace never disagree, whenever the server dies.
        assert sorted(core) == list(core) == [key for key, _ in core.scan()]
        assert len(core) == len(list(core))


def test_durable_is_declared_only_where_the_server_writes_through(
    redis_server: RedisServer, own_server: RedisServer
) -> None:
    with connect(redis_server.url) as store:
        assert "durable" not in store.capabilities
    raw(own_server, "CONFIG", "SET", "appendfsync", "everysec")
    with connect(own_server.url) as store, store.open("core") as core:
        assert "durable" not in store.capabilities
        assert store.capabilities == core.capabilities >= {"shared", "ordered", "atomic-batch", "atomic-modify:cluster"}


def test_a_server_that_is_loading_is_waited_for_as_long_as_the_retries_last() -> None:
    # It answers between two chunks of what it loads; each key takes it 5 ms.
    often, slowly = "loading-process-events-interval-bytes 1024", "key-load-delay 30000"
    with RedisServer(options=("save 3600 1", often)) as server:
        with connect(server.url) as store:
            for i in range(150):
                with store.open(f"{i}") as opened:
                    opened["key"] = os.urandom(1000)
        raw(server, "SAVE")
        server.kill()
        server.options = (*server.options, slowly)
        with in_background(server.start) as starting:
            deadline = time.monotonic() + 60
            message = ""
            while "loading" not in message:
                assert time.monotonic() < deadline
                assert not starting.done(), "it was never seen loading"
                try:
                    connect(server.url, retry_s=0).close()
                except hutch.StorageUnavailableError as error:
                    message = str(error)
            raw(server, "CONFIG", "SET", "key-load-delay", "0")
        server.options = (*server.options, "key-load-delay 5000")
        with connect(server.url, retry_s=60) as store, store.open("7") as opened:
            server.kill()
            with in_background(server.start):
                assert len(opened["key"]) == 1000


def test_a_forgotten_script_is_sent_again(own_server: RedisServer) -> None:
    with connect(own_server.url) as store, store.open("core") as core:
        core["key"] = 1
        for _ in range(2):
            raw(own_server, "SCRIPT", "FLUSH")
            core["key"] = 2
            raw(own_server, "SCRIPT", "FLUSH")
            assert dict(core) == {"key": 2}
            raw(own_server, "SCRIPT", "FLUSH")
            assert core.compare_and_set("key", 2, 3)
            assert core.pop("key") == 3


def test_a_full_server_refuses_whole_writes_and_keeps_its_data(own_server: RedisServer) -> None:
    def replace(tx: hutch.Transaction) -> None:
        tx["core"]["other"] = "new"
        tx["other"]["key"] = "new"

    with connect(own_server.url) as store, store.open("core") as core:
        core["key"] = "old"
        raw(own_server, "CONFIG", "SET", "maxmemory", "1")
        writes: list[Callable[[], Any]] = [
            lambda: core.__setitem__("key", "new"),
            lambda: core.update(key="new", other="new"),
            lambda: core.update(dict.fromkeys(map(str, range(100_001)), "new")),
            lambda: core.modify("key", lambda _: "new"),
            lambda: store.transact(replace),
        ]
        for write in writes:
            with pytest.raises(hutch.StorageFullError, match="maxmemory"):
                write()
        assert dict(core) == {"key": "old"}
        # Space can be freed.
        del core["key"]
        raw(own_server, "CONFIG", "SET", "maxmemory", "0")
        core["key"] = "new"


def test_a_server_that_cannot_save_is_full() -> None:
    with (
        RedisServer(options=("save 3600 1", "dbfilename dump")) as server,
        connect(server.url) as store,
        store.open("core") as core,
    ):
        core["key"] = "old"
        (server.folder / "dump").mkdir()  # where the file should go
        raw(server, "BGSAVE")
        wait_until(lambda: raw(server, "INFO", "persistence")["rdb_last_bgsave_status"] != "ok")
        with pytest.raises(hutch.StorageFullError, match="cannot save"):
            core["key"] = "new"
        assert core["key"] == "old"


def test_a_replica_can_be_read_and_says_that_it_cannot_be_written(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=0) as store, store.open("core") as core:
        core["key"] = 1
        raw(own_server, "REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(hutch.StorageUnavailableError, match="read-only replica"):
            core["key"] = 2
        assert dict(core) == {"key": 1}
        raw(own_server, "CONFIG", "SET", "replica-serve-stale-data", "no")
        with pytest.raises(hutch.StorageUnavailableError, match="lost its primary"):
            core["key"]
        raw(own_server, "REPLICAOF", "NO", "ONE")
        raw(own_server, "CONFIG", "SET", "min-replicas-to-write", "1")
        with pytest.raises(hutch.StorageUnavailableError, match="too few replicas"):
            core["key"] = 2


def is_busy(server: RedisServer) -> bool:
    try:
        raw(server, "PING")
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


def test_a_server_that_is_busy_with_a_script_is_a_timeout(own_server: RedisServer) -> None:
    raw(own_server, "CONFIG", "SET", "lua-time-limit", "10")

    def hang() -> None:
        with pytest.raises(redis.ResponseError, match="killed"):
            raw(own_server, "EVAL", "while true do end", 0)

    with connect(own_server.url, retry_s=0.2) as store, store.open("core") as core:
        core["key"] = 1
        with in_background(hang) as hanging:
            wait_until(lambda: is_busy(own_server))
            with pytest.raises(hutch.StorageTimeoutError, match="busy with a script"):
                core["key"]
            with pytest.raises(hutch.StorageTimeoutError, match="nothing was done"):
                del core["key"]
            raw(own_server, "SCRIPT", "KILL")
            hanging.result()
        assert core["key"] == 1


@pytest.mark.parametrize("command", ["HSET", "EVALSHA", "AUTH"])
def test_a_server_without_a_command_does_not_repeat_what_it_was_given(command: str) -> None:
    with (
        RedisServer(options=(f'rename-command {command} ""',)) as server,
        pytest.raises(hutch.StorageUnavailableError) as caught,
        connect(server.url, **({"password": SECRET} if command == "AUTH" else {})) as store,
        store.open("core") as core,
    ):
        core["key"] = SECRET
    assert SECRET not in all_that_is_said(caught.value)


def test_a_server_with_too_many_clients_is_unavailable_and_changes_stay_certain(own_server: RedisServer) -> None:
    with connect(own_server.url, retry_s=0.2) as store, store.open("core") as core:
        core["key"] = 1
        with application(own_server) as execute:
            execute("CONFIG", "SET", "maxclients", "1")
            execute("CLIENT", "KILL", "SKIPME", "yes")
            with pytest.raises(hutch.StorageUnavailableError) as caught:
                del core["key"]
            assert "may have been made" not in str(caught.value)
            execute("CONFIG", "SET", "maxclients", "100")
        assert core["key"] == 1


# --- threads, processes, connections ---


def test_connections_are_shared_between_calls_and_gone_when_the_store_is_closed(own_server: RedisServer) -> None:
    def clients() -> int:
        return len(raw(own_server, "CLIENT", "LIST").splitlines() or []) - 1

    def clients_in_the_end(most: int) -> int:
        """Return the number of clients; the server needs a moment to notice a closed connection."""
        deadline = time.monotonic() + 60
        while clients() > most and time.monotonic() < deadline:
            time.sleep(0.02)
        return clients()

    idle = clients()
    with connect(own_server.url) as store, store.open("core") as core:
        for i in range(100):
            core[f"{i}"] = i
        assert clients() == idle + 1
        with ThreadPoolExecutor(50) as pool:
            barrier = threading.Barrier(50)

            def use_at_once(i: int) -> int:
                barrier.wait()
                return int(core[f"{i}"]) + len(list(core.items()))

            assert list(pool.map(use_at_once, range(50))) == [i + 100 for i in range(50)]
        assert clients_in_the_end(idle + 32) <= idle + 32
    assert clients_in_the_end(idle) == idle


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("over_tls", [False, True])
def test_a_forked_child_uses_an_inherited_handle_on_a_connection_of_its_own(
    tls_server: RedisServer, certificates: Certificates, prefix: str, over_tls: bool
) -> None:
    options: dict[str, Any] = {"prefix": prefix}
    if over_tls:
        options |= {"ca_file": certificates.ca, "cert_file": certificates.client, "key_file": certificates.client_key}
    with connect(tls_server.tls_url if over_tls else tls_server.url, **options) as store, store.open("core") as core:
        core["parent"] = 0
        go_on, message = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for i in range(200):
                    core["child"] = i
                    if core["child"] == i:
                        core.modify("sum", lambda n: n + 1, 0)
                os.read(go_on, 1)
                status = 0 if core["parent"] == 199 else 2
            finally:
                os._exit(status)
        for i in range(200):
            core["parent"] = i
            assert core["parent"] == i
            core.modify("sum", lambda n: n + 1, 0)
        os.write(message, b"x")
        _, status = os.waitpid(child, 0)
        os.close(go_on)
        os.close(message)
        assert os.waitstatus_to_exitcode(status) == 0
        assert core["sum"] == 400
        assert core["child"] == 199


@pytest.mark.usefixtures("unmeasured")
# Python drops what is raised in the driver's finalizer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_kept_exception_keeps_no_connection(own_server: RedisServer) -> None:
    """Interrupted anywhere, also within the driver's connecting, a call leaves no socket to the exception's frames."""
    with connect(own_server.url, retry_s=0) as store, store.open("core") as core:
        pool = store.factory.server._pool

        def modify_anew() -> None:
            pool.drop_idle()
            core.modify("n", lambda n: n + 1, 0)

        modify_anew()
        before = open_files()
        kept: list[BaseException] = []
        for point in points(modify_anew, loops=False):
            try:
                run_at(point, raise_interrupt, modify_anew, loops=False)
            except Interrupt as error:
                kept.append(error)
        core["after"] = 1
        assert core["after"] == 1
        assert len(kept) >= 100
        assert open_files() <= before, "connections that only the exceptions refer to"


def test_two_stores_on_the_same_data_share_the_locks_of_mutable(redis_server: RedisServer, prefix: str) -> None:
    def add(core: hutch.Namespace) -> None:
        for _ in range(50):
            with core.mutable("list", []) as changed:
                changed.append(1)

    with (
        connect(redis_server.url, prefix=prefix) as one,
        connect(redis_server.url, prefix=prefix) as two,
        one.open("core") as first,
        two.open("core") as second,
        ThreadPoolExecutor(2) as pool,
    ):
        list(pool.map(add, [first, second]))
        assert len(first["list"]) == 100
