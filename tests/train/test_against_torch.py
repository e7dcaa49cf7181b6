"""Twenty steps of the whole recipe beside torch's, on real weights."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers

from benchmarks.torch_version import finetune
from cwgnc_jax import models
from train import batches
from train.config import PRESETS, DataConfig, RegularizationConfig
from train.loop import prepare, start_run
from train.packing import training_set
from train.parallel import (
    ONE_RUN,
    compile_train_steps,
    place_plans,
    place_training_set,
)

STEPS, TOTAL = 20, 100


@pytest.fixture
def own_data(tiny_data):
    train, validation = tiny_data
    return DataConfig(
        train_file=train, validation_file=validation, text_columns=("text",)
    )


@pytest.fixture
def cola(glue_dir):
    return DataConfig(task="cola", data_dir=glue_dir)


def compare(data, max_norm, weight_decay, minilm, tmp_path):
    preset = PRESETS["code"]
    config = dataclasses.replace(
        preset,
        model=str(minilm),
        workdir=tmp_path / "run",
        data=data,
        regularization=RegularizationConfig(dropout=0.0),
        optimizer=dataclasses.replace(
            preset.optimizer, max_norm=max_norm, weight_decay=weight_decay
        ),
    )
    prepared = prepare(config)
    prepared = dataclasses.replace(prepared, total_steps=TOTAL)
    model_config, train = prepared.recipe.model, prepared.inputs.train

    def batch_of(step):
        return batches.train_batch(train, config.seed, step, config.batch_size)

    def only(stacked):
        return jax.tree.map(lambda leaf: leaf[0], stacked)

    run = start_run(prepared)
    start = tmp_path / "start"
    models.save_pretrained(start, model_config, only(run.params))
    examples = place_training_set(ONE_RUN, training_set(train))
    program_of = functools.cache(
        functools.partial(compile_train_steps, prepared.recipe, ONE_RUN)
    )
    losses = []
    for step in range(STEPS):
        shape = prepared.packing.shape([config.seed], [step])
        plan = prepared.packing.plan(config.seed, step, shape)
        steps = program_of(shape)
        run, metrics = steps(run, examples, place_plans(ONE_RUN, [[plan]]))
        losses.append(float(metrics.loss[0, 0]))
    # Several examples to a row, where torch has one.
    assert max(rows for rows, _ in prepared.packing.shapes[:-1]) < config.batch_size

    model = transformers.BertForSequenceClassification.from_pretrained(
        start, attn_implementation="eager"
    )
    theirs = finetune(
        model.eval(),  # no dropout
        batch_of,
        steps=STEPS,
        total_steps=TOTAL,
        learning_rate=config.optimizer.learning_rate,
        max_norm=max_norm,
        weight_decay=weight_decay,
    )
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)

    models.save_pretrained(tmp_path / "end", model_config, only(run.params))
    ours = safetensors.numpy.load_file(tmp_path / "end" / "model.safetensors")
    before = safetensors.numpy.load_file(start / "model.safetensors")
    named = dict(model.named_parameters())
    assert set(named) == set(ours)
    for name, parameter in named.items():
        np.testing.assert_allclose(
            ours[name], parameter.detach().numpy(), rtol=0, atol=1e-5, err_msg=name
        )
    moved = max(np.abs(ours[name] - before[name]).max() for name in ours)
    assert moved > 2e-4


@pytest.mark.parametrize("max_norm", [0.05, np.inf], ids=["clip", "no clip"])
def test_twenty_steps_equal_torch(own_data, max_norm, minilm, tmp_path):
    compare(own_data, max_norm, 0.01, minilm, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("max_norm", [0.05, np.inf], ids=["clip", "no clip"])
def test_twenty_steps_on_cola_equal_torch(cola, max_norm, minilm, tmp_path):
    compare(cola, max_norm, 0.0, minilm, tmp_path)
