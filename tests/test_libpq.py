"""Statements of psycopg's that are prepared are sent by libpq's functions, and nobody can tell but by the time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import pq
from psycopg.types.string import StrDumper
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from sa_checkpoint import SQLAlchemySaver, _libpq
from tests import triggers
from tests.backends import BACKENDS, Client, Database, on_backends
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import driver_of
from tests.usage import use

PSYCOPG = tuple(backend for backend in BACKENDS if backend.id == "psycopg")
on_psycopg = on_backends(*PSYCOPG)

OURS = "SELECT name FROM pg_prepared_statements WHERE name LIKE 'sa_checkpoint%'"


@contextmanager
def engine_of(database: Database, **options: Any) -> Iterator[Engine]:
    """An engine with one connection."""
    engine = create_engine(database.url, **{"pool_size": 1, "max_overflow": 0, **options})
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def by_cursor(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements on our tables that psycopg's cursors execute."""
    found: list[str] = []
    usual = psycopg.Cursor.execute

    def execute(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        if "checkpoint" in str(query) and "pg_" not in str(query):
            found.append(str(query))
        return usual(self, query, *args, **kwargs)

    monkeypatch.setattr(psycopg.Cursor, "execute", execute)
    return found


def step(saver: SQLAlchemySaver, thread: str, value: object = "ä€😀") -> None:
    """A put, put_writes and get_tuple, which see what they have stored: three statements."""
    saved = saver.put(config_of(thread), checkpoint_of({"a": [value]}), {"source": "loop"}, {"a": "1"})
    saver.put_writes(saved, [("a", value), ("b", b"\0\xff")], "task")
    found = saver.get_tuple(config_of(thread))
    assert found
    assert found.checkpoint["channel_values"] == {"a": [value]}
    assert found.pending_writes == [("task", "a", value), ("task", "b", b"\0\xff")]


def used(engine: Engine, thread: str, uses: int) -> SQLAlchemySaver:
    """A saver with a connection on which each statement was executed so often: after 5 the next call prepares it."""
    saver = SQLAlchemySaver(engine)
    for _ in range(uses):
        step(saver, f"{thread} before")
    assert bool(ours(engine)) == (uses > 5)
    return saver


def warmed(engine: Engine, thread: str) -> SQLAlchemySaver:
    """A saver whose statements are prepared on the engine's one connection."""
    saver = used(engine, thread, 7)
    assert len(ours(engine)) == 3
    return saver


def ours(engine: Engine) -> list[str]:
    """The prepared statements of ours on the engine's connection."""
    with engine.connect() as connection:
        return list(connection.scalars(text(OURS)))


@on_psycopg
@pytest.mark.parametrize(("options", "uses"), [({}, 5), ({"prepare_threshold": 2}, 2), ({"prepare_threshold": 0}, 0)])
def test_a_statement_is_prepared_when_psycopg_would_and_sent_without_its_cursor(
    database: Database, thread: str, by_cursor: list[str], options: dict[str, Any], uses: int
) -> None:
    with engine_of(database, connect_args=options) as engine:
        saver = SQLAlchemySaver(engine)
        for _ in range(uses):
            step(saver, thread)
        assert len(by_cursor) == 3 * uses
        assert ours(engine) == []
        for _ in range(3):
            step(saver, thread)
        assert len(by_cursor) == 3 * uses
        assert len(ours(engine)) == 3


def set_no_threshold(engine: Engine) -> None:
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "prepare_threshold", None))


def set_encoding(engine: Engine) -> None:
    def connect(connection: Any, _record: Any) -> None:
        connection.execute("SET client_encoding = 'EUC_JIS_2004'")
        connection.commit()

    event.listen(engine, "connect", connect)


class OwnCursor(psycopg.Cursor[Any]):
    pass


def set_cursor(engine: Engine) -> None:
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "cursor_factory", OwnCursor))


def need_a_begin(engine: Engine) -> None:
    event.listen(engine, "begin", lambda _connection: None)


