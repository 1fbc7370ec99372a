"""The code blocks of a Markdown page, and running them one after another as a reader would.

What happens to a block depends on its language; one in a language that is not known here fails.

- `python`: run in the namespace of its page, where `await` may stand at the top level. With a first line such as
  `# app.py` it is written to that file instead.
- `ini`: written to the file that its first line names, or merged into it.
- `console`: the commands are run, with the wheel installed. If the page shows output, it has to be the real one.
- `text`: what the block before it printed.
- `sql`: run on PostgreSQL.
- `json`: parsed, and kept for the checks.
- Sphinx's directives: built by `make docs`.

`postgresql+psycopg://user:password@host/app`, with that driver or another of PostgreSQL's or MySQL's, stands for the
story's own database.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from configparser import ConfigParser
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import alembic
from markdown_it import MarkdownIt
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

ROOT = Path(__file__).parent.parent
ALEMBIC = tuple(int(number) for number in alembic.__version__.split(".")[:2])
DIRECTIVES = {"{eval-rst}", "{include}", "{literalinclude}", "{toctree}"}

# Commands that are not run here, by how they begin.
NOT_RUN = {
    "pip install": "tests/test_wheel.py installs the wheel with its extras",
    "make": "make test is what runs this, and .ci/run the others",
    "langgraph dev": "it runs until it is stopped; tests/test_server.py starts it",
}

_PLACEHOLDER = re.compile(r"((?:postgresql|mysql)(?:\+\w+)?)://user:password@host/app")
_ON_SQLITE = {"postgresql+asyncpg": "sqlite+aiosqlite"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, the first word after the fence, and the text inside."""

    page: str
    line: int
    section: str
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the block is, if its first line says so."""
        named = re.match(r"# ([\w/]+\.(?:py|ini))$", self.text.splitlines()[0] if self.text else "")
        return named[1] if named else None


def pages() -> list[str]:
    """The README and all pages of the docs, by their paths in the checkout."""
    docs = sorted((ROOT / "docs").rglob("*.md"))
    own = [path for path in docs if not {"_build", "examples"} & set(path.relative_to(ROOT).parts)]
    return [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *own)]


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page, each with the heading of the second level that it stands under."""
    found: list[Block] = []
    section = ""
    tokens = MarkdownIt().parse((ROOT / page).read_text())
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and token.tag == "h2" and following:
            section = following.content
        elif token.type in ("fence", "code_block"):
            language = (token.info.split() or ["no language"])[0]
            found.append(Block(page, (token.map or [0])[0] + 1, section, language, token.content))
    return found


