"""`python -m benchmarks plot`: the figures of a run as tables, for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks.measure import Result
from benchmarks.run import Report
from benchmarks.storage import Storage

_OURS = "ours on "
_SHOWN_TASKS = (1, 32)
_DATABASES = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "mysql": "MariaDB"}
_LINKS = {"socket": "local socket", "file": "a file", "1ms": "1 ms away", "5ms": "5 ms away"}


def tables(report: Report) -> str:
    """What was measured with what, and a table for each database and link."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    host, versions = report["machine"], report["packages"]
    yield f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, {host['system']}, {host['python']};"
    yield "; ".join(server["version"].split(" on ")[0] for server in report["servers"].values()) + ";"
    yield ", ".join(f"{name} {version}" for name, version in versions.items()) + f"; {report['started'][:10]}.\n"
    for (database, link), group in groupby(report["results"], key=lambda result: (result["database"], result["link"])):
        yield f"**{_DATABASES[database]}, {_LINKS[link]}**\n"
        yield "| | driver | ours, ms | peer, ms | peer / ours | target |"
        yield "|---|---|--:|--:|--:|--:|"
        for result in group:
            if result["series"] is None or result["series"][1] in _SHOWN_TASKS:
                yield from _rows(result)
        yield ""
    if report["storage"]:
        yield "**A chat of 200 turns**\n"
        yield "| | saver | on disk, MB | in the WAL, MB |"
        yield "|---|---|--:|--:|"
        yield from _storage(report["storage"])


def _rows(result: Result) -> Iterator[str]:
    (peer,) = (timing for timing in result["contestants"].values() if not timing["is_ours"])
    workload = result["workload"]
    for name, ratio in result["ratios"].items():
        target = "" if result["target"] is None else f"{result['target']:g}{' ✗' if name in result['missed'] else ''}"
        times = f"{result['contestants'][name]['median_ms']:.2f} | {peer['median_ms']:.2f}"
        yield f"| {workload} | {name.removeprefix(_OURS)} | {times} | {ratio:.2f} | {target} |"
        workload = ""


def _storage(stored: Sequence[Storage]) -> Iterator[str]:
    for row in stored:
        wal = "" if row["wal_bytes"] is None else f"{row['wal_bytes'] / 1e6:.2f}"
        yield f"| {_DATABASES[row['database']]} | {row['contestant']} | {row['disk_bytes'] / 1e6:.2f} | {wal} |"
