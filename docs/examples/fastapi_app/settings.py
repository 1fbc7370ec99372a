"""What may differ from one deployment to the next, read from the environment.

The plain names of a database stand for its async driver here: `sqlite://` for aiosqlite, `postgresql://` and
`postgres://` for psycopg. A URL that names an async driver, such as `postgresql+asyncpg://`, is taken as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

from sqlalchemy import URL, make_url

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}


def parse_url(url: str) -> URL:
    parsed = make_url(url)
    return parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))


@dataclass(frozen=True)
class Settings:
    """The application's settings; the environment's name of each is in `from_environment`."""

    database_url: URL
    chat_model: str | None = None
    seconds_per_word: float = 0.0
    pool_size: int = 5
    pool_timeout: float = 30.0

    @classmethod
    def from_environment(cls) -> Self:
        return cls(
            database_url=parse_url(os.environ.get("DATABASE_URL") or "sqlite:///app.db"),
            chat_model=os.environ.get("CHAT_MODEL"),
            seconds_per_word=float(os.environ.get("SECONDS_PER_WORD") or 0.1),
        )