def commands_of(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = re.sub(r"\\\n\s*", "", part).partition("\n")
        yield command, output


def not_run(command: str) -> str | None:
    """The beginning in `NOT_RUN` that a command has, whatever variables it sets before."""
    program = re.sub(r"^(\w+=\S+ )+", "", command)
    return next((start for start in NOT_RUN if program.startswith(start)), None)


_FORKS = """
import json, os, sys
from importlib.metadata import entry_points
import alembic.config, sa_checkpoint.cli, sqlalchemy.dialects.postgresql.psycopg, sqlalchemy.ext.asyncio

scripts = entry_points(group="console_scripts")
for line in sys.stdin:
    words, folder, environment, streams = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(folder)
    os.environ.update(environment)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = words
    (script,) = scripts.select(name=words[0])
    sys.exit(script.load()())
"""


class Commands:
    """The commands of installed packages, each in a fork of one process that has imported what takes most time.

    Args:
        installed: A folder with what the wheel installs. An editable install has the revisions elsewhere.
    """

    def __init__(self, installed: Path) -> None:
        self._streams = [str(installed.parent / name) for name in ("stdout", "stderr")]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORKS],
            env={**os.environ, "PYTHONPATH": str(installed)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str, str]:
        """Run a command; returns its exit status, and what it wrote to stdout and stderr."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([words, str(folder), environment, self._streams]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        stdout, stderr = (Path(path).read_text() for path in self._streams)
        return status, stdout, stderr

    def close(self) -> None:
        self._process.communicate()


@dataclass
class Story:
    """A reader who follows a page: with a database, a folder, the names defined so far, and what was printed last."""

    url: URL
    folder: Path
    commands: Callable[[], Commands]
    module: ModuleType
    printed: str = ""
    documents: list[Any] = field(default_factory=list)
    engines: list[Engine | AsyncEngine] = field(default_factory=list)

    @property
    def names(self) -> dict[str, Any]:
        return vars(self.module)

    def give(self, name: str, value: Any) -> None:
        """Define a name that the page takes as given."""
        self.names[name] = value
        self._keep_engines({name: value})

    def url_for(self, drivername: str) -> str:
        """The story's database, as a URL for this driver of PostgreSQL's or for what does the same on SQLite."""
        if self.url.get_backend_name() == "sqlite":
            drivername = _ON_SQLITE.get(drivername, "sqlite")
        return self.url.set(drivername=drivername).render_as_string(hide_password=False)

    def real(self, text: str) -> str:
        """A text with the story's database in the place of the one that stands for it."""
        return _PLACEHOLDER.sub(lambda match: self.url_for(match[1]), text)

    async def follow(self, block: Block) -> None:
        """Do with a block what its language says."""
        if block.language in DIRECTIVES:
            return
        ways: Mapping[str, Any] = {
            "console": self._console,
            "ini": self._ini,
            "json": self._json,
            "python": self._python,
            "sql": self._sql,
            "text": self._text,
        }
        assert block.language in ways, f"{block.place}: nothing is known about running {block.language!r}"
        await ways[block.language](block)

    async def close(self) -> None:
        for engine in self.engines:
            if isinstance(engine, AsyncEngine):
                await engine.dispose()
            else:
                engine.dispose()

    def _keep_engines(self, names: Mapping[str, Any]) -> None:
        found = [value for value in names.values() if isinstance(value, Engine | AsyncEngine)]
        self.engines += [engine for engine in found if not any(engine is known for known in self.engines)]

    async def _python(self, block: Block) -> None:
        text = self.real(block.text)
        if block.file:
            self._write(block.file, text)
            return
        # With the page's own line numbers, for tracebacks.
        source = "\n" * block.line + text
        code = compile(source, str(ROOT / block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with redirect_stdout(io.StringIO()) as output:
            try:
                result = eval(code, self.names)
                if inspect.iscoroutine(result):
                    await result
            finally:
                self._keep_engines(self.names)
        self.printed = output.getvalue()

    async def _ini(self, block: Block) -> None:
        assert block.file, f"{block.place}: the first line has to name the file"
        path = self.folder / block.file
        parser = ConfigParser(interpolation=None)
        parser.read(path)
        parser.read_string(_PLACEHOLDER.sub(lambda match: self.url_for(match[1]).replace("%", "%%"), block.text))
        if ALEMBIC < (1, 16) and parser.has_option("alembic", "path_separator"):
            # As the page says.
            parser.set("alembic", "version_path_separator", parser.get("alembic", "path_separator"))
        with path.open("w") as file:
            parser.write(file)

    async def _json(self, block: Block) -> None:
        self.documents.append(json.loads(block.text))

    async def _text(self, block: Block) -> None:
        assert self.printed.strip() == block.text.strip(), block.place

    async def _sql(self, block: Block) -> None:
        assert self.url.get_backend_name() == "postgresql", f"{block.place}: SQL is for PostgreSQL"
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in block.text.split(";\n"):
                if statement.strip():
                    connection.exec_driver_sql(statement)
        engine.dispose()

    async def _console(self, block: Block) -> None:
        for command, output in commands_of(block.text):
            if not_run(command):
                continue
            words = shlex.split(self.real(command), comments=True)
            if words[0] == "python":
                self._run_program(words[1:])
            else:
                self._run_command(block, words)
            if output:
                assert self.printed.strip() == output.strip(), f"{block.place}: {command}"

    def _run_program(self, arguments: list[str]) -> None:
        """Run a Python file of the story's in this process, which has imported what takes a program's time."""
        before = dict(sys.modules)
        old_argv, old_path = sys.argv, sys.path
        sys.argv, sys.path = arguments, [str(self.folder), *sys.path]
        try:
            with redirect_stdout(io.StringIO()) as output:
                self._keep_engines(runpy.run_path(str(self.folder / arguments[0]), run_name="__main__"))
        finally:
            sys.argv, sys.path = old_argv, old_path
            for name in sys.modules.keys() - before.keys():
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(self.folder)):
                    self._keep_engines(vars(sys.modules.pop(name)))
        self.printed = output.getvalue()

    def _run_command(self, block: Block, words: list[str]) -> None:
        # Without an alembic.ini of a host's, the command is one for a checkout.
        is_for_checkout = words[0] == "alembic" and not (self.folder / "alembic.ini").exists()
        variables = {"SA_CHECKPOINT_URL": self.url_for("postgresql")}
        status, stdout, stderr = self.commands().run(words, ROOT if is_for_checkout else self.folder, variables)
        assert status == 0, f"{block.place}: {shlex.join(words)}\n{stdout}{stderr}"
        self.printed = stdout

    def _write(self, file: str, text: str) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
