"""Predictions of a fine-tuned model, written as a table."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cwgnc_jax import models
from train import batches, tasks
from train.config import PredictConfig
from train.evaluation import (
    evaluation_packing,
    predict_logits,
    predictions_of,
)
from train.examples import Examples, load_split, read_file
from train.parallel import compile_eval_step
from train.steps import Recipe
from train.token_cache import CachedTokenizer

Scores = dict[str, dict[str, float]]


def predict(config: PredictConfig) -> tuple[Scores, Scores]:
    """Predicts every example of a split or file and writes one line for each.

    Args:
      config: The model, the texts and where to write.

    Returns:
      The scores and the majority lines, both empty if the examples have no labels.

    Raises:
      ValueError: If the model, the texts or the labels are wrong.
      OSError: If a file is missing or cannot be written.
    """
    directory = models.resolve(config.model)
    label_names, regression = _head(directory)
    own = tasks.own_task(config.text_columns, None if regression else label_names)
    task = own if config.task is None else tasks.find_task(config.task)
    if task.num_labels != own.num_labels:
        raise ValueError(
            f"{config.model} has {own.num_labels} outputs, {task.name} needs "
            f"{task.num_labels}: this model was fine-tuned for something else"
        )
    examples = _load(config, task)
    checkpoint = models.load_pretrained(
        directory, num_labels=task.num_labels, key=jax.random.key(0)
    )
    if checkpoint.new_parameters:
        raise ValueError(
            f"{config.model} has no trained classifier; fine-tune it first with "
            f"python -m train finetune"
        )
    batches.check_length(config.max_length, checkpoint.config.max_length)
    tokenizer = CachedTokenizer(checkpoint.directory, config.cache)
    tokens = tokenizer.encode(examples.texts, config.max_length)
    arrays = batches.pad(tokens, examples.labels, config.max_length)
    recipe = Recipe(
        checkpoint.config, regression, "by_parameter", 0.9, 0.999, "float32"
    )
    step = compile_eval_step(recipe)
    params = jax.tree.map(lambda leaf: leaf[None], checkpoint.params)
    packing = evaluation_packing([arrays], config.batch_size)
    [logits] = predict_logits(step, params, arrays, packing)
    _write(config.output, task, logits)
    if examples.labels is None:
        return {}, {}
    scores = tasks.score(task, predictions_of(task, logits), examples.labels)
    lines = tasks.majority_line(task, examples.labels)
    name = config.split if config.input_file is None else config.input_file.name
    return {name: scores}, {name: lines}


def _head(directory: Path) -> tuple[tuple[str, ...], bool]:
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no model in {directory}: it has no config.json")
    try:
        source: dict[str, Any] = json.loads(path.read_text())
        names: dict[str, str] = source.get("id2label", {"0": "0", "1": "1"})
        label_names = tuple(names[str(i)] for i in range(len(names)))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    return label_names, source.get("problem_type") == "regression"


def _load(config: PredictConfig, task: tasks.Task) -> Examples:
    if config.input_file is None:
        return load_split(task, config.data_dir, config.split)
    return read_file(
        config.input_file, config.text_columns, config.label_column, task.label_names
    )


def _write(output: Path, task: tasks.Task, logits: np.ndarray) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".tmp")
    with temporary.open("w") as file:
        if task.label_names is None:
            file.write("index\tprediction\n")
            for index, value in enumerate(logits[:, 0]):
                file.write(f"{index}\t{value:.4f}\n")
        else:
            file.write("index\tprediction\tprobability\n")
            shifted = np.exp(logits - logits.max(-1, keepdims=True))
            probabilities = shifted / shifted.sum(-1, keepdims=True)
            for index, row in enumerate(probabilities):
                best = int(row.argmax())
                file.write(f"{index}\t{task.label_names[best]}\t{row[best]:.4f}\n")
    os.replace(temporary, output)
