"""The commands: flags in, one call, words out.

JAX is imported only behind the flags, so that ``--help`` answers at once.
"""

from collections.abc import Sequence

import tyro

from cwgnc_train.commands.printing import print_results, print_scores
from cwgnc_train.config import (
    ComponentsConfig,
    FinetuneConfig,
    PredictConfig,
    RacingConfig,
    ReportConfig,
    ReproduceConfig,
    StabilityConfig,
    TrainingConfig,
    UnfreezeConfig,
    check_hosts,
    check_numbers,
    check_predict,
)


def start(name: str, flags: Sequence[str]) -> int:
    """Runs the command of this name; a wrong flag or ``--help`` ends the process.

    Each command is a function of the config that its flags are read into. It returns
    the exit status, or None for 0.
    """
    command = globals()[name]
    config = command.__annotations__["config"]
    return command(tyro.cli(config, prog=f"cwgnc {name}", args=flags)) or 0


def finetune(config: FinetuneConfig) -> int:
    """Fine-tunes and prints the results."""
    from cwgnc_train.analysis import draw_curves
    from cwgnc_train.engine import hosts
    from cwgnc_train.study import finetune as train

    _join(config.training)
    results = train(config)
    if hosts.is_primary():
        draw_curves(config.workdir)
        print_results(config.workdir, results)
    return 0 if results["saved"] else 1


def predict(config: PredictConfig) -> None:
    """Writes predictions and prints their scores."""
    check_predict(config)
    from cwgnc_train.engine import keep_programs
    from cwgnc_train.engine import predict as write_predictions

    if config.cache:
        keep_programs()
    print_scores(*write_predictions(config))
    print(f"predictions  {config.output}")


def components(config: ComponentsConfig) -> None:
    """Prints a model's components."""
    check_numbers(config)
    from cwgnc_train.engine import list_components

    print(list_components(config))


def stability(config: StabilityConfig) -> None:
    """Makes the runs of a study."""
    from cwgnc_train.engine import hosts
    from cwgnc_train.study import prepare_study, run_study

    _join(config.training)
    with hosts.together("start"):
        study = prepare_study(config)
    run_study(study)
    if hosts.is_primary():
        print(f"records  {config.workdir / 'records.jsonl'}")
        print(f"next     cwgnc report {config.workdir}")


def reproduce(config: ReproduceConfig) -> None:
    """Makes the runs of the paper, cut to a budget, and their report."""
    from cwgnc_train.analysis import write_report
    from cwgnc_train.engine import hosts
    from cwgnc_train.study import prepare_reproduction, run_study

    _join(config.training)
    study, cuts = prepare_reproduction(config)
    if hosts.is_primary():
        left_out = "; ".join(cuts) or "nothing"
        print(f"{len(study.runs)} runs; cut from the paper's protocol: {left_out}")
    run_study(study)
    if hosts.is_primary():
        print(f"report  {write_report(config.workdir)}")


def report(config: ReportConfig) -> None:
    """Writes a study's report."""
    from cwgnc_train.analysis import write_report

    page = write_report(config.workdir, config.output, config.legacy_lines)
    print(f"report  {page}")


def racing(config: RacingConfig) -> None:
    """Draws the race of a study's components."""
    from cwgnc_train.analysis import write_racing

    print(*write_racing(config.workdir, config.output), sep="\n")


def unfreeze(config: UnfreezeConfig) -> None:
    """Draws a study's gradual unfreezing."""
    from cwgnc_train.analysis import write_unfreezing

    print(*write_unfreezing(config.workdir, config.output), sep="\n")


def _join(training: TrainingConfig) -> None:
    """Sets up a process that trains, and joins those that train with it."""
    from cwgnc_train.engine import hosts, keep_programs

    check_hosts(training.hosts)
    if training.cache:
        keep_programs()
    hosts.join(training.hosts)
