# Two commands for a fresh machine: `make quickstart` and `make test`. Both set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test test-cluster faults faults-long check bench calibration format clean install

quickstart: install  ## a real study in about six minutes: a skill emerges
	$(BIN)/emergence run quickstart

test: install  ## all tests
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10

test-cluster: install  ## ray up, submit, job and down for real, between machines that the test makes; needs root, sshd, rsync
	$(BIN)/python -m pytest -s tests/cluster/on_machines.py

faults: install  ## kills, signals, full disks and the like, with Ray and MLflow for real: at most twenty minutes
	$(BIN)/python -m pytest -s tests/faults/with_ray*.py

faults-long: install  ## 50,000 mutated studies, 300 trials in one process, random faults for five minutes
	$(BIN)/python -m pytest -s tests/faults/long_*.py

check: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## ratios, measured side by side in one run
	$(BIN)/python tests/bench.py

calibration: install  ## every interval and test against simulated truths, 20,000 times each: about an hour
	$(BIN)/python tests/simulations/calibration.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed

# torch first and by its pinned version: asked for by another package, it may come with gigabytes of GPU libraries.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:  ## remove the environment and caches; results in runs/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
