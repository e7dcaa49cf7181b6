"""What a report makes of records with odd names and numbers."""

import base64
import html
from xml.etree import ElementTree

import pytest

from cwgnc_train.analysis import write_report
from cwgnc_train.config import UserError
from tests.train.analysis.conftest import Page, run_record, table, write_study

HOSTILE = """<script>alert('x')</script>&"$\\frac{$ ../../up"""


def test_names_with_html_and_formulas_are_shown_as_they_are(tmp_path):
    folder = tmp_path / "study"
    records = [
        run_record(f"rte/cwgnc/lr=2e-05/max_norm={norm}/seed={i}", 0.7 + i / 100)
        | {"task": f"task{HOSTILE}", "method": method}
        | {"device": f"device{HOSTILE}", "versions": {f"v{HOSTILE}": HOSTILE}}
        for method in ("cwgnc", f"method{HOSTILE}")
        for norm in ("0.05", "1")
        for i in range(4)
    ]
    for i, record in enumerate(records):
        record["run"] = f"run{i}"
    steps = [
        {"kind": "metrics", "run": f"run{i}", "step": step, "loss": 0.1}
        | {"clip_rate_components": 0.5, "clip_rate_elements": 0.5}
        for i in range(len(records))
        for step in (1, 2)
    ]
    model = f"models/bert{HOSTILE.replace('/', '')}"
    write_study(folder, records + steps, model=model, train_file=f"{HOSTILE}.csv")
    report = write_report(folder)
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and not {"script", "iframe"} & set(page.tags)
    shown = html.unescape(text)
    for what in ("task", "method", "device", "v"):
        assert f"{what}{HOSTILE}" in shown
    assert len(page.links) > 3
    for link in page.links:
        picture = ElementTree.fromstring(base64.b64decode(link.partition(",")[2]))
        names = {element.tag.rpartition("}")[2] for element in picture.iter()}
        assert "path" in names and not {"script", "a", "foreignObject"} & names
    # All files are in the folder of the report, whatever their names are made of.
    assert [path.name for path in tmp_path.iterdir()] == ["study"]
    assert {path.name for path in folder.iterdir()} == {
        *("study.json", "records.jsonl", "report")
    }
    for path in (report.parent / "tables").glob("*.md"):
        assert "<script" not in path.read_text()


@pytest.mark.parametrize("name", ["task", "method", "metric", "run"])
@pytest.mark.parametrize("value", ["a\x1b[2Jb", "a\nb", "\ud800", 7, ["x"]], ids=repr)
def test_names_that_are_no_line_of_text_are_refused(tmp_path, name, value):
    record = run_record("rte/cwgnc/lr=2e-05/max_norm=1/seed=1", 0.7)
    write_study(tmp_path, [record | {name: value}])
    with pytest.raises(UserError, match=f"line 1: .*{name} must be a line of text"):
        write_report(tmp_path)


def test_scores_that_are_no_numbers_are_drawn_and_counted(tmp_path):
    records = [
        run_record(f"rte/cwgnc/lr=2e-05/max_norm={norm}/seed={i}", "nan")
        | {"diverged_at_step": 7}
        for norm in ("1", "inf")
        for i in range(3)
    ]
    report = write_report(write_study(tmp_path, records))
    rows = table(report, "table2")
    assert list(rows["failed"]) == list(rows["not_a_number"]) == [3, 3]
    assert all(rows["mean"].isna())
