"""Files of JSON lines that tell whether they were changed."""

import json
import subprocess
import sys
import zlib

import pytest

from cwgnc_train.config import UserError
from cwgnc_train.records import RecordFile


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
            # At once, and as JSON that any tool reads.
            assert lines_of(path)[-1].items() >= record.items()
    with RecordFile(path) as file:
        assert file.lines == records


def test_a_line_that_was_changed_is_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordFile(path) as file:
        for run in "ab":
            file.append({"kind": "run", "run": run, "scores": {"f1": 0.512}})
    written = path.read_bytes()
    first, second, _ = written.split(b"\n")
    changed = second.replace(b"0.512", b"0.712")
    assert json.loads(changed)["scores"] == {"f1": 0.712}
    path.write_bytes(b"\n".join([first, changed, b""]))
    with pytest.raises(UserError, match=r"line 2: has changed since .* remove all li"):
        RecordFile(path)
    assert path.read_bytes() == b"\n".join([first, changed, b""])
    # One whose line was removed is only missing.
    path.write_bytes(first + b"\n")
    with RecordFile(path) as file:
        assert [line["run"] for line in file.lines] == ["a"]


def test_the_checksum_is_the_crc32_of_the_line_without_it(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordFile(path) as file:
        file.append({"kind": "run", "loss": 0.1, "crc32": "deadbeef"})
    line = path.read_bytes().rstrip(b"\n")
    record, _, checksum = line.rpartition(b', "crc32": ')
    assert json.loads(checksum[:-1]) == f"{zlib.crc32(record + b'}'):08x}"
    with RecordFile(path) as file:
        assert file.lines == [{"kind": "run", "loss": 0.1, "crc32": "deadbeef"}]


def test_every_flipped_bit_of_a_line_is_noticed(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordFile(path) as file:
        file.append({"kind": "metrics", "run": "a", "step": 3, "loss": 0.25})
    written, accepted = path.read_bytes(), []
    for bit in range(8 * (len(written) - 1)):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            with RecordFile(path):
                accepted.append(bytes(flipped))
        except UserError:
            pass
    # Where the name of the checksum itself was hit, the line is one without.
    assert all(b'"crc32": "' not in line for line in accepted)
    assert all(line.startswith(written.split(b', "crc')[0]) for line in accepted)


def test_a_torn_last_line_is_removed(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"kind": "run", "run": "a"}\n{"kind": "metrics", "ru')
    with RecordFile(path) as file:
        assert len(file.lines) == 1
        file.append({"kind": "run", "run": "b"})
    assert [line["run"] for line in lines_of(path)] == ["a", "b"]


def test_a_file_that_is_only_looked_at_is_left_as_it_was(tmp_path):
    torn, path = b'{"run": "a"}\n{"ru', tmp_path / "records.jsonl"
    with RecordFile(path):
        pass
    assert not path.exists()
    path.write_bytes(torn)
    with RecordFile(path) as file:
        assert file.lines == [{"run": "a"}] and file.problem(file.mark()) is None
    assert path.read_bytes() == torn
    with RecordFile(path) as file:
        file.drop(lambda line: False)
        assert path.read_bytes() == b'{"run": "a"}\n'
        file.drop(lambda line: True)
        file.append({"run": "b"})
    assert [line["run"] for line in lines_of(path)] == ["b"]


def test_dropped_lines_go_and_the_others_keep_their_bytes(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordFile(path) as file:
        for step in range(1, 5):
            file.append({"kind": "metrics", "run": "ab"[step % 2], "step": step})
        before = path.read_bytes().splitlines(keepends=True)
        file.drop(lambda line: line["run"] == "a" and line["step"] > 2)
        assert path.read_bytes() == b"".join(before[:3])
        # It is still the file of this process, and goes on at its end.
        with pytest.raises(UserError, match="another process is writing"):
            RecordFile(path)
        file.append({"kind": "run", "run": "a"})
        mark = file.mark()
    assert [line.get("step") for line in lines_of(path)] == [1, 2, 3, None]
    with RecordFile(path) as file:
        assert file.problem(mark) is None


def test_a_mark_tells_whether_the_lines_before_it_are_still_there(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordFile(path) as file:
        file.append({"step": 1})
        mark = file.mark()
        file.append({"step": 2})
        assert file.problem(mark) is None
        file.drop(lambda line: line["step"] == 2)
        assert file.problem(mark) is None
        file.drop(lambda line: line["step"] == 1)
        assert file.problem(mark) == f"{path} has changed or lacks records"


def test_a_process_that_does_not_write_only_reads(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordFile(path, written=False) as file:
        file.append({"step": 1})
        assert file.lines == [] and not path.exists()
    with RecordFile(path) as file:
        file.append({"step": 1})
        before = path.read_bytes()
        with RecordFile(path, written=False) as other:
            assert other.lines == [{"step": 1}]
            other.append({"step": 2})
            other.drop(lambda line: True)
        assert path.read_bytes() == before


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
    with pytest.raises(UserError, match="records.jsonl, line 2: expected a JSON obj"):
        RecordFile(path)
    assert path.read_bytes() == before


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "records.jsonl"
    code = (
        "import sys, pathlib\n"
        "from cwgnc_train.config import UserError\n"
        "from cwgnc_train.records import RecordFile\n"
        "try:\n  RecordFile(pathlib.Path(sys.argv[1]))\n"
        "except UserError as error:\n  print(error)\n"
    )
    with RecordFile(path):
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True
        )
    assert "another process is writing" in done.stdout
