# What a developer and CI run. Everything is installed into virtual environments beside this file.

PYTHON ?= python3
VENV := .venv
FLOOR := .venv-floor
EXTRAS := postgres,psycopg2,asyncpg,mysql,mysql-async,sqlite-async,cli
URL ?= sqlite:///checkpoints.db
QUICKSTART ?=
BENCH ?=
# How many processes test, each with servers of its own.
WORKERS ?= 2

.PHONY: install quickstart app docs test test-floor bench lint format clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --editable '.[$(EXTRAS)]' --group dev
	touch $@

# An agent that remembers across a restart. Elsewhere than on SQLite: make quickstart URL=postgresql://… QUICKSTART=--async
quickstart: install
	$(VENV)/bin/python docs/examples/quickstart.py --url '$(URL)' $(QUICKSTART)

# A FastAPI application with an agent, on http://127.0.0.1:8000. Elsewhere than on SQLite: make app URL=postgresql://…
app: install
	DATABASE_URL='$(URL)' $(VENV)/bin/uvicorn --factory docs.examples.fastapi_app.main:create_app \
		--timeout-graceful-shutdown 5

# The site in docs/_build/html. Anew each time: an old environment warns of pages that have moved.
docs: install
	$(VENV)/bin/sphinx-build -E -W --keep-going -n -b html docs docs/_build/html

test: install
	$(VENV)/bin/python -m pytest -n $(WORKERS)

NOT_ON_FLOOR := benchmarks event_loop fastapi_app memory quickstart server

# The same tests on the lowest versions that pyproject.toml allows, but for the examples, what is measured, and the
# forced fallback.
$(FLOOR)/installed: pyproject.toml
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/pip install --quiet uv
	$(FLOOR)/bin/uv pip compile --quiet --python $(FLOOR)/bin/python --resolution lowest-direct --no-deps \
		pyproject.toml $(patsubst %,--extra %,$(subst $(comma), ,$(EXTRAS))) --output-file $(FLOOR)/lowest.txt
	$(FLOOR)/bin/uv pip install --quiet --python $(FLOOR)/bin/python --editable '.[$(EXTRAS)]' --group dev \
		--override $(FLOOR)/lowest.txt
	touch $@

comma := ,

test-floor: $(FLOOR)/installed
	$(FLOOR)/bin/python -m pytest -n $(WORKERS) -k 'not portable' $(patsubst %,--ignore=tests/test_%.py,$(NOT_ON_FLOOR))

# Ours beside LangGraph's own savers, interleaved, and the figures drawn. Less of it: make bench BENCH='--quick --only put'
bench: install
	$(VENV)/bin/python -m benchmarks run $(BENCH) --json docs/_static/benchmarks/results.json
	$(VENV)/bin/python -m benchmarks plot docs/_static/benchmarks/results.json --output docs/_static/benchmarks

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(FLOOR) build dist docs/_build .mypy_cache .ruff_cache .pytest_cache
