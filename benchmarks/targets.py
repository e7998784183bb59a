"""The targets: each one's yardstick, its limit, and for a missed target, the floor that forbids it.

A ratio is hutch's time divided by the yardstick's in the same run, as the median over rounds. The function of the same
name in yardsticks.py defines both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One row: hutch's `operation` takes at most `limit` times as long as the `yardstick`."""

    function: str
    operation: str
    yardstick: str
    limit: float
    #: Rounds per process in the short form; the long form has more processes.
    rounds: int
    #: The lowest possible ratio, if above the limit, and why.
    floor: float | None = None
    why: str = ""
    #: The margin for noise in bench-check.
    slack: float = 1.10
    #: Whether a rise of 15% above the committed baseline fails; False where noise alone is as large.
    steady: bool = True
    #: The simulated duration of a flush; None for the disk's own.
    flush_us: int | None = None
    unit: str = "x"
    #: One process suffices for a result that is the same in all.
    exact: bool = False

    @property
    def allowed(self) -> float:
        return max(self.limit, self.floor or 0.0)


_RAW_GET = "`with env.begin(db=db) as t: unpackb(t.get(k.encode()))`"
_RAW_SET = "`with env.begin(db=db, write=True) as t: t.put(k.encode(), packb(v))`, the same flushes"
_COLD = (
    "the standard library's typing, pathlib and threading are 0.25 of the raw "
    "process, hutch's 60 modules 0.45, the search "
    "for plugins of others 0.05"
)
_WARM = (
    "LMDB's own open and close are 1.0; validating the folder and its two files, before and after LMDB opens them, "
    "0.9; looking whether a plugin was added or changed 0.6; config and options 0.4; the rest store and namespace"
)
_STORM = (
    "importing takes nine tenths of the time, and the processors are busy with nothing else: ormsgpack and what it "
    "imports are as much as all of diskcache, hutch's own modules and typing and pathlib twice that; waiting for "
    "other writers is 0.1"
)
_PER_KEY = (
    "the block remembers each write, validates its key and encodes it, and the commit keeps the count of keys exact, "
    "which costs a search; measured beside other programs, on two cores"
)
_WATCH = "`WATCH`, 10 `get`, `MULTI`, 10 `set`, `EXEC`"
_CLUSTER_GET = "redis-py's `RedisCluster.get` and decode"
_REDIS_GET = (
    "both sides wait for the server: on an idle machine a bare `PING` takes 0.49 of it, `HGET` over a bare socket "
    "0.54; where the processors are busy, it is about 0.5"
)
_REDIS_SET = (
    "the script that keeps listing and index takes the server 2 us more than a `set`; encoding with types and checksum "
    "is the rest"
)
_REDIS_UPDATE = (
    "encoding a thousand values with types and checksums is 0.15, the server's script, which keeps listing and index, "
    "0.15, the request 0.1"
)
_REDIS_GET_MANY = "decoding with types and checksums is 0.3; request and answer are the rest"
_REDIS_LEN = "a script, because expired keys do not count: the server takes 2 us for it"
_REDIS_TRANSACTION = "each read waits for its answer on both sides, 10 of 11 round trips here, of 12 there"
_ROWS = [
    Target(
        "get",
        "lmdb `ns[key]`, `cache_bytes=0`",
        _RAW_GET,
        0.95,
        300,
        floor=1.2,
        why="0.15 is the checksum of key and value, 0.17 the three steps from `ns[key]` to "
        "the codec; without them, in one "
        "line, it is 0.85. As it comes, with its cache, it is the next line",
    ),
    Target("get_hot", "lmdb `ns[key]`, 100 hot keys, as it comes", _RAW_GET, 0.65, 300),
    Target("miss", "lmdb `key in ns`, a miss", "raw begin and get", 1.0, 300),
    Target("set_normal", "lmdb `ns[key] = v`, normal", _RAW_SET, 1.05, 80, slack=1.15, steady=False),
    Target(
        "set_relaxed",
        "lmdb `ns[key] = v`, relaxed",
        _RAW_SET,
        1.15,
        150,
        floor=1.27,
        why="0.10 is the encoding with types and checksum, 0.05 the second search that keeps "
        "the count of keys exact, the rest "
        "queueing the threads, verifying that the files are in place, and the steps from `ns[key]`",
    ),
    Target(
        "update",
        "lmdb `ns.update`, 10,000, relaxed",
        "raw `putmulti` in one transaction, no flush",
        1.6,
        20,
        floor=2.0,
        why="without a flush half of the raw time is packing, 0.2 us per value, beside which "
        "the checksums take 0.15 us and exact "
        "types, frames and the check of keys 0.3 us",
    ),
    Target(
        "items",
        "lmdb `ns.items()`, 100,000",
        "raw cursor and decode, in one transaction",
        1.35,
        11,
        floor=1.5,
        why="0.3 is the checksum of key and value, 0.2 reading in chunks, which is what pins "
        "no old pages, the rest frames, exact "
        "types, and the look whether the namespace is still open",
    ),
    Target("length", "lmdb `len(ns)`", "raw `stat`", 1.0, 200),
    Target("length_sqlite", "sqlite `len(ns)`, 100,000 keys", "with 100 keys", 1.1, 60),
    Target("length_memory", "memory `len(ns)`, 100,000 keys", "with 100 keys", 1.2, 200),
    Target(
        "get_among_namespaces", "lmdb `ns[key]`, `cache_bytes=0`, 10,000 namespaces", "with one namespace", 1.1, 200
    ),
    Target("one_thread", "lmdb durable sets, 1 thread, a flush of 1 ms", "raw", 1.05, 5, flush_us=1000),
    Target("eight_threads", "the same, 8 threads", "raw, a transaction each", 1 / 3.5, 7, flush_us=1000, steady=False),
    Target(
        "eight_threads_relaxed",
        "lmdb relaxed sets, 8 threads",
        "raw, a transaction each",
        0.5,
        15,
        slack=1.25,
        steady=False,
        floor=5.0,
        why="hutch's threads take turns, and a change of threads takes 20 to 40 us; with raw LMDB one thread writes as "
        "long as it likes while the others wait, for ever if it never stops",
    ),
    Target("many_threads", "the same, 32 threads", "raw, a transaction each", 1 / 10, 7, flush_us=1000, steady=False),
    Target(
        "cold",
        "lmdb open, get, close: a new process, from its start to its end",
        "raw",
        1.3,
        11,
        slack=1.15,
        floor=1.95,
        why=_COLD,
    ),
    Target(
        "cold_inside",
        "the same without the interpreter's start: imports, open, get, close",
        "raw",
        1.3,
        11,
        slack=1.15,
        floor=2.35,
        why=_COLD,
    ),
    Target(
        "open_warm",
        "lmdb connect, open, get, close, again in one process",
        "lmdbm's open, get, close",
        2.0,
        15,
        slack=1.25,
        steady=False,
        floor=5.0,
        why=_WARM,
    ),
    Target(
        "open_warm_sqlite",
        "sqlite connect, open, get, close, again in one process",
        "sqlitedict's open, get, close",
        1.0,
        15,
        slack=1.25,
        steady=False,
    ),
    *(
        Target(
            f"storm_{engine}{kind}",
            f"{engine}, 40 processes at once, {store} store, import to close",
            "diskcache.Cache",
            1.0,
            1,
            slack=1.5,  # it varies with the processors: 2.8 to 4.2 were seen
            steady=False,
            floor=3.5,
            why=_STORM,
        )
        for engine in ("lmdb", "sqlite")
        for kind, store in (("", "fresh"), ("_filled", "filled"))
    ),
    Target("sqlite_get", "sqlite `ns[key]`", "sqlite3's defaults: `execute(...).fetchone()` and decode", 0.8, 100),
    Target(
        "sqlite_update",
        "sqlite `ns.update`, 10,000",
        "`executemany` and commit, the same flushes",
        0.85,
        15,
        floor=0.92,
        why="the statements take 0.55 of it; 0.35 is encoding with types and checksums, "
        "where the raw packer takes 0.16",
    ),
    Target("increment", "sqlite `ns.increment`", "diskcache's `incr`, the same flushes", 1.0, 60, steady=False),
    *(
        Target(
            f"{engine}_transaction_{keys}",
            f"{engine} transaction: {keys:,} keys in {spaces}, a flush of 1 ms",
            f"{raw}, the same encoding and flushes",
            1.25,
            rounds,
            slack=1.25,
            steady=False,
            flush_us=1000,
            floor=floor,
            why=_PER_KEY if floor else "",
        )
        for engine, raw in (("lmdb", "one transaction of raw LMDB"), ("sqlite", "`BEGIN IMMEDIATE` to `COMMIT`"))
        for keys, spaces, rounds, floor in (
            (1, "a namespace", 30, None),
            (10, "three namespaces", 60, 1.3),
            (1000, "three namespaces", 20, 1.6),
        )
    ),
    *(
        Target(
            f"{engine}_step",
            f"{engine}, three namespaces, a write each, in one commit, a flush of 1 ms",
            "the same in one transaction of sqlite3, the same encoding and flushes",
            limit,
            60,
            slack=1.25,
            steady=False,
            flush_us=1000,
            floor=limit + 0.15,
            why=_PER_KEY,
        )
        for engine, limit in (("lmdb", 1.0), ("sqlite", 1.1))
    ),
    Target(
        "deadline_get",
        "lmdb `ns[key]`, `cache_bytes=0`, with a deadline",
        "without a deadline",
        1.8,
        100,
        slack=1.25,
        steady=False,
    ),
    Target(
        "deadline_set",
        "lmdb `ns.set(..., ttl_s=...)`, relaxed",
        "without `ttl_s`",
        3.0,
        60,
        slack=1.25,
        steady=False,
    ),
    *(
        Target(
            f"redis_{function}",
            f"redis {operation}",
            yardstick,
            limit,
            rounds,
            slack=1.25,
            steady=False,
            floor=floor,
            why=why,
        )
        for function, operation, yardstick, limit, rounds, floor, why in (
            ("get", "`ns[key]`", "redis-py's `get` and decode", 0.5, 30, 0.75, _REDIS_GET),
            ("set", "`ns[key] = v`", "encode and redis-py's `set`", 0.65, 30, 0.85, _REDIS_SET),
            ("cluster_get", "on a cluster, `ns[key]`", _CLUSTER_GET, 0.4, 30, 0.75, _REDIS_GET),
            ("update", "`ns.update`, 1,000", "encode and `set` in a pipeline", 0.15, 30, 0.45, _REDIS_UPDATE),
            ("get_many", "`ns.get_many`, 1,000", "`get` in a pipeline and decode", 0.2, 30, 0.45, _REDIS_GET_MANY),
            ("items", "`ns.items()`, 10,000", "`hgetall` and the same decoding", 1.0, 15, None, ""),
            ("len", "`len(ns)`", "redis-py's `hlen`", 0.6, 30, 0.85, _REDIS_LEN),
            ("len_until", "`len(ns)`, 10,000 deadlines", "redis-py's `hlen`", 1.4, 30, None, ""),
            ("transaction", "transaction of 10 keys", _WATCH, 0.6, 20, 0.9, _REDIS_TRANSACTION),
        )
    ),
    Target("memory_get", "memory `ns[key]`", "decoding alone", 1.4, 300),
    Target("memory_bytes", "memory, bytes per key, of 125-byte values", "-", 290, 1, unit="bytes", exact=True),
    Target(
        "encode",
        "codec, encode",
        "msgspec's MessagePack, which keeps no types",
        1.3,
        300,
        floor=4.5,
        why="the packer that keeps types takes 1.2; zlib's CRC-32 alone 0.7; a call of any "
        "function written in Python 0.4; the "
        "rest is the look for bytes that the packer blurs, and the frame",
    ),
    Target(
        "decode",
        "codec, decode",
        "msgspec's MessagePack, which keeps no types",
        1.15,
        300,
        floor=1.9,
        why="the unpacker with its hook for types takes 1.15; zlib's CRC-32 0.3; a call of "
        "any function written in Python 0.2",
    ),
    Target("struct_decode", "typed namespace, decode a msgspec struct", "decode the same fields to a dict", 0.7, 100),
    Target("imports", "`import hutch`", "`import diskcache`", 0.5, 11, slack=1.15),
    Target(
        "get_while_another_burns",
        "lmdb `ns[key]`, `cache_bytes=0`, while another thread burns CPU",
        "the same, raw",
        1.0,
        7,
        slack=1.15,
        steady=False,
        floor=1.2,
        why="as without the other thread: see the first line",
    ),
]
TARGETS: dict[str, Target] = {target.function: target for target in _ROWS}
