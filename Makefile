# Every target makes its own .venv from a bare python3 when it is missing; outside this folder
# only the usual caches and temporary folders are written.
# `make` alone lists the targets.

PYTHON ?= python3
PYTEST_ARGS ?=
# So many processes share the tests; 0: none but make's own, as `--pdb` needs.
WORKERS ?= auto
DEMO_ARGS ?=
BENCH_ARGS ?=
E2E_ARGS ?=
# What `make bench` runs after the timed functions in bench_*.py: whole programs that print their own tables.
BENCH_SCRIPTS ?= $(wildcard benchmarks/replay*.py)

BIN := .venv/bin
# A stamp carries this folder's name as a checksum: a copied clone does not trust a copied .venv, whose
# editable install still points at the original.
HERE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
CLI := .venv/.cli-$(HERE)
DEV := .venv/.dev-$(HERE)
PEERS := .venv/.peers-$(HERE)
SAY := @printf -- '-- %s\n'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check check-long bench docs e2e clean venv lint format types layers changelog doctest wheel oldest

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | while IFS='	' read -r name words; do printf '  make %-10s %s\n' "$$name" "$$words"; done

demo: $(CLI)  ## compare policies on the embedded workload: a table, and a picture in build/demo
	$(BIN)/inferencesched compare --out build/demo $(DEMO_ARGS)

test: $(DEV)  ## tests, doctests of every module, code blocks of the README and the docs
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --doctest-modules $(wildcard README.md) docs src tests $(PYTEST_ARGS)

check: lint types layers changelog doctest docs wheel  ## all that must be clean: style, types, layers, changelog, doctests, docs, wheel
	$(SAY) 'make check: clean'

check-long: $(DEV)  ## the laws of flow control on 2,000 traces each
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -q $(wildcard tests/test_flow_*.py) $(PYTEST_ARGS)

bench: $(DEV) $(PEERS)  ## benchmarks, then the replays against other programs
	$(SAY) 'timed functions: benchmarks/bench_*.py'
	@$(BIN)/python -m pytest benchmarks --benchmark-only -o python_files='bench_*.py' -o python_functions='bench_* test_*' \
	    $(BENCH_ARGS) || { code=$$?; test $$code -eq 5 && echo 'no timed functions yet'; }
	@for script in $(BENCH_SCRIPTS); do printf -- '-- %s\n' "$$script"; $(BIN)/python "$$script" || exit; done

docs: $(DEV)  ## the documentation, in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html
	$(SAY) 'open docs/_build/html/index.html'

e2e: $(DEV)  ## heavy tests with real parts: frameworks, vLLM servers, Redis; E2E_ARGS picks (see tools/e2e.py)
	$(BIN)/python tools/e2e.py $(E2E_ARGS)

clean:  ## remove all that these targets made, .venv included
	rm -rf .venv build dist docs/_build docs/reference/modules .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests tools benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(DEV)  ## .venv with everything for developing

lint: $(DEV)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)  ## mypy --strict
	$(BIN)/mypy --strict src $(wildcard tests/typing)

layers: $(DEV)  ## which way imports point, and the other rules of the house
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_house.py

changelog: $(DEV)  ## changelog.d/ holds well-formed fragments
	$(BIN)/python tools/changelog.py check

doctest: $(DEV)  ## every example of the modules, the README and the docs
	$(BIN)/python -m pytest -q --doctest-modules $(wildcard README.md) docs src

wheel: $(DEV)  ## the built wheel works with src away
	$(BIN)/python tools/check_wheel.py

oldest: $(DEV)  ## the tests with the oldest versions that pyproject.toml allows
	$(BIN)/python tools/check_oldest.py

$(CLI): pyproject.toml tools/venv.py
	@$(PYTHON) tools/venv.py cli $@

$(PEERS): pyproject.toml tools/venv.py $(DEV)
	@$(PYTHON) tools/venv.py peers $@

$(DEV): pyproject.toml tools/venv.py
	@$(PYTHON) tools/venv.py dev $(CLI) $@
