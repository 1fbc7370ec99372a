"""What a run has measured, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.floor import Floor
from benchmarks.machine import machine, packages
from benchmarks.measure import Result
from benchmarks.memory import OPERATIONS, MemoryUse, description
from benchmarks.run import Report
from benchmarks.scale import ScaleReport
from benchmarks.storage import Storage

_OURS = "ours on "
_SHOWN_TASKS = (1, 32)


def show(report: Report, console: Console) -> None:
    """Print a report."""
    lines = [_server_line(server["version"], server["settings"]) for server in report["servers"].values()]
    pools = "the connection that was used last" if report["lifo"] else "each connection in turn"
    processors = "the servers that were started had processors of their own; " if report["pin"] else ""
    _describe(
        console, *lines, f"{processors}our engines take {pools}", f"{report['started']}, {report['seconds']:.0f} s"
    )
    for database, link in dict.fromkeys((result["database"], result["link"]) for result in report["results"]):
        results = [result for result in report["results"] if (result["database"], result["link"]) == (database, link)]
        console.print(_table(f"{database}, {link}", results))
    if report["storage"]:
        console.print(_storage_table(report["storage"]))
    for reason in report["skipped"]:
        console.print(f"Skipped: {reason}", style="yellow", markup=False)


def _describe(console: Console, *lines: str) -> None:
    """Print what it was measured with: this machine, the packages, and more lines."""
    host = machine()
    named = f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, {host['system']}, {host['python']}"
    versions = ", ".join(f"{name} {version}" for name, version in packages().items())
    console.print(named, versions, *lines, sep="\n", markup=False, highlight=False)


def _server_line(version: str, settings: dict[str, str]) -> str:
    return "; ".join([version, *(f"{name}={value}" for name, value in settings.items())])


def _table(title: str, results: Iterable[Result]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("workload", no_wrap=True)
    table.add_column("driver", no_wrap=True)
    for name in ("ours, ms", "peer, ms", "peer / ours", "target", "rounds"):
        table.add_column(name, justify="right")
    for result in results:
        if result["series"] is None or result["series"][1] in _SHOWN_TASKS:
            for row in _rows(result):
                table.add_row(*row)
    return table


def _rows(result: Result) -> Sequence[Sequence[str]]:
    (peer,) = (timing for timing in result["contestants"].values() if not timing["is_ours"])
    rows: list[tuple[str, ...]] = []
    for name, ratio in result["ratios"].items():
        timing = result["contestants"][name]
        target = "" if result["target"] is None else f"{result['target']:g}"
        mark, style = ("✗", "red") if name in result["missed"] else ("✓", "green") if target else ("", "")
        rows.append(
            (
                result["workload"] if not rows else "",
                name.removeprefix(_OURS),
                f"{timing['median_ms']:.3f}",
                f"{peer['median_ms']:.3f}",
                f"{ratio:.2f}",
                f"[{style}]{target} {mark}[/]" if target else "",
                str(timing["rounds"]),
            )
        )
    return rows


def _storage_table(stored: Sequence[Storage]) -> Table:
    table = Table(title="storage of a chat with 200 turns", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("database", "saver"):
        table.add_column(name)
    for name in ("on disk, MB", "in the WAL, MB"):
        table.add_column(name, justify="right")
    for row in stored:
        wal = "" if row["wal_bytes"] is None else f"{row['wal_bytes'] / 1e6:.2f}"
        table.add_row(row["database"], row["contestant"], f"{row['disk_bytes'] / 1e6:.2f}", wal)
    return table


def show_memory(figures: Sequence[MemoryUse], length: int, console: Console) -> None:
    """Print the peaks of memory."""
    _describe(console)
    table = Table(title="peak of memory above the start", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("operation", "database", "saver"):
        table.add_column(name, no_wrap=True)
    for name in ("Python, MB", "by state", "resident, MB", "by state"):
        table.add_column(name, justify="right")
    for operation in OPERATIONS:
        for row in (row for row in figures if row["operation"] == operation):
            peaks = (row["python_bytes"], row["resident_bytes"])
            size = row["state_bytes"]
            cells = [cell for peak in peaks for cell in (f"{peak / 1e6:.1f}", f"{peak / size:.2f}" if size else "")]
            table.add_row(description(operation, length), row["database"], row["contestant"], *cells)
    console.print(table)


def show_scale(report: ScaleReport, console: Console) -> None:
    """Print how the time of a call grows with the database."""
    _describe(console, _server_line(report["server"], report["settings"]))
    table = Table(title="calls on databases of different sizes", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("operation")
    for name in ("checkpoints", "partitions", "database, MB", "ms", "by the smallest"):
        table.add_column(name, justify="right")
    for row in report["scale"]:
        size = f"{row['database_bytes'] / 1e6:,.0f}"
        figures = (f"{row['median_ms']:.3f}", f"{row['ratio']:.2f}")
        table.add_row(row["operation"], f"{row['rows']:,}", str(row["partitions"] or ""), size, *figures)
    console.print(table)


def show_floor(figures: Sequence[Floor], console: Console) -> None:
    """Print what calls take, and what they could."""
    _describe(console)
    table = Table(title="calls, and no more than their statements", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("database", "link", "operation"):
        table.add_column(name, no_wrap=True)
    for name in ("at least, ms", "ours, ms", "peer, ms", "peer / ours", "at most"):
        table.add_column(name, justify="right")
    for row in figures:
        parts = (row["least_ms"], row["ours_ms"], row["peer_ms"])
        ratios = (row["peer_ms"] / row["ours_ms"], row["peer_ms"] / row["least_ms"])
        cells = [*(f"{part:.3f}" for part in parts), *(f"{ratio:.2f}" for ratio in ratios)]
        table.add_row(row["database"], row["link"], row["operation"], *cells)
    console.print(table)
