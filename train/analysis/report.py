"""The report of a study: one page of HTML, its tables and its figures."""

import base64
import json
from pathlib import Path

import jinja2
import pandas as pd

from train.analysis import comparisons, results, tables
from train.analysis.cells import PAPER_MAX_NORM, choose_cells
from train.analysis.components import read_components
from train.analysis.figures import MOST_CELLS, MOST_PANELS, draw_figures
from train.analysis.labels import method_label, task_label
from train.analysis.racing import racing_section
from train.analysis.study import LEGACY_LINES, Study, read_study
from train.analysis.unfreezing import unfreezing_section


def write_report(
    workdir: Path, output: Path | None = None, legacy_lines: bool = False
) -> Path:
    """Writes ``report.html``, its tables and its figures.

    The page needs no other file. The tables are written as CSV and Markdown, the
    figures as PNG and SVG. The same records give the same files, byte for byte.

    Args:
      workdir: The study's folder; it may still be written to.
      output: Where to write; the folder ``report`` in the study's by default.
      legacy_lines: Judge runs by the constants of the torch version where it has one.

    Returns:
      The path of ``report.html``.

    Raises:
      FileNotFoundError: If there is no study in the folder.
      ValueError: If no run is finished, or a record is damaged.
    """
    study = read_study(Path(workdir), legacy_lines)
    cells, tasks = choose_cells(study.runs), study.runs["task"].unique()
    output = Path(output or Path(workdir) / "report")
    for name in ("tables", "figures"):
        (output / name).mkdir(parents=True, exist_ok=True)
    made = {
        table.name: table for table in _tables(study, cells) if not table.shown.empty
    }
    for table in made.values():
        table.write(output / "tables")
    figures: dict[str, list[dict[str, str]]] = {}
    for picture in draw_figures(study, cells):
        shown = _shown(picture, output / "figures")
        figures.setdefault(task_label(picture.task), []).append(shown)
    sections = []
    for section in _sections(study, Path(workdir)):
        for table in section.tables:
            table.write(output / "tables")
        pictures = [_shown(item, output / "figures") for item in section.pictures]
        sections.append({"section": section, "pictures": pictures})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        title=f"Fine-tuning {study.model}: {', '.join(map(task_label, tasks))}",
        facts=_facts(study) | _cuts(Path(workdir)),
        tables=made,
        figures=figures,
        sections=sections,
        most_cells=MOST_CELLS,
        most_panels=MOST_PANELS,
        legacy_lines=_legacy(study) if legacy_lines else None,
        open_groups=_groups(cells[cells["open"]]),
        planned_groups=_groups(cells[cells["planned"]]),
        paper_max_norm=PAPER_MAX_NORM,
        has_choice=len(cells) > len(cells[["task", "method"]].drop_duplicates()),
    )
    path = output / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _tables(study, cells):
    yield tables.task_table(study)
    yield tables.protocol_table(study)
    if study.runs["has_holdout"].any():
        yield tables.selection_table(cells)
    yield results.score_table(study, cells)
    yield comparisons.method_tests(study, cells)
    yield results.threshold_table(study, cells)
    yield comparisons.threshold_tests(study, cells)
    yield tables.clip_table(study)
    yield tables.failure_table(study)


def _groups(cells):
    groups = cells.groupby(["task", "method"], sort=False)
    return [
        f"{task_label(task)}, {method_label(method)}" for task, method in groups.groups
    ]


def _sections(study, workdir):
    measured = None
    if (workdir / "components.jsonl").exists():
        measured = read_components(workdir, set(study.runs["run"]))
    made = [
        racing_section(study, measured) if measured else None,
        unfreezing_section(study, measured),
    ]
    return [section for section in made if section]


def _shown(picture, folder):
    _, path = picture.write(folder)
    svg = base64.b64encode(path.read_bytes()).decode()
    return {
        "name": picture.name,
        "caption": picture.caption,
        "source": f"data:image/svg+xml;base64,{svg}",
    }


def _facts(study: Study) -> dict[str, str]:
    runs, config = study.runs, study.config
    failed, collapsed = runs["failed"].sum(), runs["collapsed"].sum()
    diverged, begun = runs["diverged_at_step"].notna().sum(), study.unfinished
    left_out = f"; {begun} more have begun and are left out of all that follows"
    file, longest, holdout = map(config.get, ("train_file", "max_length", "holdout"))
    facts = {
        "Model": study.model,
        "Runs": f"{len(runs)} finished, of which {failed} failed, {collapsed} collapsed"
        f" and {diverged} diverged{left_out if begun else ''}",
        "Training file": file and Path(file).name,
        "Longest text": longest and f"{longest} tokens",
        "Training examples": config.get("train_examples") or "all",
        "Holdout": f"{100 * holdout:g} % of the training set" if holdout else "none",
        "Dropout": config.get("dropout"),
        "Precision": config.get("dtype"),
        "Devices": "; ".join(_distinct(runs["device"])),
        "Runs in one program": ", ".join(_distinct(runs["runs_per_program"])),
        "Time": f"{runs['seconds'].sum() / 3600:.2g} hours, all finished runs together",
        "Versions": "; ".join(_distinct(runs["versions"].map(_versions))),
    }
    return {name: str(fact) for name, fact in facts.items() if fact not in (None, "")}


def _cuts(workdir: Path) -> dict[str, str]:
    """What a reproduction leaves out of the paper's protocol to keep to its budget."""
    path = workdir / "reproduction.json"
    if not path.is_file():
        return {}
    known = json.loads(path.read_bytes())
    if not known["cut"]:
        return {"Protocol": "the paper's, whole"}
    budget = f"Cut to {known['budget_minutes']:g} minutes"
    return {budget: "; ".join(known["cut"])}


def _distinct(values: pd.Series) -> list[str]:
    texts = (f"{x:g}" if isinstance(x, float) else str(x) for x in values.dropna())
    return list(dict.fromkeys(texts))


def _versions(versions):
    if not isinstance(versions, dict):
        return None
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _legacy(study):
    keys = study.runs[["task", "metric"]].drop_duplicates().itertuples(index=False)
    return [task_label(task) for task, metric in keys if (task, metric) in LEGACY_LINES]
