PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Python compiles what it imports; to compile all that is installed would take a minute.
PIP_INSTALL := $(RUN) -m pip install --quiet --no-input --no-compile
# Without a GPU the CPU build of torch is enough, and gigabytes smaller than the default one.
TORCH := $(if $(shell command -v nvidia-smi),,torch==2.13.0)

# Some containers ask Python to keep no bytecode: every start would compile thousands of files again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo studio test lint slow fuzz conformance bench wheels clean

demo: $(VENV)/.runtime
	$(RUN) -m ie_jax.evaluation.demo --output demo.png

studio: $(VENV)/.runtime
	$(PIP_INSTALL) --editable '.[studio]'
	$(RUN) -m ie_jax.studio

test: lint
	$(RUN) -m pytest

lint: $(VENV)/.development
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

conformance: $(VENV)/.development
	@test -d "$(DIR)" || { echo 'usage: make conformance DIR=folder-of-the-recorded-data' >&2; exit 2; }
	$(RUN) tests/conformance.py "$(DIR)"

slow: $(VENV)/.development
	$(RUN) -m pytest -m slow

MINUTES := 10
fuzz: $(VENV)/.development
	FUZZ_SECONDS=$$(( $(MINUTES) * 60 )) FUZZ_SEED=$$(date +%s) $(RUN) -m pytest -n 0 tests/test_fuzz.py

bench: $(VENV)/.development
	$(RUN) -m benchmarks.edit
	$(RUN) -m benchmarks.memory

# What benchmarks.gpu needs beyond JAX, PyTorch, transformers and peft, for a machine without a network.
WHEELS := diffusers importlib_metadata docstring-parser pooch platformdirs tensorboardX \
	pydantic pydantic-core annotated-types typing-inspection h5py

wheels: $(VENV)/.development
	$(RUN) -m pip download --quiet --no-deps --only-binary=:all: --dest .wheels \
		--python-version 3.12 --implementation cp \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 $(WHEELS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps stand for "installed as pyproject.toml asks".
$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.development: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable '.[dev]' $(TORCH)
	touch $@ $(VENV)/.runtime
