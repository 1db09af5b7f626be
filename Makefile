PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-fast test-whole test-gpu test-lowest architectures methods lint format screenshots torture fuzz growth bench-peers bench-adapters bench-evaluation bench-gpu mutants clean lock audit

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready  ## create the virtual environment with the tested package versions

$(VENV)/ready: pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup  ## fine-tune a small real model on real text in a few minutes and print the record
	$(BIN)/litpeft demo

$(VENV)/docs-ready: pyproject.toml | $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	touch $@

docs: $(VENV)/docs-ready  ## build the documentation into site/, with the reference made from the code
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --quiet --strict && echo site/index.html

# three processes, also on two cores: for a quarter of their time the tests wait for processes that they start
# --dist worksteal: tests that share a fixture stay in one process, and none waits for the other at the end
test: setup  ## run all tests
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not whole"

test-fast: setup  ## run the tests that need no real model and no network
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not whole"

test-whole: setup  ## run the cross products whose samples run in the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m whole

test-gpu: setup  ## run the tests that need CUDA; without CUDA they are skipped with a reason
	$(BIN)/python -m pytest tests/gpu -rs

architectures: setup  ## check tiny models of 111 architectures with LoRA, DoRA and QLoRA, and write docs/architectures.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.architectures --write docs/architectures.md

methods: setup  ## check every method in PEFT's registry on two tiny models, and write docs/methods.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.adapters.methods_table --write docs/methods.md

lint: setup  ## check style and the direction of imports
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache

format: setup  ## fix style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

REPORT ?= report.html
screenshots: setup  ## take screenshots of a report (light, dark, phone): make screenshots REPORT=report.html
	$(BIN)/python -m tests.analysis.report.screenshots $(REPORT) $(dir $(REPORT))

KILLS ?= 200
torture: setup  ## kill runs at random points, resume them and compare with uninterrupted runs: make torture KILLS=20
	$(BIN)/python -m tests.torture --kills $(KILLS)

CASES ?= 20000
fuzz: setup  ## mutate valid command lines and files; each must run or be refused: make fuzz CASES=2000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES) && $(BIN)/python -m tests.fuzz.readers

growth: setup  ## measure compare and report on up to 100,000 made-up records
	$(BIN)/python -m tests.growth

N ?= 400
SEED ?= 1
mutants: setup  ## run a sample of mutants against the tests that cover them, then the curated list: make mutants N=100 SEED=2
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python "cosmic-ray>=8.4" "coverage>=7.6"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants.record
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants.sample --number $(N) --seed $(SEED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants.faults

bench-peers: setup  ## measure speed and memory relative to Hugging Face Trainer + PEFT, in alternating runs on one thread
	$(BIN)/python -m tests.peers.bench

bench-adapters: setup  ## measure the cost of each adapter relative to its frozen layer, and PEFT's, in one process
	OMP_NUM_THREADS=1 KINETO_LOG_LEVEL=9 $(BIN)/python -m tests.peers.bench_adapters

bench-evaluation: setup  ## measure the speed of benchmarks relative to lm-eval (DATA=FOLDER: on TruthfulQA)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.peers.bench_evaluation $(if $(DATA),--data_dir $(DATA))

OUT ?= bench-gpu.jsonl
bench-gpu: setup  ## on a GPU: profile, then rates and peaks relative to Trainer + PEFT (seven minutes each), then tests/gpu
	KINETO_LOG_LEVEL=9 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.peers.bench_gpu profile --out $(OUT)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.peers.bench_gpu rates --out $(OUT)
	$(BIN)/python -m pytest tests/gpu -rs

OF_TORCH := torch triton nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft \
	nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
	nvidia-nvshmem-cu13 nvidia-nvtx cuda-bindings cuda-pathfinder cuda-toolkit
lock: setup  ## rewrite requirements.lock: hashes of the packages in constraints.txt, except torch, whose build depends on the machine
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --extra dev \
		--constraint constraints.txt $(addprefix --no-emit-package ,$(OF_TORCH)) --output-file requirements.lock pyproject.toml

LOWEST ?= .venv-lowest
test-lowest: setup  ## run the fast tests with the lowest versions that pyproject.toml claims, except torch: in a virtual environment of its own
	$(BIN)/python -m pip install --quiet uv
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints.txt torch
	grep '^torch==' constraints.txt > $(LOWEST)/torch.txt  # an older torch needs other packages than those of OF_TORCH
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --no-header --no-annotate --extra dev \
		--constraint $(LOWEST)/torch.txt $(addprefix --no-emit-package ,$(OF_TORCH)) \
		--output-file $(LOWEST)/requirements.txt pyproject.toml
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not whole"

audit: setup  ## check the packages in constraints.txt for known vulnerabilities
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --disable-pip --no-deps --requirement constraints.txt

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
