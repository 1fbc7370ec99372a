"""The maintenance of threads inside the database, where SQL can look into JSON. PostgreSQL and SQLite share it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Executable

from sa_checkpoint import _thread_statements as thread_statements
from sa_checkpoint._statements import JSONStatements
from sa_checkpoint._strategy import Call, Executor, Key, Parameters, Rows, Thread


class SQLStrategy(JSONStatements):
    """A strategy in which sets of rows go to the database as parameters, and it does the rest."""

    def delete_thread(self, executor: Executor, thread_id: str) -> None:
        _run(executor, thread_statements.delete_thread(self), {"thread": thread_id})

    def has_rows(self, executor: Executor, thread_id: str) -> bool:
        rows = executor.fetch(Call(thread_statements.any_row(self), {"thread": thread_id}))
        return any(found for (found,) in rows)

    def copy(self, executor: Executor, source: str, target: str) -> None:
        _run(executor, thread_statements.copy(self), {"source": source, "target": target})

    def threads_of_runs(self, executor: Executor, run_ids: Sequence[str]) -> Sequence[str]:
        call = Call(thread_statements.threads_of_runs(self), self._runs(run_ids))
        return [row.thread_id for row in executor.fetch(call)]

    def checkpoints_of_runs(self, executor: Executor, thread_id: str, run_ids: Sequence[str]) -> Sequence[Key]:
        parameters = {"thread": thread_id, **self._runs(run_ids)}
        rows = executor.fetch(Call(thread_statements.checkpoints_of_runs(self), parameters))
        return [(row.checkpoint_ns, row.checkpoint_id) for row in rows]

    def _runs(self, run_ids: Sequence[str]) -> Parameters:
        return self.row_values("runs", ("run_id",), [(run_id,) for run_id in run_ids])

    def thread(self, executor: Executor, thread_id: str) -> Thread:
        return SQLThread(self, executor, thread_id)

    def delta_history(self, executor: Executor, parameters: Parameters, channels: Sequence[str]) -> Rows:
        checkpoint_id = parameters.get("checkpoint_id")
        return executor.fetch(
            Call(
                thread_statements.delta_history(self, latest=checkpoint_id is None),
                {
                    "thread": parameters["thread_id"],
                    "namespace": parameters["checkpoint_ns"],
                    "checkpoint": checkpoint_id,
                    **self.row_values("channels", ("channel",), [(channel,) for channel in channels]),
                },
                is_constant=True,
            )
        )


class SQLThread(Thread):
    """A thread whose rows stay in the database."""

    def __init__(self, strategy: JSONStatements, executor: Executor, thread_id: str) -> None:
        self.strategy = strategy
        self.executor = executor
        self.thread_id = thread_id

    def outline(self) -> Rows:
        return self._fetch(thread_statements.outline(self.strategy), {})

    def with_sends(self, keys: Sequence[Key]) -> Rows:
        given = self.strategy.row_values("given", thread_statements.DOOMED, keys)
        return self._fetch(thread_statements.with_sends(self.strategy), given)

    def with_values(self, channels: Sequence[tuple[str, str]]) -> Rows:
        given = self.strategy.row_values("given", thread_statements.CHANNELS, channels)
        return self._fetch(thread_statements.with_values(self.strategy), given)

    def channels_of(self, keys: Sequence[Key]) -> Rows:
        given = self.strategy.row_values("given", thread_statements.DOOMED, keys)
        return self._fetch(thread_statements.channels_of(self.strategy), given)

    def delete(self, doomed: Sequence[Key], dead: Sequence[str]) -> None:
        parameters = {
            "thread": self.thread_id,
            **self.strategy.row_values("doomed", thread_statements.DOOMED, doomed),
            **self.strategy.row_values("dead", thread_statements.DEAD, [(ns,) for ns in dead]),
        }
        _run(self.executor, thread_statements.deletion(self.strategy), parameters)

    def _fetch(self, statement: Executable, parameters: Parameters) -> Rows:
        return self.executor.fetch(Call(statement, {"thread": self.thread_id, **parameters}))


def _run(executor: Executor, statements: Sequence[Executable], parameters: Parameters) -> None:
    executor.run(*(Call(statement, parameters, is_constant=True) for statement in statements))
