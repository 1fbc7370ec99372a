"""What the savers' methods do, on every backend."""

from __future__ import annotations

from tests.backends import Client
from tests.checkpoints import checkpoint_of, config_of


async def test_a_checkpoint_comes_back_as_it_was_put(client: Client, thread: str) -> None:
    values = {"text": "hello", "number": 7, "list": [1, {"a": None}], "bytes": b"\x00\xff"}
    checkpoint = checkpoint_of(values)
    saved = await client.put(
        config_of(thread), checkpoint, {"source": "loop", "step": 1}, checkpoint["channel_versions"]
    )
    assert saved == config_of(thread, "", checkpoint["id"])

    found = await client.load(saved)

    assert found.config == saved
    assert found.checkpoint == checkpoint
    assert found.metadata == {"source": "loop", "step": 1}
    assert found.parent_config is None
    assert found.pending_writes == []
