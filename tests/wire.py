"""A tap on the wire between a driver and its server: how many round trips something costs, and what was sent.

A round trip is what a client sends from the server's last bytes on until the server sends more: a flight of the
client's. It is noted before a byte of it goes on, so what an operation has waited for is there when it returns.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from threading import Lock, Thread
from typing import Any

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.backends import Database

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306}
# What a driver's `connect` has to be told so that it does not ask for encryption.
_PLAIN: Mapping[str, Mapping[str, Any]] = {
    "psycopg": {"sslmode": "disable", "gssencmode": "disable"},
    "psycopg2": {"sslmode": "disable", "gssencmode": "disable"},
    "asyncpg": {"ssl": False},
    "pymysql": {"ssl_disabled": True},
}


def _connect(server: URL) -> socket.socket:
    """A connection to the server of a URL: to its socket if that has one, else over TCP."""
    port = server.port or int(str(server.query.get("port", _DEFAULT_PORTS[server.get_backend_name()])))
    path = server.query.get("unix_socket")
    host = server.host or server.query.get("host")
    if path is None and isinstance(host, str) and host.startswith("/"):
        path = f"{host}/.s.PGSQL.{port}"
    if path is None:
        return socket.create_connection((str(host or "127.0.0.1"), port))
    found = socket.socket(socket.AF_UNIX)
    found.connect(str(path))
    return found


class Tap:
    """A listening socket whose connections go to the server, and are listened to on the way.

    Attributes:
        url: The same database through the tap.
    """

    def __init__(self, server: URL) -> None:
        self._server = server
        self._lock = Lock()
        self._flights: list[bytes] | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        kept = {name: value for name, value in server.query.items() if name not in ("host", "port", "unix_socket")}
        self.url = server.set(host="127.0.0.1", port=port, query=kept)
        self._accepting = Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @contextmanager
    def recorded(self) -> Iterator[list[bytes]]:
        """Collect the flights of all connections: for each round trip the bytes that the client sent."""
        flights: list[bytes] = []
        with self._lock:
            self._flights = flights
        try:
            yield flights
        finally:
            with self._lock:
                self._flights = None

    def close(self) -> None:
        """End all connections."""
        # A close alone does not wake the thread that waits for a client.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for pair in self._pairs:
            _end(*pair)
            for end in pair:
                end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            # Without a delay, in which small packets would wait for each other.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = _connect(self._server)
            self._pairs.append((client, server))
            hear_client, hear_server = self._listening()
            for source, target, hear in ((client, server, hear_client), (server, client, hear_server)):
                Thread(target=_forward, args=(source, target, hear), daemon=True).start()

    def _listening(self) -> tuple[Callable[[bytes], None], Callable[[bytes], None]]:
        """What is done with the bytes of a connection's client, and with those of its server."""
        is_new = True
        current = -1  # the number of this connection's last flight among those that are collected
        collected: list[bytes] | None = None

        def hear_client(data: bytes) -> None:
            nonlocal is_new, current, collected
            with self._lock:
                if self._flights is None:
                    pass
                elif is_new or collected is not self._flights:
                    self._flights.append(data)
                    current = len(self._flights) - 1
                else:
                    self._flights[current] += data
                collected = self._flights
                is_new = False

        def hear_server(_data: bytes) -> None:
            nonlocal is_new
            with self._lock:
                is_new = True

        return hear_client, hear_server


def _forward(source: socket.socket, target: socket.socket, hear: Callable[[bytes], None]) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            hear(data)
            target.sendall(data)
    _end(source, target)


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tap_on(server: URL) -> Iterator[Tap]:
    """A tap on the server of a URL, and on its database."""
    tap = Tap(server)
    try:
        yield tap
    finally:
        tap.close()


class TappedDatabase(Database):
    """A database whose URL is a tap's."""

    @asynccontextmanager
    async def engine(self, **options: Any) -> AsyncIterator[Engine | AsyncEngine]:
        plain = _PLAIN.get(self.url.get_driver_name(), {})
        options["connect_args"] = {**plain, **options.get("connect_args", {})}
        async with super().engine(**options) as engine:
            yield engine
