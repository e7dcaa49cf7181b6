"""How the runs of a study differ from those behind the paper's numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from cwgnc_train.analysis.cells import CELL
from cwgnc_train.analysis.labels import (
    NOTHING,
    format_rate,
    method_label,
    task_label,
    threshold_label,
)
from cwgnc_train.analysis.report_tables import ReportTable, make_table
from cwgnc_train.analysis.score_tables import PAPER
from cwgnc_train.analysis.study_records import StudyRecords
from cwgnc_train.config import UserError
from cwgnc_train.records import read_json_object

_UNKNOWN = "not recorded"
_ASSUMED = (
    "all of Mixout's settings but its probability, which is one of those that Lee et "
    "al. tried: no published code has the settings of their row"
)
_NOTE = (
    "The paper's numbers are comparable with this study's only as far as these lines "
    "agree; the table Protocol has the rest. The paper quotes its rows of Devlin et "
    "al. and Lee et al. from Mosbach et al., whose code evaluates on the validation "
    "set three times an epoch and scores the best checkpoint, which is optimistic; "
    "this report scores the last step. That code passes no token types (segment ids) "
    "either, so that the inputs of its RTE and MRPC runs differ from those with token "
    "types; --no-token-types makes them the same."
)


def paper_table(study: StudyRecords, workdir: Path) -> ReportTable:
    """Makes the table of what the paper did beside what this study did.

    It is empty for a study that has no row of the paper beside its own and does not
    reproduce the paper.

    Args:
      study: The records.
      workdir: Their folder, whose ``reproduction.json`` says what was cut.

    Returns:
      The table.

    Raises:
      UserError: If ``reproduction.json`` is damaged.
    """
    cut, runs = _read_cut(workdir), study.runs
    pairs = zip(runs["task"], runs["method"], strict=True)
    rows = []
    if cut is not None or any(method in PAPER.get(task, {}) for task, method in pairs):
        rows = _rows(study)
    if cut is not None:
        rows.append(("Cut", NOTHING, cut))
    return make_table(
        "paper",
        "This study beside the paper",
        [dict(zip(("what", "paper", "study"), row, strict=True)) for row in rows],
        {
            "What": lambda row: row["what"],
            "The paper": lambda row: row["paper"],
            "This study": lambda row: row["study"],
        },
        _NOTE,
    )


def _rows(study: StudyRecords) -> list[tuple[str, str, str]]:
    runs, setting = study.runs, study.settings.get
    length, most = setting("max_length"), setting("train_examples")
    types = setting("token_types")
    epochs = runs[["method", "epochs"]].dropna().drop_duplicates()
    clips = runs.loc[runs["method"] == "cwgnc", ["max_norm", "clip"]].drop_duplicates()
    counts = set(runs.groupby(CELL).size().to_list())
    used = f"at most {most} of a task" if most else "all"
    if setting("holdout"):
        used += ", without the holdout"
    rows = [
        ("Model", "BERT-large-uncased", study.model),
        ("Tasks", "RTE, MRPC, CoLA", _listed(runs, "task", task_label)),
        ("Runs of a cell", "25", " to ".join(map(str, _ends(counts)))),
        (
            "Peak learning rate",
            "not stated; its code has 2e-5",
            _listed(runs, "learning_rate", format_rate),
        ),
        (
            "Batch",
            "not stated; its code has 16",
            _listed(runs, "batch_size", "{:g}".format) or _UNKNOWN,
        ),
        (
            "Longest text",
            "not stated; its code has 128 tokens",
            f"{length} tokens" if length else _UNKNOWN,
        ),
        (
            "Token types of pairs",
            "passed by its code, by that of Mosbach et al. not",
            _UNKNOWN if types is None else "passed" if types else "all zeros",
        ),
        ("Training examples", "all", used),
        (
            "Epochs",
            "CWGNC 5 (its code has 3), Mosbach et al. 20, others not stated",
            ", ".join(
                f"{method_label(method)} {count:g}"
                for method, count in epochs.itertuples(index=False)
            )
            or _UNKNOWN,
        ),
        (
            "Threshold of CWGNC",
            "0.05 in Table 1, chosen on held-out data",
            ", ".join(threshold_label(*pair) for pair in clips.itertuples(index=False))
            or NOTHING,
        ),
        ("Precision", "not stated", str(setting("dtype") or _UNKNOWN)),
    ]
    if "mixout" in set(runs["method"]):
        rows.append(("Assumed", NOTHING, _ASSUMED))
    return rows


def _ends(counts: set[int]) -> list[int]:
    """The smallest and the largest, or the one that they are."""
    return sorted({min(counts), max(counts)})


def _listed(runs: pd.DataFrame, name: str, write: Callable[[Any], str]) -> str:
    return ", ".join(map(write, runs[name].dropna().drop_duplicates()))


def _read_cut(workdir: Path) -> str | None:
    """Reads what a reproduction was cut by, "nothing" or in words; None for others."""
    path = workdir / "reproduction.json"
    if not path.is_file():
        return None
    known = read_json_object(path, "the settings of a reproduction")
    try:
        cut, budget = "; ".join(known["cut"]) or "nothing", known["budget_minutes"]
        return cut if budget is None else f"{cut} (to take {budget:g} minutes)"
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is damaged: expected a list of texts, cut, and a number or "
            f"nothing, budget_minutes; restore it"
        ) from None
