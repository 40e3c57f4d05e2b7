# Two commands: `make demo` runs the main job on embedded data, `make test` proves the project (`make test-all` with the
# tests that must take long). Everything lives in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all board docs lint clean
.DELETE_ON_ERROR:

demo: .venv/demo.stamp
	$(PY) experiments/demo/run.py

test: .venv/test.stamp lint
	$(PY) -m pytest -m "not slow"

test-all: .venv/test.stamp lint
	$(PY) -m pytest

docs: .venv/docs.stamp
	$(PY) docs/build.py

lint: .venv/test.stamp
	$(PY) -m ruff check perturbgen tests experiments docs
	$(PY) -m ruff format --check perturbgen tests experiments docs
	$(PY) -m mypy

board: .venv/demo.stamp
	$(PY) -m tensorboard.main --logdir runs

clean:
	rm -rf .venv runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

.venv/docs.stamp: .venv/demo.stamp
	$(PIP) -e ".[docs,cluster,images]"
	touch $@

# R comes through apt where that is permitted; without it the tests marked `r` are skipped (under CI they fail).
.venv/test.stamp: .venv/demo.stamp r/install.sh
	$(PIP) -e ".[dev,chem,cluster,docs,excel,images,maps,pyro]"
	if bash r/install.sh; then $(PIP) -e ".[r]"; fi
	touch $@
