"""The statements that maintain whole threads: prune, delete the checkpoints of a run, copy, and walk a delta channel.

They are written once, on what a dialect's strategy offers (`_statements`), and sets of rows go into the database as
parameters, so that one statement serves any number of checkpoints. Each is built once for each strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from langgraph.checkpoint.serde.types import TASKS
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Delete,
    Executable,
    FromClause,
    Insert,
    Numeric,
    Select,
    Table,
    Text,
    Update,
    and_,
    case,
    cast,
    delete,
    exists,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)

from sa_checkpoint._codec import BLOB_VERSIONS, EMPTY
from sa_checkpoint._statements import JSONStatements
from sa_checkpoint._strategy import START, RowKind, text_parameter

P = ParamSpec("P")
T = TypeVar("T")


def _built_once(build: Callable[Concatenate[JSONStatements, P], T]) -> Callable[Concatenate[JSONStatements, P], T]:
    """Keep what is built for a strategy, for as long as somebody has the strategy."""
    kept: WeakKeyDictionary[JSONStatements, dict[Any, T]] = WeakKeyDictionary()

    @wraps(build)
    def built(statements: JSONStatements, /, *args: P.args, **kwargs: P.kwargs) -> T:
        found = kept.setdefault(statements, {})
        key = (args, *kwargs.items())
        if key not in found:
            found[key] = build(statements, *args, **kwargs)
        return found[key]

    return built


# Parameters are not named like columns here, because SQLAlchemy takes those of an UPDATE for values to set: a thread is
# "thread". What the names of sets of rows have as columns:
DOOMED = ("checkpoint_ns", "checkpoint_id")
DEAD = ("checkpoint_ns",)
CHANNELS = ("checkpoint_ns", "channel")


def _of_thread(table: Any, parameter: str = "thread") -> ColumnElement[bool]:
    condition: ColumnElement[bool] = table.c.thread_id == text_parameter(parameter)
    return condition


@_built_once
def delete_thread(statements: JSONStatements) -> Sequence[Executable]:
    """Delete everything of a thread."""
    tables = (statements.tables.blobs, statements.tables.writes, statements.tables.checkpoints)
    return statements.together(*(delete(table).where(_of_thread(table)) for table in tables))


# ------------------------------------------------------------------------------------------------------------- prune


@_built_once
def outline(statements: JSONStatements) -> Select[Any]:
    """The checkpoints of a thread without their contents, by namespace, newest first: what a prune is planned from."""
    table = statements.tables.checkpoints
    columns = table.c
    return (
        select(
            columns.checkpoint_ns,
            columns.checkpoint_ns.label("namespace"),
            columns.checkpoint_id,
            columns.parent_checkpoint_id,
            cast(statements.json_text(columns.checkpoint, "v"), Numeric).label("format"),
            statements.json_text(columns.metadata, "parents", "").label("root"),
            statements.json_text(columns.metadata, "counters_since_delta_snapshot").label("delta_counters"),
            statements.json_text(columns.metadata, "delta_writes_versioned").label("delta_versioned"),
        )
        .where(_of_thread(table))
        .order_by(columns.checkpoint_ns, columns.checkpoint_id.desc())
    )


def _given(statements: JSONStatements, table: Table, *columns: str) -> tuple[FromClause, FromClause]:
    """The rows of a table that belong to the given checkpoints of a thread, and the join that finds them."""
    given = statements.rows("given", *DOOMED)
    is_given = and_(table.c.checkpoint_ns == given.c.checkpoint_ns, table.c.checkpoint_id == given.c.checkpoint_id)
    return statements.look_up(given, table, and_(_of_thread(table), is_given), *columns)


@_built_once
def with_sends(statements: JSONStatements) -> Select[Any]:
    """Of the given checkpoints of a thread, those that have TASKS writes."""
    found, source = _given(statements, statements.tables.writes, *DOOMED, "channel")
    return (
        select(found.c.checkpoint_ns, found.c.checkpoint_id)
        .distinct()
        .select_from(source)
        .where(found.c.channel == literal_column(f"'{TASKS}'"))
    )


@_built_once
def with_values(statements: JSONStatements) -> Select[Any]:
    """For the given channels of a thread's namespaces: the checkpoints that hold a value of them."""
    table = statements.tables.checkpoints
    given = statements.rows("given", *CHANNELS)
    return (
        select(table.c.checkpoint_ns, table.c.checkpoint_id, given.c.channel)
        .select_from(table.join(given, table.c.checkpoint_ns == given.c.checkpoint_ns))
        .where(_of_thread(table), _has_value(statements, table, given.c.channel))
    )


