"""The three checkpoint tables as Core tables, which the statements are built on."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Table

from sa_checkpoint import models


@dataclass(frozen=True)
class Tables:
    """One set of checkpoint tables."""

    checkpoints: Table
    blobs: Table
    writes: Table


TABLES = Tables(
    checkpoints=models.metadata.tables[models.Checkpoint.__tablename__],
    blobs=models.metadata.tables[models.CheckpointBlob.__tablename__],
    writes=models.metadata.tables[models.CheckpointWrite.__tablename__],
)
