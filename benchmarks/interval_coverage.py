"""How often a report's intervals hold the truth, and its tests see what is not there.

    python -m benchmarks.interval_coverage [--simulations N] [--json FILE]

It draws studies of 3 to 50 runs from distributions whose mean and standard deviation
are known, and counts how often each interval called 95 % holds them, and how often each
test finds a difference at 5 % where there is none. The seed is fixed.
With --json a page is written beside the file.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
from scipy import stats

from benchmarks.measure import machine, publish, where
from cwgnc_train.analysis import score_statistics
from cwgnc_train.analysis.score_intervals import (
    LEVEL,
    MEAN_RUNS,
    STD_RUNS,
    WILSON_RUNS,
    bonett,
    student,
)

RUNS = (3, 5, 8, 10, 12, 15, 20, 25, 30, 40, 50)
LEAST = 0.9
"""An interval called 95 % that covers less is not shown."""
SHARES = (0.05, 0.2, 0.5)
RESAMPLES = 999


class Scores(NamedTuple):
    """A distribution of scores, its mean and its standard deviation."""

    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
    mean: float
    std: float


SPREAD, CENTRE, LINE = 0.02, 0.7, 0.53
_FAILED_STD = (SPREAD**2 * 0.8 + 0.16 * (CENTRE - LINE) ** 2) ** 0.5
SCORES = {
    "normal": Scores(
        lambda rng, size: rng.normal(CENTRE, SPREAD, size),
        CENTRE,
        SPREAD,
    ),
    # The skewness of a gamma distribution is 2 / √shape, its deviation √shape.
    "skewed": Scores(
        lambda rng, size: CENTRE - SPREAD / 2 * rng.gamma(4, size=size),
        CENTRE - SPREAD * 2,
        SPREAD,
    ),
    "20 % failed": Scores(
        lambda rng, size: np.where(
            rng.random(size) < 0.2, LINE, rng.normal(CENTRE, SPREAD, size)
        ),
        0.8 * CENTRE + 0.2 * LINE,
        _FAILED_STD,
    ),
    "strongly skewed": Scores(
        lambda rng, size: CENTRE - SPREAD * rng.exponential(size=size),
        CENTRE - SPREAD,
        SPREAD,
    ),
}
DECIDING = ("normal", "skewed", "20 % failed")
"""The distributions that decide from how many runs on an interval is shown."""


def chi_square(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the interval of the standard deviation of normal scores."""
    degrees = scores.shape[-1] - 1
    squares = degrees * scores.var(-1, ddof=1)
    low, high = stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], degrees)
    return np.sqrt(squares / low), np.sqrt(squares / high)


