"""A bad network between a client in this process and servers: cut, slow, silent, or reset in the middle of a reply."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

_POLL_S = 0.02


class Wire:
    """A TCP proxy in front of one port, with TLS towards the client if `context` is set."""

    def __init__(self, port: int) -> None:
        #: Where new connections lead to.
        self.target_port = port
        self.context: ssl.SSLContext | None = None
        self.is_cut = False
        self.is_silent = False
        #: How much longer each piece of data takes.
        self.delay_s = 0.0
        #: How many of the next replies end in the middle.
        self.resets = 0
        self._sockets: set[socket.socket] = set()
        self._silenced: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def break_connections(self) -> None:
        """End all connections."""
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Forward nothing any more over the connections that are open or opened until `is_silent` is reset."""
        self.is_silent = True
        self._silenced |= self._sockets

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()
        for thread in (self._acceptor, *self._threads):
            thread.join(30)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            self._sockets.add(client)
            if self.is_silent:
                self._silenced.add(client)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(threading.Thread(target=self._serve, args=[client], daemon=True))
            self._threads[-1].start()

    def _serve(self, accepted: socket.socket) -> None:
        client = accepted
        try:
            # Not by `create_connection`, which would resolve the port to this wire.
            with suppress(OSError), socket.socket() as server:
                server.connect(("127.0.0.1", self.target_port))
                if self.context is not None:
                    accepted.settimeout(30)
                    client = self.context.wrap_socket(accepted, server_side=True)
                    self._sockets.discard(accepted)
                    self._sockets.add(client)
                    if accepted in self._silenced:
                        self._silenced.add(client)
                self._sockets.add(server)
                try:
                    self._forward(client, server)
                finally:
                    self._sockets.discard(server)
        finally:
            for one in (client, accepted):
                self._sockets.discard(one)
                self._silenced.discard(one)
                one.close()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            waiting = isinstance(client, ssl.SSLSocket) and client.pending()
            ready = [client] if waiting else select.select([client, server], [], [], _POLL_S)[0]
            for source in ready:
                data = source.recv(65536)
                if not data:
                    return
                if client in self._silenced:
                    continue
                time.sleep(self.delay_s)
                if source is server and self.resets and len(data) > 1:
                    self.resets -= 1
                    client.sendall(data[: len(data) // 2])
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                (server if source is client else client).sendall(data)


class Network:
    """A wire in front of each port of some servers, which every connection of this process to the port takes."""

    def __init__(self, ports: list[int]) -> None:
        self.wires = {port: Wire(port) for port in ports}

    def secure(self, certificate: Any, key: Any) -> None:
        """Let all new connections use TLS with a certificate, and end the others."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._use(context)

    def unsecure(self) -> None:
        """Let all new connections use no TLS, and end the others."""
        self._use(None)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Lead connections of this process through the wires, as if the addresses of the servers were theirs."""
        resolve = socket.getaddrinfo

        def resolve_to_wire(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            wire = self.wires.get(port)
            return resolve(host, port if wire is None else wire.port, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", resolve_to_wire)
            yield

    def close(self) -> None:
        for wire in self.wires.values():
            wire.close()

    def _use(self, context: ssl.SSLContext | None) -> None:
        for wire in self.wires.values():
            wire.context = context
            wire.break_connections()
