"""Test the redis engine behind real Sentinels: it finds the primary by its name, also after a fail-over."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hutch
from tests.engines.test_redis import ALLOWED, use_everything
from tests.redis_cluster import ask
from tests.redis_sentinels import NAME, Sentinel, Sentinels
from tests.servers import RedisServer, wait_until


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as started:
        yield started


def connect(storage: str, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": storage, "STORAGE_CONFIG": options})


def test_the_primary_is_found_by_its_name(sentinels: Sentinels, prefix: str) -> None:
    with connect(f"{sentinels.url}/2", prefix=prefix) as store, store.open("core") as core:
        core["a"] = 1
        with store.transaction() as tx:
            tx["core"]["b"] = tx["other"]["b"] = 2
        assert "durable" not in store.capabilities
        assert "the primary 'the-primary' of the Sentinels at" in str(store.stats()["server"])
    with connect(f"{sentinels.primary().url[:-1]}2", prefix=prefix) as store:
        assert dict(store["core"]) == {"a": 1, "b": 2}
        assert store["other"]["b"] == 2


def test_a_namespace_may_have_shards(sentinels: Sentinels, prefix: str) -> None:
    with connect(sentinels.url, prefix=prefix, shards=4) as store, store.open("core") as core:
        core.update({f"k{i}": i for i in range(40)})
        assert core.get_many(["k1", "k2"]) == {"k1": 1, "k2": 2}
        assert len(core) == len(list(core.items())) == core.remove_many(core) == 40
    with connect(sentinels.url, prefix=prefix) as store, pytest.raises(hutch.ConfigError, match="shards=4"):
        store.open("core")
    with connect(sentinels.url, prefix=prefix, shards=4, read_from="replicas") as store, store.open("core") as core:
        core["a"] = 1
        core.update(b=2, c=3)
        assert core.remove_many(["a", "b", "c"]) == 3


def test_one_live_sentinel_is_enough(sentinels: Sentinels, prefix: str) -> None:
    dead = RedisServer()
    dead.close()
    url = sentinels.url.replace("://", f"://{dead.host}:{dead.port},")
    with connect(url, prefix=prefix) as store:
        store["core"]["a"] = 1
        assert store.namespaces() == ["core"]


@pytest.fixture(scope="module")
def disagreeing() -> Iterator[tuple[RedisServer, RedisServer, str]]:
    """Yield a primary, its replica, which takes writes, and a URL whose first Sentinel believes that it is the primary.

    So does a Sentinel that missed a fail-over.
    """
    with RedisServer() as primary:
        replica = RedisServer(options=(f"replicaof {primary.host} {primary.port}", "replica-read-only no"))
        watched = [
            (
                f"sentinel monitor {NAME} {server.host} {server.port} 1",
                f"sentinel down-after-milliseconds {NAME} 600000",
            )
            for server in (replica, primary)
        ]
        with replica, Sentinel(options=watched[0]) as stale, Sentinel(options=watched[1]) as right:
            wait_until(lambda: ask(replica, "INFO", "replication")["master_link_status"] == "up")
            yield primary, replica, f"redis+sentinel://{stale.host}:{stale.port},{right.host}:{right.port}/{NAME}"


def test_a_sentinel_that_names_a_former_primary_is_not_believed(
    disagreeing: tuple[RedisServer, RedisServer, str], prefix: str
) -> None:
    primary, replica, url = disagreeing
    with connect(url, prefix=prefix, retry_s=60) as store, connect(primary.url, prefix=prefix) as direct:
        for i in range(3):
            store["core"][f"{i}"] = i
            assert direct["core"].get(f"{i}") == i
            # The next call connects again.
            plugin: Any = store.factory
            plugin.server._pool._pool.drop_idle()
    with connect(replica.url, prefix=prefix) as direct:
        wait_until(lambda: len(direct["core"]) == 3)


def test_a_user_who_may_not_ask_for_the_role_can_connect(
    disagreeing: tuple[RedisServer, RedisServer, str], prefix: str
) -> None:
    primary, replica, url = disagreeing
    assert "role" not in ALLOWED
    for server in (primary, replica):
        ask(server, "ACL", "SETUSER", prefix, "on", ">secret", f"~{prefix}:*", *(f"+{name}" for name in ALLOWED))
    try:
        with connect(url, prefix=prefix, username=prefix, password="secret", retry_s=0) as store:
            store["core"]["a"] = 1
            assert store["core"]["a"] == 1
    finally:
        for server in (primary, replica):
            ask(server, "ACL", "DELUSER", prefix)


def test_no_live_sentinel_is_an_error_that_names_them() -> None:
    dead = RedisServer()
    dead.close()
    with pytest.raises(hutch.StorageUnavailableError, match=r"of the Sentinels at 127.*cannot be reached"):
        connect(f"redis+sentinel://{dead.host}:{dead.port}/main", retry_s=0)


def test_a_name_that_is_not_there_is_an_error_at_once(sentinels: Sentinels) -> None:
    with pytest.raises(hutch.ConfigError, match=r"'another' of the Sentinels at .* is unknown there"):
        connect(sentinels.url.rpartition("/")[0] + "/another", retry_s=60)


def test_a_server_in_place_of_a_sentinel_is_refused(sentinels: Sentinels) -> None:
    server = sentinels.servers[0]
    with pytest.raises(hutch.ConfigError, match=re.escape("start the url with redis://")):
        connect(f"redis+sentinel://{server.host}:{server.port}/main")


def test_the_sentinels_have_a_login_of_their_own(sentinels: Sentinels, prefix: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis-failover.md").read_text(encoding="utf-8")
    assert "`+ping +sentinel|get-master-addr-by-name`. On the servers, `+role`" in page
    for sentinel in sentinels.sentinels:
        rights = ["+ping", "+sentinel|get-master-addr-by-name"]
        ask(sentinel, "ACL", "SETUSER", prefix, "on", ">secret", *rights)
    server = sentinels.primary()
    rights = [f"+{name}" for name in (*ALLOWED, "role")]
    ask(server, "ACL", "SETUSER", prefix, "on", ">other secret", f"~{prefix}:*", *rights)
    logins: dict[str, Any] = {"username": prefix, "password": "other secret", "prefix": prefix}
    try:
        with connect(sentinels.url, **logins, sentinel_username=prefix, sentinel_password="secret") as store:
            use_everything(store)
        ask(server, "ACL", "SETUSER", prefix, "-role")  # not required
        with connect(sentinels.url, **logins, sentinel_username=prefix, sentinel_password="secret") as store:
            store["core"]["a"] = 1
        with pytest.raises(hutch.StorageUnavailableError, match="refuses the login") as caught:
            connect(sentinels.url, **logins, sentinel_username=prefix, sentinel_password="wrong secret")
        assert "secret" not in str(caught.value)
    finally:
        ask(server, "ACL", "DELUSER", prefix)
        for sentinel in sentinels.sentinels:
            ask(sentinel, "ACL", "DELUSER", prefix)


def test_a_fail_over_is_followed(sentinels: Sentinels, prefix: str, record_property: Any) -> None:
    old = sentinels.primary()
    new = next(server for server in sentinels.servers if server is not old)
    stop = threading.Event()

    def count(core: Any) -> int:
        acknowledged = 0
        while not stop.is_set():
            core[f"{acknowledged}"] = None
            acknowledged += 1
        return acknowledged

    with connect(sentinels.url, prefix=prefix, retry_s=60) as store, store.open("core") as core:
        core["key"] = 1
        with ThreadPoolExecutor(1) as pool:
            counting = pool.submit(count, core)
            wait_until(lambda: len(core) > 100)
            old.kill()
            try:
                wait_until(lambda: sentinels.primary() is new or counting.done())
                before = len(core)
                wait_until(lambda: len(core) > before + 100 or counting.done())
            finally:
                stop.set()
            acknowledged = counting.result()
        lost = acknowledged - sum(1 for key in core if key != "key")
        record_property("counted", f"redis sentinel, killed primary: {acknowledged} sets, {lost} lost")
        # The last write before the kill may not have reached the replica.
        assert lost <= 1
        with connect(new.url, prefix=prefix) as direct:
            assert len(direct["core"]) == len(core)