def bootstrap(scores: np.ndarray, function: Any) -> tuple[np.ndarray, np.ndarray]:
    """Computes the BCa interval, or the one of percentiles where it is undefined."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        drawn = stats.bootstrap(
            (scores,),
            function,
            axis=-1,
            n_resamples=RESAMPLES,
            batch=50,
            rng=np.random.default_rng(0),
        )
        simple = stats.bootstrap(
            (scores,),
            function,
            axis=-1,
            n_resamples=0,
            bootstrap_result=drawn,
            method="percentile",
        )
    low, high = drawn.confidence_interval
    defined = np.isfinite(low) & np.isfinite(high)
    return (
        np.where(defined, low, simple.confidence_interval.low),
        np.where(defined, high, simple.confidence_interval.high),
    )


INTERVALS: dict[str, tuple[str, Callable[[np.ndarray], tuple[Any, Any]]]] = {
    "mean, Student": ("mean", student),
    "mean, bootstrap (BCa)": ("mean", lambda x: bootstrap(x, np.mean)),
    "std, Bonett": ("std", bonett),
    "std, χ²": ("std", chi_square),
    "std, bootstrap (BCa)": ("std", lambda x: bootstrap(x, np.std)),
}


def simulate(simulations: int, runs: Sequence[int] = RUNS) -> list[dict[str, Any]]:
    """Simulates the coverage of intervals of means and standard deviations.

    Args:
      simulations: The studies drawn for each distribution and number of runs.
      runs: The numbers of runs.

    Returns:
      For each interval, distribution and number of runs the share of studies whose
      interval holds the truth, and the median length over the standard deviation.
      Bonett's interval needs five runs.
    """
    rows = []
    for name, scores in SCORES.items():
        for count in runs:
            drawn = scores.draw(np.random.default_rng(count), (simulations, count))
            for interval, (statistic, compute) in INTERVALS.items():
                if compute is bonett and count < 5:
                    continue
                truth = getattr(scores, statistic)
                # All runs of a small study may have failed with one score.
                with np.errstate(divide="ignore", invalid="ignore"):
                    low, high = compute(drawn)
                rows.append(
                    {
                        "interval": interval,
                        "scores": name,
                        "runs": count,
                        "coverage": float(np.mean((low <= truth) & (truth <= high))),
                        "length": float(np.median(high - low) / scores.std),
                    }
                )
    return rows


def share_coverage(runs: Sequence[int] = RUNS) -> list[dict[str, Any]]:
    """Computes the coverage of intervals of a share; nothing is drawn.

    Args:
      runs: The numbers of runs.

    Returns:
      For each interval, share and number of runs the probability that the interval of
      a binomial number of failed runs holds the share.
    """
    rows = []
    for method in ("wilson", "exact"):
        for count in runs:
            failed = np.arange(count + 1)
            ends = [
                stats.binomtest(k, count).proportion_ci(LEVEL, method) for k in failed
            ]
            for share in SHARES:
                holds = [low <= share <= high for low, high in ends]
                coverage = stats.binom.pmf(failed, count, share) @ holds
                rows.append(
                    {
                        "interval": f"share, {method.capitalize()}",
                        "scores": f"{100 * share:g} % fail",
                        "runs": count,
                        "coverage": float(coverage),
                    }
                )
    return rows


TESTS = {
    "Brown–Forsythe": "brown_forsythe",
    "Pitman–Morgan on ranks": "pitman_morgan",
    "Pitman–Morgan with Pearson's correlation": "pearson",
    "Welch": "welch",
    "Mann–Whitney": "mann_whitney",
    "Wilcoxon": "wilcoxon",
}


def false_positives(
    simulations: int, runs: Sequence[int] = (5, 10, 25)
) -> list[dict[str, Any]]:
    """Simulates how often tests find a difference at 5 % where there is none.

    Args:
      simulations: The pairs of studies drawn for each distribution and number of runs.
      runs: The numbers of runs.

    Returns:
      For each test, distribution and number of runs the share of pairs of studies of
      the same distribution with a p-value below 0.05. Undefined ones do not count.
    """
    rows = []
    for name, scores in SCORES.items():
        for count in runs:
            drawn = scores.draw(np.random.default_rng(count), (2 * simulations, count))
            found = dict.fromkeys(TESTS.values(), 0)
            for pair in drawn.reshape(simulations, 2, count):
                first, second = pair.tolist()
                results = [
                    score_statistics.compare(first, second),
                    score_statistics.compare_pairs(first, second),
                ]
                _, pearson = stats.pearsonr(pair.sum(0), pair[0] - pair[1])
                p_values: dict[str, Any] = {"pearson": pearson}
                for result in results:
                    p_values |= result._asdict() if result else {}
                for test in found:
                    found[test] += bool(p_values[test] < 0.05)
            rows += [
                {"test": test, "scores": name, "runs": count}
                | {"share": found[field] / simulations}
                for test, field in TESTS.items()
            ]
    return rows


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    runs = sorted({row["runs"] for row in result["coverage"]})
    lines = [
        "# Intervals and tests of a report, checked on simulated studies",
        "",
        "## Intervals",
        "",
        "In how many of 100 simulated studies an interval called 95 % holds the truth, "
        "by the number of runs. Below 90 is **bold**.",
        "",
        f"| interval | scores | {' | '.join(map(str, runs))} |",
        f"|---|---|{'---:|' * len(runs)}",
    ]
    table: dict[tuple[str, str], dict[int, float]] = {}
    for row in result["coverage"]:
        key = row["interval"], row["scores"]
        table.setdefault(key, {})[row["runs"]] = row["coverage"]
    for (interval, scores), found in sorted(table.items(), key=lambda item: item[0][0]):
        cells = [_percent(found[count]) if count in found else "–" for count in runs]
        lines.append(f"| {interval} | {scores} | {' | '.join(cells)} |")
    lines += [
        "",
        f"A report shows Student's interval of a mean from {MEAN_RUNS} runs on, "
        f"Bonett's of a standard deviation from {STD_RUNS}, and Wilson's of a share of "
        f"failed runs from {WILSON_RUNS} (the exact one of Clopper and Pearson below). "
        "From there on they hold the truth at least 90 % of the time for normal "
        "scores, for skewed ones and where 20 % of the runs fail. For strongly skewed "
        "scores Bonett's falls short of that below 50 runs, and so do the others. "
        "Wilson's holds shares near 0 less often in few runs: it is right on average "
        "over shares, not for each.",
        "",
        *_false_positive_lines(result["false_positives"]),
        "",
        "## Scores",
        "",
        f"{result['simulations']} studies for each distribution and number of "
        f"runs. Normal: mean {CENTRE}, standard deviation {SPREAD}. Skewed: "
        "gamma of shape 4, turned to the left (skewness −1). Strongly skewed: "
        "exponential, turned to the left (skewness −2). 20 % failed: a run scores "
        f"{LINE} with probability 0.2, and is normal otherwise. Of the studies of n "
        "runs 0.8ⁿ have no failed one, so nothing in them tells of the spread: 11 % at "
        f"10 runs. Bootstrap: {RESAMPLES} resamples. Coverage of shares is computed.",
        "",
        f"scipy {result['scipy']}, numpy {np.__version__}. {where(result)}",
    ]
    return "\n".join(lines) + "\n"


def _false_positive_lines(rows):
    runs = sorted({row["runs"] for row in rows})
    lines = [
        "## Tests",
        "",
        "In how many of 100 pairs of studies a test finds a difference at 5 % where "
        "there is none, by the number of runs of each. A fifth of the studies below "
        "were drawn for it. Above 10 is **bold**.",
        "",
        f"| test | scores | {' | '.join(map(str, runs))} |",
        f"|---|---|{'---:|' * len(runs)}",
    ]
    table: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        text = f"{100 * row['share']:.1f}"
        cells = table.setdefault((row["test"], row["scores"]), [])
        cells.append(f"**{text}**" if row["share"] > 0.1 else text)
    order = list(TESTS)
    for (test, scores), cells in sorted(
        table.items(), key=lambda item: order.index(item[0][0])
    ):
        lines.append(f"| {test} | {scores} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "The Pitman–Morgan test of a report takes ranks. It needs "
        f"{score_statistics.MIN_SPREAD_PAIRS} pairs, so with fewer it finds nothing.",
    ]


def _percent(coverage: float) -> str:
    text = f"{100 * coverage:.1f}"
    return f"**{text}**" if coverage < LEAST else text


def main() -> None:
    """Simulates, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = {
        "machine": machine(),
        "scipy": scipy.__version__,
        "simulations": args.simulations,
        "coverage": simulate(args.simulations) + share_coverage(),
        "false_positives": false_positives(args.simulations // 5),
    }
    publish(result, page(result), args.json)


if __name__ == "__main__":
    main()
