"""The command `python -m benchmarks`."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import floor as floors
from benchmarks import memory as memories
from benchmarks import report
from benchmarks import run as runs
from benchmarks import scale as scales
from benchmarks.machine import machine, packages
from benchmarks.markdown import tables
from benchmarks.measure import Effort
from benchmarks.workloads import WORKLOADS


class Database(StrEnum):
    """What is measured."""

    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"
    MYSQL = "mysql"


class MainDatabase(StrEnum):
    """Those on which memory and the floor are measured."""

    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


class Link(StrEnum):
    """How a server is reached: a key of `targets.LINKS`."""

    SOCKET = "socket"
    ONE = "1ms"
    FIVE = "5ms"


app = typer.Typer(
    name="python -m benchmarks",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

MainDatabases = Annotated[
    list[MainDatabase] | None,
    typer.Option(metavar="NAME", help="Only this one: postgresql or sqlite. May be repeated. Without it both."),
]
Rounds = Annotated[int, typer.Option(min=1, metavar="N", help="How many rounds are measured.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")]
Durable = Annotated[
    bool,
    typer.Option(
        help="Whether the servers that are started wait for the disk at each commit, as they do by default. SQLite "
        "and the servers that the environment names are left as they are."
    ),
]


@app.callback()
def describe() -> None:
    """Measure sa_checkpoint beside LangGraph's own checkpointers, on servers that are started for it.

    PostgreSQL comes with the dependency group `bench`; MariaDB is measured if mariadbd is installed. The
    variables SA_CHECKPOINT_TEST_POSTGRES_URL and SA_CHECKPOINT_TEST_MYSQL_URL name other servers, on which databases
    are created and dropped.
    """


def _progress() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)  # in a file or a pipe rich takes 80


def _write(path: Path | None, figures: object) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def _check_expressions(expressions: list[str] | None) -> list[str]:
    """Refuse what is no regular expression, or matches no workload."""
    names = [runs.STORAGE, *(workload.name for workload in WORKLOADS)]
    for expression in expressions or []:
        try:
            if not any(runs.chosen(name, [expression]) for name in names):
                raise typer.BadParameter(f"{expression!r} matches none of: " + "; ".join(names))
        except re.error as error:
            raise typer.BadParameter(f"{expression!r} is no regular expression: {error}") from None
    return expressions or []


@app.command()
def run(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX",
            callback=_check_expressions,
            help="Only workloads whose name matches. May be repeated. Without it all.",
        ),
    ] = None,
    database: Annotated[
        list[Database] | None,
        typer.Option(
            metavar="NAME", help="Only this one: postgresql, sqlite or mysql. May be repeated. Without it all."
        ),
    ] = None,
    link: Annotated[
        list[Link] | None,
        typer.Option(
            metavar="LINK",
            help="How a server is reached: socket (or what its URL says), or a proxy that adds a round-trip time: 1ms "
            "or 5ms. May be repeated. Without it socket and 1ms.",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Exactly so many rounds of each workload. Without it up to 30, for at most a few seconds.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Three rounds of each workload: a look, no figures.")] = False,
    durable: Durable = True,
    lifo: Annotated[
        bool,
        typer.Option(
            help="Whether our engines take the connection that was used last, as the documentation recommends, or "
            "each in turn, as SQLAlchemy does by itself."
        ),
    ] = True,
    pin: Annotated[
        bool,
        typer.Option(
            help="Whether the servers that are started have processors of their own, as on another machine, or share "
            "all of them with what is measured. On Linux."
        ),
    ] = False,
    json_file: Json = None,
) -> None:
    """Run workloads by ours and by the peers in turn, and print the medians and their ratios.

    In each round every contestant runs one batch. A ratio above 1 says that ours is faster; ✗ marks one that is
    below its target.
    """
    if rounds:
        effort = Effort(rounds, float("inf"))
    else:
        effort = Effort(3, float("inf")) if quick else Effort(30, 4)
    with _progress() as progress:
        figures = runs.run(
            only=only or [],
            databases=[str(name) for name in database or Database],
            links=[str(name) for name in link or (Link.SOCKET, Link.ONE)],
            effort=effort,
            durable=durable,
            lifo=lifo,
            pin=pin,
            progress=progress,
        )
    report.show(figures, _console())
    _write(json_file, figures)


@app.command()
def plot(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", exists=True, dir_okay=False, help="What run wrote.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the files go.")] = Path(
        "docs/_static/benchmarks"
    ),
) -> None:
    """Draw the ratios, and the latency against the number of concurrent tasks, and write the tables as Markdown."""
    from benchmarks.plot import plot as draw  # matplotlib takes a second to import

    figures = json.loads(file.read_text())
    for path in draw(figures, output):
        typer.echo(path)
    path = output / "results.md"
    path.write_text(tables(figures) + "\n")
    typer.echo(path)


@app.command()
def memory(
    database: MainDatabases = None,
    length: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many checkpoints the list has.")
    ] = memories.LENGTH,
    json_file: Json = None,
) -> None:
    """Measure the peak of memory of a put and a get_tuple of a 50 MB state, and of a long list.

    Each figure comes from a process of its own. It needs Linux.
    """
    with _progress() as progress:
        figures = memories.memory([str(name) for name in database or MainDatabase], length, progress)
    report.show_memory(figures, length, _console())
    _write(json_file, {"machine": machine(), "packages": packages(), "length": length, "memory": figures})


@app.command()
def floor(
    database: MainDatabases = None,
    rounds: Rounds = 40,
    durable: Durable = True,
    json_file: Json = None,
) -> None:
    """Measure put, put_writes and get_tuple, and the least that they could take: statements, and (de)serialising.

    The former are executed by the driver on a connection of SQLAlchemy's pool. The last column is how many times as
    fast as the peer a call would be that did only that. PostgreSQL is measured on a socket and across a network.
    """
    with _progress() as progress:
        databases = [str(name) for name in database or MainDatabase]
        figures = floors.floor(databases, rounds, durable=durable, progress=progress)
    report.show_floor(figures, _console())
    _write(json_file, {"machine": machine(), "packages": packages(), "rounds": rounds, "floor": figures})


@app.command()
def scale(
    rows: Annotated[
        list[int] | None,
        typer.Option(
            min=scales.LEAST_ROWS,
            metavar="N",
            help="A database with so many checkpoints. May be repeated. Without it 10000 and 1000000.",
        ),
    ] = None,
    partitioned: Annotated[
        list[int] | None,
        typer.Option(
            min=scales.LEAST_ROWS,
            metavar="N",
            help=f"A database with so many checkpoints, whose tables have {scales.PARTITIONS} partitions by thread. "
            "May be repeated.",
        ),
    ] = None,
    rounds: Rounds = 40,
    checkpoints_only: Annotated[
        bool,
        typer.Option(
            "--checkpoints-only",
            help="Make blobs and writes for the latest checkpoint of each thread only. They take three quarters of the "
            "disk.",
        ),
    ] = False,
    durable: Durable = True,
    json_file: Json = None,
) -> None:
    """Measure calls about one thread on PostgreSQL databases of different sizes, in turn.

    A million checkpoints with their blobs and writes take about 4 GB of disk.
    """
    with _progress() as progress:
        sizes = rows or [10_000, 1_000_000]
        figures = scales.scale(
            sizes, partitioned or [], rounds, with_blobs=not checkpoints_only, durable=durable, progress=progress
        )
    report.show_scale(figures, _console())
    _write(json_file, {"machine": machine(), "packages": packages(), "rounds": rounds, **figures})


if __name__ == "__main__":
    app()
