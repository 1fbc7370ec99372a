"""`python -m benchmarks run`: all workloads, database by database and link by link."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from time import perf_counter
from typing import TypedDict

from rich.progress import Progress
from sqlalchemy import URL

from benchmarks import servers
from benchmarks.contestants import ENTRIES, opened
from benchmarks.machine import Machine, machine, packages
from benchmarks.measure import Effort, Result, measure, summary
from benchmarks.proxy import delayed
from benchmarks.servers import Server
from benchmarks.storage import Storage, storage
from benchmarks.targets import FILE, LINKS
from benchmarks.workloads import WORKLOADS, Workload

STORAGE = "storage"


class ServerReport(TypedDict):
    """A server that was measured."""

    version: str
    settings: dict[str, str]


class Report(TypedDict):
    """All that a run has measured."""

    started: str
    seconds: float
    machine: Machine
    packages: dict[str, str]
    lifo: bool
    pin: bool
    servers: dict[str, ServerReport]
    skipped: list[str]
    results: list[Result]
    storage: list[Storage]


def run(
    *,
    only: Sequence[str],
    databases: Sequence[str],
    links: Sequence[str],
    effort: Effort,
    durable: bool,
    lifo: bool,
    pin: bool,
    progress: Progress,
) -> Report:
    """Measure.

    Args:
        only: Regular expressions, one of which the name of a workload has to match; none for all workloads.
        databases: Some of `servers.DATABASES`.
        links: Some of `targets.LINKS`.
        effort: How long to measure each workload.
        durable: As in `servers.started`.
        lifo: As for `contestants.Entry.open`.
        pin: As in `servers.started`.
        progress: Where to show what is going on.
    """
    begin = perf_counter()
    report: Report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0,
        "machine": machine(),
        "packages": packages(),
        "lifo": lifo,
        "pin": pin,
        "servers": {},
        "skipped": [],
        "results": [],
        "storage": [],
    }
    for database in databases:
        try:
            with servers.started(database, durable=durable, pin=pin) as server:
                report["servers"][database] = {"version": server.version, "settings": server.settings}
                for link in [FILE] if database == "sqlite" else links:
                    _run_link(server, link, only, effort, lifo, progress, report)
        except servers.Unavailable as reason:
            report["skipped"].append(f"{database}: {reason}")
    report["seconds"] = round(perf_counter() - begin, 1)
    return report


def chosen(name: str, only: Sequence[str]) -> bool:
    """Whether a workload's name matches one of the expressions."""
    return not only or any(re.search(expression, name) for expression in only)


def _workloads(database: str, link: str, only: Sequence[str]) -> list[Workload]:
    return [
        workload
        for workload in WORKLOADS
        if database in workload.databases
        and (workload.over_network or not LINKS.get(link))
        and chosen(workload.name, only)
    ]


def _run_link(
    server: Server, link: str, only: Sequence[str], effort: Effort, lifo: bool, progress: Progress, report: Report
) -> None:
    workloads = _workloads(server.database, link, only)
    with_storage = server.database != "mysql" and not LINKS.get(link) and chosen(STORAGE, only)
    task = progress.add_task(f"{server.database}, {link}", total=len(workloads) + with_storage)
    entries = [entry for entry in ENTRIES if entry.database == server.database]
    with (
        asyncio.Runner() as runner,
        links(link) as linked,
        opened(entries, server.new_url, linked, runner, lifo=lifo) as savers,
    ):
        if with_storage:  # first, while the server has nothing else to write
            progress.update(task, description=f"{server.database}, {link}: {STORAGE}")
            report["storage"] += [storage(saver) for saver in savers[False] if saver.name != "ours on psycopg2"]
            progress.advance(task)
        for workload in workloads:
            progress.update(task, description=f"{server.database}, {link}: {workload.name}")
            contestants = savers[workload.is_async]
            times = measure(workload, contestants, runner, effort)
            report["results"].append(summary(server.database, link, workload, contestants, times))
            progress.advance(task)
        progress.update(task, description=f"{server.database}, {link}")


@contextmanager
def links(link: str) -> Iterator[Callable[[URL], URL]]:
    """How a database is reached over a link. Each has a proxy of its own, as each has connections of its own."""
    with ExitStack() as stack:

        def linked(url: URL) -> URL:
            return stack.enter_context(delayed(url, LINKS[link])) if LINKS.get(link) else url

        yield linked
