# The commands of the README. `make` sets up, `make demo` runs the main job, `make test` the tests.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := demo

.DELETE_ON_ERROR:
.PHONY: all demo test test-slow check clean

all: $(READY)

$(READY): setup.py .ci/constraints.txt .ci/compiler
	@echo "Setting up .venv: about 7 GB (15 while it installs) and 5 to 10 minutes without a word, once."
	bash .ci/compiler
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --quiet --constraint .ci/constraints.txt --editable '.[all]'
	# mypy finds the package by its name, whatever this folder is called.
	mkdir -p .venv/src && ln -sfn ../.. .venv/src/rainspark
	touch $@

demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/rainspark storms --out $(DEMO)/radar --hours 24 --seed 1 --size 192
	$(BIN)/rainspark pack knmi $(DEMO)/radar --out $(DEMO)/shards
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $$(nproc) trainer/pretrain.py --config demo --data.shards $(DEMO)/shards --run.dir $(DEMO)/run
	$(BIN)/rainspark weights export $(DEMO)/run --out $(DEMO)/encoder.safetensors
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $$(nproc) trainer/finetune.py --config demo_nowcast --data.shards $(DEMO)/shards \
		--init_from $(DEMO)/run --run.dir $(DEMO)/nowcast
	$(BIN)/rainspark evaluate --data.shards $(DEMO)/shards --split test \
		--models $(DEMO)/nowcast persistence extrapolation --limit 8 --out $(DEMO)/scores --report $(DEMO)/report

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.figures

# One thread a process: on tensors this small threads wait for each other, and some tests start two processes; three at a
# time on two cores, because many wait. Files run in their order: sorted by their number of tests the longest runs, which
# are few, would stand alone at the end.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" --durations=15

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or gpu" --durations=15

clean:
	rm -rf $(DEMO) .mypy_cache .ruff_cache .hypothesis
