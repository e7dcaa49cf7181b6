"""The folder of a fine-tuned model, as transformers reads it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from cwgnc_jax import models
from cwgnc_train.config import UserError, shown
from cwgnc_train.data import is_label
from cwgnc_train.engine.group import TaskRuns
from cwgnc_train.records import write_json

_TRAINING = "training.json"


@dataclasses.dataclass(frozen=True)
class TrainedWith:
    """What a model was trained with, and what its outputs mean.

    Models from elsewhere have no ``training.json``; its fields are None then, and
    ``token_types`` is True.
    """

    label_names: tuple[str, ...] | None  # None if the model predicts a number.
    task: str | None = None
    text_columns: tuple[str, ...] | None = None
    max_length: int | None = None
    dtype: str | None = None
    token_types: bool = True

    @property
    def num_labels(self) -> int:
        """How many outputs the model has."""
        return 1 if self.label_names is None else len(self.label_names)


def save_model(folder: Path, of_task: TaskRuns, params: Any) -> None:
    """Writes weights, config, tokenizer and ``training.json``; replaces the folder."""
    inputs = of_task.inputs
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    models.save_pretrained(
        part,
        inputs.checkpoint.config,
        params,
        label_names=inputs.task.label_names,
        regression=inputs.task.regression,
        source_config=inputs.checkpoint.source_config,
    )
    inputs.tokenizer.save(part)
    trained_with = {
        "task": inputs.task.name,
        "text_columns": inputs.task.text_columns,
        "max_length": of_task.max_length,
        "dtype": of_task.training.dtype,
        "token_types": of_task.token_types,
    }
    write_json(part / _TRAINING, trained_with)
    gone = folder.with_name(folder.name + ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
    part.rename(folder)
    shutil.rmtree(gone, ignore_errors=True)


def read_trained_with(folder: Path) -> TrainedWith:
    """Reads what a model was trained with; a missing or damaged one is a UserError."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"no model in {folder}: it has no config.json")
    try:
        source: dict[str, Any] = json.loads(path.read_bytes())
        names: dict[str, str] = source.get("id2label", {"0": "0", "1": "1"})
        label_names = tuple(names[str(i)] for i in range(len(names)))
        if not all(map(is_label, label_names)):
            raise ValueError("id2label must hold a line of text for each output")
        regression = source.get("problem_type") == "regression"
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    found = TrainedWith(None if regression else label_names)
    path = folder / _TRAINING
    if not path.is_file():
        return found
    try:
        known = json.loads(path.read_bytes())
        columns, length = known["text_columns"], known["max_length"]
        expected = {
            "task": isinstance(known["task"], str),
            "text_columns": isinstance(columns, list)
            and [type(name) for name in columns] in ([str], [str, str]),
            "max_length": type(length) is int and length >= 3,
            "dtype": known["dtype"] in ("float32", "bfloat16"),
            "token_types": isinstance(known["token_types"], bool),
        }
        for name, is_right in expected.items():
            if not is_right:
                raise ValueError(f"{name} is {shown(known[name])}")
        known = {name: known[name] for name in expected}
        return dataclasses.replace(found, **known | {"text_columns": tuple(columns)})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        message = f"{path} is damaged: {error!r}; restore or remove it"
        raise UserError(message) from error
