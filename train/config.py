"""What a run is told: frozen dataclasses and the presets of the paper.

Nothing here imports JAX, so that ``python -m train --help`` answers at once.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which texts and labels to train on."""

    task: str | None = None
    """A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli."""
    data_dir: Path | None = None
    """A folder with the official GLUE TSV files; without it the task is taken from
    the Hugging Face hub."""
    train_file: Path | None = None
    """Own training data instead of a task: .csv, .tsv, .json, .jsonl, .ndjson or
    .parquet."""
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
    train_examples: int | None = None
    """Train on this many examples only, the same ones whatever the seed."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The clip, Adam, the decay and the schedule."""

    learning_rate: float = 2e-5
    """The highest learning rate; it falls linearly to 0 at the last step."""
    warmup_ratio: float = 0.0
    """The share of all steps over which the learning rate rises from 0."""
    max_norm: float = 0.05
    """The clip's threshold for every component's gradient norm; inf for no clip."""
    components: Literal["by_parameter", "by_module", "by_layer", "global"] = (
        "by_parameter"
    )
    """What is clipped as one: each parameter (the paper), module or layer, or all."""
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
    prior_decay: float = 0.0
    """Decoupled weight decay towards the weights that training starts from."""
    layer_decay: float = 1.0
    """Each layer's learning rate as a share of that of the layer above it."""


