"""A graph for `langgraph dev`: it drafts and reviews a text twice, and stops to ask whether to publish it.

It is compiled without a checkpointer: the server brings the one that `langgraph.json` names.
"""

from __future__ import annotations

import asyncio
from operator import add
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt

ROUNDS = 2


class Text(TypedDict, total=False):
    """What was done so far, and how long a review takes."""

    log: Annotated[list[str], add]
    round: int
    seconds: float


def draft(state: Text) -> dict[str, Any]:
    return {"log": ["draft"], "round": state.get("round", 0) % ROUNDS + 1}


async def review(state: Text) -> dict[str, Any]:
    await asyncio.sleep(state.get("seconds", 0))
    return {"log": ["review"]}


def publish(state: Text) -> dict[str, Any]:
    return {"log": [f"publish: {interrupt('Publish it?')}"]}


def after_review(state: Text) -> str:
    return "draft" if state["round"] < ROUNDS else "publish"


builder = StateGraph(Text)
builder.add_node("draft", draft).add_node("review", review).add_node("publish", publish)
builder.add_edge(START, "draft").add_edge("draft", "review").add_edge("publish", END)
builder.add_conditional_edges("review", after_review, ["draft", "publish"])
graph = builder.compile()
