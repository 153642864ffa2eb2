# make demo | app | test | check | bench | servers | lock | clean: each sets up .venv first, when it is missing. Needs
# Python >= 3.10 and make. Versions come from requirements/lock*.txt, with hashes; `make lock` writes these anew.
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
# A lock holds for every system and Python from 3.10 on, and names no index. UPGRADE=--upgrade takes what is newest;
# without it, what is locked and still fits stays.
UPGRADE ?=
COMPILE := uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-annotate \
	--no-emit-index-url --custom-compile-command "make lock" -c requirements/constraints.txt

.PHONY: demo app test check bench servers lock clean

demo: $(VENV)/ready
	$(RUN) train.py --dataset photos --out demo
	@echo "The model is kept in demo/; remove that folder to train it again."

app: $(VENV)/ready-app
	$(RUN) app.py

test: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_JOBS) --maxprocesses 8 --dist loadfile

# Before a commit: style, and what may import what.
check: $(VENV)/ready-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m tests.layout

bench: $(VENV)/ready-dev
	$(RUN) -m benchmarks.perlin --out results/bench-perlin.json
	$(RUN) -m benchmarks.marking --out results/bench-marking.json
	$(RUN) -m benchmarks.training --net_type smallnet --images 4096 --out results/bench-training-smallnet.json
	$(RUN) -m benchmarks.training --images 512 --rounds 3 --out results/bench-training.json
	$(RUN) -m benchmarks.audit --out results/bench-audit.json
	$(RUN) -m benchmarks.query --out results/bench-query.json
	$(RUN) -m benchmarks.tree --files 50000 --out results/bench-tree.json
	$(RUN) -m benchmarks.rmia --out results/bench-rmia.json
	$(RUN) -m benchmarks.help --out results/bench-help.json

# Real model servers for the tests, each in an environment of its own since their dependencies don't fit together.
# Without them those tests are skipped.
servers: .servers/mlserver/ready .servers/kserve/ready .servers/triton/ready

.servers/%/ready: requirements/servers-%.txt
	test -x .servers/$*/bin/python || $(if $(UV),uv venv --quiet --seed --python $(PYTHON),$(PYTHON) -m venv) .servers/$*
	$(subst $(RUN),.servers/$*/bin/python,$(INSTALL)) -r $<
	@touch $@

lock:
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv"; exit 2; }
	$(COMPILE) $(UPGRADE) requirements/dev.txt -o requirements/lock-dev.txt
	@# What two of them hold has one version.
	$(COMPILE) -c requirements/lock-dev.txt requirements/app.txt -o requirements/lock-app.txt
	$(COMPILE) -c requirements/lock-dev.txt requirements.txt -o requirements/lock.txt

clean:
	rm -rf $(VENV) .servers demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/ready: requirements/lock.txt
	@echo "Setting up $(VENV) (some minutes and GB, once)"
	test -x $(RUN) || $(if $(UV),uv venv --quiet --seed --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))
	$(INSTALL) --require-hashes -r requirements/lock.txt
	@touch $@

$(VENV)/ready-app: requirements/lock-app.txt $(VENV)/ready
	$(INSTALL) --require-hashes -r requirements/lock-app.txt
	@touch $@

$(VENV)/ready-dev: requirements/lock-dev.txt $(VENV)/ready
	$(INSTALL) --require-hashes -r requirements/lock-dev.txt
	@# The reference for Perlin noise has to be compiled; without a C compiler its tests use stored values instead.
	$(INSTALL) noise==1.2.2 || echo "The package 'noise' could not be built; tests against it are skipped."
	@touch $@
