"""What a run is told: frozen dataclasses and the presets of the paper.

Nothing here imports JAX, so that ``python -m train --help`` answers at once.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

ComponentsName = Literal[
    "by_parameter", "by_module", "by_module_type", "by_layer", "global"
]
"""What is clipped as one; see ``optimizer.COMPONENT_FNS``."""

WriterName = Literal["tensorboard", "wandb"]
"""Where records go besides lines of JSON; see ``writers``."""

ClipName = Literal["fixed", "adagc", "aggc", "olmo", "autoclip", "zclip"]
"""How a component's threshold comes about; see ``optimizer.CLIPS``."""

CLIP_NUMBERS: dict[ClipName, dict[str, float]] = {
    "fixed": {},
    "adagc": {"ratio": 1.05, "decay": 0.98, "max_global_norm": 1, "warmup_steps": 100},
    # The authors of these two have no interval and no ratio that others could take.
    "aggc": {"low": 0.5, "high": 2, "decay": 0.98},
    "olmo": {"ratio": 2, "decay": 0.95},
    "autoclip": {"percentile": 10},
    "zclip": {"z_threshold": 2.5, "decay": 0.97, "warmup_steps": 25},
}
"""The numbers of each, with their defaults."""


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
    components: ComponentsName = "by_parameter"
    """What is clipped as one: each parameter (the paper), module, kind of module in all
    layers, or layer, or everything."""
    clip: ClipName = "fixed"
    """Whether the threshold is --max-norm, or each component learns its own from its
    past norms, as AdaGC, AGGC, OLMo's trainer, AutoClip or ZClip do."""
    clip_numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    """Numbers of a learned threshold that are not to be the defaults, such as ratio 1.1
    decay 0.9."""
    nonfinite: Literal["propagate", "skip_step", "zero_component"] = "propagate"
    """What follows from a gradient that is NaN or infinite: it has its way, as in
    torch; the step changes nothing; or the components with one take no part in it."""
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
class DevicesConfig:
    """On which devices a run is made, and how they share it."""

    devices: int | None = None
    """How many devices share each batch; by default all there are, as far as a batch
    has an example for each, but one of a CPU, whose devices share its cores."""
    strategy: Literal["jit", "pmap"] = "jit"
    """How several devices share a batch: by jax.jit over a mesh, or by jax.pmap; the
    step is the same."""
    shard_params: bool = False
    """Split parameters and moments over the devices, for models that do not fit into
    the memory of one."""


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """Which processes make a run together."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes make the run together; auto to
    take all from SLURM, Open MPI, Kubernetes or a TPU pod."""
    num_processes: int | None = None
    """How many processes there are, beside --coordinator HOST:PORT."""
    process_id: int | None = None
    """Which of them this is, from 0 on, beside --coordinator HOST:PORT."""


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
    accumulate: int = 1
    """Take each batch in this many parts, one after the other, in the memory of one;
    the step is that of the whole batch."""
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
    devices: tyro.conf.OmitArgPrefixes[DevicesConfig] = DevicesConfig()
    hosts: tyro.conf.OmitArgPrefixes[HostsConfig] = HostsConfig()
    give_up_after: int = 10
    """End the run after so many steps in a row that --nonfinite skip_step skipped."""
    norms_every: int = 20
    """Steps between two records of every component's gradient norm."""
    writers: tuple[WriterName, ...] = ()
    """Where the records go besides metrics.jsonl: tensorboard, into the folder of that
    name in --workdir; wandb, as the environment variables of Weights & Biases say."""
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
class ComponentsConfig:
    """List the components of a model that a clip would take as one each."""

    model: str
    """A folder with config.json and model.safetensors, or a hub id."""
    components: ComponentsName = "by_parameter"
    """What is clipped as one."""
    num_labels: int = 2
    """How many classes the classifier has."""
    revision: str | None = None
    """The revision of a hub id: a branch, tag or commit."""


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
