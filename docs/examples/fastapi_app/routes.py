"""The endpoints.

None of them holds a session or a connection while the agent works: sessions are opened in short blocks, and not by a
dependency that yields one, which FastAPI would keep until the last event of a stream has been sent.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from langchain_core.messages import HumanMessage
from langgraph.types import Command, StateSnapshot
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from sa_checkpoint import AsyncSQLAlchemySaver

from .agent import Graph
from .models import Conversation, User
from .schemas import (
    CheckpointOut,
    ConversationDetail,
    ConversationOut,
    Fork,
    Message,
    NewConversation,
    NewMessage,
    NewUser,
    Question,
    Resume,
    UserOut,
)
from .streaming import Runs, describe_message, questions, thread_config

router = APIRouter()


@dataclass(frozen=True)
class Services:
    """What the application makes when it starts."""

    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    saver: AsyncSQLAlchemySaver
    graph: Graph
    runs: Runs


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


App = Annotated[Services, Depends(get_services)]
Limit = Annotated[int, Query(ge=1, le=100)]
Offset = Annotated[int, Query(ge=0)]


async def find_user(session: AsyncSession, user_id: UUID) -> User:
    user = await session.get(User, user_id)
    if user is None:
        raise HTTPException(404, "There is no such user.")
    return user


async def find_conversation(session: AsyncSession, conversation_id: UUID) -> Conversation:
    conversation = await session.get(Conversation, conversation_id)
    if conversation is None:
        raise HTTPException(404, "There is no such conversation.")
    return conversation


@router.post("/users", status_code=201)
async def create_user(body: NewUser, app: App) -> UserOut:
    user = User(name=body.name)
    try:
        async with app.sessions.begin() as session:
            session.add(user)
    except IntegrityError:
        raise HTTPException(409, "There is a user of this name.") from None
    return UserOut.model_validate(user)


@router.post("/users/{user_id}/conversations", status_code=201)
async def create_conversation(user_id: UUID, body: NewConversation, app: App) -> ConversationOut:
    conversation = Conversation(user_id=user_id, title=body.title)
    async with app.sessions.begin() as session:
        await find_user(session, user_id)
        session.add(conversation)
    return ConversationOut(id=conversation.id, title=conversation.title, status="idle")


@router.get("/users/{user_id}/conversations")
async def list_conversations(user_id: UUID, app: App, limit: Limit = 20, offset: Offset = 0) -> list[ConversationOut]:
    """A page of a user's conversations, newest first."""
    page = select(Conversation).where(Conversation.user_id == user_id)
    page = page.order_by(Conversation.created_at.desc(), Conversation.id).limit(limit).offset(offset)
    async with app.sessions() as session:
        await find_user(session, user_id)
        conversations = (await session.scalars(page)).all()
    states = [await app.graph.aget_state(thread_config(conversation.id)) for conversation in conversations]
    return [
        ConversationOut(id=conversation.id, title=conversation.title, status=app.runs.status(conversation.id, state))
        for conversation, state in zip(conversations, states, strict=True)
    ]


@router.get("/conversations/{conversation_id}")
async def read_conversation(conversation_id: UUID, app: App, history: Limit = 20) -> ConversationDetail:
    """A conversation with its messages and its latest checkpoints."""
    async with app.sessions() as session:
        conversation = await find_conversation(session, conversation_id)
    config = thread_config(conversation_id)
    state = await app.graph.aget_state(config)
    return ConversationDetail(
        id=conversation.id,
        title=conversation.title,
        status=app.runs.status(conversation_id, state),
        messages=[Message(**describe_message(message)) for message in state.values.get("messages", [])],
        questions=[Question(**question) for question in questions(state)],
        history=[
            CheckpointOut(
                id=past.config["configurable"]["checkpoint_id"],
                created_at=past.created_at,
                next=list(past.next),
                messages=len(past.values.get("messages", [])),
            )
            async for past in app.graph.aget_state_history(config, limit=history)
        ],
    )


@router.post("/conversations/{conversation_id}/messages")
async def send_message(conversation_id: UUID, body: NewMessage, app: App) -> StreamingResponse:
    """Give the agent a message, and stream what it does."""

    def graph_input(state: StateSnapshot) -> Any:
        if state.interrupts:
            raise HTTPException(409, "The agent waits for an answer: resume with it first.")
        if state.tasks:
            raise HTTPException(409, "The last run did not finish: resume it first.")
        return {"messages": [HumanMessage(body.text)]}

    return await stream_run(app, conversation_id, graph_input)


@router.post("/conversations/{conversation_id}/resume")
async def resume(conversation_id: UUID, body: Resume, app: App) -> StreamingResponse:
    """Answer the agent's question, or go on with a run that did not finish; and stream what it does."""

    def graph_input(state: StateSnapshot) -> Any:
        if state.interrupts and body.answer is None:
            raise HTTPException(409, "The agent waits for an answer: give one.")
        if state.interrupts:
            # This agent asks one question at a time. Of one that asks several at once, this is the answer to them all.
            return Command(resume={interrupt.id: body.answer for interrupt in state.interrupts})
        if body.answer is not None:
            raise HTTPException(409, "The agent does not wait for an answer.")
        if not state.tasks:
            raise HTTPException(409, "There is nothing to resume.")
        return None

    return await stream_run(app, conversation_id, graph_input)


async def stream_run(
    app: Services, conversation_id: UUID, graph_input: Callable[[StateSnapshot], Any]
) -> StreamingResponse:
    """Start a run, if its conversation is free and its state allows it."""
    with ExitStack() as claim:
        claim.enter_context(app.runs.exclusively(conversation_id))
        async with app.sessions() as session:
            await find_conversation(session, conversation_id)
        state = await app.graph.aget_state(thread_config(conversation_id))
        events = app.runs.start(conversation_id, graph_input(state), claim.pop_all())
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


@router.post("/conversations/{conversation_id}/fork", status_code=201)
async def fork_conversation(conversation_id: UUID, body: Fork, app: App) -> ConversationOut:
    """Copy a conversation with its whole thread, in one transaction."""
    with app.runs.exclusively(conversation_id):
        async with app.sessions.begin() as session:
            original = await find_conversation(session, conversation_id)
            copy = Conversation(user_id=original.user_id, title=body.title)
            session.add(copy)
            await session.flush()
            saver = app.saver.using(session)
            await saver.acopy_thread(original.thread_id, copy.thread_id)
            if body.checkpoint_id is not None:
                await go_back(app.graph.copy({"checkpointer": saver}), copy.id, body.checkpoint_id)
    state = await app.graph.aget_state(thread_config(copy.id))
    return ConversationOut(id=copy.id, title=copy.title, status=app.runs.status(copy.id, state))


async def go_back(graph: Graph, conversation_id: UUID, checkpoint_id: str) -> None:
    """Make a copy of an earlier checkpoint the latest one of its thread."""
    config = thread_config(conversation_id, checkpoint_id=checkpoint_id)
    if (await graph.aget_state(config)).created_at is None:
        raise HTTPException(404, "The conversation has no such checkpoint.")
    await graph.aupdate_state(config, None, as_node="__copy__")  # LangGraph's word for a copy as it is


@router.delete("/conversations/{conversation_id}", status_code=204)
async def delete_conversation(conversation_id: UUID, app: App) -> None:
    """Delete a conversation and its thread, in one transaction."""
    with app.runs.exclusively(conversation_id):
        async with app.sessions.begin() as session:
            conversation = await find_conversation(session, conversation_id)
            await app.saver.using(session).adelete_thread(conversation.thread_id)
            await session.delete(conversation)
