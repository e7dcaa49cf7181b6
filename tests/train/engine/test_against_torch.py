"""Twenty steps of the whole recipe beside torch's, on real weights."""

import numpy as np
import pytest
import safetensors.numpy
import transformers

from benchmarks.padded import padded_batch
from benchmarks.torch_version import finetune
from cwgnc_jax import models
from cwgnc_train.config import (
    DataConfig,
    FinetuneConfig,
    OptimizerConfig,
    RegularizationConfig,
)
from cwgnc_train.engine import Programs, RunGroup
from cwgnc_train.engine.layout import first_run
from cwgnc_train.study import prepare_study

STEPS, TOTAL = 20, 100


@pytest.fixture
def own_data(tiny_data):
    train, validation = tiny_data
    return {
        "data": DataConfig(
            train_file=train,
            validation_file=validation,
            text_columns=("text",),
            max_length=32,
        )
    }


@pytest.fixture
def cola(glue_dir):
    return {"task": "cola", "data": DataConfig(data_dir=glue_dir)}


def compare(data, max_norm, weight_decay, model, tmp_path):
    config = FinetuneConfig(
        model=str(model),
        workdir=tmp_path / "run",
        preset="code",
        regularization=RegularizationConfig(dropout=0.0),
        optimizer=OptimizerConfig(max_norm=max_norm, weight_decay=weight_decay),
        **data,
    )
    study = prepare_study(config)
    [of_task], [spec] = study.tasks.values(), study.runs
    group = RunGroup(of_task, (spec,), study.layout)
    step_config, train = of_task.step_config(spec), of_task.inputs.train
    batch_size = config.training.batch_size

    def batch_of(step):
        return padded_batch(train, config.seed, step, batch_size)

    state = group.start()
    total = np.full_like(state.hparams.total_steps, TOTAL)
    state = state._replace(hparams=state.hparams._replace(total_steps=total))
    start = tmp_path / "start"
    models.save_pretrained(start, step_config.model, first_run(state.params))
    programs, losses = Programs(say=print), []
    for step in range(STEPS):
        shape = group.batch_shape([step])
        program, batches = programs.train_steps(group, 0, [step], shape, measured=False)
        state, metrics = program(state, *batches)
        losses.append(float(metrics.loss[0, 0]))
    # Several examples to a row, where torch has one.
    assert max(rows for rows, _ in of_task.packing.shapes[:-1]) < batch_size

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

    models.save_pretrained(tmp_path / "end", step_config.model, first_run(state.params))
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


@pytest.mark.slow
@pytest.mark.parametrize("max_norm", [0.05, np.inf], ids=["clip", "no clip"])
def test_twenty_steps_equal_torch(own_data, max_norm, minilm, tmp_path):
    compare(own_data, max_norm, 0.01, minilm, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("max_norm", [0.05, np.inf], ids=["clip", "no clip"])
def test_twenty_steps_on_cola_equal_torch(cola, max_norm, minilm, tmp_path):
    compare(cola, max_norm, 0.0, minilm, tmp_path)
