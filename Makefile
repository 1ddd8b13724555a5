# Nothing but Python 3.11 and make is needed: every target sets up .venv first.
PYTHON ?= python3.11
PYTHON := $(if $(shell command -v $(PYTHON) 2>/dev/null),$(PYTHON),python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.edgevit-dev

.PHONY: demo test lint bench format protos clean

# Installed anew only when the dependencies change. torchvision is pinned to torch in pyproject.toml,
# so that no resolver trades the pinned torch for a newer one.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edgevit needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/edgevit convert shvit_s1 --to all -o demo/shvit_s1 --force
	$(BIN)/edgevit verify demo/shvit_s1
	$(BIN)/edgevit profile demo/shvit_s1 --per-op -o demo/report.html
	$(BIN)/python examples/cluster_demo.py demo/cluster
	@echo
	@echo "bundle: demo/shvit_s1"
	@echo "report: demo/report.html"
	@echo "cluster: demo/cluster/plan"
	@echo "report: demo/cluster/cluster.html"

# The fast tests first, then the end-to-end ones; CI runs both. A file's tests stay in one process.
# Many fast ones wait for processes to start and to end, so that three at a time keep two cores busy;
# the slow ones compute. They start hundreds of processes, none of which is to compile our source anew,
# whether or not Python may keep what it compiles by itself (PYTHONDONTWRITEBYTECODE).
JOBS ?= 3
SLOW_JOBS ?= 2
test: $(STAMP)
	$(BIN)/python -m compileall -q edgevit converters runtime partition
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow"
	$(BIN)/python -m pytest -q -n $(SLOW_JOBS) --dist loadfile -m slow

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The descriptors that runtime/wire reads, made anew after a change to a .proto file.
protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I runtime/wire/protos --descriptor_set_out=runtime/wire/descriptors.binpb runtime/wire/protos/*.proto

# Every claim of README and docs, measured again; results go to docs/results/.
bench: $(STAMP)
	$(BIN)/python benchmarks/vs_vendor.py
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/pool_mixer.py
	$(BIN)/python benchmarks/input_offset.py
	$(BIN)/python benchmarks/fp16_executorch.py
	$(BIN)/python benchmarks/fold_against_timm.py
	$(BIN)/python benchmarks/rewrites.py
	$(BIN)/python benchmarks/agent.py
	$(BIN)/python benchmarks/coordinator.py
	$(BIN)/python benchmarks/cluster_faults.py
	$(BIN)/python benchmarks/edvit_simulation.py
	$(BIN)/python benchmarks/edvit_geometry.py --latency --engine onnx
	$(BIN)/python benchmarks/edvit_importance.py
	$(BIN)/python benchmarks/edvit_accuracy.py
	$(BIN)/python benchmarks/train_digits.py

clean:
	rm -rf demo build *.egg-info
