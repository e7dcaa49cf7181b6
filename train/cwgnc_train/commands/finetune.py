"""``cwgnc finetune``."""

import argparse
from collections.abc import Sequence
from typing import Any

import tyro

from cwgnc_train.commands.flags import parse, print_scores, use_cache
from cwgnc_train.config import (
    PRESETS,
    FinetuneConfig,
    check_hosts,
    listed,
)


def finetune(flags: Sequence[str]) -> int:
    """Fine-tunes and prints the results."""
    config = parse_finetune(flags)
    # JAX is imported only now, so that --help answers at once.
    from cwgnc_train.analysis import draw_curves
    from cwgnc_train.engine import hosts
    from cwgnc_train.study import finetune as train

    check_hosts(config.training.hosts)
    use_cache(config.training.cache)
    hosts.join(config.training.hosts)
    results = train(config)
    if hosts.is_primary():
        draw_curves(config.workdir)
        _print(config, results)
    return 0 if results["saved"] else 1


def parse_finetune(flags: Sequence[str]) -> FinetuneConfig:
    """Reads the flags of ``finetune``, each over the default of its preset."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="paper")
    preset = parser.parse_known_args(flags)[0].preset
    default = FinetuneConfig(
        model=tyro.MISSING,
        workdir=tyro.MISSING,
        # The parser itself refuses an unknown preset.
        preset=preset if preset in PRESETS else "paper",
    )
    return parse("finetune", FinetuneConfig, flags, default)


def _print(config: FinetuneConfig, results: dict[str, Any]) -> None:
    workdir = config.workdir
    if len(results["runs"]) > 1:
        _print_seeds(results)
    else:
        print_scores(results["scores"], results["majority_line"])
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
    spread, metric = results["spread"], results["metric"]
    judged, chosen_by = results["judged"], results["chosen_by"]
    for run in results["runs"]:
        score = float(run["scores"][judged][metric])
        why = "  given up" if run["gave_up_at_step"] else "  failed"
        chosen = (
            "  saved" if run["seed"] == results["seed"] and results["saved"] else ""
        )
        print(
            f"seed {run['seed']}  {judged} {metric} {score:.4f}"
            f"{why if run['failed'] else ''}{chosen}"
        )
    line = float(results["majority_line"][judged][metric])
    print(
        f"{spread['runs']} runs: mean {spread['mean']:.4f}, standard deviation "
        f"{spread['std']:.4f}, {spread['min']:.4f} to {spread['max']:.4f}; "
        f"{spread['failed']} failed (majority line {line:.4f})"
    )
    if not results["saved"]:
        return
    if chosen_by == "holdout":
        print(f"the model is that of seed {results['seed']}, the best on the holdout")
    else:
        print(
            f"the model is that of seed {results['seed']}, chosen by the validation "
            f"set: its score there is optimistic; --holdout .1 chooses on other data"
        )
