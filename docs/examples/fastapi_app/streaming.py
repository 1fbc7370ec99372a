"""The agent's runs, each in a task of its own, and what they say as Server-Sent Events.

A run holds no connection but inside the checkpointer's calls, and does not depend on the client that listens to it: if
that one goes away, the run goes on. If the process ends first, the run can be resumed from its last finished step.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Self, TypeAlias
from uuid import UUID

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot

from .agent import Graph

logger = logging.getLogger(__name__)

Status: TypeAlias = Literal["idle", "running", "waiting_for_approval", "unfinished"]


class Busy(Exception):
    """The conversation has a run under way, or is being copied or deleted."""


class Runs:
    """The runs that are under way in this process: at most one for each conversation.

    Attributes:
        tasks: The tasks of the runs. They are cancelled when the application stops.
    """

    def __init__(self, graph: Graph) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._graph = graph
        self._busy: set[UUID] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        before = asyncio.all_tasks()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        # LangGraph stores that a step was cancelled, too, in a task of its own that it does not wait for.
        if writing := asyncio.all_tasks() - before:
            await asyncio.wait(writing)

    @contextmanager
    def exclusively(self, conversation_id: UUID) -> Iterator[None]:
        """Have a conversation to oneself.

        Raises:
            Busy: Someone else has it.
        """
        if conversation_id in self._busy:
            raise Busy
        self._busy.add(conversation_id)
        try:
            yield
        finally:
            self._busy.remove(conversation_id)

    def status(self, conversation_id: UUID, state: StateSnapshot) -> Status:
        if conversation_id in self._busy:
            return "running"
        return status_at_rest(state)

    def start(self, conversation_id: UUID, graph_input: Any, claim: ExitStack) -> AsyncIterator[str]:
        """Start a run.

        Args:
            conversation_id: Whose run.
            graph_input: What the graph is given; None to go on where it stopped.
            claim: Closed when the run has ended; it lets go of the conversation.

        Returns:
            The run's events. Nobody has to read them.
        """
        events: asyncio.Queue[str | None] = asyncio.Queue()
        task = asyncio.create_task(self._run(conversation_id, graph_input, claim, events))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return read(events)

    async def _run(
        self, conversation_id: UUID, graph_input: Any, claim: ExitStack, events: asyncio.Queue[str | None]
    ) -> None:
        config = thread_config(conversation_id)
        try:
            with claim:
                # A step is stored before the next one starts, so that a table that was booked stays booked.
                stream = self._graph.astream(graph_input, config, stream_mode=["tasks", "messages"], durability="sync")
                async for mode, payload in stream:
                    for name, data in describe(mode, payload):
                        events.put_nowait(server_sent_event(name, data))
                state = await self._graph.aget_state(config)
        except Exception:
            logger.exception("The run of conversation %s failed", conversation_id)
            detail = "The run failed. It can be resumed."  # and no more: what went wrong is for the log
            events.put_nowait(server_sent_event("error", {"detail": detail}))
        else:
            if state.interrupts:
                events.put_nowait(server_sent_event("interrupt", {"questions": questions(state)}))
            events.put_nowait(server_sent_event("done", {"status": status_at_rest(state)}))
        finally:
            events.put_nowait(None)


async def read(events: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (event := await events.get()) is not None:
        yield event


def server_sent_event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def describe(mode: str, payload: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events for one item of LangGraph's stream."""
    if mode == "messages":
        chunk, metadata = payload
        if isinstance(chunk, AIMessageChunk) and chunk.text:
            yield "token", {"step": metadata["langgraph_node"], "text": chunk.text}
    elif "result" not in payload:
        yield "step", {"step": payload["name"], "status": "started"}
    elif not payload["interrupts"] and not payload["error"]:
        for message in payload["result"].get("messages", []):
            if isinstance(message, BaseMessage):
                yield "message", describe_message(message)
        yield "step", {"step": payload["name"], "status": "finished"}


def describe_message(message: BaseMessage) -> dict[str, Any]:
    calls = [{"name": call["name"], "args": call["args"]} for call in getattr(message, "tool_calls", [])]
    return {"id": message.id, "type": message.type, "text": message.text, "tool_calls": calls}


def questions(state: StateSnapshot) -> list[dict[str, Any]]:
    return [{"id": interrupt.id, "question": interrupt.value} for interrupt in state.interrupts]


def status_at_rest(state: StateSnapshot) -> Status:
    """What a thread that nobody runs is in: its latest state has tasks if and only if its last run did not finish."""
    if state.interrupts:
        return "waiting_for_approval"
    return "unfinished" if state.tasks else "idle"


def thread_config(conversation_id: UUID, **configurable: str) -> RunnableConfig:
    return {"configurable": {"thread_id": str(conversation_id), **configurable}}
