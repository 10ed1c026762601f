# Everything runs in the project's own .venv, which the first target makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test test-slow lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train, resume, export and insert on the CPU; leaves runs/demo/report.html"
	@echo "make test       the test suite (offline)"
	@echo "make test-slow  the tests that train for minutes"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the benchmarks that need no training and no peer, at a small size"

$(VENV)/.ready: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test,dev]"
	@touch $@

demo: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m lit_insert.cli.demo --out runs/demo

test: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow --timeout 1800

lint: $(VENV)/.ready
	$(BIN)/ruff check lit_insert tests benchmarks data train.py infer.py
	$(BIN)/ruff format --check lit_insert tests benchmarks data train.py infer.py
	$(BIN)/mypy

bench: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/insert_quality.py --n 64
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/train_throughput.py --steps 10
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/import_time.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/data_streaming.py --rows 4000
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/full_size.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/mask_quality.py --n 64
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/mask_throughput.py --size 128 --steps 1
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/grounding_quality.py --model none --n 64
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/consistency_quality.py --n 64
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/replace_check.py --n 8
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/mifo_quality.py --n 4
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/fusion_quality.py --n 8

clean:
	rm -rf $(VENV) build dist *.egg-info
