# Every command of the project. `make help` lists them; .ci/run calls the same ones.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PORT ?= 3000
IMAGE ?= cpu
BACKEND ?= docker
PYTEST_ARGS ?=
TEST_PROCESSES ?= 3# of pytest, a file of tests at a time: they mostly wait for servers to start and end, and three keep two CPUs busy
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

# No telemetry, and so no request to the internet, unless asked for.
export BENTOML_DO_NOT_TRACK ?= True
# Meant for images, where a process is started once. Here hundreds are, and where it is set each compiles again all that it imports.
unexport PYTHONDONTWRITEBYTECODE
MODEL_STORE = $${BENTOML_HOME:-$$HOME/bentoml}/models

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- use --------------------------------------------------------------------------------------------------------------

.PHONY: serve
serve: $(VENV)/.compiled ## serve the default model on http://localhost:3000 (PORT=, ORTSERVE_PROFILE=, ORTSERVE_MODEL=)
	@test -e "$(MODEL_STORE)/digits/latest" || $(BIN)/bentoml models import "$(CURDIR)/examples/digits.bentomodel"
	@exec $(BIN)/bentoml serve --port $(PORT)

# --- work on it -------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(VENV)/.setup ## install everything (serving, building with torch, testing) into .venv, run nothing

.PHONY: check
check: $(VENV)/.setup ## lint, format check and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: fix
fix: $(VENV)/.setup ## repair what ruff can repair, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test
test: $(VENV)/.setup $(VENV)/.openvino $(VENV)/.reference ## every test that needs no GPU (PYTEST_ARGS="-k name", TEST_PROCESSES=0 for one alone)
	@$(BIN)/python -m pytest -m "not gpu" -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

.PHONY: reference
reference: $(VENV)/.reference ## what the tests compare detectors with, a real detector among it, into .venv/reference

.PHONY: bench
bench: $(VENV)/.setup ## every peer beside this service, in 55 minutes on an idle machine, goes on after an interrupt (BENCH_ARGS="--minutes 90 --rounds 5")
	$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.publish

.PHONY: bench-full
bench-full: $(VENV)/.setup ## the whole grid: every system, case and load, in hours; goes on after an interrupt
	$(BIN)/python -m benchmarks.bench full $(BENCH_ARGS)

.PHONY: bench-quick
bench-quick: $(VENV)/.setup ## throughput over bare session.run, start-up and memory, in a quarter of an hour on an idle machine
	$(BIN)/python -m benchmarks.quick
	$(BIN)/python -m benchmarks.publish

.PHONY: bench-techniques
bench-techniques: $(VENV)/.setup ## what each technique gains, on and off in turns, in a quarter of an hour on an idle machine
	$(BIN)/python -m benchmarks.techniques
	$(BIN)/python -m benchmarks.publish

.PHONY: bench-profiles
bench-profiles: $(VENV)/.setup ## where the CPU time goes, by part, of this service and of the best peer; needs the right to ptrace, in some two minutes
	$(BIN)/python -m benchmarks.profiles
	$(BIN)/python -m benchmarks.publish

.PHONY: bench-operators
bench-operators: $(VENV)/.setup ## what int8 gains over fp32 and where the time of a run goes, in a few minutes on an idle machine
	$(BIN)/python -m benchmarks.operators
	$(BIN)/python -m benchmarks.publish

.PHONY: bench-in-flight
bench-in-flight: $(VENV)/.setup ## what two batches at once gain without a server, in some four minutes on an idle machine
	$(BIN)/python -m benchmarks.in_flight
	$(BIN)/python -m benchmarks.publish

.PHONY: bench-text
bench-text: $(VENV)/.setup ## sentences per second beside other embedding servers, which it installs, in some ten minutes on an idle machine
	$(BIN)/python -m benchmarks.text
	$(BIN)/python -m benchmarks.publish

.PHONY: bench-several
bench-several: $(VENV)/.setup ## what several models in one service cost each other, in some eight minutes on an idle machine
	$(BIN)/python -m benchmarks.several
	$(BIN)/python -m benchmarks.publish

.PHONY: bench-v2
bench-v2: $(VENV)/.setup ## tensors per second beside PyTriton and MLServer, which it installs, in some eight minutes on an idle machine
	$(BIN)/python -m benchmarks.v2
	$(BIN)/python -m benchmarks.publish

