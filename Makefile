# `make` alone lists the targets. They make what they need: .venv, and Debian packages where root runs them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
CORE := .venv-core
RAY := .venv-ray
KSERVE := .venv-kserve
TRITON := .venv-triton
BIN := $(VENV)/bin
# Any Python from 3.11 on; `make PYTHON=python3.13 …` chooses another.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
GROUP_NAMES := test lint docs demo bench fuzz
# llama.cpp is compiled; for any machine, and without what its tests do not need.
LLAMA_FLAGS := -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/strongroom/__init__.py)
# Their descriptors are made when the project is installed.
PROTOS := $(shell find src/strongroom/serving/protos -name '*.proto')
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# A file of tests in one process, since what its frameworks compile is made once for a file, in the order of
# tests/conftest.py; no more processes than four, since each of them may come to hold every framework.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What needs nothing but the core is tested where there is nothing else, and no second time.
CORE_TESTS := tests/unit tests/vectors tests/robustness tests/core
# To trace these takes half a minute; `make coverage` traces all tests.
CORE_COVERAGE := COVERAGE_FILE=$(CORE)/.coverage $(CORE)/bin/python -m coverage
CORE_PARTS := src/strongroom/crypto/*,src/strongroom/format/*,src/strongroom/keys/*,src/strongroom/model/*,src/strongroom/errors.py

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Images of Python set it, and each of the hundreds of processes that the tests start would compile the package
# again: 0.2 s of 1.5 s of a key server's start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv system lint test coverage test-core test-integrations test-ray test-kserve test-triton demo demo-triton bench soak soak-serve docs fuzz clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

venv: $(VENV)/.complete ## .venv with every framework and all tools; 6 GB

# What the tests run for real, as command → package.
DEBIAN := strace=strace gcore=gdb g++=g++ postgres=postgresql swtpm=swtpm swtpm_setup=swtpm-tools \
	tpm2_quote=tpm2-tools softhsm2-util=softhsm2 systemd-analyze=systemd fusermount3=fuse3 tss2.h=libtss2-dev
# PostgreSQL's server is not on Debian's PATH.
FIND_COMMAND := PATH="$$PATH:$$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1)" command -v

system: ## what the tests need of Debian: a debugger, PostgreSQL, a software TPM and HSM, …
	@missing=; for pair in $(DEBIAN); do name=$${pair%%=*}; \
		case $$name in \
			*.h) test -e /usr/include/tss2/tss2_esys.h ;; \
			*) $(FIND_COMMAND) $$name >/dev/null ;; \
		esac || missing="$$missing $${pair#*=}"; \
	done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
		else \
			echo "Missing (apt-get install$$missing): the tests that need them will be skipped." >&2; \
		fi; \
	fi

lint: venv ## format, style, types, layers; what deploy/ says
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint --failure-threshold info deploy/Dockerfile deploy/gramine/Dockerfile
	$(BIN)/yamllint --strict --config-file deploy/.yamllint.yaml deploy

test: venv system $(CORE)/.complete $(RAY)/.complete $(KSERVE)/.complete $(TRITON)/.complete ## linters and all tests
	@# Each of these is one process, and Ray's mostly waits.
	$(MAKE) --no-print-directory --jobs 2 --output-sync test-ray lint test-core test-kserve
	$(PYTEST) $(addprefix --ignore ,$(CORE_TESTS))

coverage: venv system ## all tests of .venv, and what of the code they run
	$(PYTEST) --cov --cov-report=term

test-core: $(CORE)/.complete ## the core with `cryptography` and nothing else installed, and what of it that runs
	$(CORE_COVERAGE) erase
	$(CORE_COVERAGE) run -m pytest $(CORE_TESTS)
	$(CORE_COVERAGE) combine --quiet
	$(CORE_COVERAGE) report --include '$(CORE_PARTS)'

test-integrations: test-ray test-kserve ## a real Ray Serve and KServe's server, each in an environment of its own

test-ray: $(RAY)/.complete
	$(RAY)/bin/python -m pytest tests/integrations/test_ray.py

test-kserve: $(KSERVE)/.complete
	$(KSERVE)/bin/python -m pytest tests/integrations/test_kserve.py tests/integrations/test_kserve_manifests.py

test-triton: venv system $(TRITON)/.complete ## a real Triton, which reads sealed models by the repository agent
	$(BIN)/python -m pytest tests/triton_agent

demo: $(VENV)/.demo ## train, seal, load, predict, tamper, serve; release a key to a machine that attests, or not
	$(BIN)/python examples/digits.py

demo-triton: $(VENV)/.demo $(TRITON)/.complete ## an unchanged Triton serves a sealed model, by the agent and by a mount, and refuses one that was tampered with
	$(BIN)/python examples/triton_digits.py

bench: venv system ## every figure of the README and the reference, as ratios; 15 GB of disk, an hour
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/parts.py
	$(BIN)/python benchmarks/parts.py --cold
	$(BIN)/python benchmarks/frameworks.py
	$(BIN)/python benchmarks/gramine.py
	$(BIN)/python benchmarks/fernet.py
	for database in sqlite postgresql; do $(BIN)/python benchmarks/keyserver.py --database $$database; done
	$(BIN)/python benchmarks/keyserver.py fleet
	$(BIN)/python benchmarks/keyserver.py cache --outage 600
	$(BIN)/python benchmarks/serving.py all

docs: venv ## the site into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

soak: venv system ## a key server killed a hundred times on each database; its interface and the model server's tried at length
	$(BIN)/python benchmarks/keyserver_kills.py --database both
	STRONGROOM_SCHEMATHESIS_EXAMPLES=500 $(BIN)/python -m pytest tests/keyserver/test_openapi.py tests/serving/test_hostile_openapi.py

soak-serve: venv ## a model server under load for half an hour; its model is swapped 200 times before, under full load
	$(BIN)/python benchmarks/serving_soak.py --minutes 30

# Docker, or what takes its command line: make images ENGINE=podman.
ENGINE ?= docker
images: ## container images of the key server, the key cache and the model server
	for target in keyserver keycache serve; do \
		$(ENGINE) build --file deploy/Dockerfile --target $$target --tag strongroom-$$target:$(VERSION) . || exit 1; \
	done

fuzz: venv ## the parsers under atheris, a minute each
	for target in fuzz/fuzz_*.py; do $(BIN)/python $$target -max_total_time=60 -verbosity=0 || exit 1; done

clean: ## remove everything that make has made
	rm -rf $(VENV) $(CORE) $(RAY) $(KSERVE) $(TRITON) .demo .demo-triton .bench site .coverage .coverage.* htmlcov dist \
		.pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A fresh environment each time that what it is made of changes would be pure; pip brings it up to date.
$(VENV)/.demo: pyproject.toml constraints.txt $(PROTOS)
	$(call new-venv,$(VENV))
	$(install-torch)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cli,keyserver,loadtest,onnx,plot,safetensors,torch]' --group demo
	@# It asks for an older protobuf, and works with this one.
	$(BIN)/pip install --quiet --no-deps 'tritonclient>=2.60'
	@touch $@

$(VENV)/.complete: pyproject.toml constraints.txt $(PROTOS) | system
	$(call new-venv,$(VENV))
	$(install-torch)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]' $(addprefix --group ,$(GROUP_NAMES))
	@# What the first requires are the clients of five clouds, and one excludes what gcsfs needs; the second
	@# asks for TensorFlow by the name of its other build, the third for an older protobuf.
	$(BIN)/pip install --quiet --no-deps 'kserve-storage>=0.21' 'tensorflow-serving-api>=2.18' 'tritonclient>=2.60'
	@if test -e /usr/include/tss2/tss2_esys.h; then \
		$(BIN)/pip install --quiet --group tpm; \
	else \
		echo "No libtss2-dev: tpm2-pytss is not installed, and the tests of live TPMs will be skipped." >&2; \
	fi
	@if command -v g++ >/dev/null; then \
		CMAKE_ARGS="$(LLAMA_FLAGS)" CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) $(BIN)/pip install --quiet --group llama-cpp; \
	else \
		echo "No C++ compiler: llama-cpp-python is not installed, and the tests of GGUF models will be skipped." >&2; \
	fi
	@touch $@

define install-torch
$(BIN)/pip install --quiet --constraint constraints.txt torch \
	|| $(BIN)/pip install --quiet --constraint constraints.txt --extra-index-url $(TORCH_INDEX) torch
endef

$(CORE)/.complete: pyproject.toml
	$(call new-venv,$(CORE))
	$(CORE)/bin/pip install --quiet --editable . --group core
	@touch $@

# Neither of them beside the frameworks: KServe asks for an older protobuf.
$(RAY)/.complete $(KSERVE)/.complete: .venv-%/.complete: pyproject.toml $(PROTOS)
	$(call new-venv,.venv-$*)
	.venv-$*/bin/pip install --quiet --editable '.[cli,onnx,$*]' --group core 'onnx>=1.17' 'psutil>=5.9'
	@touch $@

# The server of nvidia-pytriton, without what that requires. Its Python backend knows no NumPy from 2 on, and finds
# the frameworks in the other environment.
$(TRITON)/.complete: pyproject.toml
	$(call new-venv,$(TRITON))
	@if [ "$$(uname -m)" = x86_64 ]; then \
		$(TRITON)/bin/pip install --quiet --no-deps --group triton; \
	else \
		echo "nvidia-pytriton is for x86_64 alone: the tests of Triton will be skipped." >&2; \
	fi
	@for packages in $(TRITON)/lib/python3.*/site-packages; do \
		echo "$(CURDIR)/$(VENV)/$${packages#$(TRITON)/}" >$$packages/frameworks.pth; \
	done
	@touch $@

define new-venv
@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or later is needed (apt-get install python3 python3-venv)." >&2; exit 1; fi
@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; \
	else \
		echo "The venv module of $(PYTHON) is missing (apt-get install python3-venv)." >&2; exit 1; \
	fi; \
fi
@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
endef
