"""Checks of what users ask for; each error names the flag and the fix."""

import math
from collections.abc import Sequence
from typing import Any

from cwgnc_train.config.errors import UserError, suggest
from cwgnc_train.config.finetune import PRESETS, FinetuneConfig
from cwgnc_train.config.predict import ComponentsConfig, PredictConfig
from cwgnc_train.config.recipe import (
    CLIP_NUMBERS,
    DataConfig,
    OptimizerConfig,
    RegularizationConfig,
)
from cwgnc_train.config.reproduce import ReproduceConfig
from cwgnc_train.config.stability import StabilityConfig
from cwgnc_train.config.training import DevicesConfig, HostsConfig, TrainingConfig


def check_finetune(config: FinetuneConfig) -> None:
    """Raises a UserError if a setting is wrong."""
    if config.preset not in PRESETS:
        raise UserError(
            f"unknown preset {config.preset!r}; expected one of {' '.join(PRESETS)}"
        )
    _check_data((config.task,) if config.task else (), config.data)
    _check_optimizer(config.optimizer)
    _check_regularization(config.regularization)
    _check_at_least(1, {"--epochs": config.epochs, "--seeds": config.seeds})
    if not 0 <= config.seed < 2**63 - config.seeds:
        raise UserError(f"--seed must lie in [0, 2**63), got {config.seed}")
    _check_training(config.training, config.epochs)


def check_stability(config: StabilityConfig) -> None:
    """Raises a UserError if a setting is wrong."""
    _check_at_least(
        1,
        {
            "--seeds": config.seeds,
            "--epochs": config.epochs,
            "--epochs-per-iteration": config.epochs_per_iteration,
            "--iterations": config.iterations,
        },
    )
    _check_at_least(0, {"--data-seeds": config.data_seeds})
    for flag, values in (
        ("--methods", config.methods),
        ("--max-norms", config.max_norms),
        ("--learning-rates", config.learning_rates),
        ("--seed-list", config.all_seeds()),
    ):
        if not values:
            raise UserError(f"{flag} names nothing, so there is no run to make")
        _check_distinct(flag, values)
    _check_distinct("--tasks", config.tasks)
    _check_data(config.tasks, config.data)
    recipes = [recipe for name in config.methods for recipe in config.recipes(name)]
    for optimizer, regularization in recipes:
        _check_optimizer(optimizer)
        _check_regularization(regularization)
    known = {name for recipe, _ in recipes for name in CLIP_NUMBERS[recipe.clip]}
    for name in config.overrides.clip_numbers:
        if name not in known:
            raise UserError(
                f"--clip-numbers {name}: no method in --methods has such a number"
                f"{suggest(name, known) or '.'} They have "
                f"{' '.join(sorted(known)) or 'none'}"
            )
    _check_training(config.training, config.epochs)


def check_reproduce(config: ReproduceConfig) -> None:
    """Raises a UserError if a setting is wrong that its study does not check."""
    budget = config.budget_minutes
    if budget is not None and not (budget > 0 and math.isfinite(budget)):
        raise UserError(f"--budget-minutes must be a positive number, got {budget}")
    if not config.tasks:
        raise UserError("--tasks names nothing, so there is no run to make")


def check_hosts(hosts: HostsConfig) -> None:
    """Raises a UserError if the flags of several processes are incomplete or wrong."""
    by_hand = hosts.num_processes, hosts.process_id
    if hosts.coordinator in (None, "auto"):
        if by_hand != (None, None):
            raise UserError(
                "--num-processes and --process-id need --coordinator HOST:PORT beside "
                "them"
            )
        return
    host, colon, port = hosts.coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(
            f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, or auto; got "
            f"{hosts.coordinator}"
        )
    if hosts.num_processes is None or hosts.process_id is None:
        raise UserError(
            "--coordinator HOST:PORT needs --num-processes and --process-id beside it"
        )
    if not 0 <= hosts.process_id < hosts.num_processes:
        raise UserError(
            f"--process-id must lie in [0, --num-processes {hosts.num_processes}), got "
            f"{hosts.process_id}"
        )


def check_predict(config: PredictConfig) -> None:
    """Raises a UserError if a setting is wrong."""
    if config.task is not None and config.input_file is not None:
        raise UserError(
            "--task and --input-file contradict each other: give --task (with "
            "--data-dir), or --input-file with --text-columns"
        )
    if config.input_file is None and (config.text_columns or config.label_column):
        raise UserError("--text-columns and --label-column need --input-file")
    if len(config.text_columns) > 2:
        raise UserError(
            f"--text-columns takes one column, or two for pairs of texts; got "
            f"{len(config.text_columns)}"
        )
    _check_at_least(1, {"--batch-size": config.batch_size})
    _check_at_least(3, {"--max-length": config.max_length})
    if config.output.exists():
        raise UserError(f"--output {config.output} exists already; name a new file")


def check_components(config: ComponentsConfig) -> None:
    """Raises a UserError if a number lies outside its range."""
    _check_at_least(1, {"--num-labels": config.num_labels})


