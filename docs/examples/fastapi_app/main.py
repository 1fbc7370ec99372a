"""A FastAPI application whose agent keeps its conversations in the application's own database.

    uvicorn --factory docs.examples.fastapi_app.main:create_app

from the root of the repository; see README.md beside this file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from langchain_core.language_models import BaseChatModel
from sqlalchemy.ext.asyncio import async_sessionmaker

from sa_checkpoint import AsyncSQLAlchemySaver

from .agent import build_agent, chat_model
from .database import create_engine, upgrade
from .routes import Services, router
from .settings import Settings
from .streaming import Busy, Runs


def create_app(settings: Settings | None = None, model: BaseChatModel | None = None) -> FastAPI:
    """The application.

    Args:
        settings: Those of the environment by default.
        model: The agent's model; the one that the settings name by default.
    """
    settings = settings or Settings.from_environment()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = create_engine(settings)
        try:
            await upgrade(engine)
            saver = AsyncSQLAlchemySaver(engine)
            graph = build_agent(model or chat_model(settings), saver)
            async with Runs(graph) as runs:
                sessions = async_sessionmaker(engine, expire_on_commit=False)
                app.state.services = Services(engine, sessions, saver, graph, runs)
                yield
        finally:
            await engine.dispose()

    app = FastAPI(title="Conversations", lifespan=lifespan)
    app.include_router(router)
    app.add_exception_handler(Busy, answer_busy)
    return app


async def answer_busy(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "The conversation has a run under way."}, status_code=409)
