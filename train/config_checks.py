"""Whether what a run is told makes sense; an error names the flag and the mend."""

import difflib
import math

from train.config import (
    CLIP_NUMBERS,
    ComponentsConfig,
    DataConfig,
    FinetuneConfig,
    HostsConfig,
    OptimizerConfig,
    PredictConfig,
    RegularizationConfig,
)


def check_finetune(config: FinetuneConfig) -> None:
    """Raises a ValueError that names the flag and the mend, if a setting is wrong."""
    check_data(config.data)
    check_optimizer(config.optimizer)
    for flag, value in (
        ("--epochs", config.epochs),
        ("--batch-size", config.batch_size),
        ("--accumulate", config.accumulate),
        ("--devices", config.devices.devices),
        ("--eval-batch-size", config.eval_batch_size),
        ("--norms-every", config.norms_every),
        ("--give-up-after", config.give_up_after),
        ("--evaluations", config.evaluations),
        ("--keep", config.keep),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, got {value}")
    check_hosts(config.hosts)
    if config.batch_size % config.accumulate:
        raise ValueError(
            f"--accumulate must divide --batch-size {config.batch_size} into parts of "
            f"one size, got {config.accumulate}"
        )
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


def check_hosts(hosts: HostsConfig) -> None:
    """Raises a ValueError if the flags of several processes are incomplete or wrong."""
    by_hand = hosts.num_processes, hosts.process_id
    if hosts.coordinator in (None, "auto"):
        if by_hand != (None, None):
            raise ValueError(
                "--num-processes and --process-id need --coordinator HOST:PORT beside "
                "them"
            )
        return
    host, colon, port = hosts.coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ValueError(
            f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, or auto; got "
            f"{hosts.coordinator}"
        )
    if hosts.num_processes is None or hosts.process_id is None:
        raise ValueError(
            "--coordinator HOST:PORT needs --num-processes and --process-id beside it"
        )
    if not 0 <= hosts.process_id < hosts.num_processes:
        raise ValueError(
            f"--process-id must lie in [0, --num-processes {hosts.num_processes}), got "
            f"{hosts.process_id}"
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


def check_components(config: ComponentsConfig) -> None:
    """Raises a ValueError if a number lies outside its range."""
    if config.num_labels < 1:
        raise ValueError(f"--num-labels must be at least 1, got {config.num_labels}")


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
    """Raises a ValueError if a number lies outside its range, or is another clip's.

    Those of a learned threshold are checked by ``optimizer.check_clip``.
    """
    known = CLIP_NUMBERS[optimizer.clip]
    for name in optimizer.clip_numbers:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"--clip-numbers {name}: --clip {optimizer.clip} has no such number"
                f"{f', did you mean {near[0]!r}?' if near else '.'} "
                f"It has {' '.join(known) or 'none, but --max-norm'}"
            )
    if optimizer.clip != "fixed" and optimizer.nonfinite == "zero_component":
        raise ValueError(
            f"--nonfinite zero_component goes with --clip fixed only, not with "
            f"{optimizer.clip}; take skip_step, or another clip"
        )
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
