# make demo | test | crash-test | gpu | lint | clean. The first of them makes .venv and installs what is needed; later ones do not.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test crash-test gpu lint clean

demo: $(INSTALLED)
	$(BIN)/mocoembed demo

test: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

crash-test: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow

# What it measures: benchmarks/reproduce/gpu.py. SECONDS=540: stop after nine minutes; run it again to go on.
SECONDS := 0
GPU_OPTIONS :=
# The peers it compares with are lightly and the authors' code; without a network, the rest is measured.
PEER := gpu-results/moco
gpu: $(INSTALLED)
	-$(BIN)/python -c 'import lightly' 2>/dev/null || $(BIN)/pip install -q lightly
	-test -d $(PEER) || { GIT_TERMINAL_PROMPT=0 git clone -q https://github.com/facebookresearch/moco $(PEER) && \
	  git -C $(PEER) checkout -q 132aea9; }
	$(BIN)/python -m benchmarks.reproduce.gpu gpu-results --seconds $(SECONDS) \
	  $$(test -d $(PEER)/moco && echo --official $(PEER)) $(GPU_OPTIONS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(INSTALLED): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("mocoembed needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "setuptools>=64"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache demo-workspace
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
