"""Time the redis engine beside redis-py. Each function is a target, as those of yardsticks.py are.

Both sides use one connection each to the same server, over a unix socket, and redis-py has the same parser in C. A
cluster is reached over TCP.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from ormsgpack import packb, unpackb
from tests.redis_cluster import RedisCluster
from tests.servers import RedisServer

import hutch
from hutch.codec.select import frame_codec_of

from .rounds import Rounds, in_turn
from .workload import fresh, key_names, shuffled

_KEYS = 10_000
_NAMES = key_names(_KEYS)
_BATCH = 1000
_CALLS = 200
_COUNT = itertools.count()
_frames = frame_codec_of(None)


@contextlib.contextmanager
def _redis(keys: int = 0) -> Iterator[tuple[hutch.Namespace, Any]]:
    """Start a server; yield a namespace and a driver's client with `keys` values each."""
    with (
        RedisServer() as server,
        hutch.connect(server.unix_url) as store,
        store.open("core") as ns,
        contextlib.closing(redis.Redis(unix_socket_path=str(server.socket))) as client,
    ):
        ns.update({key: fresh(next(_COUNT)) for key in _NAMES[:keys]})
        with client.pipeline(transaction=False) as pipe:
            for key in _NAMES[:keys]:
                pipe.set(key, packb(fresh(next(_COUNT))))
            pipe.execute()
        yield ns, client


def redis_get(folder: Path, rounds: int) -> Rounds:
    with _redis(_KEYS) as (ns, client):
        return _reads(ns, client, rounds)


def redis_set(folder: Path, rounds: int) -> Rounds:
    with _redis(_KEYS) as (ns, client):
        names = shuffled(_NAMES, _CALLS)

        def ours() -> None:
            for key in names:
                ns[key] = fresh(next(_COUNT))

        def theirs() -> None:
            for key in names:
                client.set(key, packb(fresh(next(_COUNT))))

        return in_turn(ours, theirs, rounds)


def redis_cluster_get(folder: Path, rounds: int) -> Rounds:
    with (
        RedisCluster() as cluster,
        hutch.connect(cluster.url) as store,
        store.open("core") as ns,
        contextlib.closing(redis.RedisCluster(cluster.servers[0].host, cluster.servers[0].port)) as client,
    ):
        ns.update({key: fresh(next(_COUNT)) for key in _NAMES[:_BATCH]})
        for key in _NAMES[:_BATCH]:
            client.set(key, packb(fresh(next(_COUNT))))
        return _reads(ns, client, rounds, _BATCH)


def _reads(ns: hutch.Namespace, client: Any, rounds: int, keys: int = _KEYS) -> Rounds:
    names = shuffled(_NAMES[:keys], _CALLS)

    def ours() -> None:
        for key in names:
            ns[key]

    def theirs() -> None:
        for key in names:
            unpackb(client.get(key))

    return in_turn(ours, theirs, rounds)


def redis_update(folder: Path, rounds: int) -> Rounds:
    """Time batches that overwrite."""
    with _redis(_KEYS) as (ns, client):
        names = shuffled(_NAMES, _BATCH)

        def ours() -> None:
            ns.update({key: fresh(next(_COUNT)) for key in names})

        def theirs() -> None:
            with client.pipeline(transaction=False) as pipe:
                for key in names:
                    pipe.set(key, packb(fresh(next(_COUNT))))
                pipe.execute()

        return in_turn(ours, theirs, rounds)


def redis_get_many(folder: Path, rounds: int) -> Rounds:
    with _redis(_KEYS) as (ns, client):
        names = shuffled(_NAMES, _BATCH)

        def ours() -> None:
            ns.get_many(names)

        def theirs() -> None:
            with client.pipeline(transaction=False) as pipe:
                for key in names:
                    pipe.get(key)
                for data in pipe.execute():
                    unpackb(data)

        return in_turn(ours, theirs, rounds)


def redis_items(folder: Path, rounds: int) -> Rounds:
    """Time all items, beside one HGETALL of the same hash and hutch's own decoding."""
    with _redis() as (ns, client):
        ns.update({key: fresh(next(_COUNT)) for key in _NAMES})

        def ours() -> None:
            for _ in ns.items():
                pass

        def theirs() -> None:
            data = client.hgetall("hutch:{core}:values")
            keys = [key.decode() for key in data]
            crcs = [zlib.crc32(key) for key in data]
            dict(zip(keys, _frames.decode_many(list(data.values()), crcs), strict=True))

        return in_turn(ours, theirs, rounds)


def redis_len(folder: Path, rounds: int) -> Rounds:
    return _lengths(rounds)


def redis_len_until(folder: Path, rounds: int) -> Rounds:
    return _lengths(rounds, ttl_s=3600)


def _lengths(rounds: int, ttl_s: float | None = None) -> Rounds:
    with _redis() as (ns, client):
        ns.set_many({key: fresh(next(_COUNT)) for key in _NAMES}, ttl_s=ttl_s)

        def ours() -> None:
            for _ in range(_CALLS):
                len(ns)

        def theirs() -> None:
            for _ in range(_CALLS):
                client.hlen("hutch:{core}:values")

        return in_turn(ours, theirs, rounds)


def redis_transaction(folder: Path, rounds: int) -> Rounds:
    """Time transactions that read and increment ten keys, beside WATCH, GET, MULTI, SET, EXEC."""
    with _redis() as (ns, client):
        names = _NAMES[:10]
        ns.update(dict.fromkeys(names, 0))
        client.mset(dict.fromkeys(names, packb(0)))
        return in_turn(_ten_times(_commit, ns, names), _ten_times(_watch, client, names), rounds)


def _ten_times(work: Callable[[Any, list[str]], None], subject: Any, names: list[str]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(10):
            work(subject, names)

    return run


def _commit(ns: hutch.Namespace, names: list[str]) -> None:
    with ns.transaction() as tx:
        for key in names:
            tx[key] += 1


def _watch(client: Any, names: list[str]) -> None:
    with client.pipeline() as pipe:
        pipe.watch(*names)
        values = [unpackb(pipe.get(key)) for key in names]
        pipe.multi()
        for key, value in zip(names, values, strict=True):
            pipe.set(key, packb(value + 1))
        pipe.execute()
