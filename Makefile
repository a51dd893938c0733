# make demo       from nothing to a trained, evaluated, visible small model (minutes of CPU)
# make test       the tests a change has to pass
# make test-slow  the tests that take minutes each, and the long fuzzer
# make test-library  Transformers' own test suites on our classes (downloads its source archive; part of test-slow)
# make check      lint, format and the rules of CONTRIBUTING.md
# make fix        what lint and format can repair by themselves, and the listing of the contract tests

PYTHON ?= python3
BIN := .venv/bin
# The models of the tests are tiny: more threads than one only wait for each other.
TEST_ENV = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

# As many processes as cores; the tests of a file stay in one, which makes their models and rooms once.
SPREAD = -n logical --maxprocesses 8 --dist loadfile

.PHONY: demo test test-slow test-library check fix

demo: .venv/installed
	$(BIN)/python -m ross3d.tools.demo

test: .venv/installed
	$(TEST_ENV) $(BIN)/python -m pytest -q $(SPREAD) -m "not slow"

test-slow: .venv/installed
	$(TEST_ENV) $(BIN)/python -m pytest -q -m slow
	$(TEST_ENV) ROSS3D_FUZZ=long $(BIN)/python -m pytest -q -m "not slow" tests/fuzz

test-library: .venv/installed
	$(TEST_ENV) $(BIN)/python -m pytest -q tests/suites

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m ross3d.tools.lint_models
	$(TEST_ENV) $(BIN)/python -m pytest -q tests/laws

fix: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m ross3d.tests.suites.contract_listing

# Rebuilt when the pinned set changes; a broken installation leaves no stamp and is tried again.
.venv/installed: requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
