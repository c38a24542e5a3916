# `make serve` and `make test` need Python 3.11 or newer with venv, and nothing else; the first run needs a package index.

DEVICE ?= cpu
PORT ?= 8000
WORKERS ?= 1
# Only from the command line: some shells and conda keep another HOST in the environment.
HOST := 127.0.0.1

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# onnxruntime and onnxruntime-gpu share one import name, so each device has an environment of its own.
ifeq ($(DEVICE),cpu)
VENV := .venv
else ifeq ($(DEVICE),cuda)
VENV := .venv-cuda
VISION_DEVICE ?= cuda
export VISION_DEVICE
else
$(error DEVICE=$(DEVICE): use DEVICE=cpu or DEVICE=cuda)
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
MADE := $(VENV)/.made
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
BENCH := $(VENV)/.installed-bench

# An environment remembers where it was made: scripts in a moved or copied one would run the old clone.
ifneq ($(shell cat $(MADE) 2>/dev/null),$(CURDIR))
.PHONY: $(MADE)
endif

.PHONY: help serve models doctor test check format bench bench-serve bench-overload bench-soak bench-jobs bench-gallery bench-gatys gallery-load gallery-crash bench-sliding pointing accuracy screenshots clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  variables      DEVICE=cpu|cuda  HOST=127.0.0.1  PORT=8000  WORKERS=1  PYTHON=python3.12  ARGS=...'
	@echo '  settings       VISION_* in the environment; README.md lists them'

serve: $(RUN) ## install and fetch what is missing, then answer HTTP on HOST:PORT
	@exec $(BIN)/vision-service serve --host '$(HOST)' --port '$(PORT)' --workers '$(WORKERS)'

models: $(RUN) ## fetch the weights and build every model, so that serving needs no network
	@exec $(BIN)/vision-service models pull

doctor: $(RUN) ## say what is installed, what really runs and what is missing
	@exec $(BIN)/vision-service doctor

test: $(DEV) ## run every test with coverage; ARGS="tests/imaging -k nms" runs some, without it
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--cov=service --cov-report=term-missing:skip-covered)

check: $(DEV) ## lint, format, types, imports, docs and containers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/packaging $(wildcard tests/docs)

format: $(DEV) ## let ruff format the code and mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(BENCH) ## latency over HTTP next to decoding and the model alone, start-up, painting
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/painting.py

bench-serve: $(BENCH) ## requests a second next to other servers on the same model: needs wrk; ARGS="--quick" for a try
	$(BIN)/python benchmarks/serve.py $(ARGS)

bench-overload: $(BENCH) ## ten times more requests than can be answered, for a minute
	$(BIN)/python benchmarks/overload.py $(ARGS)

bench-soak: $(BENCH) ## memory over 50,000 mixed requests, huge photos among them
	$(BIN)/python benchmarks/soak.py $(ARGS)

bench-jobs: $(BENCH) ## requests a second and latency while a job paints by optimisation, next to those without one
	$(BIN)/python benchmarks/jobs.py $(ARGS)

bench-gallery: $(BENCH) ## a million faces: start-up, memory, search, recall; ARGS="--quick" for a try
	$(BIN)/python benchmarks/gallery.py $(ARGS)

bench-gatys: $(BENCH) ## painting by optimisation: seconds an iteration next to the forward pass alone, memory
	$(BIN)/python benchmarks/gatys.py $(ARGS)

gallery-load: $(BENCH) ## 64 clients enrol, identify and delete for a minute: is every answer true? ARGS="--backend postgres"
	$(BIN)/python benchmarks/gallery_load.py $(ARGS)

gallery-crash: $(BENCH) ## kill -9 during a thousand enrolments, twenty times, on both databases: is anything lost?
	$(BIN)/python benchmarks/gallery_crash.py $(ARGS)

bench-sliding: $(BENCH) ## a photo's windows in one convolutional pass, next to one by one
	$(BIN)/python benchmarks/sliding.py $(ARGS)

pointing: $(BENCH) ## does the classifier look at the object? On your photos: ARGS="--coco DIR --imagenet DIR"
	$(BIN)/python benchmarks/pointing.py $(ARGS)

accuracy: $(BENCH) ## accuracy on your photos: ARGS="--imagenet DIR --coco DIR --faces DIR"
	$(BIN)/python benchmarks/accuracy.py $(ARGS)

screenshots: $(DEV) ## take the pictures of the page in docs/images: needs chromium; ARGS="phone detect-light"
	$(BIN)/python benchmarks/screenshots.py $(ARGS)

clean: ## remove the environments and caches; built models stay
	rm -rf .venv .venv-cuda .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage dist

# Each stamp is written last: an interrupted install is taken up again. Two clients come without what they ask for: one would put the
# OpenCV with windows over the one without.
$(RUN): $(MADE) pyproject.toml constraints.txt
	$(PIP) hatchling
	$(PIP) --no-build-isolation --editable '.[$(DEVICE)]'
	@touch $@

$(DEV) $(BENCH): $(VENV)/.installed-%: $(RUN)
	$(PIP) --no-build-isolation --editable '.[$(DEVICE),$*]'
	$(if $(filter dev,$*),$(PIP) --no-deps deepstack-sdk compreface-sdk)
	@touch $@

# Each candidate is asked, for a shim may be on the PATH without a Python behind it. Pythons newer than those tested come last:
# wheels of some dependency may be missing there.
$(MADE):
	@chosen=; newer=; tried=; \
	for python in $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11); do \
		version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
		case $$version in \
			'') why='does not run' ;; \
			2.* | 3.[0-9] | 3.10) why="is Python $$version, too old" ;; \
			*) if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
					why="is Python $$version without venv (on Debian and Ubuntu: apt install python$$version-venv)"; \
				else case $$version in \
					3.11 | 3.12 | 3.13) chosen=$$python; break ;; \
					*) newer=$${newer:-$$python} ;; \
				esac; fi ;; \
		esac; \
		tried="$$tried  $$python $$why\n"; \
	done; \
	chosen=$${chosen:-$$newer}; \
	if [ -z "$$chosen" ]; then \
		printf 'Python 3.11 or newer with venv is needed; tried:\n%bName one with PYTHON=/path/to/python3\n' "$$tried" >&2; \
		exit 1; \
	fi; \
	if [ -d $(VENV) ] && [ ! -e $(MADE) ]; then \
		echo '$(VENV) is there but was not made by this Makefile: remove or rename it first' >&2; \
		exit 1; \
	fi; \
	mkdir -p $(VENV) && : > $(MADE) && rm -rf $(VENV)/* $(VENV)/.installed* && \
	echo "making $(VENV) with $$chosen ($$("$$chosen" --version))" && \
	"$$chosen" -m venv $(VENV) && pwd -P > $(MADE)
