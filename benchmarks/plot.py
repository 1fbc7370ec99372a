"""`python -m benchmarks plot`: the figures of a run, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
# Text stays text, and the same figures give the same files.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"})

from matplotlib import pyplot  # noqa: E402

from benchmarks.measure import Result  # noqa: E402
from benchmarks.run import Report  # noqa: E402


def plot(report: Report, folder: Path) -> Iterator[Path]:
    """Draw all figures into a folder, and name their files."""
    folder.mkdir(parents=True, exist_ok=True)
    by_link = groupby(report["results"], key=lambda result: (result["database"], result["link"]))
    for (database, link), group in by_link:
        results = list(group)
        bars = [result for result in results if result["series"] is None or result["series"][1] in (1, 32)]
        yield _save(_ratios(f"{database}, {link}", bars), folder / f"ratios-{database}-{link}.svg")
        if series := [result for result in results if result["series"]]:
            yield _save(_latencies(f"{database}, {link}", series), folder / f"latency-{database}-{link}.svg")


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return path


def _ratios(title: str, results: Sequence[Result]) -> Any:
    rows = [(result["workload"], name, ratio) for result in results for name, ratio in result["ratios"].items()]
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.24 * len(rows)))
    drivers = list(dict.fromkeys(name for _, name, _ in rows))
    for driver in drivers:
        own = [(position, ratio) for position, (_, name, ratio) in enumerate(rows) if name == driver]
        positions, ratios = zip(*own, strict=True)
        axes.barh(positions, [ratio - 1 for ratio in ratios], left=1, color=f"C{drivers.index(driver)}", label=driver)
    for position, (_, _, ratio) in enumerate(rows):
        offset, side = ((3, 0), "left") if ratio >= 1 else ((-3, 0), "right")
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "ha": side, "fontsize": 8}
        axes.annotate(f"{ratio:.2f}", (ratio, position), offset, **place)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [workload for workload, _, _ in rows])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1, y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("the peer's time / ours: right of the line ours is faster")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    return figure


def _latencies(title: str, results: Sequence[Result]) -> Any:
    operations = list(dict.fromkeys(result["series"][0] for result in results if result["series"]))
    figure, all_axes = pyplot.subplots(1, len(operations), figsize=(4 * len(operations), 3.4), squeeze=False)
    for axes, operation in zip(all_axes[0], operations, strict=True):
        points = [result for result in results if result["series"] and result["series"][0] == operation]
        tasks = [result["series"][1] for result in points if result["series"]]
        for name, timing in points[0]["contestants"].items():
            # What one task waits: the time of an operation is the wall time by their number.
            waits = [
                result["contestants"][name]["median_ms"] * count for result, count in zip(points, tasks, strict=True)
            ]
            axes.plot(tasks, waits, marker="o", markersize=3, linestyle="-" if timing["is_ours"] else "--", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(tasks, [str(count) for count in tasks])
        axes.set_xlabel("concurrent tasks")
        axes.set_title(operation)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][0].set_ylabel(f"{title}: latency in ms")
    all_axes[0][0].legend(fontsize=8)
    return figure
