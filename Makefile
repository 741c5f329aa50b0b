# `make demo`, `make test` and `make lint` do all the set-up on a fresh clone.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Processes that share the tests.
JOBS ?= 2

.PHONY: demo test lint fast board phone clean

demo: $(STAMP)
	@$(BIN)/python scripts/demo.py

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --durations=25

# Without real weights, emulation and long tests.
fast: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m "not weights and not emulation and not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: later packages then find it satisfied and do not bring a CUDA build. Setuptools warns in a box
# of twelve lines that an editable install is one.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; choose one with make PYTHON=python3.12 (3.11 to 3.13)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q torch==2.13.0
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -e ".[dev]"
	@touch $@

# An emulated Pi 4 with 512 MB and nothing of ours, reached by ssh, until Ctrl-C. Other ones, or a folder to have there:
# make board BOARD="--memory 1024 --cpu cortex-a76 --free 200 demo/bundle"
board: $(STAMP)
	@$(BIN)/python scripts/board.py $(BOARD)

# An emulated phone without Python or GNU tools, reached by adb, until Ctrl-C.
phone: $(STAMP)
	@$(BIN)/python scripts/phone.py $(PHONE)

clean:
	rm -rf $(VENV) .cache demo build *.egg-info
