# What people type: make demo, make test. Everything happens in .venv and in TREPHINE_CACHE.

# A Python from 3.11 to 3.13; choose another with `make PYTHON=...`.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
OUT ?= out/demo
# Data and transcoders of the benchmarks; the product never reads them.
SHARED ?= ../shared
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test check types format lint layers fmt protos protos-check sync sync-check bench-edge bench-export bench-families bench-gguf bench-removal bench-kills bench-edits bench-laws bench-discovery bench-gpu bench-products bench-circuits bench-global bench-verify bench-estimators bench-groups bench-attention bench-page bench-long bench-shift bench-shift-export scorecard image clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "Trephine needs Python 3.11, 3.12 or 3.13: install one, or make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/service.stamp: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(PIP) --editable '.[service]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/service.stamp
	$(PIP) --editable '.[service,fit,dev]'
	@touch $@

demo: $(VENV)/service.stamp ## Open a real model, find a circuit, cut, verify, export and audit it
	$(BIN)/trephine models fetch smollm2
	$(BIN)/trephine demo --out $(OUT)

test: $(VENV)/dev.stamp ## Unit, contract, integration and e2e tests, the real model included
	$(BIN)/trephine models fetch smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

check: protos-check sync-check types format lint layers ## Format, lint, types, layers, contract, generated client

types: $(VENV)/dev.stamp
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .

layers: $(VENV)/dev.stamp
	$(BIN)/lint-imports

fmt: $(VENV)/dev.stamp ## Format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The contract is generated with the oldest supported tools, so that every newer runtime accepts it.
$(VENV)/protos/stamp: protos/requirements.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv $(VENV)/protos
	$(VENV)/protos/bin/python -m pip --disable-pip-version-check install --quiet --requirement protos/requirements.txt
	@touch $@

protos: $(VENV)/protos/stamp ## Generate the contract's code
	PATH="$(CURDIR)/$(VENV)/protos/bin:$$PATH" PYTHON=python protos/generate.sh

protos-check: $(VENV)/protos/stamp
	@rm -rf $(VENV)/protos/out
	@PATH="$(CURDIR)/$(VENV)/protos/bin:$$PATH" PYTHON=python protos/generate.sh $(CURDIR)/$(VENV)/protos/out 2>/dev/null
	@for file in $$(cd $(VENV)/protos/out && find . -name '*_pb2*'); do \
		cmp "protos/$$file" "$(VENV)/protos/out/$$file" || { echo "the contract's code is stale: make protos" >&2; exit 1; }; done
	@cd protos && PATH="$(CURDIR)/$(VENV)/protos/bin:$$PATH" ./lint.sh

# The awaited client is the source of the sync one. The tool has an environment of its own: it needs an older rich.
$(VENV)/unasync/stamp: clients/requirements.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv $(VENV)/unasync
	$(VENV)/unasync/bin/python -m pip --disable-pip-version-check install --quiet --requirement clients/requirements.txt
	@touch $@

GENERATE_SYNC := UNASYNCD="$(CURDIR)/$(VENV)/unasync/bin/unasyncd" RUFF="$(CURDIR)/$(BIN)/ruff" clients/generate.sh

sync: $(VENV)/dev.stamp $(VENV)/unasync/stamp ## Generate the sync client from the awaited one
	$(GENERATE_SYNC)

sync-check: $(VENV)/dev.stamp $(VENV)/unasync/stamp
	@rm -rf $(VENV)/unasync/out
	@$(GENERATE_SYNC) $(CURDIR)/$(VENV)/unasync/out
	@for file in $$(cd $(VENV)/unasync/out && ls); do \
		cmp "clients/trephine/client/$$file" "$(VENV)/unasync/out/$$file" || { echo "the sync client is stale: make sync" >&2; exit 1; }; done

bench-edge: $(VENV)/dev.stamp ## Latencies of the edge: unary calls, health under load, streams
	$(BIN)/python -m benchmarks.edge

bench-export: $(VENV)/dev.stamp ## Ten features by graft, ridge, projection and no-op, fp32 and bf16
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.export --transcoders $(SHARED)/replacements/smollm2-135m-tc \
		--text $(SHARED)/data/wikitext-2/heldout.txt

bench-families: $(VENV)/dev.stamp ## Every kind of edit on five families of tiny models: exact, grafted, fitted, refused
	$(BIN)/python -m benchmarks.export_families

bench-gguf: $(VENV)/dev.stamp ## The ten features' grafts in GGUF files, reloaded by stock transformers
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.export_gguf --transcoders $(SHARED)/replacements/smollm2-135m-tc \
		--text $(SHARED)/data/wikitext-2/heldout.txt

