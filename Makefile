# What people type. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
OTHER_VENV := .venv-other
AGENTS := .venv-agents
OTHER ?= $(BIN)/python

# uv is only the installer here: it writes lock files without hosts or paths, and the same ones every time.
COMPILE := $(BIN)/uv --quiet pip compile --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-annotate --no-header

# Processes of tests keep the bytecode that they compile. Otherwise each of hundreds compiles the same code.
unexport PYTHONDONTWRITEBYTECODE

# A file's tests share its servers. tests/conftest.py chooses how many processes there are and which files begin.
PARALLEL := --numprocesses=auto --dist=loadfile --no-loadscope-reorder
PYTEST := $(BIN)/pytest $(PARALLEL)

# What is tested on another Python, and with the oldest dependencies: it calls all of them.
OTHER_TESTS ?= tests/unit tests/activities tests/ledger

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all test-python test-lowest test-agents browser postgres-tools check docs format bench bench-agents bench-docs peers chaos lock lock-peers upgrade clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## create .venv with everything, exactly as pinned in requirements.lock

demo: setup ## run one task on this machine, with two failures on the way, and show each attempt
	@$(BIN)/tasq demo $(DEMO_ARGS)

test: setup postgres-tools ## run all tests except the slow ones, under five minutes on two cores (PYTEST_ARGS="-k name -x" to choose)
	PROCESSES_A_CORE=3 $(PYTEST) -m "not (browser or crash or outage or slow or upgrade)" $(PYTEST_ARGS)

test-all: setup browser postgres-tools ## run all tests, those with browsers, crashes, outages and upgrades too
	$(PYTEST) $(PYTEST_ARGS)

test-python: other-venv postgres-tools ## run the unit, activity and ledger tests on another Python (OTHER=python3.13)
	$(OTHER_VENV)/bin/pytest $(PARALLEL) $(OTHER_TESTS) $(PYTEST_ARGS)

test-lowest: other-venv postgres-tools ## run the same tests with the oldest dependencies that pyproject.toml allows
	$(BIN)/uv pip install --quiet --python $(OTHER_VENV)/bin/python --require-hashes --no-build -r requirements-lowest.lock
	$(OTHER_VENV)/bin/pytest $(PARALLEL) $(OTHER_TESTS) $(PYTEST_ARGS)

test-agents: $(AGENTS)/.installed ## run the tests with agents of Pydantic AI and the OpenAI Agents SDK, in an environment of their own
	$(AGENTS)/bin/pytest $(PARALLEL) tests/agents $(PYTEST_ARGS)

.PHONY: other-venv
other-venv: $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python "$(OTHER)" $(OTHER_VENV)
	$(BIN)/uv pip sync --quiet --python $(OTHER_VENV)/bin/python --require-hashes --no-build requirements.lock
	$(BIN)/uv pip install --quiet --python $(OTHER_VENV)/bin/python --no-deps --no-build-isolation --editable .

check: setup ## formatter, linter, types, layers, unused dependencies, exports, the documentation's links and code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/pytest --quiet tests/unit/test_exports.py tests/readme

docs: setup ## build the documentation as a site into build/docs; a warning or a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open build/docs/index.html"

format: setup ## format the code and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure what docs/reference/performance.md shows, an hour and a quarter (BENCH_ARGS="--quick", "--only ledger,peers", "--all", "--help")
	$(BIN)/python -m benchmarks.suite $(BENCH_ARGS)

bench-agents: $(AGENTS)/.installed ## measure an agent with tools beside the same one on Pydantic AI and the OpenAI Agents SDK
	$(AGENTS)/bin/python -m benchmarks.agents $(BENCH_ARGS)

peers: setup $(PEERS)/.installed ## install what `make bench` measures us beside: DBOS, Restate (needs npm)

bench-docs: peers ## write the results of `make bench` into docs/reference/performance.md, with the plots
	$(BIN)/python -m benchmarks.page
	$(PEERS)/bin/python -m benchmarks.plots

chaos: setup ## kill, stop and cut off the parts while tasks run (CHAOS_ARGS="--seed 7 --tasks 2000 --faults 300", "--shapes any")
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

lock: $(BIN)/uv ## pin the dependencies of pyproject.toml again, keeping versions where possible
	$(COMPILE) $(LOCK_ARGS) --all-extras --group dev -o requirements.lock pyproject.toml
	$(COMPILE) -c requirements.lock --extra worker -o requirements-worker.lock pyproject.toml
	$(COMPILE) --resolution lowest-direct --extra worker -o requirements-lowest.lock pyproject.toml
	$(COMPILE) -c requirements.lock --group build -o requirements-build.lock
	$(COMPILE) $(LOCK_ARGS) -c requirements.lock --extra worker --group agents --group build -o requirements-agents.lock pyproject.toml

lock-peers: $(BIN)/uv ## pin again what `make peers` installs; after lock or upgrade (needs npm)
	$(COMPILE) $(LOCK_ARGS) -c requirements.lock -o benchmarks/peers/requirements.lock benchmarks/peers/requirements.in
	cd benchmarks/peers && npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

upgrade: ## like lock, with the newest versions that fit
	@$(MAKE) lock LOCK_ARGS=--upgrade

clean: ## remove .venv and everything the tools left behind
	rm -rf $(VENV) $(PEERS) $(OTHER_VENV) $(AGENTS) benchmarks/peers/node_modules build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv: requirements-build.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "tasquencer needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
			"Try: make PYTHON=python3.13 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-build.lock
	@touch $@

$(STAMP): $(BIN)/uv pyproject.toml requirements.lock
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --no-build --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# Other people's agent frameworks, with the product: never in its own environment.
$(AGENTS)/.installed: $(BIN)/uv pyproject.toml requirements-agents.lock
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(AGENTS)
	$(BIN)/uv pip sync --quiet --python $(AGENTS)/bin/python --require-hashes --no-build requirements-agents.lock
	$(BIN)/uv pip install --quiet --python $(AGENTS)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

# What the product is measured beside, and what draws the plots: never in the product's own environment.
# Without scripts: the one of Restate's package reports the installation to somebody.
$(PEERS)/.installed: $(BIN)/uv benchmarks/peers/requirements.lock benchmarks/peers/package-lock.json
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(PEERS)
	$(BIN)/uv pip sync --python $(PEERS)/bin/python --require-hashes --no-build benchmarks/peers/requirements.lock
	npm ci --prefix benchmarks/peers --ignore-scripts --no-audit --no-fund
	@touch $@

# What tests need beside Python packages, installed where apt-get and its rights allow it.
define INSTALL
if [ "$$(id -u)" = 0 ]; then sudo=""; \
elif sudo -n true 2>/dev/null; then sudo="sudo -n"; \
else sudo="no"; fi; \
apt() { $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$$@" >/dev/null; }; \
if [ "$$sudo" != no ] && command -v apt-get >/dev/null && apt update && apt install --no-install-recommends -y
endef

# Temporal's Web UI in a real browser.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then exit 0; fi; \
	$(INSTALL) chromium fonts-liberation; \
	then command -v chromium; \
	else echo "No Chromium or Chrome here, and it could not be installed: the browser test will not run." >&2; fi

# A pooler for the ledger, and PostgreSQL's command-line client.
postgres-tools:
	@if { command -v pgbouncer || command -v /usr/sbin/pgbouncer; } && command -v psql; then exit 0; fi; \
	$(INSTALL) pgbouncer postgresql-client; \
	then command -v pgbouncer || command -v /usr/sbin/pgbouncer; command -v psql; \
	else echo "No pgbouncer or psql here, and they could not be installed: their tests will not run." >&2; fi
