"""Hints for wrong configuration: mistakes in a server's address, and options spelled as in other programs."""

from __future__ import annotations

import socket
import ssl
from typing import Final

from redis import exceptions as driver

#: Options of redis-py, other clients and earlier versions of hutch, with what to write instead.
OPTION_HINTS: Final = {
    "retries": "it was renamed to retry_s, the seconds for which a call is retried; write retry_s=5",
    "retry_on_timeout": "calls that are safe to repeat are retried for retry_s seconds; write retry_s=5",
    "socket_timeout": "write timeout_s=10, in seconds",
    "socket_connect_timeout": "write connect_timeout_s=5, in seconds",
    "socket_keepalive": "keepalive is always on; leave it out",
    "health_check_interval": "an idle connection is always tested before use; leave it out",
    "host": "the server is part of the URL: redis://host:port/database",
    "port": "the server is part of the URL: redis://host:port/database",
    "path": "a unix socket is part of the URL: unix:///path/of/socket",
    "unix_socket_path": "a unix socket is part of the URL: unix:///path/of/socket",
    "user": "write username",
    "database": "write db",
    "ssl": "TLS is in the scheme: start the URL with rediss://",
    "tls": "TLS is in the scheme: start the URL with rediss://",
    "ssl_cert_reqs": "write verify=false to accept any certificate, or leave it out to verify it",
    "ssl_check_hostname": "write verify=false to accept any certificate, or leave it out to verify it",
    "ssl_ca_certs": "write ca_file",
    "ssl_certfile": "write cert_file",
    "ssl_keyfile": "write key_file",
    "read_from_replicas": "write read_from: replicas",
    "decode_responses": "values come back with the type that they were stored with; leave it out",
    "encoding": "values come back with the type that they were stored with; leave it out",
    "protocol": "leave it out",
}
SENTINEL_HINT: Final = (
    "start the url with redis+sentinel:// (TLS: rediss+sentinel://), and name the primary after the Sentinels: "
    "redis+sentinel://host:26379/NAME; 'redis-cli -p 26379 sentinel masters' lists the names"
)
_SENTINEL_PORT: Final = 26379
_MAX_PROBE_S: Final = 2.0


def hint(error: Exception, host: str, port: int, scheme: str, wait_s: float) -> str:
    """Return what may be wrong with the server's address after the first connection failed; "" if unknown.

    `scheme` is that of the url, in the spelling of redis.
    """
    base, _, topology = scheme.partition("+")
    is_sentinel = topology == "sentinel"
    if port == _SENTINEL_PORT and not is_sentinel:
        return f". Port {port} is the port of a Sentinel, which stores nothing: {SENTINEL_HINT}"
    if "unknown command 'SELECT'" in str(error):
        return f". A Sentinel has no databases and stores nothing: {SENTINEL_HINT}"
    if isinstance(error, driver.ResponseError | driver.AuthenticationError) or "refused" in str(error):
        return ""
    wait_s = min(wait_s, _MAX_PROBE_S)
    suffix = f"+{topology}" if topology else ""
    if base == "rediss" and _answers_without_tls(host, port, wait_s):
        return f". It answers without TLS: start the url with redis{suffix}:// (or valkey{suffix}://)"
    if base == "redis" and _answers_with_tls(host, port, wait_s):
        return f". It answers with TLS: start the url with rediss{suffix}:// (or valkeys{suffix}://)"
    if "WRONG_VERSION_NUMBER" in str(error):
        return ". It answers without TLS, and not as a Redis server does: correct the host and the port"
    if "losed by server" in str(error):
        return ". Something accepts connections there and closes them: another kind of server, or a proxy without INFO"
    return ""


def _answers_without_tls(host: str, port: int, wait_s: float) -> bool:
    try:
        with socket.create_connection((host, port), wait_s) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith((b"+PONG", b"-NOAUTH", b"-LOADING", b"-DENIED"))
    except OSError:
        return False


def _answers_with_tls(host: str, port: int, wait_s: float) -> bool:
    """Return whether the server accepts a TLS handshake. No data is sent, so no certificate is verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), wait_s) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return True
    except (OSError, ValueError):
        return False