bench-removal: $(VENV)/dev.stamp ## Ten edits under attack: removed or suppressed
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.removal --transcoders $(SHARED)/replacements/smollm2-135m-tc \
		--text $(SHARED)/data/wikitext-2/heldout.txt

bench-kills: $(VENV)/dev.stamp ## Ten kills of a graft's export, engine and server
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.export_kills --set $(SHARED)/replacements/smollm2-135m-tc

bench-edits: $(VENV)/dev.stamp ## Edits beside their controls: effect, damage, a prompt; and what serving them costs
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.edits --transcoders $(SHARED)/replacements/smollm2-135m-tc --data $(SHARED)/data

bench-laws: $(VENV)/dev.stamp ## Laws 2 to 4 on SmolLM2, with their figures
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.laws --transcoders $(SHARED)/replacements/smollm2-135m-tc

$(VENV)/peer/stamp: benchmarks/peers/circuit_tracer.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv $(VENV)/peer
	$(VENV)/peer/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

bench-discovery: $(VENV)/dev.stamp $(VENV)/peer/stamp ## Discovery beside circuit-tracer: time, memory, edges, growth
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.discovery --peer $(VENV)/peer/bin/python \
		--transcoders $(SHARED)/replacements/smollm2-135m-tc --text $(SHARED)/data/wikitext-2/heldout.txt

bench-gpu: $(VENV)/dev.stamp $(VENV)/peer/stamp ## Discovery beside circuit-tracer on a GPU; the fastest of its settings
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.discovery_gpu --peer $(VENV)/peer/bin/python \
		--transcoders $(SHARED)/replacements/smollm2-135m-tc --text $(SHARED)/data/wikitext-2/heldout.txt

bench-products: $(VENV)/dev.stamp ## Float32 products by torch's two libraries
	$(BIN)/python -m benchmarks.products

bench-circuits: $(VENV)/dev.stamp ## Circuits of behaviours: curves, random circuits, stability, estimators
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.dataset_circuits --data $(SHARED)/data \
		--transcoders $(SHARED)/replacements/smollm2-135m-tc --out out/circuits

bench-global: $(VENV)/dev.stamp ## A circuit over many texts: transfer to others, baselines, halves, coverage
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.global_circuits --text $(SHARED)/data/wikitext-2/heldout.txt \
		--transcoders $(SHARED)/replacements/smollm2-135m-tc --out out/global

bench-verify: $(VENV)/dev.stamp ## Ten circuits under real ablations, random circuits, a search for the worst mask
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.verify_circuits --data $(SHARED)/data \
		--transcoders $(SHARED)/replacements/smollm2-135m-tc --out out/verify

bench-estimators: $(VENV)/dev.stamp ## Estimates of single ablations beside each other: gradient, stored paths, all paths
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.effect_estimators --transcoders $(SHARED)/replacements/smollm2-135m-tc

bench-groups: $(VENV)/dev.stamp ## Found groups beside random ones and ones by layer; planted groups; groups under real ablations
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.group_scores --transcoders $(SHARED)/replacements/smollm2-135m-tc

bench-attention: $(VENV)/dev.stamp ## Effects through attention on a small induction model, trained on the spot
	$(BIN)/python -m benchmarks.attention_effects

bench-page: $(VENV)/dev.stamp ## The circuit's page at 100, 1,000 and 5,000 nodes in a headless Chromium, with pictures
	$(BIN)/python -m benchmarks.circuit_page --out out/circuit-page

bench-long: $(VENV)/dev.stamp ## One discovery over 1,024 tokens with 4,096 nodes: time and memory
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.discovery_long --transcoders $(SHARED)/replacements/smollm2-135m-tc \
		--text $(SHARED)/data/wikitext-2/heldout.txt

bench-shift: $(VENV)/dev.stamp ## Spurious features removed, beside every baseline and an oracle
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.shift --data $(SHARED)/data \
		--transcoders $(SHARED)/replacements/smollm2-135m-tc --out out/shift

bench-shift-export: $(VENV)/dev.stamp ## Spurious features removed, exported, reloaded by stock transformers
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.shift_export --data $(SHARED)/data --out out/shift-export

scorecard: $(VENV)/dev.stamp ## One card for SmolLM2 and its transcoders: fidelity and utility, beside controls
	$(BIN)/trephine models fetch smollm2
	$(BIN)/python -m benchmarks.scorecard --data $(SHARED)/data \
		--transcoders $(SHARED)/replacements/smollm2-135m-tc --text $(SHARED)/data/wikitext-2/heldout.txt

image: ## Build the container image
	docker build --tag trephine .

clean: ## Remove what make made, the model cache excepted
	rm -rf $(VENV) dist build out
