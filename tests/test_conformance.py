"""LangGraph's own conformance suite, which says what a checkpointer has to do, on every backend and bind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability, DetectedCapabilities
from langgraph.checkpoint.conformance.report import ProgressCallbacks

from tests.backends import Client, Database, saver_on
from tests.hosts import connection_on, engine_on, maker_on, session_on


@asynccontextmanager
async def sessionmaker_of(engine: Any) -> AsyncIterator[Any]:
    yield maker_on(engine)


BINDS = {"engine": engine_on, "sessionmaker": sessionmaker_of, "connection": connection_on, "session": session_on}


@pytest.mark.parametrize("bind_on", BINDS.values(), ids=BINDS)
async def test_the_saver_conforms(database: Database, bind_on: Callable[[Any], Any]) -> None:
    failures: list[str] = []

    def collect(capability: str, test: str, passed: bool, error: str | None) -> None:
        if not passed:
            failures.append(f"{capability}: {test}\n{error}")

    async with database.engine() as engine, bind_on(engine) as bind:

        @checkpointer_test(name=database.backend.id)
        async def savers() -> AsyncIterator[BaseCheckpointSaver[str]]:
            yield saver_on(bind)

        report = await validate(savers, progress=ProgressCallbacks(on_test_result=collect))

    assert not failures, "\n".join(failures)
    assert report.passed_all_base(), report.to_dict()
    assert report.passed_all(), report.to_dict()
    assert all(result.tests_passed for result in report.results.values() if result.detected), report.to_dict()


async def test_a_capability_of_the_blocking_methods_is_one_of_the_awaited_methods_too(client: Client) -> None:
    # The suite looks at the awaited methods only: a capability that lacks them would go untested.
    saver = type(client.saver)
    blocking = {
        name for name in Capability if getattr(saver, name.value) is not getattr(BaseCheckpointSaver, name.value)
    }

    assert blocking == DetectedCapabilities.from_instance(client.saver).detected
