import json
import subprocess
import sys

import pytest

from train.experiments.record_file import RecordFile


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_kept_and_read_again(tmp_path):
    path = tmp_path / "records.jsonl"
    records = [
        {"kind": "metrics", "run": "a", "step": i, "loss": i / 3} for i in (1, 2)
    ]
    with RecordFile(path) as file:
        for record in records:
            file.append(record)
            assert lines_of(path)[-1] == record  # at once
    with RecordFile(path) as file:
        assert file.lines == records


def test_a_torn_last_line_is_removed(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"kind": "run", "run": "a"}\n{"kind": "metrics", "ru')
    with RecordFile(path) as file:
        assert len(file.lines) == 1
        file.append({"kind": "run", "run": "b"})
    assert [line["run"] for line in lines_of(path)] == ["a", "b"]


def test_a_step_that_is_repeated_is_not_written_twice(tmp_path):
    path = tmp_path / "records.jsonl"
    line = {"kind": "evaluation", "run": "a", "step": 3, "split": "validation"}
    for _ in range(2):
        with RecordFile(path) as file:
            file.append(line | {"scores": {"f1": 0.5}})
            file.append(line | {"split": "holdout"})
    assert len(lines_of(path)) == 2


def test_infinities_are_written_as_words(tmp_path):
    with RecordFile(tmp_path / "r") as file:
        file.append({"kind": "run", "max_norm": float("inf"), "loss": float("nan")})
    text = (tmp_path / "r").read_text()
    assert '"inf"' in text and '"nan"' in text


@pytest.mark.parametrize("damage", ["{broken", "[1, 2]", "\\u0000"])
def test_a_damaged_line_is_named_and_nothing_is_changed(damage, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"kind": "run"}\n' + damage + '\n{"kind": "run"}\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match="records.jsonl, line 2: expected a JSON obj"):
        RecordFile(path)
    assert path.read_bytes() == before


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "records.jsonl"
    code = (
        "import sys, pathlib\n"
        "from train.experiments.record_file import RecordFile\n"
        "try:\n  RecordFile(pathlib.Path(sys.argv[1]))\n"
        "except BlockingIOError as error:\n  print(error)\n"
    )
    with RecordFile(path):
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True
        )
    assert "another process is writing" in done.stdout
