"""What requests and responses look like."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, StringConstraints

from .streaming import Status

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)]


class NewUser(BaseModel):
    name: Text


class UserOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str


class NewConversation(BaseModel):
    title: Text


class NewMessage(BaseModel):
    text: Text


class Resume(BaseModel):
    """The answer to the question that the agent asks, or none to go on with a run that did not finish."""

    answer: str | None = None


class Fork(BaseModel):
    """The title of the copy, and the checkpoint that it goes on from: the latest one if none is given."""

    title: Text
    checkpoint_id: str | None = None


class ConversationOut(BaseModel):
    id: UUID
    title: str
    status: Status


class Message(BaseModel):
    id: str | None
    type: str
    text: str
    tool_calls: list[dict[str, Any]]


class Question(BaseModel):
    id: str
    question: Any


class CheckpointOut(BaseModel):
    id: str
    created_at: str | None
    next: list[str]
    messages: int


class ConversationDetail(ConversationOut):
    messages: list[Message]
    questions: list[Question]
    history: list[CheckpointOut]