@_built_once
def channels_of(statements: JSONStatements) -> Select[Any]:
    """The channels that the given checkpoints of a thread have versions of."""
    found, source = _given(statements, statements.tables.checkpoints, "checkpoint_ns", "checkpoint")
    versions = statements.entries(found.c.checkpoint, "channel_versions")
    return select(found.c.checkpoint_ns, versions.c.key.label("channel")).select_from(source, versions)


def _has_value(statements: JSONStatements, table: Any, channel: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a checkpoint holds a value of a channel, inline or as a blob."""
    return or_(
        statements.has_entry(table.c.checkpoint, "channel_values", channel), _has_blob(statements, table, channel)
    )


def _has_blob(statements: JSONStatements, table: Any, channel: ColumnElement[str]) -> ColumnElement[bool]:
    blobs = statements.tables.blobs.alias()
    version = statements.blob_version(table.c.checkpoint, channel)
    is_value = and_(blobs.c.checkpoint_ns == table.c.checkpoint_ns, _has_value_at(blobs, channel, version))
    return exists().select_from(blobs).where(is_value).correlate_except(blobs)


def _has_value_at(blobs: Any, channel: ColumnElement[str], version: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a blob is the thread's of this channel and version, and a value."""
    is_value = blobs.c.type != literal_column(f"'{EMPTY}'")
    return and_(_of_thread(blobs), blobs.c.channel == channel, blobs.c.version == version, is_value)


@_built_once
def deletion(statements: JSONStatements) -> Sequence[Executable]:
    """The statements of `Thread.delete`: of the rows "doomed" and "dead"."""
    return statements.together(
        _delete_blobs(statements), _delete_writes(statements), _delete_doomed(statements), clear_parents(statements)
    )


def _doomed(statements: JSONStatements) -> Select[Any]:
    doomed = statements.rows("doomed", *DOOMED)
    return select(doomed.c.checkpoint_ns, doomed.c.checkpoint_id)


def _dead(statements: JSONStatements) -> Select[Any]:
    return select(statements.rows("dead", *DEAD).c.checkpoint_ns)


def _delete_doomed(statements: JSONStatements) -> Delete:
    table = statements.tables.checkpoints
    key = tuple_(table.c.checkpoint_ns, table.c.checkpoint_id)
    return delete(table).where(_of_thread(table), key.in_(_doomed(statements)))


def _delete_writes(statements: JSONStatements) -> Delete:
    table = statements.tables.writes
    key = tuple_(table.c.checkpoint_ns, table.c.checkpoint_id)
    is_dead = table.c.checkpoint_ns.in_(_dead(statements))
    return delete(table).where(_of_thread(table), or_(key.in_(_doomed(statements)), is_dead))


def _delete_blobs(statements: JSONStatements) -> Delete:
    table = statements.tables.blobs
    key = tuple_(table.c.checkpoint_ns, table.c.channel, table.c.version)
    is_dead = table.c.checkpoint_ns.in_(_dead(statements))
    return delete(table).where(_of_thread(table), or_(key.in_(unnamed_blobs(statements)), is_dead))


@_built_once
def unnamed_blobs(statements: JSONStatements) -> CompoundSelect[Any]:
    """The blobs of a thread that no checkpoint names but those of the rows "doomed"."""
    blobs, checkpoints = statements.tables.blobs.alias(), statements.tables.checkpoints.alias()
    key = tuple_(checkpoints.c.checkpoint_ns, checkpoints.c.checkpoint_id)
    stays = and_(_of_thread(checkpoints), key.not_in(_doomed(statements)))

    def named(field: str) -> Select[Any]:
        versions = statements.entries(checkpoints.c.checkpoint, field)
        version = statements.version_text(versions.c.value)
        named = select(checkpoints.c.checkpoint_ns, versions.c.key, version)
        return named.select_from(checkpoints, versions).where(stays)

    every = select(blobs.c.checkpoint_ns, blobs.c.channel, blobs.c.version).where(_of_thread(blobs))
    # At the channel's own version is what other savers read, where ours read another.
    return every.except_(named("channel_versions"), named(BLOB_VERSIONS))


@_built_once
def clear_parents(statements: JSONStatements) -> Update:
    """Leave the checkpoints whose parents are of the rows "doomed", and which are not, without one."""
    table = statements.tables.checkpoints
    parent = tuple_(table.c.checkpoint_ns, table.c.parent_checkpoint_id)
    key = tuple_(table.c.checkpoint_ns, table.c.checkpoint_id)
    return (
        update(table)
        .values(parent_checkpoint_id=null())
        .where(_of_thread(table), parent.in_(_doomed(statements)), ~key.in_(_doomed(statements)))
    )


# -------------------------------------------------------------------------------------------------------------- runs


def _run_id(statements: JSONStatements, table: Table) -> ColumnElement[str]:
    """The expression of the index checkpoints_run_id_idx."""
    return statements.json_text(table.c.metadata, "run_id")


@_built_once
def threads_of_runs(statements: JSONStatements) -> Select[Any]:
    """The threads in which the given runs stored checkpoints."""
    table = statements.tables.checkpoints
    runs = statements.rows("runs", "run_id")
    found, source = statements.look_up(runs, table, _run_id(statements, table) == runs.c.run_id, "thread_id")
    return select(found.c.thread_id).distinct().select_from(source)


@_built_once
def checkpoints_of_runs(statements: JSONStatements) -> Select[Any]:
    """The checkpoints of a thread that the given runs stored."""
    table = statements.tables.checkpoints
    runs = statements.rows("runs", "run_id")
    is_of_runs = _run_id(statements, table).in_(select(runs.c.run_id))
    return select(table.c.checkpoint_ns, table.c.checkpoint_id).where(_of_thread(table), is_of_runs)


# -------------------------------------------------------------------------------------------------------------- copy


@_built_once
def any_row(statements: JSONStatements) -> CompoundSelect[Any]:
    """At least one row if anything is stored for a thread."""
    tables = (statements.tables.checkpoints, statements.tables.blobs, statements.tables.writes)
    # In the order of the key, because EXISTS may read all of a table for a thread that has nothing in it.
    first = (
        select(table.c.thread_id).where(_of_thread(table)).order_by(*table.primary_key).limit(literal_column("1"))
        for table in tables
    )
    return union_all(*(select(found.scalar_subquery().is_not(None)) for found in first))


@_built_once
def copy(statements: JSONStatements) -> Sequence[Executable]:
    """Copy every row of a thread to another, inside the database."""
    tables = (statements.tables.blobs, statements.tables.writes, statements.tables.checkpoints)
    return statements.together(*(copy_rows(table) for table in tables))


def copy_rows(table: Table) -> Insert:
    """Copy a table's rows of the thread "source" to the thread "target"; any SQL database understands it."""
    others = [column for column in table.c if column.name != "thread_id"]
    source = select(text_parameter("target"), *others).where(_of_thread(table, "source"))
    return insert(table).from_select(["thread_id", *(column.name for column in others)], source)


# ----------------------------------------------------------------------------------------------------- delta channels


@_built_once
def delta_history(statements: JSONStatements, *, latest: bool) -> Executable:
    """The statement of `Strategy.delta_history`.

    Args:
        statements: The strategy. Parameters: thread, namespace, checkpoint unless `latest`, and the rows "channels".
        latest: Whether to start at the namespace's latest checkpoint.
    """
    path = _path(statements, latest)
    checkpoints, blobs, writes = statements.tables.checkpoints, statements.tables.blobs, statements.tables.writes

    def same(table: Table) -> ColumnElement[bool]:
        return and_(_of_thread(table), table.c.checkpoint_ns == text_parameter("namespace"))

    names = ("type", "blob", "task_id", "task_path", "idx")
    of_path = and_(same(writes), writes.c.checkpoint_id == path.c.checkpoint_id, writes.c.channel == path.c.channel)
    write, source = statements.look_up(path, writes, of_path, *names, is_outer=True)
    ancestors = statements.branch(
        RowKind.ANCESTOR,
        {
            "checkpoint_id": path.c.checkpoint_id,
            "parent_checkpoint_id": path.c.parent_checkpoint_id,
            "channel": path.c.channel,
            "version": path.c.position,
            **{name: write.c[name] for name in names},
        },
    ).select_from(source)
    of_step = and_(same(checkpoints), checkpoints.c.checkpoint_id == path.c.checkpoint_id)
    checkpoint, source = statements.look_up(path, checkpoints, of_step, "checkpoint")
    version = statements.blob_version(checkpoint.c.checkpoint, path.c.channel)
    of_seed = and_(same(blobs), _has_value_at(blobs, path.c.channel, version))
    blob, source = statements.look_up(source, blobs, of_seed, "type", "blob", is_outer=True)
    seeds = (
        statements.branch(
            RowKind.SEED,
            {
                "checkpoint_id": path.c.checkpoint_id,
                "checkpoint": statements.as_text(checkpoint.c.checkpoint),
                "channel": path.c.channel,
                **{name: blob.c[name] for name in ("type", "blob")},
            },
        )
        .select_from(source)
        .where(path.c.has_value == literal_column("1"))
    )
    return union_all(ancestors, seeds)


def _path(statements: JSONStatements, latest: bool) -> Any:
    """Each channel's ancestors, as far as they are needed.

    It follows parent links, never the order of ids, which is another where clocks differ. UNION drops a row that has
    come before, which ends a cycle.
    """
    table = statements.tables.checkpoints

    def shared(table: Any) -> ColumnElement[bool]:
        return and_(_of_thread(table), table.c.checkpoint_ns == text_parameter("namespace"))

    target = select(table.c.parent_checkpoint_id.label("id")).where(shared(table))
    if latest:
        target = target.order_by(table.c.checkpoint_id.desc()).limit(literal_column("1"))
    else:
        target = target.where(table.c.checkpoint_id == text_parameter("checkpoint"))
    start = target.subquery("start")
    channels = _channels_of_path(statements)

    def step(checkpoint: Any, channel: Any, position: str) -> Select[Any]:
        has_value = or_(
            statements.has_entry(checkpoint.c.checkpoint, "channel_values", channel.c.channel),
            and_(channel.c.has_blobs == literal_column("1"), _has_blob(statements, checkpoint, channel.c.channel)),
        )
        return select(
            channel.c.channel.label("channel"),
            channel.c.has_blobs.label("has_blobs"),
            # Labelled, because the application's label_length would cut the names of columns in here only.
            checkpoint.c.checkpoint_id.label("checkpoint_id"),
            checkpoint.c.parent_checkpoint_id.label("parent_checkpoint_id"),
            _as_number(has_value).label("has_value"),
            cast(literal_column(f"'{position}'"), Text).label("position"),
        )

    is_first = and_(shared(table), table.c.checkpoint_id == start.c.id)
    names = ("checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "checkpoint")
    first, source = statements.look_up(start, table, is_first, *names)
    path = step(first, channels, START).select_from(source.join(channels, true())).cte("path", recursive=True)
    is_parent = and_(shared(table), table.c.checkpoint_id == path.c.parent_checkpoint_id)
    parent, source = statements.look_up(path, table, is_parent, *names)
    return path.union(step(parent, path, "").select_from(source).where(path.c.has_value == literal_column("0")))


def _channels_of_path(statements: JSONStatements) -> FromClause:
    """The given channels, and whether they have any blob: mostly not, and then no step has to look for its own."""
    channels = statements.rows("channels", "channel")
    blobs = statements.tables.blobs.alias()
    key = (blobs.c.checkpoint_ns == text_parameter("namespace"), blobs.c.channel == channels.c.channel)
    # In the order of the key and without EXISTS, for which PostgreSQL may read all of a thread's.
    first = select(blobs.c.thread_id).where(_of_thread(blobs), *key).order_by(*blobs.primary_key)
    has_blobs = first.limit(literal_column("1")).correlate_except(blobs).scalar_subquery().is_not(None)
    return select(channels.c.channel, _as_number(has_blobs).label("has_blobs")).subquery("some")


def _as_number(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, literal_column("1")), else_=literal_column("0"))
