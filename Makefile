# make demo | app | test | lint | bench | clean: each sets up .venv first, when it is missing. Needs Python >= 3.10 and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Test files that run at once; what a test starts has one thread.
TEST_JOBS ?= auto
# uv where it is installed (half a minute), otherwise venv and pip (some minutes).
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
INSTALL := uv pip install --quiet --compile-bytecode --python $(RUN)
else
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check
endif

.PHONY: demo app test lint bench clean

demo: $(VENV)/ready
	$(RUN) train.py --dataset photos --out demo
	@echo "The model is kept in demo/; remove that folder to train it again."

app: $(VENV)/ready-app
	$(RUN) app.py

test: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_JOBS) --maxprocesses 8 --dist loadfile

lint: $(VENV)/ready-dev
	$(RUN) -m ruff check .

bench: $(VENV)/ready-dev
	$(RUN) -m benchmarks.perlin --out results/bench-perlin.json
	$(RUN) -m benchmarks.marking --out results/bench-marking.json
	$(RUN) -m benchmarks.training --net_type smallnet --images 4096 --out results/bench-training-smallnet.json
	$(RUN) -m benchmarks.training --images 512 --rounds 3 --out results/bench-training.json
	$(RUN) -m benchmarks.audit --out results/bench-audit.json
	$(RUN) -m benchmarks.tree --files 50000 --out results/bench-tree.json
	$(RUN) -m benchmarks.rmia --out results/bench-rmia.json

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/ready: requirements.txt
	@echo "Setting up $(VENV) (some minutes and GB, once)"
	test -x $(RUN) || $(if $(UV),uv venv --quiet --seed --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))
	$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/ready-app: requirements-app.txt $(VENV)/ready
	$(INSTALL) -r requirements-app.txt
	@touch $@

$(VENV)/ready-dev: requirements-dev.txt requirements-extra.txt requirements-app.txt $(VENV)/ready
	$(INSTALL) -r requirements-dev.txt
	@# The reference for Perlin noise has to be compiled; without a C compiler its tests use stored values instead.
	$(INSTALL) noise || echo "The package 'noise' could not be built; tests against it are skipped."
	@touch $@
