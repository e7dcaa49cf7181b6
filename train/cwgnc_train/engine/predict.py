"""Predictions of a fine-tuned model, written as a table."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from cwgnc_jax import models
from cwgnc_train.config import PredictConfig, UserError
from cwgnc_train.data import (
    CachedTokenizer,
    Examples,
    Task,
    check_length,
    check_tokens,
    find_task,
    load_split,
    majority_line,
    own_task,
    pad_tokens,
    read_file,
    score,
)
from cwgnc_train.engine.evaluation import EvaluationBatches, predictions_of
from cwgnc_train.engine.inputs import load_weights
from cwgnc_train.engine.layout import Layout, make_mesh
from cwgnc_train.engine.model_folder import TrainedWith, read_trained_with
from cwgnc_train.engine.programs import compile_eval_step
from cwgnc_train.engine.step import StepConfig
from cwgnc_train.records import write_whole

Scores = dict[str, dict[str, float]]
_MAX_LENGTH = 128


def predict(config: PredictConfig) -> tuple[Scores, Scores]:
    """Predicts every example of a split or file and writes one line for each.

    Returns the scores and the majority lines, both empty if the examples have no
    labels. Raises a UserError if the model, the texts or the labels are wrong, and an
    OSError if a file cannot be read or written, or a hub cannot be reached.
    """
    try:
        folder = models.resolve(config.model)
    except models.CheckpointError as error:
        raise UserError(str(error)) from error
    trained = read_trained_with(folder)
    config = _completed(config, trained)
    task = _task(config, trained)
    if config.input_file is None:
        examples = load_split(task, config.data_dir, config.split)
    else:
        columns, label_column = config.text_columns, config.label_column
        examples = read_file(config.input_file, columns, label_column, task.label_names)
    logits = _logits(config, folder, task, examples)
    _write(config.output, task, logits)
    if examples.labels is None:
        return {}, {}
    scores = score(task, predictions_of(task, logits), examples.labels)
    lines = majority_line(task, examples.labels)
    name = config.split if config.input_file is None else config.input_file.name
    return {name: scores}, {name: lines}


def _completed(config: PredictConfig, trained: TrainedWith) -> PredictConfig:
    """Follows the model's training where nothing else was asked for."""
    task, columns = config.task, config.text_columns
    if config.input_file is not None:
        columns = columns or trained.text_columns
        if not columns:
            raise UserError("--input-file needs --text-columns beside it")
    elif task is None:
        task = trained.task
        if task in (None, "own"):
            raise UserError(
                "expected texts: give --input-file with --text-columns, or --task "
                "(with --data-dir)"
            )
    return dataclasses.replace(
        config,
        task=task,
        text_columns=columns,
        max_length=config.max_length or trained.max_length or _MAX_LENGTH,
        dtype=config.dtype or trained.dtype or "float32",
        token_types=config.token_types and trained.token_types,
    )


def _task(config: PredictConfig, trained: TrainedWith) -> Task:
    if config.task is None:
        return own_task(config.text_columns, trained.label_names)
    task = find_task(config.task)
    if task.num_labels != trained.num_labels:
        raise UserError(
            f"{config.model} has {trained.num_labels} outputs, {task.name} needs "
            f"{task.num_labels}: this model was fine-tuned for something else"
        )
    return task


def _logits(
    config: PredictConfig, folder: Path, task: Task, examples: Examples
) -> np.ndarray:
    assert config.max_length is not None and config.dtype is not None
    checkpoint = load_weights(folder, task.num_labels)
    if checkpoint.new_parameters:
        raise UserError(
            f"{config.model} has no trained classifier; train one by cwgnc finetune"
        )
    model = checkpoint.config
    check_length(config.max_length, model.max_length)
    tokenizer = CachedTokenizer(checkpoint.directory, config.cache)
    encoded = tokenizer.encode(examples.texts, config.max_length, config.token_types)
    check_tokens(encoded, model.vocab_size, model.type_vocab_size)
    arrays = pad_tokens(encoded, examples.labels, config.max_length)
    layout = Layout(make_mesh(jax.devices()[:1]))
    batches = EvaluationBatches({"texts": arrays}, config.batch_size, layout)
    step_config = StepConfig(model, dtype=config.dtype)
    program = compile_eval_step(step_config, layout, batches.shape)
    params = jax.tree.map(lambda leaf: leaf[None], checkpoint.params)
    params = jax.device_put(params, layout.over_runs())
    return batches.logits(program, params)["texts"][0]


def _write(output: Path, task: Task, logits: np.ndarray) -> None:
    if task.label_names is None:
        rows = ["index\tprediction"]
        rows += [f"{index}\t{value:.4f}" for index, value in enumerate(logits[:, 0])]
    else:
        # It takes a while to import, as long as nothing else has.
        from scipy.special import softmax

        rows = ["index\tprediction\tprobability"]
        for index, row in enumerate(softmax(logits, axis=-1)):
            best = int(row.argmax())
            rows.append(f"{index}\t{task.label_names[best]}\t{row[best]:.4f}")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, "\n".join(rows) + "\n")
