"""Interleaved measurement: in each round every contestant runs one batch, and the next round begins with another one.

What slows the machine down for a while slows all of them down, and the median over the rounds forgets it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any, TypedDict

from benchmarks.contestants import Contestant
from benchmarks.servers import analyse
from benchmarks.targets import TARGETS
from benchmarks.workloads import Workload


class Timing(TypedDict):
    """What one contestant needed for one operation, in milliseconds."""

    is_ours: bool
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    rounds: int


class Result(TypedDict):
    """One workload on one database over one link."""

    database: str
    link: str
    workload: str
    contestants: dict[str, Timing]
    ratios: dict[str, float]
    """The peer's median by ours, for each of our drivers."""
    target: float | None
    missed: list[str]
    """Our drivers that fall short of the target."""
    series: list[Any] | None
    """The operation and its number of tasks, where it is a point of the latency against concurrency."""


@dataclass(frozen=True)
class Effort:
    """How long to measure a workload: so many rounds, but no more of them once the time is over."""

    rounds: int
    seconds: float

    LEAST_ROUNDS = 3


def measure(
    workload: Workload,
    contestants: list[Contestant],
    runner: asyncio.Runner,
    effort: Effort,
) -> dict[str, list[float]]:
    """The milliseconds of one operation, by contestant and round."""
    batches = [_finished(workload.make(contestant), workload, runner) for contestant in contestants]
    for contestant in contestants:
        analyse(contestant.url)
    for _ in range(workload.warm_up):
        for batch in batches:
            _finished(batch(), workload, runner)
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    turns = list(zip(contestants, batches, strict=True))
    end = perf_counter() + effort.seconds
    for number in range(effort.rounds):
        if number >= effort.LEAST_ROUNDS and perf_counter() > end:
            break
        first = number % len(turns)
        for contestant, batch in turns[first:] + turns[:first]:
            times[contestant.name].append(_finished(batch(), workload, runner))
    return times


def _finished(result: Any, workload: Workload, runner: asyncio.Runner) -> Any:
    return runner.run(result) if workload.is_async else result


def summary(
    database: str, link: str, workload: Workload, contestants: list[Contestant], times: dict[str, list[float]]
) -> Result:
    """The medians, their ratios and the target."""
    timings = {contestant.name: _timing(contestant, times[contestant.name]) for contestant in contestants}
    ours = {name: timing["median_ms"] for name, timing in timings.items() if timing["is_ours"]}
    (theirs,) = (timing["median_ms"] for timing in timings.values() if not timing["is_ours"])
    ratios = {name: theirs / milliseconds for name, milliseconds in ours.items()}
    target = TARGETS[database].get(workload.name)
    least = target.ratios.get(link) if target else None
    missed = [name for name, ratio in ratios.items() if least is not None and ratio < least]
    if target and target.best_driver and len(missed) < len(ratios):
        missed = []
    return {
        "database": database,
        "link": link,
        "workload": workload.name,
        "contestants": timings,
        "ratios": ratios,
        "target": least,
        "missed": missed,
        "series": list(workload.series) if workload.series else None,
    }


def _timing(contestant: Contestant, times: list[float]) -> Timing:
    lower, _, upper = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "is_ours": contestant.is_ours,
        "median_ms": median(times),
        "lower_quartile_ms": lower,
        "upper_quartile_ms": upper,
        "rounds": len(times),
    }
