"""The flags of the commands that do not train."""

import dataclasses
from pathlib import Path

import tyro

from cwgnc_train.config.recipe import ComponentsName
from cwgnc_train.config.training import DtypeName


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predict with a fine-tuned model, and score it where labels are given."""

    model: str  # The folder of a fine-tuned model (WORKDIR/model), or a hub id.
    output: Path
    """The TSV file to write: index, prediction, and the probability of a class."""
    task: str | None = None
    """A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli. Default: the task the
    model was trained on, unless --input-file is given."""
    data_dir: Path | None = None
    """A folder with the official GLUE TSV files; without it, the hub is asked."""
    split: str = "validation"  # Validation or test (mnli: validation_matched, ...).
    input_file: Path | None = None
    """Your own texts instead: .csv, .tsv, .json, .jsonl, .ndjson or .parquet."""
    text_columns: tuple[str, ...] = ()
    """Own texts: the text's column, or the two of a pair. Default: as in training."""
    label_column: str | None = None  # Own texts: the column of labels to score with.
    batch_size: int = 64  # Examples per batch.
    max_length: int | None = None
    """Truncate texts to this many tokens. Default: as in training, or 128."""
    token_types: bool = True
    """Tell the model which tokens are of a pair's second text. A model that was trained
    with --no-token-types is never told."""
    dtype: DtypeName | None = None
    """Dtype of the computation. Default: as in training, or float32."""
    cache: bool = True
    """Keep tokens and compiled programs in $XDG_CACHE_HOME/cwgnc_jax, or
    ~/.cache/cwgnc_jax, so that the next command starts sooner."""


@dataclasses.dataclass(frozen=True)
class ComponentsConfig:
    """List the components of a model that the clip would treat as one each."""

    model: str  # A folder with config.json and model.safetensors, or a hub id.
    components: ComponentsName = "by_parameter"  # What is clipped together.
    num_labels: int = 2  # Number of classes of the classifier.
    revision: str | None = None  # Revision of a hub model: a branch, tag or commit.


@dataclasses.dataclass(frozen=True)
class StudyFolderConfig:
    """A study to read, and where to write what is made of it."""

    workdir: tyro.conf.Positional[Path]  # The study's folder.
    output: Path | None = None
    """Where to write. Default: the folder report, racing or unfreezing in it."""


@dataclasses.dataclass(frozen=True)
class ReportConfig(StudyFolderConfig):
    """Write the tables, tests and figures of a study from its records."""

    legacy_lines: bool = False
    """Judge failed runs by the paper's constants, not by the majority classifier."""


@dataclasses.dataclass(frozen=True)
class RacingConfig(StudyFolderConfig):
    """Draw how the components of failed and successful runs converge.

    The study must have run with --statistics-every.
    """


@dataclasses.dataclass(frozen=True)
class UnfreezeConfig(StudyFolderConfig):
    """Draw what gradual unfreezing does, beside plain fine-tuning.

    The study must have run with --statistics-every.
    """
