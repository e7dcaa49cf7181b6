"""All claims of speed, what was asked of each, and what was measured.

    python -m benchmarks.summary [--results DIR]

It reads the JSON files that the other benchmarks wrote into the folder, and writes its
README.md from them.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import where
from benchmarks.training import NAMES

RESULTS = Path(__file__).parent / "results"
TITLES = {
    "train_step": "A training step",
    "train_step_base": "A training step of BERT-base",
    "train_step_large": "A training step of BERT-large",
    "clip": "The clip",
    "finetune": "From the command to the score",
    "startup": "Before the first step",
    "memory": "The memory of a training step",
    "many_runs": "Many runs in one program",
    "step_variants": "What a step costs that is frozen in part, or measured",
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A ratio or a time that was asked for, on two cores.

    Attributes:
      benchmark: Whose file holds the figure.
      text: What it is.
      asked: The bound.
      at_least: Whether it is a lower one.
      measured: The figure.
      unit: Behind figure and bound.
    """

    benchmark: str
    text: str
    asked: float
    at_least: bool
    measured: float
    unit: str = "×"

    @property
    def met(self) -> bool:
        """Whether the figure is within the bound."""
        if self.at_least:
            return self.measured >= self.asked
        return self.measured <= self.asked


def claims_of_clip(result: Mapping[str, Any]) -> Iterator[Claim]:
    """What the clip costs, on its own and in a step."""
    for size in result["sizes"]:
        name = f"BERT-{size['size']}"
        [step] = [row for row in size["step"] if row["side"].endswith("norms")]
        text = f"{name}: a whole step, with the clip and its norms, of one without"
        yield Claim("clip", text, 1.03, False, step["ratio"])
        [loop] = [row for row in size["alone"] if row["side"].endswith("records")]
        text = f"{name}: the clip alone is faster than torch's loop with records"
        yield Claim("clip", text, 5.0, True, loop["ratio"])


_OF_TASKS = {
    ("cola", "torch, as the paper"): 6.0,
    ("cola", "torch, well written"): 2.0,
    ("rte", "torch, as the paper"): 1.8,
    ("rte", "torch, well written"): 1.3,
}


def claims_of_steps(benchmark: str) -> Callable[[Mapping[str, Any]], Iterator[Claim]]:
    """Claims of the training step, from the file of this name."""

    def claims(result):
        for size in result["sizes"]:
            for work in size["work"]:
                for row in work["sides"]:
                    side = row["side"]
                    equal = side.startswith("torch") and row["epoch_seconds"] is None
                    asked = 1.0 if equal else _OF_TASKS.get((work["work"], side))
                    if asked:
                        text = (
                            f"{NAMES[size['size']]}, {work['work']}: faster than {side}"
                        )
                        yield Claim(benchmark, text, asked, True, row["times_ours"])

    return claims


def claims_of_startup(result: Mapping[str, Any]) -> Iterator[Claim]:
    """How soon a command begins."""
    help_ = statistics.median(result["help"])
    warm = statistics.median(row["first_step"] for row in result["warm"])
    yield Claim("startup", "`--help`", 0.3, False, help_, "s")
    text = "the first step is taken, with warm caches"
    yield Claim("startup", text, 5.0, False, warm, "s")
    for row in result["compilation"]:
        if row["size"] == "large":
            seconds = row["trace"] + row["compile"]
            text = "BERT-large's step is traced and compiled"
            yield Claim("startup", text, 60.0, False, seconds, "s")


def claims_of_many_runs(result: Mapping[str, Any]) -> Iterator[Claim]:
    """What runs together cost against the same one after the other."""
    best: dict[int, Any] = {}
    for row in result["together"]:
        if row["runs"] not in best or row["cost"] < best[row["runs"]]["cost"]:
            best[row["runs"]] = row
    for runs, row in best.items():
        if runs > 1:
            text = f"{row['layout']}, of the same one after the other"
            yield Claim("many_runs", text, 1.15, False, row["cost"])


def claims_of_variants(result: Mapping[str, Any]) -> Iterator[Claim]:
    """What measuring the components costs."""
    cost = 100 * result["measuring_every_20"]
    text = "measuring every component each 20 steps, of the training time"
    yield Claim("step_variants", text, 2.0, False, cost, "%")


CLAIMS = {
    "train_step": claims_of_steps("train_step"),
    "train_step_base": claims_of_steps("train_step_base"),
    "train_step_large": claims_of_steps("train_step_large"),
    "clip": claims_of_clip,
    "startup": claims_of_startup,
    "many_runs": claims_of_many_runs,
    "step_variants": claims_of_variants,
}


def page(results: Mapping[str, Mapping[str, Any]], reasons: str) -> str:
    """The figures as Markdown.

    Args:
      results: What each benchmark's file holds, by its name.
      reasons: What holds back the claims that are not met.
    """
    lines = [
        "# Benchmarks",
        "",
        "What was asked on two cores, and what was measured there. × is how many times "
        "as long the other side takes, or, where it says so, a share of its time.",
        "",
        "| claim | asked | measured | |",
        "|---|---:|---:|---|",
    ]
    for name, claims_of in CLAIMS.items():
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
