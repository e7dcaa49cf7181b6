"""Fine-tuning as a study of one cell, whose best model is saved."""

from typing import Any

import numpy as np

from cwgnc_train.config import FinetuneConfig
from cwgnc_train.engine import hosts
from cwgnc_train.records import write_json
from cwgnc_train.study.study import prepare_study
from cwgnc_train.study.worker import run_study


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tunes one or several seeds and writes the run folder.

    Returns what ``results.json`` holds: the results of the run whose model was saved,
    the spread over all seeds, and which set the model was chosen by. Raises what
    ``prepare_study`` and ``run_study`` raise.
    """
    with hosts.together("start"):
        study = prepare_study(config)
    # Those of earlier commands with other seeds are among them, as for the model.
    lines = sorted(run_study(study).values(), key=lambda line: line["seed"])
    results = _results(lines)
    if hosts.is_primary():
        write_json(config.workdir / "results.json", results)
    return results


def _results(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarises the records of finished runs."""
    judged, metric = lines[0]["judged"], lines[0]["metric"]
    chosen_by = "holdout" if "holdout" in lines[0]["scores"] else judged
    scores = [float(line["scores"][judged][metric]) for line in lines]
    # Several may have been the best so far.
    saved = [line for line in lines if line["model_saved"]]
    chosen = max(saved or lines, key=lambda x: float(x["scores"][chosen_by][metric]))
    of_each = ("seed", "scores", "failed", "gave_up_at_step")
    hidden = {"kind", "model_saved", "seed", "data_seed", "own_seconds"}
    return {name: value for name, value in chosen.items() if name not in hidden} | {
        "seed": chosen["seed"],
        "seconds": {
            "training": round(chosen["seconds"] - chosen["own_seconds"], 2),
            "evaluation": chosen["own_seconds"],
        },
        "chosen_by": chosen_by,
        "saved": bool(saved),
        "spread": {
            "runs": len(lines),
            "mean": float(np.mean(scores)),
            "std": float(np.std(scores)),
            "min": min(scores),
            "max": max(scores),
            "failed": sum(line["failed"] for line in lines),
        },
        "runs": [{name: line[name] for name in of_each} for line in lines],
    }
