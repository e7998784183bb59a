"""Test what `hutch.connect` says about a url that leads to a server of another kind, for every kind of url."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator

import pytest

import hutch
from tests.redis_cluster import RedisCluster
from tests.redis_sentinels import NAME, Sentinels
from tests.servers import RedisServer


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as started:
        yield started


@pytest.fixture(scope="module")
def web_server() -> Iterator[str]:
    """Yield host and port of a server of another product."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def places(
    redis_server: RedisServer, redis_cluster: RedisCluster, sentinels: Sentinels, web_server: str
) -> Iterator[dict[str, str]]:
    """Yield host and port of a server of each kind."""
    without_transactions = RedisServer(options=('rename-command MULTI ""',))
    without_scripts = RedisServer(options=('rename-command EVAL ""',))
    with without_transactions, without_scripts:
        yield {
            "server": redis_server.place,
            "cluster": redis_cluster.servers[0].place,
            "sentinel": sentinels.sentinels[0].place,
            "web server": web_server,
            # As proxies do.
            "no transactions": without_transactions.place,
            "no scripts": without_scripts.place,
        }


IS_SERVER = r"is a standalone server, .* start the url with redis://"
IS_NODE = r"is a node of a Redis Cluster.* start the url with redis\+cluster://"
IS_SENTINEL = r"Sentinel.* start the url with redis\+sentinel:// .* redis\+sentinel://host:26379/NAME"
# It depends on the parser what is found first: an answer that no Redis server gives, or the end of the connection.
IS_OTHER = "does not answer like a Redis server|accepts connections there and closes them: another kind of server"


@pytest.mark.parametrize(
    ("url", "kind", "error", "message"),
    [
        ("redis://{}", "cluster", hutch.ConfigError, IS_NODE),
        ("redis://{}/1", "cluster", hutch.ConfigError, IS_NODE),
        ("redis://{}", "sentinel", hutch.ConfigError, IS_SENTINEL),
        ("redis://{}/1", "sentinel", hutch.StorageUnavailableError, IS_SENTINEL),
        ("redis+cluster://{}", "server", hutch.ConfigError, IS_SERVER),
        ("redis+cluster://{}", "sentinel", hutch.ConfigError, IS_SENTINEL),
        ("redis+sentinel://{}/main", "server", hutch.ConfigError, IS_SERVER),
        ("redis+sentinel://{}/main", "cluster", hutch.ConfigError, IS_NODE),
        ("redis+sentinel://{}/main", "sentinel", hutch.ConfigError, "'main' .* is unknown there: .* Correct the name"),
        ("redis://{}", "web server", hutch.StorageUnavailableError, IS_OTHER),
        ("redis+cluster://{}", "web server", hutch.StorageUnavailableError, IS_OTHER),
        ("redis+sentinel://{}/main", "web server", hutch.StorageUnavailableError, IS_OTHER),
        ("rediss+cluster://{}", "web server", hutch.StorageUnavailableError, "not as a Redis server does"),
        ("redis://{}", "no transactions", hutch.ConfigError, "refuses the command MULTI"),
        ("redis://{}", "no scripts", hutch.ConfigError, "refuses the command EVAL"),
    ],
)
def test_a_url_that_leads_to_another_kind_of_server_is_an_error_at_connect(
    places: dict[str, str], prefix: str, url: str, kind: str, error: type[hutch.StoreError], message: str
) -> None:
    options = {"prefix": prefix, "retry_s": 0}
    with pytest.raises(error, match=message) as caught:
        hutch.connect({"STORAGE": url.format(places[kind]), "STORAGE_CONFIG": options})
    assert type(caught.value) is error
    assert places[kind] in str(caught.value)


@pytest.mark.parametrize("kind", ["server", "cluster", "sentinel"])
def test_the_scheme_that_an_error_advises_works(places: dict[str, str], prefix: str, kind: str) -> None:
    urls = {"server": "redis://{}", "cluster": "redis+cluster://{}", "sentinel": f"redis+sentinel://{{}}/{NAME}"}
    for other in urls.keys() - {kind}:
        with pytest.raises(hutch.ConfigError) as caught:
            hutch.connect(urls[other].format(places[kind]))
        advised = re.search(r"start the url with (\S+://)", str(caught.value))
        assert advised
        assert urls[kind].startswith(advised.group(1))
    with hutch.connect(f"{urls[kind].format(places[kind])}?prefix={prefix}") as store:
        store["core"]["a"] = 1
        assert store.namespaces() == ["core"]


@pytest.mark.parametrize("prefix", ["a{b", "a}b", "{a}", "{}"])
@pytest.mark.parametrize("url", ["redis://h", "redis+cluster://h", "redis+sentinel://h/main"])
def test_a_prefix_with_braces_is_refused_without_connecting(url: str, prefix: str) -> None:
    with pytest.raises(hutch.ConfigError, match="prefix"):
        hutch.connect({"STORAGE": url, "STORAGE_CONFIG": {"prefix": prefix}})
