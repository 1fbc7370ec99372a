"""The three checkpoint tables as Core tables, which the statements are built on."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import MetaData, Table

from sa_checkpoint import models


@dataclass(frozen=True)
class Tables:
    """One set of checkpoint tables."""

    checkpoints: Table
    blobs: Table
    writes: Table


def metadata_in(schema: str | None) -> MetaData:
    """The models' tables in a schema; without one, the models' own `MetaData`.

    Args:
        schema: None for unqualified tables: the `search_path` or the host's `schema_translate_map` says where they are.
    """
    if schema is None:
        return models.metadata
    metadata = MetaData()
    for table in models.metadata.tables.values():
        table.to_metadata(metadata, schema=schema)
    return metadata


def tables_in(schema: str | None) -> Tables:
    """The tables in a schema."""
    tables = {table.name: table for table in metadata_in(schema).tables.values()}
    return Tables(
        checkpoints=tables[models.Checkpoint.__tablename__],
        blobs=tables[models.CheckpointBlob.__tablename__],
        writes=tables[models.CheckpointWrite.__tablename__],
    )
