"""Test the redis engine over TLS and IPv6 on a cluster and behind Sentinels. One server is in test_redis.py."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

import hutch
from tests.redis_cluster import RedisCluster, ask
from tests.redis_sentinels import Sentinels
from tests.servers import Certificates, RedisServer, make_certificates

TOPOLOGIES: list[Callable[..., AbstractContextManager[Any]]] = [RedisCluster, Sentinels]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def connect(storage: str, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": storage, "STORAGE_CONFIG": options})


def clients_without_tls(server: RedisServer) -> int:
    """Return how many clients a server has on its port without TLS. This one asks through the server's socket."""
    return str(ask(server, "CLIENT", "LIST")).count(f" laddr={server.place} ")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_connection_is_encrypted_and_has_a_client_certificate(
    topology: Callable[..., AbstractContextManager[Any]], certificates: Certificates, prefix: str
) -> None:
    own = {"cert_file": certificates.client, "key_file": certificates.client_key, "prefix": prefix, "retry_s": 0}
    with topology(certificates=certificates) as group:
        assert group.url.startswith("rediss+")
        with connect(group.url, ca_file=certificates.ca, **own) as store:
            names = [f"n{i}" for i in range(20)]
            for name in names:
                store[name].update(a=1, b=2)
                with store[name].transaction() as tx:
                    tx["c"] = tx["a"] + tx["b"]
            assert sorted(store.namespaces()) == sorted(names)
            assert [dict(store[name]) for name in names] == [{"a": 1, "b": 2, "c": 3}] * len(names)
            assert store.stats()["keys"] == 60
            primaries = group.servers[:3] if topology is RedisCluster else group.servers[:1]
            assert [clients_without_tls(server) for server in primaries] == [0] * len(primaries)
        connect(group.url, verify=False, **own).close()
        with pytest.raises(hutch.StorageUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(group.url, **own)
        with pytest.raises(hutch.StorageUnavailableError):
            connect(group.url, ca_file=certificates.ca, retry_s=0)  # the servers require a client certificate
        with pytest.raises(hutch.StoreError, match="It answers with TLS") as caught:
            connect(group.url.replace("rediss+", "redis+"), retry_s=0)
        advised = re.search(r"start the url with (\S+) \(or (\S+)\)", str(caught.value))
        assert advised
        for scheme in advised.groups():
            connect(scheme + group.url.partition("://")[2], ca_file=certificates.ca, **own).close()


@pytest.mark.parametrize("topology", [partial(RedisServer), partial(RedisCluster), partial(Sentinels)])
def test_servers_are_reached_over_ipv6(topology: Callable[..., AbstractContextManager[Any]], prefix: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with topology(host="::1") as servers:
        assert "[::1]" in servers.url
        with connect(servers.url, prefix=prefix) as store:
            for name in [f"n{i}" for i in range(20)]:
                store[name]["a"] = 1
            assert len(store.namespaces()) == 20
