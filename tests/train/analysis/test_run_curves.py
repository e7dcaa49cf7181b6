import numpy as np
import pytest
from matplotlib.figure import Figure

from cwgnc_train.analysis import draw_curves
from cwgnc_train.config import UserError
from tests.train.analysis.conftest import run_record, write_study

RUN = "rte/finetune/lr=2e-05/max_norm=0.05/seed="


def finetuning(seeds=1, lines=60, failed=(), saved=1, **changes):
    """Makes the records of a fine-tuning with some seeds."""
    rng = np.random.default_rng(0)
    records = []
    for seed in range(1, seeds + 1):
        score = 0.5 if seed in failed else 0.6
        for step in range(10, 10 * lines + 1, 10):
            line = {"kind": "metrics", "run": f"{RUN}{seed}", "step": step}
            rates = {"clip_rate_components": 0.25, "clip_rate_elements": 0.5}
            records.append(line | rates | {"loss": 0.5 + 0.1 * rng.random()})
            if step % (5 * lines) == 0:
                kind = {"kind": "evaluation", "split": "validation"}
                scores = {"scores": {"accuracy": score}, "collapsed": False}
                records.append(line | kind | scores)
        run = run_record(f"{RUN}{seed}", score, steps=10 * lines)
        records.append(run | {"model_saved": seed == saved} | changes)
    return records


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def savefig(figure, *arguments, **settings):
        figures.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_a_single_run_has_its_loss_and_clip_rates(tmp_path, drawn):
    path = draw_curves(write_study(tmp_path, finetuning()))
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    loss, clipped = drawn[0].axes
    # The numbers themselves, and moving averages over two lines.
    assert [len(line.get_xdata()) for line in loss.lines] == [60, 59]
    assert [line.get_ydata()[-1] for line in clipped.lines] == [25, 25, 50, 50]
    title = drawn[0].get_suptitle()
    assert title.startswith("RTE, bert-tiny, threshold 0.05, seed 1\n")
    assert "Strong lines are averages over 20 steps" in title


def test_several_runs_have_a_line_each_in_every_panel(tmp_path, drawn):
    records = finetuning(seeds=4, failed=(2,), saved=3)
    draw_curves(write_study(tmp_path, records))
    (figure,) = drawn
    labels = [axes.get_ylabel().replace("\n", " ") for axes in figure.axes]
    assert labels == [
        "training loss",
        "components clipped [%]",
        "elements clipped [%]",
        "accuracy × 100",
    ]
    for axes in figure.axes:
        lines = axes.lines[:4]
        assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "-"]
        widths = [line.get_linewidth() for line in lines]
        assert widths[2] == max(widths) > widths[0] == widths[1] == widths[3]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        "3 successful runs",
        "1 failed run",
        "seed 3, whose model was saved",
        "failure line",
    ]
    assert figure.get_suptitle().startswith("RTE, bert-tiny, threshold 0.05, 4 runs")


def test_runs_without_a_clip_have_no_panels_of_clip_rates(tmp_path, drawn):
    records = finetuning(seeds=2, max_norm="inf")
    draw_curves(write_study(tmp_path, records))
    assert len(drawn[0].axes) == 2
    assert "no clip" in drawn[0].get_suptitle()


def test_a_single_evaluation_is_not_drawn(tmp_path, drawn):
    records = [
        record
        for record in finetuning(seeds=2)
        if record["kind"] != "evaluation" or record["step"] == 600
    ]
    draw_curves(write_study(tmp_path, records))
    assert len(drawn[0].axes) == 3


@pytest.mark.parametrize("seeds", [1, 2])
def test_learned_thresholds_and_own_files_are_named(tmp_path, drawn, seeds):
    records = finetuning(seeds, lines=2, clip="adagc", task="own")
    file = "/home/me/$re{views$.csv"
    draw_curves(write_study(tmp_path, records, train_file=file))
    which = "seed 1" if seeds == 1 else "2 runs"
    title = f"$re{{views$.csv, bert-tiny, threshold learned, {which}"
    assert drawn[0].get_suptitle() == title


@pytest.mark.parametrize("seeds", [1, 3])
def test_losses_that_are_not_finite_are_gaps(tmp_path, seeds):
    records = finetuning(seeds)
    for record in records:
        if record["kind"] == "metrics" and record["step"] > 300:
            record["loss"] = "nan" if record["step"] < 400 else "inf"
    draw_curves(write_study(tmp_path, records))
    for record in records:
        record["loss"] = "nan"
    draw_curves(write_study(tmp_path, records))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_same_records_give_the_same_picture(tmp_path, seeds):
    first = draw_curves(write_study(tmp_path / "a", finetuning(seeds)))
    second = draw_curves(write_study(tmp_path / "b", finetuning(seeds)))
    assert first.read_bytes() == second.read_bytes()


def test_runs_without_metrics_have_an_empty_picture(tmp_path):
    assert draw_curves(write_study(tmp_path, [run_record(f"{RUN}1", 0.6)])).exists()


def test_without_a_finished_run_there_is_no_picture(tmp_path):
    records = [record for record in finetuning() if record["kind"] != "run"]
    with pytest.raises(UserError, match="has finished yet"):
        draw_curves(write_study(tmp_path, records))
    assert not (tmp_path / "curves.png").exists()
