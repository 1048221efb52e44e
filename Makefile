# What a developer types is what CI types (.ci/run).
#
# Each target installs into .venv what it needs, once; a change of pyproject.toml or constraints.txt installs
# again. torch goes first and alone: its version is exact, so that a build for this machine which lies in pip's
# reach (PIP_FIND_LINKS, say one for CPUs only) is taken instead of gigabytes for another one.

# The first of these that is new enough; make PYTHON=/path/to/python takes another.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
  $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)) python3)
TORCH ?= torch==2.13.0
CONSTRAINTS ?= constraints.txt

BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)
SETTINGS := pyproject.toml constraints.txt linnet/generate/kernels.c

.PHONY: help demo test test-slow torture online check format bench docs install clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/demo.done ## train a small GPT-2 on Python's own documentation; under 3 minutes
	$(BIN)/linnet demo

test: .venv/test.done ## the tests; under 5 minutes on two cores
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow and not torture and not online' $(ARGS)

test-slow: .venv/test.done ## the tests that take longer; under 40 minutes
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'slow and not torture' $(ARGS)

torture: .venv/test.done ## kills, full disks and damage in the full numbers; hours
	$(BIN)/python -m pytest -m torture --timeout 0 $(ARGS)

online: .venv/test.done ## 20 steps of each recipe on its named data set from the real hub; needs a network, never in CI
	$(BIN)/python -m pytest -s -m online tests/online.py $(ARGS)

check: .venv/check.done ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/check.done ## let ruff put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Small models and few rounds, without torch.compile; docs/benchmarks.md has the long forms, whose figures count.
PEER = $(if $(NANOGPT),--nanogpt $(NANOGPT))
NOVELS := $(wildcard ../shared/data/text/novels)
TEXT ?= $(if $(NOVELS),$(NOVELS),LOG.md)
SHORT := transformers-fp32 transformers-bf16 nanogpt-fp32 nanogpt-bf16 linnet linnet-fp32
bench: .venv/test.done ## the comparisons with others in a short form; with nanoGPT: make bench NANOGPT=/path/to/nanoGPT
	$(BIN)/python benchmarks/train_throughput.py --model small --block-size 256 --rounds 3 --only $(SHORT) $(PEER)
	$(BIN)/python benchmarks/finetune_rows.py --model small --rounds 3 --steps 4
	$(BIN)/python benchmarks/memory.py --short
	$(BIN)/python benchmarks/serve.py --short
	$(BIN)/python benchmarks/loss_vs_time.py --text $(TEXT) --budget 3 $(PEER)

docs: .venv/demo.done ## write anew what the pages take from the code: keys, help texts
	$(BIN)/python docs/make.py

install: .venv/dev.done ## everything for development: all extras, too

clean: ## remove .venv and what tools leave behind; runs/ and prepared/ stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find linnet tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/torch.done:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Linnet needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -1)." >&2; \
	  echo "Install a newer one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into .venv what is needed. The first time this takes some minutes, mostly for torch."
	$(PYTHON) -m venv .venv
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet $(TORCH)
	@touch $@

.venv/demo.done: .venv/torch.done $(SETTINGS)
	$(PIP) --editable .
	@touch $@

.venv/test.done: .venv/torch.done $(SETTINGS)
	$(PIP) --editable '.[test]'
	@touch $@ .venv/demo.done

.venv/check.done: .venv/torch.done $(SETTINGS)
	$(PIP) --editable . mypy ruff
	@touch $@ .venv/demo.done

.venv/dev.done: .venv/torch.done $(SETTINGS)
	$(PIP) --editable '.[dev,track,eval,fast,language,cluster]'
	@touch $@ .venv/demo.done .venv/test.done .venv/check.done
