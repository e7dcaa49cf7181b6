"""The commands: flags in, one call, words out.

JAX is imported only behind the flags, so that ``--help`` answers at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from cwgnc_train.commands.need_lines import need_lines
from cwgnc_train.config import (
    ComponentsConfig,
    FinetuneConfig,
    PlanConfig,
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
    listed,
)


def start(name: str, flags: Sequence[str]) -> int:
    """Runs a command: a function of the config that its flags are read into.

    Returns the exit status; a wrong flag or ``--help`` ends the process.
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
        _print_results(config.workdir, results)
    return 0 if results["saved"] else 1


def predict(config: PredictConfig) -> None:
    """Writes predictions and prints their scores."""
    check_predict(config)
    from cwgnc_train.engine import keep_programs
    from cwgnc_train.engine import predict as write_predictions

    if config.cache:
        keep_programs()
    _print_scores(*write_predictions(config))
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


def plan(config: PlanConfig) -> None:
    """Estimates what a command would need on accelerators."""
    from cwgnc_train.plan import find_needs, find_slice, without_devices

    without_devices()
    slices = [find_slice(name) for name in config.on]
    for line in need_lines(find_needs(config.command, slices)):
        print(line, flush=True)


def reproduce(config: ReproduceConfig) -> None:
    """Makes the runs of the paper, cut to a budget, and their report."""
    from cwgnc_train.analysis import write_report
    from cwgnc_train.engine import hosts
    from cwgnc_train.study import prepare_reproduction, run_study

    _join(config.training)
    study, cuts = prepare_reproduction(config)
    if hosts.is_primary():
        left_out = "; ".join(cuts) or "nothing"
        print(f"{len(study.runs)} runs; cut of what the paper has: {left_out}")
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


def _print_scores(
    scores: dict[str, dict[str, Any]], lines: dict[str, dict[str, Any]]
) -> None:
    """Prints scores beside the majority classifier's."""
    for name, metrics in scores.items():
        for metric, value in metrics.items():
            line = float(lines[name][metric])
            print(f"{name}  {metric} {float(value):.4f}  (majority line {line:.4f})")


def _print_results(workdir: Path, results: dict[str, Any]) -> None:
    """Prints what ``finetune`` returns, and where the rest is."""
    if len(results["runs"]) > 1:
        _print_seeds(results)
    else:
        _print_scores(results["scores"], results["majority_line"])
    if results["new_parameters"]:
        print(f"initialised anew: {', '.join(results['new_parameters'])}")
    if nonfinite := results["nonfinite_steps"]:
        print(
            f"gradients were not finite in {nonfinite['steps']} steps, first in step "
            f"{nonfinite['first_step']}: {listed(nonfinite['components'])}"
        )
    if results["saved"]:
        if results["failed"]:
            print("the run failed: its score is not above the majority line")
        print(f"model    {workdir / 'model'}")
    else:
        print("no model was saved: all runs were given up")
    print(f"figure   {workdir / 'curves.png'}")
    print(f"results  {workdir / 'results.json'}")


def _print_seeds(results: dict[str, Any]) -> None:
    spread, metric, judged = results["spread"], results["metric"], results["judged"]
    for run in results["runs"]:
        score = float(run["scores"][judged][metric])
        words = [f"seed {run['seed']}", f"{judged} {metric} {score:.4f}"]
        if run["failed"]:
            words.append("given up" if run["gave_up_at_step"] else "failed")
        if results["saved"] and run["seed"] == results["seed"]:
            words.append("saved")
        print(*words, sep="  ")
    line = float(results["majority_line"][judged][metric])
    print(
        f"{spread['runs']} runs: mean {spread['mean']:.4f}, standard deviation "
        f"{spread['std']:.4f}, {spread['min']:.4f} to {spread['max']:.4f}; "
        f"{spread['failed']} failed (majority line {line:.4f})"
    )
    if results["saved"]:
        why = "the best on the holdout"
        if results["chosen_by"] != "holdout":
            why = "chosen by the validation set: its score there is optimistic; "
            why += "--holdout .1 chooses on other data"
        print(f"the model is that of seed {results['seed']}, {why}")
