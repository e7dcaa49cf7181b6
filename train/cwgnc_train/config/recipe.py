"""What defines a run: its optimizer, its regularization, its task and seeds."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

ComponentsName = Literal[
    "by_parameter", "by_module", "by_module_type", "by_layer", "global"
]
ClipName = Literal["fixed", "adagc", "aggc", "olmo", "autoclip", "zclip"]
NonfiniteName = Literal["propagate", "skip_step", "zero_component"]
# Whether an iteration of gradual unfreezing starts from the pretrained weights, or from
# the weights of the one before it: with a schedule and moments of its own, with the
# moments of the one before it, as a part of one schedule, or both.
Unfreezing = Literal[
    "restart", "carry", "carry_state", "carry_schedule", "carry_state_schedule"
]

# The numbers of each clip and their defaults, the authors' where they have any.
CLIP_NUMBERS: dict[ClipName, dict[str, float]] = {
    "fixed": {},
    "adagc": {"ratio": 1.05, "decay": 0.98, "max_global_norm": 1, "warmup_steps": 100},
    # AGGC-like: the authors move an end of the interval and start the average at 0.
    "aggc": {
        **{"low": 0.5, "high": 2, "decay": 0.98},
        **{"min_factor": 0, "max_factor": math.inf, "floor": 0},
    },
    # The decay follows Adam's; see OptimizerConfig.all_clip_numbers. The ratio and the
    # length of its warm-up are ours: OLMo publishes none for this clip.
    "olmo": {"ratio": 2, "decay": 0.999, "warmup_steps": 100, "warmup_factor": 5},
    # Its history is as long as the run.
    "autoclip": {"percentile": 10},
    # The authors' code caps the global norm from the first step on.
    "zclip": {
        **{"z_threshold": 2.5, "decay": 0.97, "warmup_steps": 25},
        "max_global_norm": 1,
    },
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The texts and labels."""

    data_dir: Path | None = None
    """A folder with the official GLUE TSV files. Default: the Hugging Face hub."""
    train_file: Path | None = None
    """Your own training data instead of a GLUE task: .csv, .tsv, .json, .jsonl,
    .ndjson or .parquet."""
    validation_file: Path | None = None
    """Validation data for --train-file, with its columns. Optional with --holdout."""
    text_columns: tuple[str, ...] = ()
    """Own data: the column of the text, or the two columns of a pair."""
    label_column: str = "label"  # Own data: the column of the label.
    regression: bool = False  # Own data: the label is a number to predict, not a class.
    holdout: float = 0.0
    """Keep this share of the training set back and score runs on it as well, to choose
    among them; the same examples for every seed."""
    max_length: int = 128  # Truncate texts to this many tokens.
    token_types: bool = True
    """Tell the model which tokens are of a pair's second text; off, all have type 0, as
    in the runs of Mosbach et al."""
    train_examples: int | None = None  # Examples to train on, the same for every seed.


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The clip, Adam, the decay and the schedule."""

    learning_rate: float = 2e-5  # The peak; it falls linearly to 0 at the end.
    warmup_ratio: float | None = None
    """Share of all steps in which the rate rises from 0. Default: the preset's."""
    max_norm: float = 0.05  # Threshold of each component's gradient norm; inf for none.
    components: ComponentsName = "by_parameter"
    """What is clipped together: each parameter (the paper), each module, each kind of
    module across layers, each layer, or everything."""
    clip: ClipName = "fixed"
    """The threshold is --max-norm (fixed), or learned from each component's past norms
    as AdaGC, AGGC, OLMo's trainer, AutoClip or ZClip do."""
    clip_numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    """Numbers of a learned threshold to change, such as ratio 1.1 decay 0.9."""
    nonfinite: NonfiniteName = "propagate"
    """What to do with NaN and infinite gradients: propagate them, as torch does; skip
    the step (it still counts for the schedule, not for Adam); or zero the gradients of
    the components that have one."""
    b1: float = 0.9  # Decay of Adam's first moment.
    b2: float = 0.999  # Decay of Adam's second moment.
    eps: float = 1e-8
    """Added to the root of Adam's second moment before bias correction."""
    bias_correction: bool = True  # Adam's; off is the BERT Adam of Devlin et al.
    weight_decay: float | None = None
    """Decoupled; of all but biases and LayerNorm. Default: the preset's."""
    prior_decay: float = 0.0
    """Decoupled weight decay towards the initial weights; of all but biases and
    LayerNorm."""
    layer_decay: float = 1.0
    """Each layer's learning rate as a share of the rate of the layer above."""

    @property
    def all_clip_numbers(self) -> dict[str, float]:
        """All numbers of a learned threshold: those given and the others' defaults.

        The decay of OLMo's clip is the larger of Adam's two, as in OLMo's trainer.
        """
        numbers = dict(CLIP_NUMBERS[self.clip])
        if self.clip == "olmo":
            numbers["decay"] = max(self.b1, self.b2)
        return numbers | self.clip_numbers


@dataclasses.dataclass(frozen=True)
class RegularizationConfig:
    """Dropout, Mixout and re-initialised layers."""

    dropout: float | None = None  # Replaces the model's own dropout rates.
    mixout: float = 0.0
    """Probability that a kernel's input uses the initial weights; needs --dropout 0."""
    reinit_layers: int = 0  # Re-initialise the pooler and this many top layers.


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run: everything that tells it from the other runs of a study."""

    task: str
    method: str
    optimizer: OptimizerConfig
    regularization: RegularizationConfig
    epochs: int
    seed: int  # Draws the weights of the new layers.
    data_seed: int  # Draws the order of the data and the dropout.
    unfreezing: Unfreezing | None = None
    iterations: int | None = None
    """Iterations of gradual unfreezing; None for one a layer."""
    statistics_every: int = 0

    @property
    def carries(self) -> bool:
        """Whether iterations go on from the weights of the one before."""
        return self.unfreezing is not None and self.unfreezing != "restart"

    @property
    def keeps_moments(self) -> bool:
        """Whether iterations also go on from its moments."""
        return self.unfreezing in ("carry_state", "carry_state_schedule")

    @property
    def one_schedule(self) -> bool:
        """Whether all iterations share a schedule of the learning rate."""
        return self.unfreezing in ("carry_schedule", "carry_state_schedule")

    @property
    def cell(self) -> str:
        """The name shared by all runs that differ only in their seeds."""
        rate, max_norm = self.optimizer.learning_rate, self.optimizer.max_norm
        return f"{self.task}/{self.method}/lr={rate}/max_norm={max_norm}"

    @property
    def name(self) -> str:
        """The run's name in the records."""
        data = "" if self.data_seed == self.seed else f"/data_seed={self.data_seed}"
        return f"{self.cell}/seed={self.seed}{data}"