@on_psycopg
@pytest.mark.parametrize("set_up", [set_no_threshold, set_encoding, set_cursor, need_a_begin])
def test_the_cursor_has_all_statements_where_the_application_has_set_something(
    database: Database, thread: str, by_cursor: list[str], set_up: Any
) -> None:
    with engine_of(database) as engine:
        set_up(engine)
        saver = SQLAlchemySaver(engine)
        for _ in range(8):
            step(saver, thread, "ä")
        assert len(by_cursor) == 24
        assert ours(engine) == []


@on_psycopg
def test_an_engine_with_another_paramstyle_has_all_statements_by_the_cursor(database: Database, thread: str) -> None:
    with engine_of(database, paramstyle="format") as engine:
        saver = SQLAlchemySaver(engine)
        for _ in range(8):
            step(saver, thread)
        assert ours(engine) == []


@on_psycopg
def test_a_connection_class_of_the_applications_own_has_all_statements(database: Database, thread: str) -> None:
    class Own(psycopg.Connection[Any]):
        pass

    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with engine_of(database, creator=lambda: Own.connect(url)) as engine:
        saver = SQLAlchemySaver(engine)
        for _ in range(8):
            step(saver, thread)
        assert ours(engine) == []


@on_psycopg
@pytest.mark.parametrize("statement", ["DISCARD ALL", "DEALLOCATE ALL"])
def test_statements_that_somebody_has_deallocated_are_prepared_again_some_times(
    database: Database, thread: str, statement: str
) -> None:
    with engine_of(database) as engine:
        saver = warmed(engine, thread)
        for left in (3, 3, 0):
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(statement)
            for _ in range(8):
                step(saver, thread)
            assert len(ours(engine)) == left


@on_psycopg
def test_a_rollback_that_costs_psycopg_its_statements_costs_ours_no_more(database: Database, thread: str) -> None:
    with engine_of(database) as engine:
        saver = warmed(engine, thread)
        with engine.connect() as connection:
            for _ in range(8):
                connection.execute(text("SELECT 1 FROM checkpoints WHERE thread_id = :thread"), {"thread": thread})
        assert ours(engine) == []
        for _ in range(8):
            step(saver, thread)
        assert len(ours(engine)) == 3


@on_psycopg
def test_a_name_that_is_taken_is_left_alone(database: Database, thread: str) -> None:
    with engine_of(database) as engine:
        warmed(engine, thread)
        (name, *_) = ours(engine)
    with engine_of(database) as engine:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"PREPARE {name} AS SELECT 'mine'")
        saver = SQLAlchemySaver(engine)
        for _ in range(8):
            step(saver, thread)
        with engine.connect() as connection:
            assert connection.exec_driver_sql(f"EXECUTE {name}").scalar() == "mine"


@on_psycopg
@pytest.mark.parametrize("by_itself", [True, False])
def test_tables_may_be_changed_meanwhile(database: Database, thread: str, by_itself: bool) -> None:
    with engine_of(database) as engine, engine_of(database) as other:
        saver = warmed(engine, thread)
        for type_ in ("BIGINT", "INTEGER"):
            with (engine if by_itself else other).begin() as connection:
                connection.exec_driver_sql(f"ALTER TABLE checkpoint_writes ALTER COLUMN idx TYPE {type_}")
            step(saver, thread)


@on_psycopg
def test_an_error_is_psycopgs_and_costs_nothing(database: Database, thread: str) -> None:
    with engine_of(database) as engine:
        with engine.begin() as connection:
            triggers.before("INSERT", connection, f"NEW.thread_id = '{thread} refused'", triggers.refusing())
        saver = warmed(engine, thread)
        errors = []
        for threshold in (5, None):
            with engine.connect() as connection:
                driver = driver_of(connection)
                driver.prepare_threshold = threshold
            with pytest.raises(DBAPIError) as caught:
                saver.put(config_of(f"{thread} refused"), checkpoint_of({"a": ["x"]}), {}, {"a": "1"})
            error: Any = caught.value.orig
            errors.append((type(error), str(error), error.sqlstate, error.diag.message_primary, error.diag.context))
            step(saver, thread)
        assert errors[0] == errors[1]
        assert "refused" in errors[0][1]
        with engine.connect() as connection:
            assert driver_of(connection) is driver


