"""What a run is told: frozen dataclasses and the presets of the paper.

Nothing here imports JAX, so that ``python -m train --help`` answers at once.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which texts and labels to train on."""

    task: str | None = None
    """A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli."""
    data_dir: Path | None = None
    """A folder with the official GLUE TSV files; without it the task is taken from
    the Hugging Face hub."""
    train_file: Path | None = None
    """Own training data instead of a task: .csv, .tsv, .jsonl or .parquet."""
    validation_file: Path | None = None
    """Own validation data, with the columns of --train-file."""
    text_columns: tuple[str, ...] = ()
    """Own data: the column of the text, or the two columns of a pair."""
    label_column: str = "label"
    """Own data: the column of the label."""
    regression: bool = False
    """Own data: the label is a number to predict, not a class."""
    holdout: float = 0.0
    """The part of the training set that is kept back and scored as well, to choose
    hyperparameters on; the same examples whatever the seed."""
    max_length: int = 128
    """Longer texts are truncated to this many tokens."""

    def __post_init__(self):
        if self.task is None and self.train_file is None:
            raise ValueError(
                "no data: expected --task NAME, or --train-file, --validation-file "
                "and --text-columns for own data"
            )
        if self.task is not None:
            own = {
                "--train-file": self.train_file,
                "--validation-file": self.validation_file,
                "--text-columns": self.text_columns,
                "--regression": self.regression,
            }
            given = [flag for flag, value in own.items() if value]
            if given:
                raise ValueError(
                    f"--task {self.task} and {given[0]} contradict each other: a task "
                    f"brings its own files and columns; drop --task to use own data"
                )
        else:
            if self.data_dir is not None:
                raise ValueError(
                    "--data-dir and --train-file contradict each other: --data-dir "
                    "holds a GLUE task's files; name the task with --task, or drop "
                    "--data-dir"
                )
            if self.validation_file is None:
                raise ValueError("--train-file needs --validation-file beside it")
            if len(self.text_columns) not in (1, 2):
                raise ValueError(
                    f"--text-columns takes one column, or two for pairs of texts; got "
                    f"{len(self.text_columns)}"
                )
        if not 0 <= self.holdout < 1:
            raise ValueError(f"--holdout must lie in [0, 1), got {self.holdout}")
        if self.max_length < 3:
            raise ValueError(
                f"--max-length must be at least 3 (two special tokens and a word), "
                f"got {self.max_length}"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The clip, Adam, the decay and the schedule."""

    learning_rate: float = 2e-5
    """The highest learning rate; it falls linearly to 0 at the last step."""
    warmup_ratio: float = 0.0
    """The share of all steps over which the learning rate rises from 0."""
    max_norm: float = 0.05
    """The clip's threshold for every component's gradient norm; inf for no clip."""
    components: Literal["by_parameter", "by_module", "by_layer"] = "by_parameter"
    """What is clipped as one: each parameter (the paper), module or layer."""
    b1: float = 0.9
    """Decay of Adam's first moment."""
    b2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment before its bias is corrected."""
    bias_correction: bool = True
    """Adam's bias correction; off is the BERT Adam of Devlin et al."""
    weight_decay: float = 0.0
    """Decoupled weight decay of all but biases and LayerNorm."""

    def __post_init__(self):
        if not self.max_norm > 0:
            raise ValueError(
                f"--max-norm must be a positive number, or inf for no clip; got "
                f"{self.max_norm}"
            )
        for flag, value in (
            ("--learning-rate", self.learning_rate),
            ("--eps", self.eps),
            ("--weight-decay", self.weight_decay),
        ):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{flag} must be 0 or a positive number, got {value}")
        for flag, value in (("--b1", self.b1), ("--b2", self.b2)):
            if not 0 <= value < 1:
                raise ValueError(f"{flag} must lie in [0, 1), got {value}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(
                f"--warmup-ratio must lie in [0, 1], got {self.warmup_ratio}"
            )
