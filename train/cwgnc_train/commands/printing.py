"""What commands print of scores."""

from pathlib import Path
from typing import Any

from cwgnc_train.config import listed


def print_scores(
    scores: dict[str, dict[str, Any]], lines: dict[str, dict[str, Any]]
) -> None:
    """Prints scores beside the majority classifier's."""
    for name, metrics in scores.items():
        for metric, value in metrics.items():
            line = float(lines[name][metric])
            print(f"{name}  {metric} {float(value):.4f}  (majority line {line:.4f})")


def print_results(workdir: Path, results: dict[str, Any]) -> None:
    """Prints what ``finetune`` returns, and where the rest is."""
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
    spread, metric, judged = results["spread"], results["metric"], results["judged"]
    for run in results["runs"]:
        words = [f"seed {run['seed']}"]
        words.append(f"{judged} {metric} {float(run['scores'][judged][metric]):.4f}")
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
        why = (
            "the best on the holdout"
            if results["chosen_by"] == "holdout"
            else "chosen by the validation set: its score there is optimistic; "
            "--holdout .1 chooses on other data"
        )
        print(f"the model is that of seed {results['seed']}, {why}")
