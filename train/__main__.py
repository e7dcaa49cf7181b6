"""The command line: ``python -m train COMMAND``."""

if __name__ == "__main__":
    # Before all other imports, which the process that is started anew makes again.
    from train.huge_pages import use_huge_pages

    use_huge_pages()

import argparse
import errno
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from train.config import (
    PRESETS,
    ComponentsConfig,
    FinetuneConfig,
    PredictConfig,
    RacingConfig,
    ReportConfig,
    UnfreezeConfig,
)
from train.config_checks import check_components, check_hosts, check_predict
from train.experiments.paper import ReproduceConfig
from train.experiments.plan import StabilityConfig
from train.interruption import Interrupted

_USAGE = """usage: python -m train COMMAND [--help]

commands:
  finetune    fine-tune a pretrained encoder on a task or on own data
  predict     predict with a fine-tuned model
  components  what a clip of a model would take as one, with shapes and sizes
  stability   fine-tune with many seeds, thresholds and methods
  report      tables, tests and figures of such a study
  racing      how the components of its runs converge, failed and successful
  unfreeze    what gradual unfreezing did in it, iteration by iteration
  reproduce   the paper's tables and figures, cut to a budget of minutes"""


_LONGEST_MESSAGE = 2000


def main(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
      arguments: The command's name and its flags.

    Returns:
      The exit status: 0; 1 if a run was given up; 2 if the input was wrong or nothing
      could be written; 130 or 143 if SIGINT or SIGTERM came.
    """
    commands = {
        "finetune": _finetune,
        "predict": _predict,
        "components": _components,
        "stability": _stability,
        "report": _report,
        "racing": _racing,
        "unfreeze": _unfreeze,
        "reproduce": _reproduce,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    if arguments[0] not in commands:
        expected = ", ".join(commands)
        return _refuse(f"no command {arguments[0]!r}, expected one of {expected}")
    return commands[arguments[0]](list(arguments[1:]))


def parse_finetune(arguments: list[str]) -> FinetuneConfig:
    """Reads the flags of ``finetune``, each over the default of its preset."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="paper")
    preset = parser.parse_known_args(arguments)[0].preset
    return tyro.cli(
        FinetuneConfig,
        prog="python -m train finetune",
        args=arguments,
        # An unknown preset is refused by the parser itself, with the known ones.
        default=PRESETS.get(preset, PRESETS["paper"]),
    )


def _finetune(arguments: list[str]) -> int:
    config = parse_finetune(arguments)
    try:
        # JAX is imported only now, so that --help answers at once.
        from train import hosts
        from train.loop import prepare, train_and_evaluate
        from train.restart import finished
        from train.tables import listed

        check_hosts(config.hosts)
        _keep_programs(config.cache)
        hosts.join(config.hosts)
        with hosts.together("start"):
            results = finished(config)
            prepared = None if results is not None else prepare(config)
        if prepared is not None:
            hosts.check_same(prepared.told)
            new = prepared.inputs.checkpoint.new_parameters
            if new and hosts.is_first():
                print(f"initialised anew: {', '.join(new)}", file=sys.stderr)
            results = train_and_evaluate(prepared)
        if not hosts.is_first():
            return 0
    except (ValueError, OSError) as error:
        return _refuse(error)
    except FloatingPointError as error:
        if hosts.is_first():
            print(f"the run failed: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        return _interrupted(stop, " with --resume", hosts.is_first())
    except KeyboardInterrupt as stop:
        return _interrupted(stop, " with --resume")
    _print_scores(results["scores"], results["majority_line"])
    if nonfinite := results.get("nonfinite"):
        print(
            f"gradients were not finite in {nonfinite['steps']} steps, first in step "
            f"{nonfinite['first_step']}: {listed(nonfinite['components'])}"
        )
    if results["failed"]:
        print("the run failed: its score is not above the majority line")
    print(f"model    {config.workdir / 'model'}")
    print(f"figure   {config.workdir / 'curves.png'}")
    print(f"results  {config.workdir / 'results.json'}")
    return 0


def _predict(arguments: list[str]) -> int:
    config = tyro.cli(PredictConfig, prog="python -m train predict", args=arguments)
    try:
        check_predict(config)
        from train.predict import predict

        _keep_programs(config.cache)
        scores, lines = predict(config)
    except (ValueError, OSError) as error:
        return _refuse(error)
    _print_scores(scores, lines)
    print(f"predictions  {config.output}")
    return 0


def _components(arguments: list[str]) -> int:
    config = tyro.cli(
        ComponentsConfig, prog="python -m train components", args=arguments
    )
    try:
        check_components(config)
        from train.components import list_components

        table = list_components(config)
    except (ValueError, OSError) as error:
        return _refuse(error)
    print(table)
    return 0


def _stability(arguments: list[str]) -> int:
    config = tyro.cli(StabilityConfig, prog="python -m train stability", args=arguments)
    try:
        from train.experiments.stability import prepare_study, run_study

        _keep_programs(config.cache)
        run_study(prepare_study(config))
    except (ValueError, OSError, MemoryError) as error:
        return _refuse(error)
    except (Interrupted, KeyboardInterrupt) as stop:
        return _interrupted(stop)
    print(f"records  {config.workdir / 'records.jsonl'}")
    print(f"next     python -m train report {config.workdir}")
    return 0


def _report(arguments: list[str]) -> int:
    config = tyro.cli(ReportConfig, prog="python -m train report", args=arguments)
    try:
        from train.analysis.report import write_report

        page = write_report(config.workdir, config.output, config.legacy_lines)
    except (ValueError, OSError) as error:
        return _refuse(error)
    print(f"report  {page}")
    return 0


def _racing(arguments: list[str]) -> int:
    config = tyro.cli(RacingConfig, prog="python -m train racing", args=arguments)
    try:
        from train.analysis.racing import write_racing

        paths = write_racing(config.workdir, config.output)
    except (ValueError, OSError) as error:
        return _refuse(error)
    print(*paths, sep="\n")
    return 0


def _unfreeze(arguments: list[str]) -> int:
    config = tyro.cli(UnfreezeConfig, prog="python -m train unfreeze", args=arguments)
    try:
        from train.analysis.unfreezing import write_unfreezing

        paths = write_unfreezing(config.workdir, config.output)
    except (ValueError, OSError) as error:
        return _refuse(error)
    print(*paths, sep="\n")
    return 0


def _reproduce(arguments: list[str]) -> int:
    config = tyro.cli(ReproduceConfig, prog="python -m train reproduce", args=arguments)
    try:
        from train.analysis.report import write_report
        from train.experiments.reproduce import prepare_reproduction
        from train.experiments.stability import run_study

        _keep_programs(config.cache)
        study, cuts = prepare_reproduction(config)
        left_out = "; ".join(cuts) or "nothing"
        print(f"{len(study.runs)} runs; cut from the paper's protocol: {left_out}")
        run_study(study)
        page = write_report(config.workdir)
    except (ValueError, OSError, MemoryError) as error:
        return _refuse(error)
    except (Interrupted, KeyboardInterrupt) as stop:
        return _interrupted(stop)
    print(f"report  {page}")
    return 0


def _keep_programs(cache: bool) -> None:
    from train.caches import keep_programs

    if cache:
        keep_programs()


def _interrupted(
    stop: Interrupted | KeyboardInterrupt, flag: str = "", said: bool = True
) -> int:
    why = str(stop) or "interrupted"
    if said:
        print(f"{why}; the same command{flag} goes on", file=sys.stderr)
    return stop.status if isinstance(stop, Interrupted) else 130


def _print_scores(scores: dict[str, dict[str, Any]], lines: dict[str, dict[str, Any]]):
    for name, metrics in scores.items():
        for metric, value in metrics.items():
            line = lines[name][metric]
            print(f"{name}  {metric} {value:.4f}  (majority line {line:.4f})")


def _refuse(error: object) -> int:
    # Names out of files may hold anything, what moves a terminal's cursor as well.
    line = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in " ".join(str(error).split())
    )
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[:_LONGEST_MESSAGE]}…"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        line += "; make room: what is written is whole, and a run or study can go on"
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
