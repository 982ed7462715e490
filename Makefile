# The commands of a working day; `make` alone lists them. Each sets up first what it needs.
#
#   make image CLOUD=nimbus SITE=hotel IMAGE=hello-phantom V=1
#
# GNU make ends with status 2 for every error, and adds a line to the error's. `./phantom-image`
# does what the targets do, and ends with the status that names the error.

IMAGE ?= hello-phantom

# The recipes' shell takes these from its environment, so that no value needs quoting here.
export CLOUD SITE ALL_SITES IMAGE

PHANTOM := ./phantom-image
WHERE = $${CLOUD:+--cloud "$$CLOUD"} $${SITE:+--site "$$SITE"} $${ALL_SITES:+--all-sites}
VERBOSE = $(if $(V),-v)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev image nightly catalog plan boot doctor test soak lint bench clean requirements

help: ## this list
	@echo 'make TARGET [CLOUD=cloud] [SITE=site] [ALL_SITES=1] [IMAGE=$(IMAGE)] [V=1]'
	@echo
	@sed -n 's/^\([a-z]*\):.* ## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r target what; do \
		printf '%-16s %s\n' "  $$target" "$$what"; done
	@echo
	@echo 'All else: $(PHANTOM) --help. It sets up too, and its exit status names the error;'
	@echo 'that of make is 2 for every error.'

image: ## builds, boots and publishes an appliance and writes its manifest
	@$(PHANTOM) image $(VERBOSE) "$$IMAGE" $(WHERE)

catalog: ## writes static pages and feeds of all appliances, to build/catalog
	@$(PHANTOM) catalog

nightly: ## builds and publishes what changed of all appliances, for a build server
	@$(PHANTOM) nightly $(VERBOSE) $(WHERE)

plan: ## says what `make image` would do, and why
	@$(PHANTOM) plan "$$IMAGE" $(WHERE)

boot: ## starts the appliance's machine, console attached
	@$(PHANTOM) boot $(VERBOSE) "$$IMAGE" $(WHERE)

doctor: ## looks at this host, and says what is missing and what mends it
	@$(PHANTOM) doctor

test: lint ## every check and every test
ifdef MINUTES
	@started=$$(date +%s); status=0; \
	$(TEST) -m 'not slow and not boot' || status=$$?; \
	left=$$(($(MINUTES) - ($$(date +%s) - started) / 60)); \
	$(TEST) -m 'slow or boot' --minutes "$$left" || status=$$?; \
	exit "$$status"
else
	@$(TEST)
endif

soak: setup-dev ## the tests that search for faults, for hours
	@SOAK=1 .venv/bin/python3 -m pytest $(PARALLEL) -m soak -o timeout=14400

# A process for each core runs one file of tests after the other. Where time is limited, the quick
# tests come first, because they always run.
TEST = .venv/bin/python3 -m pytest $(PARALLEL) --durations 20
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: setup-dev ## the figures that the project promises
	@.venv/bin/python3 -m benchmarks

lint: setup-dev ## ruff, mypy, import-linter and shellcheck
	@./lint.sh

setup: ## installs what is missing: Debian packages, .venv
	@./setup.sh

setup-dev:
	@./setup.sh --dev

# Manifests and what a sandbox site holds are records, and stay. A store that PHANTOM_STORE names
# may be shared: `phantom-image gc` is for that one.
clean: ## removes the artifacts in build/store and the tools' caches
	rm -rf build/store .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

requirements: ## takes the newest Python packages; needs uv
	uv pip compile $(COMPILE) $(EXTRAS) -o requirements.txt pyproject.toml
	uv pip compile $(COMPILE) $(EXTRAS) --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml

EXTRAS := --extra sandbox --extra catalog --extra nightly

# For Debian 12's Python. No address of an index gets into the files.
COMPILE := --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make requirements' \
	--python-version 3.11 --python-platform x86_64-unknown-linux-gnu
