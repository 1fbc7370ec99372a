"""`python -m benchmarks memory`: how much memory a large state takes on its way, and a long list.

Each figure comes from a process of its own: the peak of Python's own allocations (`tracemalloc`), and that of the
resident memory, which also has what a driver's C library holds. Only the client is measured.
"""

from __future__ import annotations

import argparse
import gc
import random
import subprocess
import sys
import tracemalloc
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from rich.progress import Progress
from sqlalchemy import make_url

from benchmarks import servers
from benchmarks.contestants import ENTRIES, Entry, Saver
from benchmarks.data import config_of, conversation

MEGABYTES = 50
LENGTH = 10_000
OPERATIONS = ("put", "get_tuple", "list")


def description(operation: str, length: int) -> str:
    """An operation in words."""
    return f"list of {length:,} checkpoints" if operation == "list" else f"{operation} of a {MEGABYTES} MB state"


class MemoryUse(TypedDict):
    """The peak of one operation above what the process had before."""

    database: str
    contestant: str
    is_ours: bool
    operation: str
    python_bytes: int
    resident_bytes: int
    state_bytes: int | None
    """The serialised size of the state, where the operation is about one."""


def memory(databases: Sequence[str], length: int, progress: Progress) -> list[MemoryUse]:
    """Measure our sync savers and their peers.

    Args:
        databases: "postgresql", "sqlite", or both.
        length: How many checkpoints are listed.
        progress: Where to show what is going on.
    """
    figures: list[MemoryUse] = []
    entries = [entry for entry in ENTRIES if entry.database in databases and not entry.is_async]
    task = progress.add_task("", total=len(entries) * (1 + len(OPERATIONS)))
    for database in databases:
        with servers.started(database, durable=False) as server:
            for entry in (entry for entry in entries if entry.database == database):
                url = server.new_url().render_as_string(hide_password=False)
                progress.update(task, description=f"{entry.name}: {length:,} checkpoints")
                _in_process("fill", entry, url, length)
                progress.advance(task)
                for operation in OPERATIONS:
                    progress.update(task, description=f"{entry.name}: {description(operation, length)}")
                    figures.append(_figure(entry, url, operation, length))
                    progress.advance(task)
    return figures


def _figure(entry: Entry, url: str, operation: str, length: int) -> MemoryUse:
    python_bytes, state_bytes = _in_process(operation, entry, url, length, "--python")
    resident_bytes, _ = _in_process(operation, entry, url, length)
    return {
        "database": entry.database,
        "contestant": entry.name,
        "is_ours": entry.is_ours,
        "operation": operation,
        "python_bytes": python_bytes,
        "resident_bytes": resident_bytes,
        "state_bytes": state_bytes or None,
    }


def _in_process(operation: str, entry: Entry, url: str, length: int, *options: str) -> tuple[int, int]:
    command = [sys.executable, "-m", "benchmarks.memory", operation, entry.name, url, str(length), *options]
    peak, size = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return int(peak), int(size)


# ------------------------------------------------------------------------------------------------- in the process


def _put(saver: Saver, _length: int) -> tuple[Callable[[], object], int]:
    chunks = [random.Random(number).randbytes(10**6) for number in range(MEGABYTES)]
    config, checkpoint, metadata, versions = conversation(saver, 1, "large")[0].put
    version = saver.get_next_version(None, None)
    checkpoint["channel_values"]["files"] = chunks
    checkpoint["channel_versions"] = {**checkpoint["channel_versions"], "files": version}
    size = len(saver.serde.dumps_typed(chunks)[1])
    return lambda: saver.put(config, checkpoint, metadata, {**versions, "files": version}), size


def _get_tuple(saver: Saver, _length: int) -> tuple[Callable[[], object], int]:
    return lambda: saver.get_tuple(config_of("large")), MEGABYTES * 10**6


def _list(saver: Saver, _length: int) -> tuple[Callable[[], object], int]:
    return lambda: deque(saver.list(config_of("long")), maxlen=0), 0


def _fill(saver: Saver, length: int) -> tuple[Callable[[], object], int]:
    for step in conversation(saver, length, "long"):
        saver.put(*step.put)
    return lambda: None, 0


def _warm_up(saver: Saver) -> None:
    """Each operation once, so that what is loaded and compiled at the first call is not counted."""
    (step,) = conversation(saver, 1)
    saver.put(*step.put)
    thread = config_of(step.put[0]["configurable"]["thread_id"])
    saver.get_tuple(thread)
    deque(saver.list(thread), maxlen=0)


def _python_peak(operation: Callable[[], object]) -> int:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    result = operation()
    _, peak = tracemalloc.get_traced_memory()
    del result
    return peak - before


def _resident_peak(operation: Callable[[], object]) -> int:
    """What Linux's /proc says."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    before = _status("VmRSS")
    result = operation()
    peak = _status("VmHWM")
    del result
    return peak - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kibibytes) * 1024


def main() -> None:
    """Run one operation, and print the bytes of its peak and of the state's serialised size."""
    prepare: dict[str, Any] = {"put": _put, "get_tuple": _get_tuple, "list": _list, "fill": _fill}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=main.__doc__)
    parser.add_argument("operation", choices=prepare)
    parser.add_argument("contestant", choices=[entry.name for entry in ENTRIES])
    parser.add_argument("url", help="its database")
    parser.add_argument("length", type=int, help="how many checkpoints to fill or to list")
    parser.add_argument("--python", action="store_true", help="Python's own allocations, not the resident memory")
    arguments = parser.parse_args()
    (entry,) = (entry for entry in ENTRIES if entry.name == arguments.contestant)
    with entry.open(make_url(arguments.url)) as saver:
        _warm_up(saver)
        operation, size = prepare[arguments.operation](saver, arguments.length)
        gc.collect()
        print((_python_peak if arguments.python else _resident_peak)(operation), size)


if __name__ == "__main__":
    main()
