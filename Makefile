# Every habit is one command; `make check` is what CI runs, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo check fix test docs vectors wheelhouse llamacpp

setup: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("planearly needs Python 3.11 or newer; say which: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing, which takes minutes: torch alone unpacks to some gigabytes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedder]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing, which takes minutes: torch alone unpacks to some gigabytes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed-demo

# Specialize the bundle in examples/demo on text that every Python carries; prints perplexities.
demo: $(VENV)/.installed-demo
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo/run.sh

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# make test K=projection; without K everything
test: $(VENV)/.installed-dev
	$(BIN)/pytest $(if $(K),-k '$(K)')

# Rewrite what the documents repeat from the code (a test fails when it is stale), then build site/.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m docs.refresh
	$(BIN)/zensical build --strict --clean

# Rebuild tests/vectors from their seed; `git diff` is empty unless the format changed.
vectors: $(VENV)/.installed-dev
	$(BIN)/python tests/vectors/build.py

# Everything an owner needs as wheels in wheelhouse/, for a machine without a network: docs/howto/air-gap.md
EXTRAS ?= documents,embedder,dp,lora,gguf,onnx
wheelhouse: $(VENV)/bin/python
	$(BIN)/python examples/airgap/pack.py wheelhouse constraints.txt $(EXTRAS)

# Compile llama.cpp (minutes) and run the tests that need it, which `make check` skips without it.
llamacpp: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[llamacpp]'
	$(BIN)/pytest tests/test_exporting.py
