"""All claims of speed, what was asked of each, and what was measured.

    python -m benchmarks.summary [--results DIR]

It reads the JSON files that the other benchmarks wrote into the folder, and writes its
README.md from them.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.claims import ON_A_GPU, ON_TWO_CORES
from benchmarks.measure import where

RESULTS = Path(__file__).parent / "results"
TITLES = {
    "train_step": "A training step",
    "train_step_base": "A training step of BERT-base",
    "train_step_large": "A training step of BERT-large",
    "train_step_float32": "A training step in float32",
    "train_step_tf32": "A training step in tf32",
    "train_step_bfloat16": "A training step in bfloat16",
    "train_step_batch_64": "A training step of BERT-large of 64 examples",
    "clip": "The clip",
    "finetune": "From the command to the score",
    "bert_large": "BERT-large from the command to the result",
    "startup": "Before the first step",
    "memory": "The memory of a training step",
    "many_runs": "Many runs in one program",
    "step_variants": "What a step costs that is frozen in part, or measured",
    "compiled": "What compilers make of the step for GPUs and TPUs: estimates",
    "interval_coverage": "Intervals and tests of reports, on simulated studies",
}


def page(results: Mapping[str, Mapping[str, Any]], reasons: str) -> str:
    """The figures as Markdown.

    Args:
      results: What each benchmark's file holds, by its name.
      reasons: What holds back the claims that are not met.
    """
    on_cpu = all(found["machine"]["device"] == "cpu" for found in results.values())
    claims, asked_on = (ON_TWO_CORES, "two cores") if on_cpu else (ON_A_GPU, "a GPU")
    lines = [
        "# Benchmarks",
        "",
        f"What was asked on {asked_on}, and what was measured there. × is how many "
        "times as long the other side takes, or, where it says so, a share of its "
        "time.",
        "",
        "| claim | asked | measured | |",
        "|---|---:|---:|---|",
    ]
    for name, claims_of in claims.items():
        for claim in claims_of(results[name]) if name in results else ():
            bound = "≥" if claim.at_least else "≤"
            measured = f"{claim.measured:.3g} {claim.unit}"
            lines.append(
                f"| [{claim.text}]({claim.benchmark}.md) | {bound} {claim.asked:g} "
                f"{claim.unit} | {measured} | {'met' if claim.met else '**missed**'} |"
            )
    lines += ["", reasons.strip(), "", "## Pages", ""]
    for name, title in TITLES.items():
        if name in results:
            lines.append(f"- [{title}]({name}.md). {where(results[name])}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    results = {
        path.stem: json.loads(path.read_text()) for path in args.results.glob("*.json")
    }
    if not results:
        sys.exit(f"no results in {args.results}; run make benchmarks first")
    reasons = args.results / "reasons.md"
    text = page(results, reasons.read_text() if reasons.exists() else "")
    (args.results / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
