"""A TCP proxy that adds a round-trip time to a server on the same machine: `python -m benchmarks.proxy`.

It runs in a process of its own, so that it takes no time of the interpreter that is measured. What a client sends is
held back for the whole round-trip time, and answers are passed on at once. Chunks wait in a queue with deadlines of
their own, so that many can be under way and the throughput stays what it was. It uses threads and not asyncio, whose
timers are rounded up to whole milliseconds.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from sqlalchemy import URL

_CHUNK = 1 << 18


@contextmanager
def delayed(url: URL, round_trip_ms: float) -> Iterator[URL]:
    """The URL of the same database through a proxy, which runs as long as the `with` block.

    Args:
        url: A database of PostgreSQL, MySQL or MariaDB, on a unix socket or a TCP address.
        round_trip_ms: What each round trip takes longer.
    """
    command = [sys.executable, "-m", "benchmarks.proxy", "--round-trip-ms", str(round_trip_ms), _address_of(url)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        port = int(process.stdout.readline())
        try:
            yield url.set(host="127.0.0.1", port=port, query={})
        finally:
            process.stdin.close()  # what the proxy waits for


def _address_of(url: URL) -> str:
    """A unix socket's path, or host:port."""
    if path := url.query.get("unix_socket"):
        return str(path)
    if folder := url.query.get("host"):
        return f"{folder}/.s.PGSQL.{url.query.get('port') or url.port or 5432}"
    return f"{url.host}:{url.port or {'postgresql': 5432, 'mysql': 3306}[url.get_backend_name()]}"


def _connect(address: str) -> socket.socket:
    if address.startswith("/"):
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(address)
        return upstream
    host, port = address.rsplit(":", 1)
    upstream = socket.create_connection((host, int(port)))
    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return upstream


def _hold_back(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """Pass on what a client sends, each chunk so many seconds after it has come."""
    waiting: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
    threading.Thread(target=_send_in_time, args=(waiting, target), daemon=True).start()
    with suppress(OSError):
        while chunk := source.recv(_CHUNK):
            waiting.put((time.monotonic() + seconds, chunk))
    waiting.put((time.monotonic() + seconds, b""))


def _send_in_time(waiting: SimpleQueue[tuple[float, bytes]], target: socket.socket) -> None:
    with suppress(OSError):
        while True:
            deadline, chunk = waiting.get()
            if (seconds := deadline - time.monotonic()) > 0:
                time.sleep(seconds)
            if not chunk:
                break
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(_CHUNK):
            target.sendall(chunk)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _serve(client: socket.socket, address: str, seconds: float) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client, _connect(address) as upstream:
        threading.Thread(target=_hold_back, args=(client, upstream, seconds), daemon=True).start()
        _pass_on(upstream, client)


def _accept(listener: socket.socket, address: str, seconds: float) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_serve, args=(client, address, seconds), daemon=True).start()


def main() -> None:
    """Listen on a free port of 127.0.0.1, print it, and serve until stdin is closed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=main.__doc__)
    parser.add_argument("address", help="the server: the path of a unix socket, or host:port")
    parser.add_argument("--round-trip-ms", type=float, default=1.0, help="what to add (default: %(default)s)")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(listener.getsockname()[1], flush=True)
        seconds = arguments.round_trip_ms / 1000
        threading.Thread(target=_accept, args=(listener, arguments.address, seconds), daemon=True).start()
        sys.stdin.read()


if __name__ == "__main__":
    main()
