# `make help` lists the targets. Every target makes the virtual environment when it is missing.

MODEL   ?= minilm
TARGET  ?= cpu
WEIGHTS ?= pretrained
OUT     ?=
ARGS    ?=
PYTHON  ?= python3
PIP_ARGS ?=

VENV := .venv
BIN  := $(VENV)/bin
DONE := $(VENV)/.onnxopt-ready

.DEFAULT_GOAL := help
.PHONY: help setup optimize test test-slow test-node lint format types check docs catalogue peers bench record cost \
	bench-decode bench-quantized bench-encoder bench-convs bench-shrink bench-cuda bench-serve bench-large soak census census-pairs exam \
	campaign campaign-kill campaign-hostile real build clean distclean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make optimize MODEL=minilm|gpt2-mini|bert-base-uncased|<Hub id>|<folder>|<file.onnx> [TARGET=cpu|cuda|tensorrt|portable]"
	@echo "                [OUT=build/<name>] [WEIGHTS=random] [ARGS=\"--no-measure --json ...\"]"

setup: $(DONE) ## Make .venv with everything the tool and its tests need

$(DONE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' || \
		{ echo "onnxopt needs Python 3.10 or later; choose one with make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(DONE)

optimize: $(DONE) ## Optimize MODEL for TARGET (default: the sample minilm for this machine's CPU)
	$(BIN)/onnxopt optimize "$(MODEL)" --target "$(TARGET)" --weights "$(WEIGHTS)" $(if $(OUT),--out "$(OUT)") $(ARGS)

test: $(DONE) ## Run the tests, JOBS at a time (default 2)
	$(BIN)/python -m pytest -n $(or $(JOBS),2) --dist worksteal -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"

test-slow: $(DONE) ## Run the tests that take longer, JOBS at a time (default 2)
	$(BIN)/python -m pytest -n $(or $(JOBS),2) --dist worksteal -m slow

test-node: $(DONE) ## Run the tests that need Node and npm
	$(BIN)/python -m pytest -m node

lint: $(DONE) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DONE) ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DONE) ## Check types
	$(BIN)/mypy

check: lint types test ## Everything that must pass before a commit

docs: $(DONE) ## Build the documents as a site into site; a link that leads nowhere ends the build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

catalogue: $(DONE) ## Write the generated parts of the documents
	$(BIN)/python -m tools.docs

peers: $(DONE) ## Build a virtual environment per peer in .venv-peers
	$(BIN)/python -m bench.peers

bench: $(DONE) ## Run the peers side by side on MiniLM and write their tables
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.run --table docs/benchmarks/encoders.md
	$(BIN)/python -m bench.headline --table README.md

record: $(DONE) ## Measure the forms of kernels for some models and write the table that ships with the package (long)
	$(BIN)/python -m bench.record

cost: $(DONE) ## Measure what optimizing costs beside OnnxSlim and onnxsim and write the table
	$(BIN)/python -m bench.cost
	$(BIN)/python -m bench.cost --table docs/benchmarks/cost.md

bench-decode: $(DONE) ## Run SmolLM2 beside onnxruntime-genai's own graph and write the table
	$(BIN)/python -m bench.decode
	$(BIN)/python -m bench.decode --table docs/benchmarks/decoders.md

bench-cuda: $(DONE) ## Time BERT-base and SmolLM2 in fp16 on this machine's GPU and write the tables
	$(BIN)/python -m bench.cuda
	$(BIN)/python -m bench.cuda --table docs/benchmarks/gpu.md

bench-quantized: $(DONE) ## Run quantized SmolLM2 beside llama.cpp and genai's int4 and write the table
	$(BIN)/python -m bench.quantized
	$(BIN)/python -m bench.quantized --table docs/benchmarks/decoders.md
	$(BIN)/python -m bench.headline --table README.md

bench-encoder: $(DONE) ## Judge MiniLM in int8 on text it has never seen and write the table
	$(BIN)/python -m bench.encoder
	$(BIN)/python -m bench.encoder --table docs/benchmarks/int8.md
	$(BIN)/python -m bench.headline --table README.md

bench-convs: $(DONE) ## Quantize the networks of an OCR package and write the table
	$(BIN)/python -m bench.convs
	$(BIN)/python -m bench.convs --table docs/benchmarks/int8.md

bench-shrink: $(DONE) ## Prune MiniLM and SmolLM2 in several ways and write the tables
	$(BIN)/python -m bench.shrink
	$(BIN)/python -m bench.shrink --table docs/benchmarks/shrinking.md

bench-serve: $(DONE) ## Load a server of this machine with 64 clients and write the table
	$(BIN)/python -m bench.serve
	$(BIN)/python -m bench.serve --table docs/benchmarks/serving.md

bench-large: $(DONE) ## Optimize large models under limits of memory, CASE= one or all, beside the peers, and write the tables (long)
	$(BIN)/python -m bench.large $(foreach case,$(CASE),--case $(case))
	$(BIN)/python -m bench.large --table docs/benchmarks/large.md

soak: $(DONE) ## Load a server with 2 GB for SECONDS=3600, a tenth of it hostile, compare every answer and write the table (long)
	$(BIN)/python -m bench.soak $(if $(SECONDS),--seconds $(SECONDS))
	$(BIN)/python -m bench.soak --table docs/reference/robustness.md

census: $(DONE) ## Take many architectures the whole road and write the table (long)
	$(BIN)/python -m tests.census.run
	$(BIN)/python -m tests.census.run --table docs/census.md

census-pairs: $(DONE) ## Try model types with heads, PAIRS="bert/* */ctc" or all, those on record not again, and write the table (long)
	$(BIN)/python -m tests.census.pairs --run $(foreach pair,$(PAIRS),'$(pair)')
	$(BIN)/python -m tests.census.pairs --table docs/census.md

exam: $(DONE) ## Take ONNX's own backend cases through optimize for cpu and portable and record what became of them (long)
	$(BIN)/python -m tests.exam.backend

campaign: $(DONE) ## Optimize N=10000 random graphs from SEED=0 on, JOBS=2 at a time, RESUME=1 to go on, and record what became of them (long)
	$(BIN)/python -m tests.exam.campaign --graphs $(or $(N),10000) --seed $(or $(SEED),0) $(if $(JOBS),--jobs $(JOBS)) $(if $(RESUME),--resume)
	$(BIN)/python -m tests.exam.campaign --table docs/reference/robustness.md

campaign-kill: $(DONE) ## Stop commands at N=130 random moments or fill their disks from SEED=0 on, RESUME=1 to go on, and record it (long)
	$(BIN)/python -m tests.exam.kills --trials $(or $(N),130) --seed $(or $(SEED),0) $(if $(RESUME),--resume)
	$(BIN)/python -m tests.exam.kills --table docs/reference/robustness.md

campaign-hostile: $(DONE) ## Give hundreds of hostile inputs to the commands that they concern, RESUME=1 to go on, and record what became of them (long)
	$(BIN)/python -m tests.exam.hostile $(if $(RESUME),--resume)
	$(BIN)/python -m tests.exam.hostile --table docs/reference/robustness.md

real: $(DONE) ## Optimize the .onnx files of some packages, ONLY=part of a name, compare, time and record them (long)
	$(BIN)/python -m tests.exam.real $(if $(ONLY),--only "$(ONLY)")

build: $(DONE) ## Build the wheel and the source archive into dist
	$(BIN)/python -m build

clean: ## Remove artifacts and caches, keep .venv
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis

distclean: clean ## Remove .venv too
	rm -rf $(VENV)
