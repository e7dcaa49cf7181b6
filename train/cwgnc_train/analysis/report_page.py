"""The report of a study: one HTML page with its tables and figures."""

import base64
from pathlib import Path
from typing import Any

import jinja2

from cwgnc_train.analysis import report_tables, score_tables
from cwgnc_train.analysis.cells import PAPER_MAX_NORM, choose_cells
from cwgnc_train.analysis.comparison_tables import comparison_tables
from cwgnc_train.analysis.comparisons import compare_cells, count_tests
from cwgnc_train.analysis.component_courses import read_component_courses
from cwgnc_train.analysis.labels import method_label, task_label
from cwgnc_train.analysis.paper_protocol import paper_table
from cwgnc_train.analysis.racing_section import racing_section
from cwgnc_train.analysis.score_intervals import MEAN_RUNS, STD_RUNS, WILSON_RUNS
from cwgnc_train.analysis.score_statistics import MIN_SPREAD_PAIRS
from cwgnc_train.analysis.study_figures import MOST_CELLS, MOST_PANELS, draw_figures
from cwgnc_train.analysis.study_records import LEGACY_LINES, StudyRecords, read_study
from cwgnc_train.analysis.unfreezing_section import unfreezing_section


def write_report(
    workdir: Path, output: Path | None = None, legacy_lines: bool = False
) -> Path:
    """Writes ``report.html``, its tables and its figures.

    The page needs no other file. Tables are also written as CSV and Markdown, figures
    as PNG and SVG. The same records give the same files, byte for byte.

    Args:
      workdir: The folder of the records, of a study or of ``finetune``; runs may still
        be writing to it.
      output: Where to write. Default: the folder ``report`` in ``workdir``.
      legacy_lines: Use the constants of the torch version as failure lines, for the
        tasks that have one.

    Returns:
      The path of ``report.html``.

    Raises:
      UserError: If the folder has no records, no run has finished, or a record is
        damaged.
    """
    workdir = Path(workdir)
    study = read_study(workdir, legacy_lines)
    cells, tasks = choose_cells(study.runs), study.runs["task"].unique()
    compared = compare_cells(study, cells)
    facts, sections = _facts(study), _sections(study, workdir)
    output = Path(output or workdir / "report")
    for name in ("tables", "figures"):
        (output / name).mkdir(parents=True, exist_ok=True)
    tables = {
        table.name: table
        for table in _tables(study, cells, compared, workdir)
        if not table.shown.empty
    }
    in_sections = [table for section in sections for table in section.tables]
    for table in [*tables.values(), *in_sections]:
        table.write(output / "tables")
    figures: dict[str, list[dict[str, str]]] = {}
    for picture in draw_figures(study, cells):
        shown = _shown(picture, output / "figures")
        figures.setdefault(task_label(picture.task), []).append(shown)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        title=f"Fine-tuning {study.model}: {', '.join(map(task_label, tasks))}",
        facts=facts,
        tables=tables,
        comparisons=[name for name in tables if name.startswith("tests_")],
        intervals={"mean": MEAN_RUNS, "std": STD_RUNS, "share": WILSON_RUNS},
        tests=count_tests(compared),
        min_spread_pairs=MIN_SPREAD_PAIRS,
        figures=figures,
        sections=[
            {
                "section": section,
                "pictures": [
                    _shown(picture, output / "figures") for picture in section.pictures
                ],
            }
            for section in sections
        ],
        most_cells=MOST_CELLS,
        most_panels=MOST_PANELS,
        legacy_lines=_legacy_tasks(study) if legacy_lines else None,
        open_groups=_groups(cells[cells["open"]]),
        planned_groups=_groups(cells[cells["planned"]]),
        paper_max_norm=PAPER_MAX_NORM,
        has_choice=len(cells) > len(cells[["task", "method"]].drop_duplicates()),
    )
    path = output / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _tables(study, cells, compared, workdir):
    yield report_tables.task_table(study)
    yield report_tables.protocol_table(study)
    if study.runs["has_holdout"].any():
        yield report_tables.selection_table(cells)
    yield score_tables.score_table(study, cells)
    yield paper_table(study, workdir)
    yield score_tables.threshold_table(study, cells)
    yield from comparison_tables(compared)
    yield report_tables.clip_table(study)
    yield report_tables.failure_table(study)


def _groups(cells):
    groups = cells.groupby(["task", "method"], sort=False)
    return [
        f"{task_label(task)}, {method_label(method)}" for task, method in groups.groups
    ]


def _sections(study, workdir):
    measured = None
    if (workdir / "components.jsonl").exists():
        measured = read_component_courses(workdir, set(study.runs["run"]))
    sections = [
        racing_section(study, measured) if measured else None,
        unfreezing_section(study, measured),
    ]
    return [section for section in sections if section]


def _shown(picture, folder):
    _, path = picture.write(folder)
    svg = base64.b64encode(path.read_bytes()).decode()
    return {
        "name": picture.name,
        "caption": picture.caption,
        "source": f"data:image/svg+xml;base64,{svg}",
    }


def _facts(study: StudyRecords) -> dict[str, str]:
    runs, setting = study.runs, study.settings.get
    counts = {
        "failed": runs["failed"],
        "collapsed": runs["collapsed"],
        "diverged": runs["diverged_at_step"].notna(),
        "given up": runs["gave_up_at_step"].notna(),
    }
    finished = f"{len(runs)} finished, of which " + ", ".join(
        f"{which.sum()} {what}" for what, which in counts.items()
    )
    if study.unfinished:
        finished += (
            f"; {study.unfinished} more have started and are left out of this report"
        )
    file, longest, holdout = map(setting, ("train_file", "max_length", "holdout"))
    facts = {
        "Model": study.model,
        "Runs": finished,
        "Training file": file and Path(str(file)).name,
        "Longest text": longest and f"{longest} tokens",
        "Token types": "all zeros" if setting("token_types") is False else None,
        "Training examples": setting("train_examples") or "all",
        "Holdout": _percent(holdout) if holdout else "none",
        "Dropout": setting("dropout"),
        "Precision": setting("dtype"),
        "Devices": "; ".join(_distinct(runs["device"])),
        "Runs in one program": ", ".join(_distinct(runs["runs_per_program"])),
        "Time": f"{runs['seconds'].sum() / 3600:.2g} hours for all finished runs",
        "Versions": "; ".join(_distinct(runs["versions"].map(_versions))),
    }
    return {name: str(fact) for name, fact in facts.items() if fact not in (None, "")}


def _percent(holdout):
    try:
        return f"{100 * holdout:g} % of the training set"
    except (TypeError, ValueError):
        return holdout


def _distinct(values: Any) -> list[str]:
    texts = (f"{x:g}" if isinstance(x, float) else str(x) for x in values.dropna())
    return list(dict.fromkeys(texts))


def _versions(versions):
    if not isinstance(versions, dict):
        return None
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _legacy_tasks(study):
    keys = study.runs[["task", "metric"]].drop_duplicates().itertuples(index=False)
    return [task_label(task) for task, metric in keys if (task, metric) in LEGACY_LINES]