@dataclasses.dataclass(frozen=True)
class RegularizationConfig:
    """What is done to weights and activations besides."""

    dropout: float | None = None
    """Replaces the model's own dropout rates."""
    mixout: float = 0.0
    """Probability with which a kernel's input has the weights that training started
    from; wants --dropout 0."""
    reinit_layers: int = 0
    """Draw the pooler and this many of the top layers anew before training."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune a pretrained encoder on a classification or regression task."""

    model: str
    """A folder with config.json, model.safetensors and a tokenizer, or a hub id."""
    workdir: Path
    """The folder of this run's records and model; must not hold a run yet, but with
    --resume."""
    data: tyro.conf.OmitArgPrefixes[DataConfig]
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig]
    preset: Literal["paper", "code"] = "paper"
    """Where the defaults come from: the paper's text, or the values of its code."""
    seed: int = 1
    """Draws the classifier's initial weights, the dropout and the order of the data."""
    epochs: int = 5
    """Passes over the training set."""
    batch_size: int = 16
    """Examples a step; the last, partial batch of an epoch is kept."""
    eval_batch_size: int = 64
    """Examples a batch of evaluation."""
    padding: Literal["packed", "longest", "max_length"] = "packed"
    """How examples lie in the rows of a batch: behind one another, or each in a row of
    its own, as long as the batch's longest example or as --max-length."""
    regularization: tyro.conf.OmitArgPrefixes[RegularizationConfig] = (
        RegularizationConfig()
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the computation; parameters are float32 in any case."""
    remat: bool = False
    """Compute the inside of each layer again in the backward pass instead of keeping
    it, for GPUs and TPUs short of memory; on a CPU XLA undoes it."""
    new_head: bool = False
    """Initialise the classifier anew although the checkpoint brings one."""
    revision: str | None = None
    """The revision of a hub id: a branch, tag or commit."""
    norms_every: int = 20
    """Steps between two records of every component's gradient norm."""
    evaluations: int = 1
    """Evaluations of the run, evenly spaced, the last one at its end; the scores of the
    others are written into evaluations.jsonl."""
    checkpoint_seconds: float | None = None
    """Time between two checkpoints; by default so much that they take 2 % of the time,
    and a minute at least."""
    keep: int | None = None
    """Keep this many checkpoints, the last ones, and keep them when the run is done as
    well; by default one, until then."""
    keep_best: bool = False
    """Write a checkpoint at each evaluation but the last, and keep that with the best
    score besides."""
    resume: bool = False
    """Go on with the run in --workdir from its last checkpoint, to the same bits as
    without interruption; start it if there is none yet."""
    cache: bool = True
    """Keep tokens and compiled programs in $XDG_CACHE_HOME/cwgnc_jax or else
    ~/.cache/cwgnc_jax, so that the next command starts sooner."""


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predict with a fine-tuned model; with labels at hand, score it as well."""

    model: str
    """The folder of a fine-tuned model (WORKDIR/model), or a hub id."""
    output: Path
    """The TSV file to write: index, prediction, and the probability of a class."""
    task: str | None = None
    """A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli."""
    data_dir: Path | None = None
    """A folder with the official GLUE TSV files; without it the hub is asked."""
    split: str = "validation"
    """The task's split: validation or test (mnli: validation_matched, ...)."""
    input_file: Path | None = None
    """Own texts instead of a task: .csv, .tsv, .json, .jsonl, .ndjson or .parquet."""
    text_columns: tuple[str, ...] = ()
    """Own texts: the column of the text, or the two columns of a pair."""
    label_column: str | None = None
    """Own texts: the column of the label, to score the predictions."""
    batch_size: int = 64
    """Examples a batch."""
    max_length: int = 128
    """Longer texts are truncated to this many tokens."""
    cache: bool = True
    """Keep tokens and compiled programs in $XDG_CACHE_HOME/cwgnc_jax or else
    ~/.cache/cwgnc_jax, so that the next command starts sooner."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write the tables, tests and figures of a study, from its records alone."""

    workdir: tyro.conf.Positional[Path]
    """The study's folder."""
    output: Path | None = None
    """Where to write; by default the folder report in the study's own."""
    legacy_lines: bool = False
    """Judge which runs failed by the constants of the paper's code instead of the
    majority classifier."""


@dataclasses.dataclass(frozen=True)
class RacingConfig:
    """Draw how the components of a study's runs converge, failed and successful."""

    workdir: tyro.conf.Positional[Path]
    """The study's folder; the study must have been run with --statistics-every."""
    output: Path | None = None
    """Where to write; by default the folder racing in the study's own."""


@dataclasses.dataclass(frozen=True)
class UnfreezeConfig:
    """Draw what gradual unfreezing does, beside plain fine-tuning."""

    workdir: tyro.conf.Positional[Path]
    """The study's folder; the study must have been run with --statistics-every."""
    output: Path | None = None
    """Where to write; by default the folder unfreezing in the study's own."""


_NO_DATA = DataConfig()
PRESETS = {
    # Appendix B; warm-up and weight decay "as Devlin et al."
    "paper": FinetuneConfig(
        model=tyro.MISSING,
        workdir=tyro.MISSING,
        data=_NO_DATA,
        optimizer=OptimizerConfig(warmup_ratio=0.1, weight_decay=0.01),
        preset="paper",
        epochs=5,
    ),
    # The published script.
    "code": FinetuneConfig(
        model=tyro.MISSING,
        workdir=tyro.MISSING,
        data=_NO_DATA,
        optimizer=OptimizerConfig(warmup_ratio=0.0, weight_decay=0.0),
        preset="code",
        epochs=3,
    ),
}


def check_finetune(config: FinetuneConfig) -> None:
    """Raises a ValueError that names the flag and the mend, if a setting is wrong."""
    check_data(config.data)
    check_optimizer(config.optimizer)
    for flag, value in (
        ("--epochs", config.epochs),
        ("--batch-size", config.batch_size),
        ("--eval-batch-size", config.eval_batch_size),
        ("--norms-every", config.norms_every),
        ("--evaluations", config.evaluations),
        ("--keep", config.keep),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, got {value}")
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"--seed must lie in [0, 2**63), got {config.seed}")
    check_regularization(config.regularization)
    if config.checkpoint_seconds is not None and not config.checkpoint_seconds >= 0:
        raise ValueError(
            f"--checkpoint-seconds must be 0 or more, got {config.checkpoint_seconds}"
        )
    if config.keep_best and config.evaluations < 2:
        raise ValueError(
            "--keep-best chooses among evaluations before the end: give "
            "--evaluations 2 or more"
        )


def check_predict(config: PredictConfig) -> None:
    """Raises a ValueError that names the flag and the mend, if a setting is wrong."""
    if (config.task is None) == (config.input_file is None):
        raise ValueError(
            "expected either --task (with --data-dir) or --input-file with "
            "--text-columns, and not both"
        )
    if config.input_file is not None and len(config.text_columns) not in (1, 2):
        raise ValueError(
            f"--text-columns takes one column, or two for pairs of texts; got "
            f"{len(config.text_columns)}"
        )
    if config.batch_size < 1 or config.max_length < 3:
        raise ValueError(
            f"--batch-size must be at least 1 and --max-length at least 3, got "
            f"{config.batch_size} and {config.max_length}"
        )
    if config.output.exists():
        raise ValueError(f"--output {config.output} exists already; name a new file")


def check_data(data: DataConfig) -> None:
    """Raises a ValueError if the flags of the data are wrong or contradictory."""
    if data.task is None and data.train_file is None:
        raise ValueError(
            "no data: expected --task NAME, or --train-file, --validation-file "
            "and --text-columns for own data"
        )
    if data.task is not None:
        own = {
            "--train-file": data.train_file,
            "--validation-file": data.validation_file,
            "--text-columns": data.text_columns,
            "--regression": data.regression,
        }
        given = [flag for flag, value in own.items() if value]
        if given:
            raise ValueError(
                f"--task {data.task} and {given[0]} contradict each other: a task "
                f"brings its own files and columns; drop --task to use own data"
            )
    else:
        if data.data_dir is not None:
            raise ValueError(
                "--data-dir and --train-file contradict each other: --data-dir "
                "holds a GLUE task's files; name the task with --task, or drop "
                "--data-dir"
            )
        if data.validation_file is None:
            raise ValueError("--train-file needs --validation-file beside it")
        if len(data.text_columns) not in (1, 2):
            raise ValueError(
                f"--text-columns takes one column, or two for pairs of texts; got "
                f"{len(data.text_columns)}"
            )
        if len({*data.text_columns, data.label_column}) <= len(data.text_columns):
            raise ValueError(
                f"--text-columns {' '.join(data.text_columns)} and --label-column "
                f"{data.label_column} must be different columns"
            )
    if not 0 <= data.holdout < 1:
        raise ValueError(f"--holdout must lie in [0, 1), got {data.holdout}")
    if data.train_examples is not None and data.train_examples < 1:
        raise ValueError(
            f"--train-examples must be at least 1, got {data.train_examples}"
        )
    if data.max_length < 3:
        raise ValueError(
            f"--max-length must be at least 3 (two special tokens and a word), "
            f"got {data.max_length}"
        )


def check_optimizer(optimizer: OptimizerConfig) -> None:
    """Raises a ValueError if a number lies outside its range."""
    if not optimizer.max_norm > 0:
        raise ValueError(
            f"--max-norm must be a positive number, or inf for no clip; got "
            f"{optimizer.max_norm}"
        )
    for flag, value in (
        ("--learning-rate", optimizer.learning_rate),
        ("--eps", optimizer.eps),
        ("--weight-decay", optimizer.weight_decay),
        ("--prior-decay", optimizer.prior_decay),
    ):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{flag} must be 0 or a positive number, got {value}")
    for flag, value in (("--b1", optimizer.b1), ("--b2", optimizer.b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{flag} must lie in [0, 1), got {value}")
    if not 0 <= optimizer.warmup_ratio <= 1:
        raise ValueError(
            f"--warmup-ratio must lie in [0, 1], got {optimizer.warmup_ratio}"
        )
    if not 0 < optimizer.layer_decay <= 1:
        raise ValueError(
            f"--layer-decay must lie in (0, 1], got {optimizer.layer_decay}"
        )


def check_regularization(regularization: RegularizationConfig) -> None:
    """Raises a ValueError if a number lies outside its range."""
    dropout, mixout = regularization.dropout, regularization.mixout
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"--dropout must lie in [0, 1), got {dropout}")
    if not 0 <= mixout < 1:
        raise ValueError(f"--mixout must lie in [0, 1), got {mixout}")
    if mixout and dropout != 0:
        raise ValueError(
            "--mixout takes the place of dropout and needs --dropout 0 beside it"
        )
    if regularization.reinit_layers < 0:
        raise ValueError(
            f"--reinit-layers must be 0 or more, got {regularization.reinit_layers}"
        )
