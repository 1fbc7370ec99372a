"""Measurements of `sa_checkpoint` beside LangGraph's own checkpointers: `python -m benchmarks --help`.

They need the dependency group `bench`. Nothing in here is part of the package, and no test depends on it.
"""
