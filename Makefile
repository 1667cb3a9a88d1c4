# All commands. `make help` lists what there is.

PYTHON ?= python3.13
VENV := .venv
BIN := $(VENV)/bin
export SAM_CLI_TELEMETRY := 0
# The build of the functions wants python3.13, wherever it comes from.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run demo test unit explore fuzz mutate verify bench status session forget session-hash sweep retry-rejected redrive tail smoke docs check scan audit sbom format build lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/installed ## Run the whole stack on this machine, with a page to watch it
	@$(BIN)/python -m local.run

demo: $(VENV)/installed ## See an end outlive an outage of Elevate, in the terminal
	@$(BIN)/python -m local.demo

test: $(VENV)/installed ## Run all tests, those on the deployed stack included
	$(BIN)/pytest

unit: $(VENV)/installed ## Run the tests that need no deployed stack
	$(BIN)/pytest --ignore tests/stack --ignore tests/access

explore: $(VENV)/installed ## Let Hypothesis look for new counterexamples
	$(BIN)/pytest --ignore tests/stack --ignore tests/access --hypothesis-profile explore -k "$(or $(K),TestSessions)"

fuzz: $(VENV)/installed ## Fuzz the deployed API for two minutes (FUZZ=seconds, SEED=…)
	FUZZ=$(or $(FUZZ),120) SEED=$(or $(SEED),$$(date +%s)) $(BIN)/pytest -n 0 -s tests/access/test_access.py -k documented_answer

mutate: $(VENV)/installed ## List changes of the code that no test notices (MODULE=lifetime; all take hours)
	@nice $(BIN)/python tests/mutate.py $(MODULE)

verify: $(VENV)/installed ## Break everything under load, then count what was lost (N=2000, SEED=…)
	@PYTHONPATH=src $(BIN)/python -m local.verify $(N) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/installed ## Measure beside what you would use instead (PART=sweep; N=10000: growth up to there)
	@PYTHONPATH=.:src:tests $(BIN)/python bench/bench.py $(if $(PART),--part $(PART)) $(N)

OPERATE = PYTHONPATH=src $(BIN)/python -m ops.operate
# Keys may hold anything: make leaves them as they are, the shell gets them from its environment.
# Only those of the command line count, not what the environment happens to hold.
given = $(if $(filter command,$(firstword $(origin $(1)))),$(value $(1)))
override KEY := $(call given,KEY)
override CUSTOMER := $(call given,CUSTOMER)
override MARKET := $(call given,MARKET)
export KEY CUSTOMER MARKET

status: $(VENV)/installed ## Show sessions by state, what is due, dead-letter messages (OPTIONS="--stack NAME")
	@$(OPERATE) status $(OPTIONS)

session: $(VENV)/installed ## Show one session's state and history (KEY=…)
	@$(OPERATE) session $(OPTIONS) -- $${KEY:+"$$KEY"}

forget: $(VENV)/installed ## Delete a session (KEY=…) or a visitor's sessions (CUSTOMER=…) from the registry
	@if [ -n "$$CUSTOMER" ]; then $(OPERATE) forget $(OPTIONS) --customer="$$CUSTOMER"; \
		else $(OPERATE) forget $(OPTIONS) -- $${KEY:+"$$KEY"}; fi

session-hash: $(VENV)/installed ## Print the hash that stands for a key in the logs (KEY=…)
	@$(OPERATE) session-hash $(OPTIONS) -- $${KEY:+"$$KEY"}

sweep: $(VENV)/installed ## Sweep now
	@$(OPERATE) sweep $(OPTIONS)

retry-rejected: $(VENV)/installed ## Make rejected sessions due again (MARKET=…, or all)
	@$(OPERATE) retry-rejected $(OPTIONS) --market="$$MARKET"

redrive: $(VENV)/installed ## Send dead-letter messages to their functions once more
	@$(OPERATE) redrive $(OPTIONS)

tail: $(VENV)/installed ## Follow the functions' logs
	@$(OPERATE) tail $(OPTIONS)

smoke: $(VENV)/installed ## Check that a deployed stack works (STACK=name, in AWS; OPTIONS="--profile …")
	@PYTHONPATH=src $(BIN)/python -m ops.smoke $(if $(STACK),--stack $(STACK)) $(OPTIONS)

docs: $(VENV)/installed ## Write the HTTP interface as one page to read, and docs/parameters.md
	@$(BIN)/python -m local.interface
	@$(BIN)/python -m local.reference

check: $(VENV)/installed scan ## Lint, types, template and its security, hashes of all dependencies
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	AWS_DEFAULT_REGION=eu-west-1 $(BIN)/sam validate --lint
	$(BIN)/uv pip sync $(HASHED) --python $(BIN)/python requirements-dev.txt
	$(BIN)/uv pip sync $(HASHED) --python $(BIN)/python src/requirements.txt
	$(BIN)/uv pip sync $(HASHED) --python $(VENV)/scan/bin/python requirements-scan.txt

# Refuses a lock with a line that is not pinned or has no hash; changes nothing, asks nobody.
HASHED := --quiet --offline --dry-run --require-hashes

scan: $(VENV)/scan/installed ## Scan the template for what is insecure (exceptions: .checkov.yaml)
	@mkdir -p .local
	@$(BIN)/python -m local.flat > .local/template.json
	$(VENV)/scan/bin/checkov --config-file .checkov.yaml

audit: $(VENV)/scan/installed ## Ask PyPI for known vulnerabilities in what the functions ship
	$(VENV)/scan/bin/pip-audit --require-hashes --disable-pip -r src/requirements.txt

sbom: $(VENV)/scan/installed ## Write the list of what the functions ship (CycloneDX) to .local/sbom.json
	@mkdir -p .local
	@PYTHONWARNINGS=ignore $(VENV)/scan/bin/cyclonedx-py requirements --pyproject pyproject.toml \
		--sv 1.6 --short-PURLs --output-reproducible --outfile .local/sbom.json src/requirements.txt
	@echo "Written: .local/sbom.json"

format: $(VENV)/installed ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

build: $(VENV)/installed ## Build the functions' package into .aws-sam
	$(BIN)/sam build --cached

lock: $(VENV)/installed ## Update the pins of all dependencies, with hashes
	$(BIN)/uv pip compile $(LOCK) requirements-dev.in -o requirements-dev.txt
	$(BIN)/uv pip compile $(LOCK) -c requirements-dev.txt src/requirements.in -o src/requirements.txt
	$(BIN)/uv pip compile $(LOCK) requirements-scan.in -o requirements-scan.txt

LOCK := --quiet --upgrade --universal --python-version 3.13 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header

clean: ## Remove everything that was generated here
	rm -rf $(VENV) .aws-sam .local .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants

# Everything that runs here comes from the lock file; it is installed again only when that changed.
$(VENV)/installed: requirements-dev.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.13 is needed: no $(PYTHON) here." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' \
		|| { echo "Python 3.13 is needed: $(PYTHON) is another version." >&2; exit 1; }
	@echo "Installing the tools into $(VENV)/; the first time this takes about a minute."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.txt
	@touch $@

# The scanners have an environment of their own: they want older versions of what the rest uses.
$(VENV)/scan/installed: requirements-scan.txt $(VENV)/installed
	$(PYTHON) -m venv $(VENV)/scan
	$(VENV)/scan/bin/pip install --disable-pip-version-check --require-hashes -r requirements-scan.txt
	@touch $@