@on_psycopg
def test_a_constraint_of_the_applications_own_is_an_integrity_error(database: Database, thread: str) -> None:
    with engine_of(database) as engine:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"ALTER TABLE checkpoints ADD CONSTRAINT own CHECK (thread_id <> '{thread} own') NOT VALID"
            )
        saver = warmed(engine, thread)
        with pytest.raises(IntegrityError, match="own"):
            saver.put(config_of(f"{thread} own"), checkpoint_of(), {}, {})
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE checkpoints DROP CONSTRAINT own")
        step(saver, thread)


@contextmanager
def locked(engine: Engine) -> Iterator[None]:
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE checkpoints")
        yield


def waiting(engine: Engine) -> list[int]:
    """The processes of the server that wait for a lock."""
    statement = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with engine.connect() as connection:
        return list(connection.scalars(text(statement)))


at_any_stage = pytest.mark.parametrize("uses", [4, 5, 7])


@on_psycopg
@at_any_stage
@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout"])
def test_a_timeout_is_an_error_once(database: Database, thread: str, uses: int, setting: str) -> None:
    with engine_of(database) as engine, engine_of(database) as other:
        saver = used(engine, thread, uses)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"SET {setting} = '400ms'")
        with locked(other):
            start = time.monotonic()
            with pytest.raises(OperationalError, match="timeout"):
                saver.get_tuple(config_of(thread))
            assert time.monotonic() - start < 0.75  # it was not tried again
        step(saver, thread)


@contextmanager
def when_it_waits(other: Engine, function: str) -> Iterator[None]:
    """Lock a table, and when somebody waits for it, have a function of the server's do something to them."""

    def act() -> None:
        while not (pids := waiting(other)):
            time.sleep(0.01)
        with other.connect() as connection:
            connection.execute(text(f"SELECT {function}(:pid)"), {"pid": pids[0]})

    acting = threading.Thread(target=act)
    with locked(other):
        acting.start()
        yield
        acting.join()


@on_psycopg
@at_any_stage
def test_a_statement_that_the_server_cancels_is_an_error_and_not_stored(
    database: Database, thread: str, uses: int
) -> None:
    with engine_of(database) as engine, engine_of(database, pool_size=2) as other:
        saver = used(engine, thread, uses)
        with when_it_waits(other, "pg_cancel_backend"), pytest.raises(OperationalError, match="canceling statement"):
            saver.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert saver.get_tuple(config_of(thread)) is None
        step(saver, thread)


# psycopg 3.2 knows it by its text only.
SHUTDOWN = psycopg.OperationalError if psycopg.__version__.startswith("3.2.") else psycopg.errors.AdminShutdown


@on_psycopg
@at_any_stage
def test_a_connection_that_the_server_ends_is_given_up(database: Database, thread: str, uses: int) -> None:
    with engine_of(database) as engine, engine_of(database, pool_size=2) as other:
        saver = used(engine, thread, uses)
        with when_it_waits(other, "pg_terminate_backend"), pytest.raises(OperationalError) as caught:
            saver.get_tuple(config_of(thread))
        assert caught.value.connection_invalidated
        assert isinstance(caught.value.orig, SHUTDOWN)
        assert "terminating connection due to administrator command" in str(caught.value.orig)
        step(saver, thread)


@on_psycopg
@at_any_stage
def test_an_interrupt_ends_the_statement_in_the_server(database: Database, thread: str, uses: int) -> None:
    with engine_of(database) as engine, engine_of(database, pool_size=2) as other:
        saver = used(engine, thread, uses)
        with locked(other):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                saver.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            deadline = time.monotonic() + 3
            while waiting(other) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert waiting(other) == []
        assert saver.get_tuple(config_of(thread)) is None
        step(saver, thread)


@on_psycopg
def test_dumpers_of_the_applications_own_are_used_from_first_to_last(database: Database, thread: str) -> None:
    class Upper(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("before", "BEFORE"))

    with engine_of(database) as engine:
        event.listen(engine, "connect", lambda connection, _: connection.adapters.register_dumper(str, Upper))
        saver = SQLAlchemySaver(engine)
        for _ in range(8):
            step(saver, f"{thread} before")
        assert ours(engine) == []
        with engine.connect() as connection:
            stored = connection.exec_driver_sql("SELECT DISTINCT thread_id FROM checkpoints").scalars().all()
        assert f"{thread} BEFORE" in stored
        assert f"{thread} before" not in stored


