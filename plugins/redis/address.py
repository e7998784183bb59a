"""Read the options of the redis engine: the server's address and how to connect to it.

No error shows a part of the URL: any part may belong to a password.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import redis.connection
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from hutch import ConfigError, Option

from .hints import OPTION_HINTS, hint
from .pool import keepalive_options

_TLS_FILES: Final = ("ca_file", "cert_file", "key_file")
# Skip CLIENT SETINFO: it costs two round trips and a search through all installed packages.
_WITHOUT_CLIENT_INFO: Final[Mapping[str, None]] = (
    {"driver_info": None} if hasattr(redis.connection, "DriverInfo") else {"lib_name": None, "lib_version": None}
)
# Valkey speaks the same protocol; its own clients use these schemes.
_SCHEMES: Final = {"valkey": "redis", "valkeys": "rediss"}
_TOPOLOGIES: Final = {"redis": ("", "cluster", "sentinel"), "rediss": ("", "cluster", "sentinel"), "unix": ("",)}
_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379

#: The options of the redis engine.
OPTIONS: Final[Mapping[str, Option]] = {
    "url": Option(
        str,
        default="redis://localhost:6379/0",
        secret=True,
        help="redis://user:password@host:port/database, rediss:// for TLS, unix://user:password@/path/of/socket, "
        "redis+cluster://user:password@host:port,host:port, or redis+sentinel://user:password@host,host/name/database",
    ),
    "prefix": Option(str, default="hutch", help="prefix of every key that hutch uses on the server"),
    "db": Option(int, minimum=0, help="the number of the database, if the url does not give it; default 0"),
    "username": Option(str, secret=True, help="if the url does not give it"),
    "password": Option(str, secret=True, help="if the url does not give it"),
    "sentinel_username": Option(str, secret=True, help="the user for the Sentinels, if they ask for one"),
    "sentinel_password": Option(str, secret=True, help="the password for the Sentinels, if they ask for one"),
    "connect_timeout_s": Option(
        float, default=5.0, minimum=0.01, maximum=86400, help="longest wait to connect, in seconds"
    ),
    "timeout_s": Option(
        float,
        default=10.0,
        minimum=0.01,
        maximum=86400,
        help="longest wait for one answer of the server, or for a free connection, in seconds",
    ),
    "retry_s": Option(
        float,
        default=5.0,
        minimum=0,
        maximum=86400,
        help="how many seconds a call is retried after a lost connection or during a fail-over; 0: never",
    ),
    "read_from": Option(
        str,
        default="primary",
        choices=("primary", "replicas"),
        help="replicas: reads go to a replica, if one answers; stale reads: a get may miss one's own last write",
    ),
    "wait_replicas": Option(
        int,
        default=0,
        minimum=0,
        maximum=1000,
        help="how many replicas must acknowledge each write; fewer in wait_ms is a NotReplicatedError",
    ),
    "wait_ms": Option(
        int, default=1000, minimum=1, maximum=86_400_000, help="how long a write waits for replicas, in milliseconds"
    ),
    "max_transaction_bytes": Option(
        int,
        default=768 << 20,
        minimum=1,
        help="most bytes of keys and values in one batch or transaction; more is a ValueLimitError",
    ),
    "shards": Option(
        int,
        default=1,
        minimum=1,
        maximum=16384,
        help="hash slots over which each namespace is spread, fixed when it is made; above 1, batches are not atomic",
    ),
    "max_connections": Option(
        int,
        minimum=1,
        help="maximum number of connections; a call waits up to timeout_s for one. Default: no limit",
    ),
    "lazy_connect": Option(
        bool, default=False, help="true: connect when the store is first used, and report errors then"
    ),
    "ca_file": Option(Path, help="PEM file of the authorities to trust; default those of the system"),
    "cert_file": Option(Path, help="PEM file of the client's own certificate, if the server asks for one"),
    "key_file": Option(Path, help="PEM file of that certificate's key, if it is not in cert_file"),
    "verify": Option(
        bool, default=True, help="false accepts any server, so an attacker in between can read everything"
    ),
}


@dataclass(frozen=True)
class Address:
    """The address of a server. Its repr shows no password."""

    #: Returns a new driver connection, not connected yet.
    make: Callable[[], Any]
    #: The name of the server in messages.
    where: str
    #: Returns what may be wrong with the address, given the error of the first connection attempt.
    hint: Callable[[Exception], str]


@dataclass(frozen=True)
class Nodes:
    """The addresses of some nodes of a cluster. Its repr shows no password."""

    #: Host and port of each node in the url.
    places: tuple[tuple[str, int], ...]
    #: Returns the address of the node at a host and a port.
    address_of: Callable[[str, int], Address]
    #: The name of the cluster in messages.
    where: str
    #: As in `Address`.
    hint: Callable[[Exception], str]


@dataclass(frozen=True)
class Monitor:
    """The addresses of Sentinels, and the primary that they monitor. Its repr shows no password."""

    sentinels: tuple[Address, ...]
    #: The name that the Sentinels have for the primary.
    name: str
    #: Returns the address of the primary at a host and a port.
    address_of: Callable[[str, int], Address]
    #: The name of the server in messages.
    where: str


def read_address(options: Mapping[str, Any]) -> Address | Nodes | Monitor:
    """Return the address that `options` describe, without connecting. Raises ConfigError."""
    url: str = options["url"]
    scheme, separator, rest = url.partition("://")
    base, _, topology = scheme.lower().partition("+")
    base = _SCHEMES.get(base, base)
    if (base, topology) == ("redis", "unix"):
        base, topology = "unix", ""
    if not separator or topology not in _TOPOLOGIES.get(base, ()):
        raise _wrong_url(
            "must start with redis://, rediss:// (TLS), valkey://, valkeys:// (TLS) or unix://; for a cluster with "
            "redis+cluster://, for Sentinels with redis+sentinel:// (TLS: rediss+...)"
        )
    if "?" in rest:
        raise _wrong_url(_options_in_url(rest.partition("?")[2], options))
    common = {
        "socket_timeout": options["timeout_s"],
        "socket_connect_timeout": options["connect_timeout_s"],
        # Only Server knows which commands may be sent twice.
        "retry": None,
        "retry_on_timeout": False,
        "protocol": 2,
        **_WITHOUT_CLIENT_INFO,
    }
    if topology != "sentinel" and (options["sentinel_username"] or options["sentinel_password"]):
        raise ConfigError("option 'sentinel_password' of the redis engine is for a url with redis+sentinel://")
    if not topology and options["read_from"] != "primary":
        raise ConfigError(
            "option 'read_from' of the redis engine is for a url that leads to replicas: redis+cluster:// or "
            "redis+sentinel://"
        )
    suffix = f"+{topology}" if topology else ""
    if base != "rediss":
        for name in (*_TLS_FILES, "verify"):
            if options[name] not in (None, True):
                raise ConfigError(
                    f"option {name!r} of the redis engine is for TLS; start the url with rediss{suffix}://"
                )
    if base == "unix":
        return _unix(rest, common, options)
    if topology == "cluster":
        return _cluster(base + suffix, rest, common, options)
    if topology == "sentinel":
        return _monitor(base + suffix, rest, common, options)
    return _tcp(base, rest, common, options)


def _unix(rest: str, common: Mapping[str, Any], options: Mapping[str, Any]) -> Address:
    login, _, path = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    path, db = _unquote(path), options["db"] or 0
    if not path.startswith("/"):
        raise _wrong_url("must name a socket by its full path: unix:///run/redis.sock")
    if not hasattr(socket, "AF_UNIX"):
        raise _wrong_url("names a unix socket, which Python cannot use on this system; use redis://")
    unix = {**common, **_login(login, options), "path": path, "db": _selected(db)}
    where = f"the Redis server at {path}, database {db},"
    return Address(_maker(UnixDomainSocketConnection, unix), where, lambda error: "")


def _tcp(scheme: str, rest: str, common: dict[str, Any], options: Mapping[str, Any]) -> Address:
    login, _, place = rest.rpartition("@")
    if "," in place:
        raise _wrong_url(
            f"names several hosts: for a cluster start it with {scheme}+cluster://, for Sentinels with "
            f"{scheme}+sentinel://, and name one host otherwise"
        )
    host, port = _host_and_port(place.partition("/")[0], _REDIS_PORT)
    db = _database(place.partition("/")[2], options["db"])
    return _address_maker(scheme, common | _login(login, options), options)(host, port, db)


def _cluster(scheme: str, rest: str, common: dict[str, Any], options: Mapping[str, Any]) -> Nodes:
    login, _, servers = rest.rpartition("@")
    hosts, _, db = servers.partition("/")
    if options["db"] or db not in ("", "0"):
        raise ConfigError(
            "the url or option 'db' of the redis engine names a database: a Redis Cluster has database 0 only. Leave "
            "it out; for a second store, set option 'prefix'"
        )
    places = _places(hosts, _REDIS_PORT)
    address_of = _address_maker(scheme, common | _login(login, options), options)
    where = f"the Redis Cluster at {', '.join(_shown(*place) for place in places)},"
    return Nodes(places, address_of, where, address_of(*places[0]).hint)


def _monitor(scheme: str, rest: str, common: dict[str, Any], options: Mapping[str, Any]) -> Monitor:
    login, _, servers = rest.rpartition("@")
    hosts, _, path = servers.partition("/")
    name, _, database = path.partition("/")
    name = _unquote(name)
    if not name or not name.isprintable():
        raise _wrong_url("must name the primary after the Sentinels: redis+sentinel://host1,host2,host3/NAME")
    db = _database(database, options["db"])
    places = _places(hosts, _SENTINEL_PORT)
    own_login = {"username": options["sentinel_username"], "password": options["sentinel_password"]}
    sentinel_of = _address_maker(scheme, common | own_login, options)
    address_of = _address_maker(scheme, common | _login(login, options), options)
    sentinels = tuple(sentinel_of(*place) for place in places)
    shown = ", ".join(_shown(*place) for place in places)
    where = f"the primary {name!r} of the Sentinels at {shown}, database {db},"
    return Monitor(sentinels, name, lambda host, port: address_of(host, port, db), where)


def _places(hosts: str, default_port: int) -> tuple[tuple[str, int], ...]:
    named = hosts.split(",")
    if len(named) > 1 and not all(map(str.strip, named)):
        # It would mean localhost, which may be another cluster.
        raise _wrong_url("must name a host before and after each comma: host1:port,host2:port")
    return tuple(dict.fromkeys(_host_and_port(host, default_port) for host in named))


def _address_maker(scheme: str, common: Mapping[str, Any], options: Mapping[str, Any]) -> Callable[..., Address]:
    """Return a function that returns the address of a host, a port and a database, 0 if it is not given."""
    # With keepalive the system notices a dead peer, and a firewall sees that the connection is in use.
    tcp = {**common, "socket_keepalive": True, "socket_keepalive_options": keepalive_options()}
    is_tls = scheme.startswith("rediss")
    kind, tls_options = (SSLConnection, _tls(options)) if is_tls else (Connection, {})
    wait_s = min(options["connect_timeout_s"], options["timeout_s"])

    def address_of(host: str, port: int, db: int = 0) -> Address:
        where = f"the Redis server at {_shown(host, port)}, database {db},"
        make = _maker(kind, {**tcp, **tls_options, "host": host, "port": port, "db": _selected(db)})
        return Address(make, where, lambda error: hint(error, host, port, scheme, wait_s))

    return address_of


def _shown(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _options_in_url(query: str, options: Mapping[str, Any]) -> str:
    # Quote only known names: what looks like a name may be part of a password.
    named = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    for name in named:
        if name in OPTION_HINTS:
            return f"may not hold options; {name!r} is not an option of this engine either: {OPTION_HINTS[name]}"
    ours = [repr(name) for name in named if name in options]
    named_options = f"{', '.join(ours)} as options" if ours else "options"
    return f"may not hold a '?'; give {named_options} outside the url, and write a '?' in a password as %3F"


def _selected(db: int) -> str | int:
    """Return the number of a database for the driver, which packs it with hiredis, see `protocol.packed`."""
    return str(db) if db else 0


def _maker(kind: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], Any]:
    # Not functools.partial: its repr shows the password.
    return lambda: kind(**arguments)


def _login(login: str, options: Mapping[str, Any]) -> dict[str, str | None]:
    in_url = dict(zip(("username", "password"), map(_unquote, login.partition(":")[::2]), strict=True))
    login_options: dict[str, str | None] = {}
    for name, text in in_url.items():
        if text and options[name]:
            raise ConfigError(f"the {name} of the redis engine is given twice, in the url and as an option; keep one")
        login_options[name] = chosen = text or options[name] or None
        # Not by encoding it: the error would quote the secret.
        if chosen and any("\ud800" <= character <= "\udfff" for character in chosen):
            raise ConfigError(f"the {name} of the redis engine is not valid Unicode")
    return login_options


def _host_and_port(place: str, default_port: int) -> tuple[str, int]:
    """Return host and port from ``host:port``; each may be missing."""
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = place.partition(":")
    host = host or "localhost"
    try:
        # The system encodes it the same way, and raises this error for an impossible name.
        host.encode("idna")
    except UnicodeError:
        raise _wrong_url("names an invalid host") from None
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise _wrong_url("must have a port from 1 to 65535, and a password before an '@': redis://:password@host:port")
    return host, int(port or default_port)


def _database(text: str, option: int | None) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise _wrong_url("must end with the number of a database, or without one: redis://host:port/0")
    if text and option is not None:
        raise ConfigError("the database of the redis engine is given twice, in the url and as option 'db'; keep one")
    return int(text) if text else option or 0


def _tls(options: Mapping[str, Any]) -> dict[str, Any]:
    for name in _TLS_FILES:
        path: Path | None = options[name]
        if path is not None and not path.is_file():
            raise ConfigError(f"option {name!r} of the redis engine names {str(path)!r}, which is not a file")
    ca_file, cert_file, key_file = (None if options[name] is None else str(options[name]) for name in _TLS_FILES)
    return {
        "ssl_ca_certs": ca_file,
        "ssl_certfile": cert_file,
        "ssl_keyfile": key_file,
        "ssl_cert_reqs": "required" if options["verify"] else "none",
        "ssl_check_hostname": options["verify"],
    }


def _unquote(text: str) -> str:
    try:
        text = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _wrong_url("has an escape that is not UTF-8 once decoded") from None
    if "\0" in text:
        raise _wrong_url("may not hold NUL")
    return text


def _wrong_url(message: str) -> ConfigError:
    return ConfigError(f"option 'url' of the redis engine {message}")
