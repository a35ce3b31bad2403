ifeq ($(OS),Windows_NT)
$(error OS is Windows_NT: make must run on Linux or macOS, and on Windows inside WSL)
endif

# Settings, e.g. `make figures PROFILE=smoke OVERRIDES='{"attack": {"rate": 0.05}}'`
PROFILE ?= laptop
SEED ?= 0
DEVICE ?= cpu
OVERRIDES ?=
OUT ?=
STUDY ?= all
FULL ?= 0
PEERS ?=
EXECUTOR ?= local
CLUSTER ?=
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
PYTHON ?= python3

export PROFILE SEED DEVICE OVERRIDES OUT STUDY FULL EXECUTOR JOBS
export PYTHONPATH := $(CURDIR):$(CURDIR)/executors
# pip compiles nothing, which halves its time: each module is compiled when it is first imported, and kept.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
READY := .venv/requirements.txt
DOCS_BIN := .venv-docs/bin
DOCS := .venv-docs/requirements.txt
BROWSER_BIN := .venv-browser/bin
BROWSER := .venv-browser/requirements.txt
# Here, JOBS cores; on a cluster, as many jobs at once as executors/<name>/config.yaml says.
WHERE = $(if $(filter slurm kubernetes,$(EXECUTOR)),--workflow-profile executors/$(EXECUTOR),--cores $(JOBS))

.PHONY: help setup figures test test-faults test-slurm test-browser lab base bench docs clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "with     PROFILE=$(PROFILE) (or smoke, paper) SEED=$(SEED) DEVICE=$(DEVICE) JOBS=$(JOBS) OVERRIDES='{…}' OUT=folder"
	@echo "         STUDY=$(STUDY) (or collapse, disp) FULL=$(FULL) (1: the studies in full, for hours)"
	@echo "         EXECUTOR=$(EXECUTOR) (or slurm, kubernetes) CLUSTER='snakemake arguments that the cluster asks for'"

setup: $(READY)  ## .venv alone

figures: $(READY)  ## all notebooks and their figures; goes on where it was stopped
	@case "$$JOBS" in ''|0*|*[!0-9]*) echo "make figures: JOBS='$$JOBS' must be an integer from 1" >&2; exit 2;; esac
	@$(BIN)/python -m lib.runtime.store "build/$$PROFILE.lock" $(BIN)/snakemake $(WHERE) --nolock \
		--rerun-incomplete --max-checksum-file-size 100MB --show-failed-logs --quiet host $(CLUSTER)

test: $(READY)  ## style checks and every test, the notebooks at smoke scale among them
	$(BIN)/ruff check
	$(BIN)/python -m pytest -q -n $(JOBS)

test-faults: $(READY)  ## faults put in, for hours (KILLS=50 of make figures): what held is kept in docs/faults.csv
	$(BIN)/python tests/faults

test-slurm: $(READY)  ## the smoke profile through a Slurm cluster on this machine alone (root, Debian)
	tests/slurm.sh

test-browser: $(READY) $(BROWSER)  ## notebooks 00, 03 and 04 in Chromium, after make figures: controls moved and timed
	$(BROWSER_BIN)/python tests/browser

# Of the libraries below only errors are shown: what else they warn of, the notebooks do on purpose.
lab: export TRANSFORMERS_VERBOSITY = error
lab: export DIFFUSERS_VERBOSITY = error
lab: $(READY)  ## JupyterLab on the notebooks (LAB='further arguments')
	$(BIN)/jupyter lab --FileContentsManager.preferred_dir=notebooks $(LAB)

base: $(READY)  ## train the base models anew into data/checkpoints, on two cores (the editors: build/base-editors.log)
	@mkdir -p build
	@$(BIN)/python -m lib.studies.base_models editor control --profile "$$PROFILE" >build/base-editors.log 2>&1 & editors=$$!; \
	$(BIN)/python -m lib.studies.base_models clip mdlm vqa --profile "$$PROFILE" || { kill $$editors; exit 1; }; \
	wait $$editors || { tail -n 5 build/base-editors.log; exit 1; }

bench: $(READY)  ## speed, ours beside peers; PEERS='--llada ../LLaDA' adds it
	@$(BIN)/python -m benchmarks --device "$$DEVICE" $(PEERS)

docs: $(DOCS)  ## the site in build/site, from README.md and docs/, its links checked
	$(DOCS_BIN)/python docs/build.py

clean:  ## remove all that was computed, but neither figures/ nor .venv
	rm -rf build .snakemake .pytest_cache .ruff_cache .hypothesis
	find lib tests notebooks benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) \
		-prune -exec rm -rf {} + 2>/dev/null || true

define checked-python
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "There is no $(PYTHON): install Python 3.11 or later, or give its path as PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: give the path of a Python 3.11 or later as PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv: install it (on Debian and Ubuntu, the package python3-venv)." >&2; exit 1; }
endef

# Last of all, requirements.txt is copied into .venv: until then, and when it changes, .venv is built anew.
$(READY): requirements.txt
	$(checked-python)
	rm -rf .venv
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --no-compile --requirement requirements.txt
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (.venv)"
	cp requirements.txt $(READY)

# The site's generator needs nothing of the above and would hold some of it back: it has a .venv of its own.
$(DOCS): docs/requirements.txt
	$(checked-python)
	rm -rf .venv-docs
	"$(PYTHON)" -m venv .venv-docs
	$(DOCS_BIN)/python -m pip install --no-compile --requirement docs/requirements.txt
	cp docs/requirements.txt $(DOCS)

# What drives the browser has its own, too.
$(BROWSER): tests/browser/requirements.txt
	$(checked-python)
	rm -rf .venv-browser
	"$(PYTHON)" -m venv .venv-browser
	$(BROWSER_BIN)/python -m pip install --no-compile --requirement tests/browser/requirements.txt
	cp tests/browser/requirements.txt $(BROWSER)
