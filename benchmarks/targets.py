"""How many times as fast as its peer each workload is meant to be, by link. The report marks what falls short."""

from __future__ import annotations

from dataclasses import dataclass

LINKS = {"socket": 0.0, "1ms": 1.0, "5ms": 5.0}
"""The round-trip time in milliseconds that each link adds."""

FILE = "file"
"""The link of SQLite, which has none."""


@dataclass(frozen=True)
class Target:
    """The least ratio of the peer's time to ours, by link."""

    ratios: dict[str, float]
    best_driver: bool = False
    """Whether it is enough that one of our drivers reaches it."""


def _by_link(*ratios: float, best_driver: bool = False) -> Target:
    return Target(dict(zip(LINKS, ratios, strict=False)), best_driver)


def _each(names: tuple[str, ...], target: Target) -> dict[str, Target]:
    return dict.fromkeys(names, target)


_CALLS = ("put", "put_writes", "get_tuple")
_ASYNC_CALLS = ("aput", "aput_writes", "aget_tuple")

TARGETS: dict[str, dict[str, Target]] = {
    "postgresql": {
        **_each(_CALLS, _by_link(1.2, 1.1, 1.05)),
        **_each(tuple(f"{call}, 1 task" for call in _ASYNC_CALLS), _by_link(1.2, 1.1, 1.05, best_driver=True)),
        **_each(tuple(f"{call}, 32 tasks" for call in _ASYNC_CALLS), _by_link(2, 4, 6)),
        "64 puts by 16 threads": _by_link(1.8, 4, 6),
        "list of 100": _by_link(1.5, 1.5),
        **_each(("graph of 10 steps, sync", "graph of 10 steps, async"), _by_link(1.2, 1.2)),
        "delta history of 500 ancestors": _by_link(1),
        "prune of 1,000 checkpoints": _by_link(1.5),
        "copy of 1,000 checkpoints": _by_link(10),
    },
    "sqlite": {
        **_each((*_CALLS, "list of 100", "list(limit=1)"), Target({FILE: 1})),
        "64 puts by 16 threads": Target({FILE: 1.5}),
    },
    "mysql": _each((*_CALLS, "list of 100", "list(limit=1)"), _by_link(1.2, 1.2)),
}
"""By database and workload."""
