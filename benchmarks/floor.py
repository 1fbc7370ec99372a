"""`python -m benchmarks floor`: what a call could take that did no more than its statements, and (de)serialise.

The statements are those that our saver sends, with their values, executed by the driver on a connection of SQLAlchemy's
pool. What ours takes longer than that is ours to save; who is to be further ahead of the peer has to go past the
driver's cursor, or send something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any, TypedDict

from rich.progress import Progress
from sqlalchemy import URL, Engine, create_engine, event

from benchmarks import servers
from benchmarks.contestants import ENTRIES, Saver, opened
from benchmarks.data import WINDOW, conversation
from benchmarks.run import links
from benchmarks.targets import FILE, LINKS
from benchmarks.workloads import BATCH_SIZE, per_operation, stored
from sa_checkpoint import SQLAlchemySaver, _operations

OPERATIONS = ("put", "put_writes", "get_tuple")
WARM_UP = 10
_ENTRIES = {"postgresql": ("ours on psycopg", "PostgresSaver"), "sqlite": ("ours on sqlite3", "SqliteSaver")}

_Statements = Sequence[tuple[str, Any]]
"""As text, with the values that the driver is given."""


class Floor(TypedDict):
    """One operation on one database over one link, in milliseconds."""

    database: str
    link: str
    operation: str
    least_ms: float
    """Serialising or deserialising, and the statements."""
    ours_ms: float
    peer_ms: float


def floor(databases: Sequence[str], rounds: int, *, durable: bool, progress: Progress) -> list[Floor]:
    """Measure.

    Args:
        databases: Some of "postgresql" and "sqlite".
        rounds: How many batches of each are measured.
        durable: As in `servers.started`.
        progress: Where to show what is going on.
    """
    figures: list[Floor] = []
    for database in databases:
        entries = [entry for name in _ENTRIES[database] for entry in ENTRIES if entry.name == name]
        with servers.started(database, durable=durable) as server, asyncio.Runner() as runner:
            for link in [FILE] if database == "sqlite" else LINKS:
                # The first one's engine is for the statements alone.
                with (
                    links(link) as linked,
                    opened([entries[0], *entries], server.new_url, linked, runner) as savers,
                    closing(Recorder(server.new_url())) as recorder,
                ):
                    alone, ours, peer = (contestant.saver for contestant in savers[False])
                    for operation in OPERATIONS:
                        parts = {
                            "least": partial(_least, alone, recorder, operation),
                            "ours": partial(_call, ours, operation),
                            "peer": partial(_call, peer, operation),
                        }
                        times = _measure(parts, rounds, progress, f"{database}, {link}: {operation}")
                        figures.append(_floor(database, link, operation, times))
    return figures


def _floor(database: str, link: str, operation: str, times: dict[str, float]) -> Floor:
    return {
        "database": database,
        "link": link,
        "operation": operation,
        "least_ms": times["least"],
        "ours_ms": times["ours"],
        "peer_ms": times["peer"],
    }


def _measure(
    parts: Mapping[str, Callable[[], float]], rounds: int, progress: Progress, description: str
) -> dict[str, float]:
    """The median of each part, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in progress.track(range(WARM_UP + rounds), description=description):
        for name in list(parts)[:: 1 if number % 2 else -1]:
            milliseconds = parts[name]()
            if number >= WARM_UP:
                times[name].append(milliseconds)
    return {name: median(values) for name, values in times.items()}


def arguments(saver: Saver, operation: str) -> list[tuple[Any, ...]]:
    """What a batch of calls is given, after what it reads has been stored."""
    if operation == "get_tuple":
        return [(stored(saver, 10, messages=WINDOW),)] * BATCH_SIZE
    return [getattr(step, operation) for step in conversation(saver, BATCH_SIZE, messages=WINDOW)]


def _call(saver: Saver, operation: str) -> float:
    return per_operation([partial(getattr(saver, operation), *given) for given in arguments(saver, operation)])


def _least(alone: Any, recorder: Recorder, operation: str) -> float:
    prepare = getattr(_operations, operation)
    engine: Engine = alone._bind.source

    def call(given: tuple[Any, ...], statements: _Statements) -> None:
        prepare(alone.serde, *given).decode(execute(engine, statements))

    calls = [(given, recorder.record(operation, given)) for given in arguments(alone, operation)]
    return per_operation([partial(call, *each) for each in calls])


def execute(engine: Engine, statements: _Statements) -> Sequence[Any]:
    """Execute an operation's statements on a connection of the pool, and commit them.

    Returns:
        The rows of the last one.
    """
    is_psycopg = engine.dialect.driver == "psycopg"
    with closing(engine.raw_connection()) as connection:
        if is_psycopg:
            connection.driver_connection.autocommit = True  # type: ignore[union-attr]
        cursor: Any = connection.cursor(binary=True) if is_psycopg else connection.cursor()
        for text, values in statements:
            (cursor.executemany if isinstance(values, list) else cursor.execute)(text, values)
        rows: Sequence[Any] = cursor.fetchall() if cursor.description else ()
        if not rows:
            connection.commit()
        cursor.close()
    return rows


class Recorder:
    """A saver that writes down what it sends, to a database of its own."""

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(url)
        self._saver = SQLAlchemySaver(self._engine)
        self._saver.setup()
        self._sent: list[tuple[str, Any]] = []
        event.listen(self._engine, "before_cursor_execute", self._write_down)

    def _write_down(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        self._sent.append((statement, parameters))

    def record(self, operation: str, given: tuple[Any, ...]) -> _Statements:
        """The statements of one operation with these arguments."""
        self._sent = []
        getattr(self._saver, operation)(*given)
        return self._sent

    def close(self) -> None:
        self._engine.dispose()
