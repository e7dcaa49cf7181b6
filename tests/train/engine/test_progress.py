"""What a log file says of a run under way."""

import pytest

from cwgnc_train.engine import progress


@pytest.fixture
def seconds(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_first_line_claims_neither_a_loss_nor_a_rate(seconds, capsys):
    with progress.Progress(1, 0, 0, 40) as shown:
        seconds[0] = 30.0  # Compiling.
        shown.took(10, 10, 40)
    assert capsys.readouterr().err == "step 10/40\n"


def test_the_rate_leaves_out_the_compilation(seconds, capsys):
    with progress.Progress(1, 0, 0, 130) as shown:
        seconds[0] = 300.0
        shown.took(10, 10, 130)
        shown.loss = 0.25
        seconds[0] = 320.0
        shown.took(20, 30, 130)
    assert capsys.readouterr().err.splitlines() == [
        "step 10/130",
        "step 30/130  loss 0.2500  1.00 steps/s  1.7 min left",
    ]


def test_several_runs_are_counted(seconds, capsys):
    with progress.Progress(4, 1, 1, 80) as shown:
        shown.running = 2
        shown.took(20, 10, 40)
        shown.finished(1, 1)
        seconds[0] = 10.0
        shown.took(40, 40, 40)
    assert capsys.readouterr().err.splitlines() == [
        "step 40/40; runs: 2 of 4 done, 2 running, 2 failed  "
        "4.00 run-steps/s  0.1 min left"
    ]
