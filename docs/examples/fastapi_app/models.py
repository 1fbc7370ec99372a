"""The application's own tables. A conversation's id is also the id of its LangGraph thread.

No foreign key leads to the checkpoint tables: what belongs together is written and deleted in one transaction, in
`routes`.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import DateTime, ForeignKey, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """What the application's Alembic project compares with the database."""


class User(Base):
    """Someone who has conversations."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)


class Conversation(Base):
    """A conversation of a user with the agent. Its messages are in the checkpoints of its thread."""

    __tablename__ = "conversations"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    title: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @property
    def thread_id(self) -> str:
        return str(self.id)
