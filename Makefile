# One command a chore, the same at home and in CI. `make demo` and `make test` need only Python 3.11 and make;
# the tests of the page drive Chromium, which .ci/need-chromium installs where it may.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
export DOCSUM_HOME ?= $(CURDIR)/.docsum

help:  ## what there is to do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "docsum needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv --help >/dev/null 2>&1 && $(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/need-venv $(PYTHON)
	@echo "Preparing $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# A stamp for each lock: installing is skipped while neither the lock nor the project file has changed.
$(VENV)/.local: requirements/local.txt pyproject.toml | $(UV)
	@echo "Installing docsum and what the local stack needs (about 350 MB to download the first time)"
	@test -e $(VENV)/.dev || $(UV) pip sync --python $(BIN)/python --require-hashes requirements/local.txt
	@$(MAKE) --no-print-directory link
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(UV)
	@$(UV) pip sync --python $(BIN)/python --require-hashes requirements/dev.txt
	@$(MAKE) --no-print-directory link
	@touch $@ $(VENV)/.local

# The source tree itself is the installation: a path file and a launcher, no build step and no network.
link:
	@$(BIN)/python .ci/link.py

demo: $(VENV)/.local  ## summarise the sample documents on this machine: no key, no account, no Docker
	@$(BIN)/docsum demo

check: $(VENV)/.dev  ## lint, types, import directions and unit tests: under a minute
	$(BIN)/ruff format --check app tests deploy
	$(BIN)/ruff check app tests deploy
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 tests/unit

# The S3 server of the tests cannot live beside the engine's pandas: an environment of its own.
$(VENV)/.s3: requirements/s3.txt | $(UV)
	@$(UV) venv --quiet --clear --python $(BIN)/python $(VENV)/s3
	@$(UV) pip sync --quiet --python $(VENV)/s3/bin/python --require-hashes requirements/s3.txt
	@touch $@

# Peers of the bench bring what must never come into ours: an environment of their own.
$(VENV)/.peers: requirements/peers.txt | $(UV)
	@$(UV) venv --quiet --clear --python $(BIN)/python $(VENV)/peers
	@$(UV) pip sync --quiet --python $(VENV)/peers/bin/python --require-hashes requirements/peers.txt
	@touch $@

# What makes the bill of materials comes into neither our environment nor the bill.
$(VENV)/.sbom: requirements/sbom.txt | $(UV)
	@$(UV) venv --quiet --clear --python $(BIN)/python $(VENV)/sbom
	@$(UV) pip sync --quiet --python $(VENV)/sbom/bin/python --require-hashes requirements/sbom.txt
	@touch $@

# Two files at a time, each with its own broker, engine or stack; the longest first, in the order given here.
test: check $(VENV)/.s3  ## everything but benches and long chaos
	@.ci/need-chromium
	@.ci/need-prometheus
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder tests/chaos tests/integration tests/contract tests/web

chaos: $(VENV)/.dev  ## many schedules of faults: make chaos SEEDS=20
	$(BIN)/python -m tests.chaos --seeds $(or $(SEEDS),20)

soak: $(VENV)/.dev  ## an hour under faults: memory, open files and threads of two workers that live through it
	$(BIN)/python -m tests.chaos --seed 60 --seconds 3600 --every 20 --workers 4 --spared 2 --documents 40000 --patience 1200 --no-shrink

outages: $(VENV)/.dev  ## the whole outage suite: model, sources, store, dead-letter topic
	$(BIN)/pytest --long tests/chaos/test_outages.py tests/chaos/test_outages_around.py

drill: $(VENV)/.dev  ## lose ClickHouse, and lose Kafka, and come back: what deploy/README.md says to do then
	$(BIN)/pytest --long tests/integration/test_disaster.py

registry: $(VENV)/.dev  ## events through a real schema registry (Apicurio, 158 MB the first time), also while it is away
	$(BIN)/pytest --long tests/integration/test_registry.py

image: $(VENV)/.dev  ## build the image over a base of Debian's packages, and let its worker work: two minutes, as root
	$(BIN)/pytest --long tests/integration/test_image.py

sbom: $(VENV)/.sbom  ## what the image holds besides Debian and Python, as CycloneDX: docsum.cdx.json
	@PYTHONWARNINGS=ignore $(VENV)/sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application --output-reproducible \
	  --spec-version 1.6 --output-format JSON --output-file docsum.cdx.json requirements/runtime.txt
	@echo "docsum.cdx.json: $$(grep -c '"bom-ref"' docsum.cdx.json) components, docsum among them"

bench: $(VENV)/.dev $(VENV)/.peers  ## docsum beside bare SDK loops and its peers, and its parts: bench-results/*.json
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.intake
	$(BIN)/python -m tests.bench.store
	$(BIN)/python -m tests.bench.processes
	$(BIN)/python -m tests.bench.service
	$(BIN)/python -m tests.bench.joining
	$(BIN)/python -m tests.bench.results

format: $(VENV)/.dev  ## write the code as the house would
	$(BIN)/ruff format app tests deploy
	$(BIN)/ruff check --fix app tests deploy

dashboards: $(VENV)/.dev  ## write deploy/grafana/*.json and the table of metrics in deploy/README.md
	PYTHONPATH=app $(BIN)/python -m deploy.grafana.dashboards
	$(BIN)/python -m tests.support.readme

COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-annotate
lock: | $(UV)  ## renew the hashed requirement files
	$(COMPILE) pyproject.toml --upgrade -o requirements/runtime.txt
	$(COMPILE) pyproject.toml --upgrade --extra local --extra parquet -c requirements/runtime.txt -o requirements/local.txt
	$(COMPILE) pyproject.toml --upgrade --extra local --extra parquet --group dev -c requirements/local.txt -o requirements/dev.txt
	$(COMPILE) --upgrade --group pyproject.toml:s3 -o requirements/s3.txt
	$(COMPILE) --upgrade --group pyproject.toml:sbom -o requirements/sbom.txt
	$(COMPILE) --upgrade --group pyproject.toml:peers -c <(grep -oE '^(anthropic|aiohttp|httpx2)==[^ ]+' requirements/runtime.txt) -o requirements/peers.txt

.PHONY: help demo check test chaos soak outages drill registry image sbom bench format dashboards lock link