def _check_data(tasks: Sequence[str], data: DataConfig) -> None:
    if tasks:
        own = {
            "--train-file": data.train_file,
            "--validation-file": data.validation_file,
            "--text-columns": data.text_columns,
            "--regression": data.regression,
        }
        given = [flag for flag, value in own.items() if value]
        if given:
            raise UserError(
                f"the task {tasks[0]} and {given[0]} contradict each other: a task "
                f"brings its own files and columns; drop the task to use your own data"
            )
    elif data.train_file is None:
        raise UserError(
            "no data: expected a GLUE task, or --train-file and --text-columns for "
            "your own data"
        )
    else:
        _check_own_data(data)
    if not 0 <= data.holdout < 1:
        raise UserError(f"--holdout must lie in [0, 1), got {data.holdout}")
    _check_at_least(1, {"--train-examples": data.train_examples})
    if data.max_length < 3:
        raise UserError(
            f"--max-length must be at least 3 (two special tokens and a word), got "
            f"{data.max_length}"
        )


def _check_own_data(data: DataConfig) -> None:
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
    if len(data.text_columns) not in (1, 2):
        raise UserError(
            f"--text-columns takes one column, or two for pairs of texts; got "
            f"{len(data.text_columns)}"
        )
    if len({*data.text_columns, data.label_column}) <= len(data.text_columns):
        raise UserError(
            f"--text-columns {' '.join(data.text_columns)} and --label-column "
            f"{data.label_column} must be different columns"
        )


def _check_training(training: TrainingConfig, epochs: int | None) -> None:
    _check_at_least(
        1,
        {
            "--batch-size": training.batch_size,
            "--accumulate": training.accumulate,
            "--eval-batch-size": training.eval_batch_size,
            "--evaluations": training.evaluations,
            "--record-every": training.record_every,
            "--give-up-after": training.give_up_after,
            "--keep": training.checkpoints.keep,
        },
    )
    _check_at_least(
        0,
        {
            "--norms-every": training.norms_every,
            "--statistics-every": training.statistics_every,
            "--checkpoint-seconds": training.checkpoints.checkpoint_seconds,
        },
    )
    if training.batch_size % training.accumulate:
        raise UserError(
            f"--accumulate must divide --batch-size {training.batch_size} into equal "
            f"parts, got {training.accumulate}"
        )
    if training.checkpoints.keep_best and (training.evaluations or epochs) == 1:
        raise UserError(
            "--keep-best chooses among evaluations before the end: give "
            "--evaluations 2 or more"
        )
    check_hosts(training.hosts)
    _check_devices(training.devices)


def _check_devices(devices: DevicesConfig) -> None:
    together = devices.runs_per_program
    _check_at_least(
        1,
        {
            "--devices": devices.devices,
            "--data-devices": devices.data_devices,
            "--runs-per-program": None if together == "auto" else together,
        },
    )
    if devices.strategy == "pmap":
        if devices.shard_params:
            raise UserError(
                "--strategy pmap keeps all parameters on every device: drop "
                "--shard-params, or use --strategy jit"
            )
        if together not in ("auto", 1):
            raise UserError(
                f"--strategy pmap trains one run at a time: drop --runs-per-program "
                f"{together}, or use --strategy jit"
            )


def _check_optimizer(optimizer: OptimizerConfig) -> None:
    known = CLIP_NUMBERS[optimizer.clip]
    for name in optimizer.clip_numbers:
        if name not in known:
            raise UserError(
                f"--clip-numbers {name}: --clip {optimizer.clip} has no such number"
                f"{suggest(name, known) or '.'} "
                f"It has {' '.join(known) or 'none, but --max-norm'}"
            )
    if optimizer.clip != "fixed" and optimizer.nonfinite == "zero_component":
        raise UserError(
            f"--nonfinite zero_component works with --clip fixed only, not with "
            f"{optimizer.clip}; use skip_step, or another clip"
        )
    if not optimizer.max_norm > 0:
        raise UserError(
            f"--max-norm must be a positive number, or inf for no clip; got "
            f"{optimizer.max_norm}"
        )
    for flag, value in (
        ("--learning-rate", optimizer.learning_rate),
        ("--eps", optimizer.eps),
        ("--weight-decay", optimizer.weight_decay),
        ("--prior-decay", optimizer.prior_decay),
    ):
        if not (value is not None and value >= 0 and math.isfinite(value)):
            raise UserError(f"{flag} must be 0 or a positive number, got {value}")
    for flag, value in (("--b1", optimizer.b1), ("--b2", optimizer.b2)):
        if not 0 <= value < 1:
            raise UserError(f"{flag} must lie in [0, 1), got {value}")
    warmup = optimizer.warmup_ratio
    if warmup is None or not 0 <= warmup <= 1:
        raise UserError(f"--warmup-ratio must lie in [0, 1], got {warmup}")
    if not 0 < optimizer.layer_decay <= 1:
        raise UserError(
            f"--layer-decay must lie in (0, 1], got {optimizer.layer_decay}"
        )


def _check_regularization(regularization: RegularizationConfig) -> None:
    dropout, mixout = regularization.dropout, regularization.mixout
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"--dropout must lie in [0, 1), got {dropout}")
    if not 0 <= mixout < 1:
        raise UserError(f"--mixout must lie in [0, 1), got {mixout}")
    if mixout and dropout != 0:
        raise UserError("--mixout replaces dropout and needs --dropout 0 beside it")
    _check_at_least(0, {"--reinit-layers": regularization.reinit_layers})


def _check_at_least(least: int, values: dict[str, float | None]) -> None:
    for flag, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{flag} must be at least {least}, got {value}")


def _check_distinct(flag: str, values: Sequence[Any]) -> None:
    repeated = [value for i, value in enumerate(values) if value in values[:i]]
    if repeated:
        raise UserError(f"{flag} names {repeated[0]} twice; name each once")
