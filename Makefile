# Each target sets up what it needs, in the folder .venv; what this project is measured against has
# a folder of its own.
PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-peers/bin
# Every file that is installed has the SHA-256 that hashes.txt says.
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --build-constraint hashes.txt
# A process for each core and one more, as many tests wait for the processes that they start; what a
# module sets up is set up once (`tests/conftest.py`).
AT_ONCE := -n $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.10 --no-header --no-annotate --quiet
TRACK := $(BIN)/fmnist-track

# An environment does not survive that its folder is moved.
ifneq ($(wildcard .venv/place),)
ifneq ($(shell cat .venv/place),$(CURDIR))
$(shell rm -rf .venv .venv-lowest .venv-peers)
endif
endif

.PHONY: help quick full test test-fast test-lowest test-release lint format docs benchmarks ui server constraints audit clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

quick: .venv/installed  ## Set up, search all 12 points in a few minutes, write the report
	$(TRACK) search --limit 12000 --epochs 5
	$(TRACK) report --run-id latest

full: .venv/installed  ## Set up, search at full size (12 points, 25 epochs, all images), report
	$(TRACK) search
	$(TRACK) report --run-id latest

test: .venv/installed-dev  ## Set up and pass all tests
	$(BIN)/python -m pytest $(AT_ONCE) -m "not release"

test-release: .venv/installed-dev  ## Set up and pass what is tested at greater length before a release
	$(BIN)/python -m pytest -m release

test-fast: .venv/installed-dev  ## Set up and pass the tests that take seconds
	$(BIN)/python -m pytest $(AT_ONCE) -m "not slow and not browser and not service"

test-lowest: .venv-lowest/installed  ## The same with the oldest packages that pyproject.toml allows
	.venv-lowest/bin/python -m pytest $(AT_ONCE) -m "not slow and not browser and not service"

lint: .venv/installed-dev  ## Style, types and the layers of the design
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev  ## Put the code into the common form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed-docs  ## Build the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # Material's notice of its successor

benchmarks: .venv/installed-benchmarks .venv-peers/installed  ## Measure speed, beside others, and what tracking costs; hours
	$(BIN)/python -m benchmarks.training_speed --peers $(PEERS)/python
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.grid_search --size short --peers $(PEERS)/python
	$(BIN)/python -m benchmarks.grid_search --size long --peers $(PEERS)/python
	$(BIN)/python -m benchmarks.driver
	$(BIN)/python -m benchmarks.tracking_cost

ui: .venv/installed  ## Browse the runs in MLflow's page
	$(TRACK) ui

server:  ## A tracking server with passwords, on PostgreSQL, in containers; see docs/server.md
	docker compose --file server/compose.yaml up

constraints: .venv/installed-dev  ## Pin the newest versions that fit together
	$(COMPILE) pyproject.toml --extra dev --extra benchmarks --extra docs --upgrade \
		--output-file .venv/pins
	{ head -1 constraints.txt; cat .venv/pins; } > .venv/new && mv .venv/new constraints.txt
	$(COMPILE) pyproject.toml --extra dev --extra benchmarks --extra docs --generate-hashes \
		--constraint constraints.txt --output-file .venv/pins
	{ head -2 hashes.txt; cat .venv/pins; } > .venv/new && mv .venv/new hashes.txt
	printf 'uv\nvirtualenv\n' | $(COMPILE) - --generate-hashes --constraint constraints.txt \
		--output-file .venv/pins
	{ head -1 bootstrap.txt; cat .venv/pins; } > .venv/new && mv .venv/new bootstrap.txt

audit: $(BIN)/uv  ## Ask whether a vulnerability is known in one of the pinned versions
	$(BIN)/uv tool run pip-audit --requirement hashes.txt --require-hashes --disable-pip

clean:  ## Remove the environment, the site and the tools' caches; runs and reports stay
	rm -rf .venv .venv-keras .venv-lowest .venv-peers .bootstrap build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Where python3 comes without venv (Debian splits it off), virtualenv does the same.
$(BIN)/python $(PEERS)/python:
	$(PYTHON) -m venv $(@:/bin/python=) || { rm -rf $(@:/bin/python=); \
	$(PYTHON) -m pip install --quiet --target .bootstrap --require-hashes \
		--requirement bootstrap.txt && \
	PYTHONPATH=.bootstrap $(PYTHON) -m virtualenv --quiet $(@:/bin/python=); }
	echo "$(CURDIR)" > $(@:/bin/python=)/place

$(BIN)/uv: $(BIN)/python bootstrap.txt
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes \
		--requirement bootstrap.txt
	touch $@

EXTRA = $(addprefix --extra ,$(patsubst .venv/installed-%,%,$(filter-out .venv/installed,$@)))
.venv/installed $(addprefix .venv/installed-,dev docs benchmarks): $(BIN)/uv pyproject.toml hashes.txt
	$(INSTALL) --constraint hashes.txt --requirement pyproject.toml $(EXTRA)
	$(INSTALL) --no-deps --editable .
	touch $@ .venv/installed

.venv-lowest/installed: pyproject.toml | .venv/installed-dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct \
		--editable '.[dev]'
	touch $@

.venv-peers/installed: $(PEERS)/python benchmarks/peers.txt constraints.txt
	$(PEERS)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		--requirement benchmarks/peers.txt
	touch $@
