# Two commands from a fresh clone: `make run` (a cluster, a console, a training to steer) and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/gpt2-local.yaml
WORKERS ?= 2
SOURCES := steerway control_plane ray_jobs ui cluster benchmarks tests

.PHONY: help run test test-slow check format bench gpu-check rehearsal clean

help:
	@echo "make run [UNATTENDED=1] [CONFIG=...]   a local cluster, the gateway, the console, and a training to steer"
	@echo "make test [WORKERS=2]                  every test but the slow soaks, in so many processes"
	@echo "make test-slow                         the soaks"
	@echo "make check                             format, lint, types, import contracts, known vulnerabilities"
	@echo "make bench NAME=overhead               one benchmark; the last line is JSON"
	@echo "make gpu-check [GPU_CHECK=--rehearse]  the check on one GPU, with the packages that PYTHON has; installs nothing"
	@echo "make rehearsal                         three machines and a laptop as namespaces, with faults: root, 15 minutes"
	@echo "make clean                             remove the environment and every cache"

run: $(VENV)/.ready
	@$(BIN)/steer run $(CONFIG) $(if $(UNATTENDED),--unattended)

test: $(VENV)/.ready chromium
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --durations=20

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.ready
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.architecture.advisories

format: $(VENV)/.ready
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(VENV)/.ready
	@test -n "$(NAME)" || { $(BIN)/python -m benchmarks --list; exit 2; }
	@$(BIN)/python -m benchmarks $(NAME) --json

rehearsal: $(VENV)/.ready
	@$(BIN)/python -m benchmarks.rehearsal --keep --write docs/rehearsal.md

# A GPU machine brings its own torch and may have no network: no environment is built for this.
gpu-check:
	@PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m benchmarks.gpu $(GPU_CHECK)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Steerway needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

# The console is tested in a real browser.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || { \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update -qq && $$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; }

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
