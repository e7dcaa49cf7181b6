"""Checks of what users ask for; each error names the flag and the fix."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from cwgnc_train.config.errors import UserError, suggest
from cwgnc_train.config.finetune import FinetuneConfig
from cwgnc_train.config.recipe import CLIP_NUMBERS, DataConfig
from cwgnc_train.config.stability import StabilityConfig
from cwgnc_train.config.tools import PredictConfig
from cwgnc_train.config.training import HostsConfig, TrainingConfig

# What a value must do, how to tell, and the fields that it holds for. NaN is refused
# because no comparison with it is true.
_BOUNDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "be at least 0",
        lambda x: x >= 0,
        "checkpoint_seconds data_seeds norms_every reinit_layers statistics_every",
    ),
    (
        "be at least 1",
        lambda x: x >= 1,
        "accumulate batch_size data_devices devices epochs epochs_per_iteration "
        "eval_batch_size evaluations give_up_after iterations keep num_labels "
        "record_every runs_per_program seeds train_examples",
    ),
    ("be at least 3 (two special tokens and a word)", lambda x: x >= 3, "max_length"),
    ("lie in [0, 1)", lambda x: 0 <= x < 1, "b1 b2 dropout holdout mixout"),
    ("lie in [0, 1]", lambda x: 0 <= x <= 1, "warmup_ratio"),
    ("lie in (0, 1]", lambda x: 0 < x <= 1, "layer_decay"),
    (
        "be 0 or a positive number",
        lambda x: 0 <= x < math.inf,
        "eps learning_rate prior_decay weight_decay",
    ),
    ("be a positive number", lambda x: 0 < x < math.inf, "budget_minutes"),
    ("be a positive number, or inf for no clip", lambda x: x > 0, "max_norm"),
    ("name one column, or two for pairs", lambda x: len(x) <= 2, "text_columns"),
)
_BOUND_OF = {
    name: (words, holds) for words, holds, names in _BOUNDS for name in names.split()
}


def check_numbers(config: Any) -> None:
    """Raises a UserError if a value in a config, or in a part of it, is out of bounds.

    A setting that is None or a word, such as auto, has no bounds.
    """
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            check_numbers(value)
        elif name in _BOUND_OF and value is not None and not isinstance(value, str):
            words, holds = _BOUND_OF[name]
            if not holds(value):
                raise UserError(f"{_flag(name)} must {words}, got {value}")


def check_study(config: FinetuneConfig | StabilityConfig) -> None:
    """Raises a UserError if a setting is wrong."""
    check_numbers(config)
    if isinstance(config, FinetuneConfig):
        if not 0 <= config.seed < 2**63 - config.seeds:
            raise UserError(f"--seed must lie in [0, 2**63), got {config.seed}")
        recipes = [(config.optimizer, config.regularization)]
        clip_numbers = config.optimizer.clip_numbers
    else:
        _check_axes(config)
        recipes = [pair for name in config.methods for pair in config.recipes(name)]
        clip_numbers = config.overrides.clip_numbers
    _check_data(config.tasks, config.data)
    for optimizer, regularization in recipes:
        check_numbers(optimizer)
        if optimizer.clip != "fixed" and optimizer.nonfinite == "zero_component":
            raise UserError(
                f"--nonfinite zero_component works with --clip fixed only, not with "
                f"{optimizer.clip}; use skip_step, or another clip"
            )
        if regularization.mixout and regularization.dropout != 0:
            raise UserError("--mixout replaces dropout and needs --dropout 0 beside it")
    clips = {each.clip: CLIP_NUMBERS[each.clip] for each, _ in recipes}
    known = dict.fromkeys(itertools.chain(*clips.values()))
    for name in clip_numbers:
        if name not in known:
            raise UserError(
                f"--clip-numbers {name}: --clip {' '.join(clips)} has no such number"
                f"{suggest(name, known) or '.'} "
                f"It has {' '.join(known) or 'none, but --max-norm'}"
            )
    _check_training(config.training, config.epochs)


def check_hosts(hosts: HostsConfig) -> None:
    """Raises a UserError if the flags of several processes are incomplete or wrong."""
    given, count, index = hosts.coordinator, hosts.num_processes, hosts.process_id
    if given in (None, "auto"):
        if count is None and index is None:
            return
        raise UserError(
            "--num-processes and --process-id need --coordinator HOST:PORT beside them"
        )
    host, _, port = given.rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(
            f"--coordinator must be HOST:PORT, such as node:1234, or auto; got {given}"
        )
    if count is None or index is None:
        raise UserError(
            "--coordinator HOST:PORT needs --num-processes and --process-id beside it"
        )
    if not 0 <= index < count:
        raise UserError(
            f"--process-id must lie in [0, --num-processes {count}), got {index}"
        )


def check_predict(config: PredictConfig) -> None:
    """Raises a UserError if a setting is wrong."""
    check_numbers(config)
    if config.task is not None and config.input_file is not None:
        raise UserError(
            "--task and --input-file contradict each other: give only one of them"
        )
    if config.input_file is None and (config.text_columns or config.label_column):
        raise UserError("--text-columns and --label-column need --input-file")
    if config.output.exists():
        raise UserError(f"--output {config.output} exists already; name a new file")


def _check_axes(config: StabilityConfig) -> None:
    axes = {
        "--methods": config.methods,
        "--max-norms": config.max_norms,
        "--learning-rates": config.learning_rates,
        "--seed-list": config.all_seeds(),
        "--tasks": config.tasks,
    }
    for flag, values in axes.items():
        if not values and flag != "--tasks":
            raise UserError(f"{flag} names nothing, so there is no run to make")
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{flag} names {value} twice; name each once")


def _check_data(tasks: Sequence[str], data: DataConfig) -> None:
    own = ("train_file", "validation_file", "text_columns", "regression")
    given = [_flag(name) for name in own if getattr(data, name)]
    if tasks and given:
        raise UserError(
            f"the task {tasks[0]} and {given[0]} contradict each other: a task brings "
            f"its own files and columns; drop the task to use your own data"
        )
    if tasks:
        return
    if data.train_file is None or not data.text_columns:
        raise UserError(
            "no data: expected a GLUE task, or --train-file and --text-columns for "
            "your own data"
        )
    if data.data_dir is not None:
        raise UserError(
            "--data-dir and --train-file contradict each other: --data-dir holds a "
            "GLUE task's files; name the task, or drop --data-dir"
        )
    if data.validation_file is None and not data.holdout:
        raise UserError(
            "--train-file needs data to score the runs on: give --validation-file "
            "FILE, or --holdout .1 to keep a tenth of the training set for it"
        )
    if len({*data.text_columns, data.label_column}) <= len(data.text_columns):
        raise UserError(
            f"--text-columns {' '.join(data.text_columns)} and --label-column "
            f"{data.label_column} must be different columns"
        )


def _check_training(training: TrainingConfig, epochs: int | None) -> None:
    batch, parts = training.batch_size, training.accumulate
    if batch % parts:
        raise UserError(f"--accumulate must divide --batch-size {batch}, got {parts}")
    if training.checkpoints.keep_best and (training.evaluations or epochs) == 1:
        raise UserError(
            "--keep-best needs scores before the end: give --evaluations 2 or more"
        )
    check_hosts(training.hosts)
    devices = training.devices
    if devices.strategy == "pmap" and devices.shard_params:
        raise UserError(
            "--strategy pmap keeps all parameters on every device: drop "
            "--shard-params, or use --strategy jit"
        )
    if devices.strategy == "pmap" and devices.runs_per_program not in ("auto", 1):
        raise UserError(
            f"--strategy pmap trains one run at a time: drop --runs-per-program "
            f"{devices.runs_per_program}, or use --strategy jit"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