@on_psycopg
def test_the_type_of_bytes_does_not_depend_on_the_column(database: Database, thread: str) -> None:
    with engine_of(database) as engine, engine_of(database) as other:
        with other.begin() as connection:
            connection.exec_driver_sql(f'CREATE DOMAIN "{thread}" AS bytea')
            connection.exec_driver_sql(f'ALTER TABLE checkpoint_writes ALTER COLUMN blob TYPE "{thread}"')
        saver = warmed(engine, thread)
        with other.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE checkpoint_writes ALTER COLUMN blob TYPE bytea")
            connection.exec_driver_sql(f'DROP DOMAIN "{thread}"')
        step(saver, thread)


@on_psycopg
def test_notices_reach_the_applications_handler(database: Database, thread: str) -> None:
    with engine_of(database) as engine:
        with engine.begin() as connection:
            triggers.before(
                "INSERT", connection, f"NEW.thread_id = '{thread}'", {"postgresql": "RAISE WARNING 'mind the gap'"}
            )
        saver = warmed(engine, thread)
        told: list[str | None] = []
        with engine.connect() as connection:
            driver_of(connection).add_notice_handler(lambda notice: told.append(notice.message_primary))
        saver.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert "mind the gap" in told


@on_psycopg
async def test_many_rows_and_everything_else_go_on_by_the_cursor(database: Database, thread: str) -> None:
    with engine_of(database) as engine:
        saver = warmed(engine, thread)
        for number in range(8):
            saved = saver.put(config_of(f"{thread} {number}"), checkpoint_of(), {}, {})
            saver.put_writes(saved, [(f"channel {index}", index) for index in range(30)], "task")
            found = saver.get_tuple(saved)
            assert found and len(found.pending_writes or ()) == 30
        await use(Client(saver, database.backend), thread)


@on_psycopg
def test_a_connection_keeps_no_more_statements_than_psycopg_does(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_libpq, "_MOST", 2)
    with engine_of(database) as engine:
        saver = SQLAlchemySaver(engine)
        for _ in range(8):
            step(saver, thread)
        assert len(ours(engine)) == 2


@on_psycopg
def test_a_connection_that_is_closed_leaves_nothing_behind(database: Database, thread: str) -> None:
    with engine_of(database) as engine:
        warmed(engine, thread)
        with engine.connect() as connection:
            driver = driver_of(connection)
        assert driver in _libpq._STATEMENTS
    before = len(_libpq._STATEMENTS)
    del driver, connection, engine
    assert len(_libpq._STATEMENTS) == before - 1


@pytest.mark.parametrize("value", ["\0", True, 1.5, ["a"], bytearray(b"x")], ids=repr)
def test_what_libpq_would_not_take_as_it_is_is_left_to_the_cursor(value: Any) -> None:
    assert _libpq._encoded([value], psycopg.Binary) is None


@on_psycopg
def test_strings_bytes_numbers_and_null_are_sent_as_they_are(database: Database) -> None:
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    values = ["ä😀%s", psycopg.Binary(b"\0\xff"), b"", -(2**63), None]
    encoded = _libpq._encoded(values, psycopg.Binary)
    assert encoded
    with psycopg.connect(url) as connection:
        result = connection.pgconn.exec_params(
            b"SELECT $1::text, $2::bytea, $3::bytea, $4::bigint, $5::text",
            encoded[0],
            None,
            encoded[1],
            pq.Format.BINARY,
        )
        rows = psycopg.adapt.Transformer(connection)
        rows.set_pgresult(result)
        assert rows.load_row(0, tuple) == ("ä😀%s", b"\0\xff", b"", -(2**63), None)


def test_parameters_are_numbered_as_they_come_and_percent_signs_stay() -> None:
    statement = _libpq._Statement("SELECT %(b)s, %(a)s, %(b)s, '100%%'")
    assert statement.text == b"SELECT $1, $2, $1, '100%'"
    assert statement.parameters == ["b", "a"]
    assert statement.name == _libpq._Statement("SELECT %(d)s, %(c)s, %(d)s, '100%%'").name
    assert statement.name != _libpq._Statement("SELECT %(b)s, %(a)s, %(a)s, '100%%'").name
