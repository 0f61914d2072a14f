# Two commands do everything on a machine with Python 3.11, make and git: `make repro`, `make test`.
# Not that of an activated .venv, which is removed before it is made anew.
PYTHON ?= $(shell PATH=$$(echo "$$PATH" | tr : '\n' | grep -v "^$(CURDIR)/.venv/" | paste -sd :); command -v python3.11 || command -v python3.12 || echo python3)
VENV := .venv
STAMP := $(VENV)/.installed-$(shell cksum requirements.lock | cut -d' ' -f1)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help env repro exp rehearse lpips test lint figures docs bench board report lock clean clean-scratch

help: ## Explain every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## Make .venv from requirements.lock, if it is missing or stale

$(STAMP): # its name holds the checksum of requirements.lock
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

JOBS ?= 2
repro: env ## Run the whole DAG on the embedded default: dvc repro, JOBS (2) strands at a time
	python -m launch.repro --jobs $(JOBS)

exp: env ## Run a file of recipes/: make exp RECIPE=lego_200 ARGS="-S drift.K=512 --queue"
	@python -m recipes $(RECIPE) $(ARGS)

rehearse: env ## Run full-size recipes for two steps a stage: make rehearse RECIPE=lego_800 ARGS="--gib 16"
	python -m rehearse $(RECIPE) $(ARGS)

lpips: env ## Fetch AlexNet's trunk for LPIPS from the registry, pinned by hash
	python -m benchmarks.lpips_weights

test: env lint ## Lint, type-check and run every test, JOBS (2) at a time
	OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: env ## Ruff and mypy
	ruff check .
	ruff format --check .
	mypy

figures: env ## Render the figures of README.md and docs/ from committed metrics
	python -m docs.figures

docs: env ## Build the documents with an API reference into site/
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --quiet

bench: env ## Measure speed ratios against in-repo references and libraries
	OMP_NUM_THREADS=1 python -m benchmarks

board: env ## Watch running trainings in TensorBoard
	tensorboard --logdir runs

FORMAT ?= html
report: env ## One offline page of figures, curves and pictures: make report REV="HEAD exp1" FORMAT=md
	@python -m report --format $(FORMAT) $(REV)

lock: ## Renew requirements.lock from the ranges in pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet torch==2.13.0 torchvision==0.28.0
	$(VENV)/bin/python -m pip install --quiet '.[dev]'
	$(VENV)/bin/python -m pip freeze --exclude braid-pipeline --exclude pip --exclude setuptools | sed 's/+cpu$$//' > requirements.lock
	rm -rf build *.egg-info

clean: ## Remove the environment, caches and unfinished work (never outputs)
	rm -rf $(VENV) */.partial scratch runs dvc_plots .mypy_cache .ruff_cache .pytest_cache

DAYS ?= 30
clean-scratch: ## Remove training states of killed runs that are older than DAYS (30)
	mkdir -p "$${BRAID_SCRATCH:-scratch}" && find "$${BRAID_SCRATCH:-scratch}" -mindepth 2 -maxdepth 2 -type d -mtime +$(DAYS) -exec rm -r {} +
