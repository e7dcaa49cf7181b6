"""What was asked of the speed, on two cores and on a GPU, beside what was measured."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.clip import NORMS
from benchmarks.clip_sides import OURS as CLIP
from benchmarks.clip_sides import RECORDS
from benchmarks.torch_step import PAPER, WELL
from benchmarks.train_step import OURS
from benchmarks.training import NAMES

Result = Mapping[str, Any]
HALF = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A ratio, a rate or a time that was asked for.

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


def claims_of_clip(result: Result) -> Iterator[Claim]:
    """What the clip costs, on its own and in a step."""
    for size in result["sizes"]:
        name = NAMES[size["size"]]
        [step] = [row for row in size["step"] if row["side"] == NORMS]
        text = f"{name}: a whole step, with the clip and its norms, of one without"
        yield Claim("clip", text, 1.03, False, step["ratio"])
        [loop] = [row for row in size["alone"] if row["side"] == RECORDS]
        text = f"{name}: the clip alone is faster than torch's loop with records"
        yield Claim("clip", text, 5.0, True, loop["ratio"])


_OF_TASKS = {
    ("cola", PAPER): 6.0,
    ("cola", WELL): 2.0,
    ("rte", PAPER): 1.8,
    ("rte", WELL): 1.3,
}


def claims_of_steps(benchmark: str) -> Callable[[Result], Iterator[Claim]]:
    """Claims of the training step, from the file of this name."""

    def claims(result):
        for size, work in _works(result):
            for row in work["sides"]:
                side = row["side"]
                equal = side.startswith("torch") and row["epoch_seconds"] is None
                asked = 1.0 if equal else _OF_TASKS.get((work["work"], side))
                if asked:
                    text = f"{NAMES[size]}, {work['work']}: faster than {side}"
                    yield Claim(benchmark, text, asked, True, row["times_ours"])

    return claims


def _works(result: Result) -> Iterator[tuple[str, Result]]:
    """Each work of each size, with the size."""
    for size in result["sizes"]:
        for work in size["work"]:
            yield size["size"], work


def claims_of_startup(result: Result) -> Iterator[Claim]:
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


def claims_of_many_runs(result: Result) -> Iterator[Claim]:
    """What runs together cost against the same one after the other."""
    best: dict[int, Any] = {}
    for row in result["together"]:
        if row["runs"] not in best or row["cost"] < best[row["runs"]]["cost"]:
            best[row["runs"]] = row
    for runs, row in best.items():
        if runs > 1:
            text = f"{row['layout']}, of the same one after the other"
            yield Claim("many_runs", text, 1.15, False, row["cost"])


def claims_of_variants(result: Result) -> Iterator[Claim]:
    """What measuring the components costs."""
    cost = 100 * result["measuring_every_20"]
    text = "measuring every component each 20 steps, of the training time"
    yield Claim("step_variants", text, 2.0, False, cost, "%")


def claims_of_clip_on_gpu(result: Result) -> Iterator[Claim]:
    """What the clip costs in a step, and how fast it runs with Adam."""
    for size in result["sizes"]:
        name = NAMES[size["size"]]
        [step] = [row for row in size["step"] if row["side"] == NORMS]
        text = f"{name}: a whole step, with the clip and its norms, of one without"
        yield Claim("clip", text, 1.01, False, step["ratio"])
        [update] = [row for row in size["update"] if row["side"] == CLIP]
        text = f"{name}: clip and Adam together, of the bandwidth of a copy"
        yield Claim("clip", text, 80.0, True, 100 * update["share_of_copy"], "%")


def claims_of_steps_on_gpu(benchmark: str) -> Callable[[Result], Iterator[Claim]]:
    """Claims of the training step on a GPU, from the file of this name."""

    def claims(result):
        for size, work in _works(result):
            name = f"{NAMES[size]}, {work['work']}, {result['precision']}"
            rows = {row["side"]: row for row in work["sides"]}
            theirs = [side for side in rows if side.startswith(WELL)]
            best = min(theirs, key=lambda side: rows[side]["times_ours"])
            equal = rows[PAPER]["epoch_seconds"] is None
            bounds = {PAPER: 1.0, best: 1.0} if equal else {PAPER: 12.0, best: 1.5}
            for side, bound in bounds.items():
                text = f"{name}: faster than {side}"
                yield Claim(benchmark, text, bound, True, rows[side]["times_ours"])
            if equal and size == "large" and result["precision"] == HALF:
                yield from _claims_of_large(benchmark, name, result, rows[OURS])

    return claims


def _claims_of_large(benchmark, name, result, row) -> Iterator[Claim]:
    many = result["batch"] >= 64
    text = f"{name}: examples a second"
    rate = row["examples_per_second"]
    yield Claim(benchmark, text, 2000.0 if many else 1300.0, True, rate, "")
    if many:
        text = f"{name}: of the rate of a big matrix product"
        yield Claim(benchmark, text, 60.0, True, 100 * row["share_of_peak"], "%")


def claims_of_bert_large(result: Result) -> Iterator[Claim]:
    """How long the two commands take with warm caches."""
    for row in result["commands"]:
        if row["cached"] and row["task"] == "rte":
            text = f"{row['runs']} seeds of RTE, from the command to the result"
            yield Claim("bert_large", text, 120.0, False, row["seconds"], "s")
        elif row["cached"]:
            text = "MRPC, three epochs of training (NVIDIA's on eight A100s: 7.31 s)"
            yield Claim("bert_large", text, 7.31, False, row["training_seconds"], "s")


ON_TWO_CORES = {
    "train_step": claims_of_steps("train_step"),
    "train_step_base": claims_of_steps("train_step_base"),
    "train_step_large": claims_of_steps("train_step_large"),
    "clip": claims_of_clip,
    "startup": claims_of_startup,
    "many_runs": claims_of_many_runs,
    "step_variants": claims_of_variants,
}
ON_A_GPU = {
    **{
        name: claims_of_steps_on_gpu(name)
        for name in (
            "train_step_float32",
            "train_step_tf32",
            "train_step_bfloat16",
            "train_step_batch_64",
        )
    },
    "clip": claims_of_clip_on_gpu,
    "bert_large": claims_of_bert_large,
    "many_runs": claims_of_many_runs,
}