.PHONY: setup-gpu
setup-gpu: $(VENV)/.cuda ## everything of `setup`, and NVIDIA's libraries as wheels: for a machine that has the driver alone

.PHONY: gpu
gpu: $(VENV)/.cuda ## the tests marked gpu and the bench of one NVIDIA GPU beside PyTorch native, in some fifteen minutes
	$(BIN)/python -m benchmarks.gpu

.PHONY: watch
watch: $(VENV)/.setup ## the alert's way to a webhook and back, and the dashboard's picture, in some four minutes
	@deploy/install-test-tools
	$(BIN)/python -m benchmarks.watch
	$(BIN)/python -m benchmarks.publish

.PHONY: image
image: $(VENV)/.compiled ## build a container image and its SBOM (IMAGE=cuda, cpu or openvino; BACKEND=docker, podman ...)
	@test -e "$(MODEL_STORE)/digits/latest" || $(BIN)/bentoml models import "$(CURDIR)/examples/digits.bentomodel"
	@$(BIN)/python -m deploy.image $(IMAGE) --backend $(BACKEND)

.PHONY: prove
prove: ## on a Debian 12, as root: build the image, run it hardened, load it, stop it under load, lose nothing (IMAGE=)
	@deploy/prove --image $(IMAGE)

.PHONY: lock
lock: $(VENV)/.uv ## resolve requirements/*.in again into *.txt; LOCK_ARGS="--upgrade" or "--upgrade-package NAME"
	@requirements/lock "$(CURDIR)/$(BIN)/uv" $(LOCK_ARGS)

.PHONY: clean
clean: ## remove .venv, what was compiled and every cache
	rm -rf $(VENV) ortserve/native/_pixels-* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# --- what the targets stand on: a stamp is written after its step ended well, so an interrupted step runs again ---------

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "make: there is no $(PYTHON) here: install Python 3.11 to 3.13, or name one with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	    echo "make: expected Python 3.11 to 3.13, $(PYTHON) is $$($(PYTHON) --version 2>&1): name another with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "make: $(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.uv: requirements/uv.txt $(VENV)/.python
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/uv.txt
	@touch $@

$(VENV)/.serving: requirements/serving.txt $(VENV)/.uv
	requirements/install $(VENV) requirements/serving.txt
	@touch $@

# A shared library; made again where its source changes. Without a compiler it says so, and Pillow does the same, slower.
$(VENV)/.compiled: ortserve/compiled.py ortserve/compile.py $(wildcard ortserve/native/*.[ch] ortserve/native/libjpeg/*.h) $(VENV)/.serving
	@$(BIN)/python -m ortserve.compile
	@touch $@

# What deploy/prove needs beside the serving set: no torch.
$(VENV)/.proving: requirements/test.txt $(VENV)/.serving | $(VENV)/.compiled
	requirements/install $(VENV) requirements/serving.txt requirements/test.txt
	@touch $@

$(VENV)/.setup: requirements/build.txt requirements/test.txt $(VENV)/.serving | $(VENV)/.compiled
	requirements/install $(VENV) requirements/serving.txt requirements/build.txt requirements/test.txt
	@touch $@

$(VENV)/.cuda: requirements/cuda.txt $(VENV)/.setup
	requirements/install $(VENV) requirements/cuda.txt requirements/build.txt requirements/test.txt
	@touch $@

# What detectors are compared with: a folder that only some processes of the tests put on their path, each package without its own
# dependencies, so that OpenCV, a second ONNX Runtime and an AGPL package stay out of the environment.
$(VENV)/.reference: requirements/reference.txt $(VENV)/.setup
	rm -rf $(VENV)/reference
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --target $(VENV)/reference --requirement requirements/reference.txt
	@touch $@

# OpenVINO's build of ONNX Runtime shares its module with the others, so it has an environment of its own.
$(VENV)/.openvino: requirements/openvino.txt $(VENV)/.uv
	$(PYTHON) -m venv --clear $(VENV)/openvino
	ln -s ../../bin/uv $(VENV)/openvino/bin/uv
	requirements/install $(VENV)/openvino requirements/openvino.txt
	@touch $@
