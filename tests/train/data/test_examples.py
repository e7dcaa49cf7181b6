import dataclasses
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cwgnc_train.config import DataConfig, UserError
from cwgnc_train.data import load_examples, read_file
from tests.train.conftest import labels_of


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def own(tmp_path, train, validation=None, suffix="csv", **options):
    """The config of own files with these contents."""
    options = {"text_columns": ("text",)} | options
    train_file = write(tmp_path / f"train.{suffix}", train)
    validation_file = write(tmp_path / f"dev.{suffix}", validation or train)
    return DataConfig(train_file=train_file, validation_file=validation_file, **options)


# --- own files

OBJECTS = [
    '{"text": "NA, \\"ok\\" \\nnull", "label": "b"}',
    '{"label": "a", "text": ""}',
]


@pytest.mark.parametrize(
    ("suffix", "contents"),
    [
        ("csv", 'text,label\n"NA, ""ok"" \nnull",b\n,a\n'),
        ("CSV", '\ufefftext,label\r\n"NA, ""ok"" \nnull",b\r\n\r\n,a\r\n'),
        ("tsv", 'text\tlabel\n"NA, ""ok"" \nnull"\tb\n\ta\n'),
        ("jsonl", f"{OBJECTS[0]}\n\n{OBJECTS[1]}\n"),
        ("ndjson", f"{OBJECTS[0]}\r\n{OBJECTS[1]}"),
        ("json", f"{OBJECTS[0]}\n{OBJECTS[1]}"),
        ("json", f" [{OBJECTS[0]},\n{OBJECTS[1]}]"),
    ],
)
def test_texts_come_out_as_they_were_written(tmp_path, suffix, contents):
    path = write(tmp_path / f"data.{suffix}", contents)
    examples = read_file(path, ("text",), "label", ("a", "b"))
    assert examples.texts == (['NA, "ok" \nnull', ""],)
    assert labels_of(examples).tolist() == [1, 0]


def test_parquet_is_read(tmp_path):
    path = tmp_path / "data.parquet"
    table = {"one": ["NA", ""], "two": ["x", "y"], "label": [1.0, 0.0]}
    parquet.write_table(pyarrow.table(table), path)
    examples = read_file(path, ("one", "two"), "label", ("0", "1"))
    assert examples.texts == (["NA", ""], ["x", "y"])
    assert labels_of(examples).tolist() == [1, 0]


def test_labels_need_not_be_read(tmp_path):
    path = write(tmp_path / "data.csv", "text\nhello\n")
    assert read_file(path, ("text",)).labels is None


def test_a_text_may_be_longer_than_the_csv_modules_limit(tmp_path):
    path = write(tmp_path / "data.csv", f"text\n{'x' * 200_000}\n")
    assert len(read_file(path, ("text",)).texts[0][0]) == 200_000


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("good bad", ("bad", "good")),
        ("10 9 2", ("2", "9", "10")),
        ("1 -1", ("-1", "1")),
        ("10 9 b", ("10", "9", "b")),
        ("1 01", ("01", "1")),
    ],
)
def test_the_classes_of_own_data_are_sorted(tmp_path, labels, names):
    rows = "".join(f"t,{label}\n" for label in labels.split())
    task, splits = load_examples(None, own(tmp_path, "text,label\n" + rows))
    assert task.label_names == names
    assert [names[i] for i in labels_of(splits["train"])] == labels.split()
    assert task.metric == "accuracy"


def test_validation_has_the_classes_of_train(tmp_path):
    data = own(tmp_path, "text,label\nt,a\nt,b\nt,c\n", "text,label\nt,c\n")
    _, splits = load_examples(None, data)
    assert labels_of(splits["validation"]).tolist() == [2]


def test_own_labels_may_be_numbers(tmp_path):
    data = own(tmp_path, "text,y\nt,1e-1\nt,-3\n", label_column="y", regression=True)
    task, splits = load_examples(None, data)
    assert task.label_names is None
    assert labels_of(splits["train"]).dtype == np.float32
    assert labels_of(splits["train"]).tolist() == pytest.approx([0.1, -3])


GOOD = "text,label\nt,a\nt,b\n"


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("csv", "text,label\nt,a\nt,\n", "line 3, column 'label': expected a label"),
        ("csv", "txet,label\nt,a\n", "no column 'text', did you mean 'txet'. it has"),
        ("csv", "label,b,c,d,e,f,g\n1,2,3,4,5,6,7\n", "'e' and 2 more"),
        ("csv", "text,label,text\nt,a,t\n", "has 2 columns named 'text'"),
        ("csv", "text,label\n", r"train\.csv has no examples, only column names"),
        ("csv", " \n", r"train\.csv is empty"),
        ("csv", 'text,label\n"a\nb",a\nt,a,b\n', "line 4: expected 2 columns .*got 3"),
        ("csv", "text,label\nt,a\nt\n", "line 3: expected 2 columns .*got 1"),
        ("csv", 'text,label\nt,a\n"t,b\nt,b\n', "line 3: unexpected end of data"),
        ("tsv", 'text\tlabel\n"a" b\ta\n', "line 2: .* expected .*its own doubled"),
        ("csv", b"text,label\nt\xe9,a\n", r"byte 12 \(0xe9\) is not UTF-8; convert"),
        ("csv", b"text,label\nt\0,a\n", "byte 12 is NUL"),
        ("jsonl", '{"text": "t", "label": "a"}\n{"text": }\n', "line 2: not JSON, E"),
        ("jsonl", '{"text": "t", "label": "a"}\n["t"]\n', "line 2: expected an obj"),
        ("jsonl", '{"text": null, "label": 0}\n', "line 1.*text, got nothing"),
        ("jsonl", '{"text": 7, "label": 0}\n', "column 'text': expected a text, got 7"),
        ("jsonl", '{"text": "t"}\n', "has no column 'label'; it has 'text'"),
        ("jsonl", '{"text": "t", "text": "u"}\n', "line 1: an object has 'text'"),
        ("jsonl", '{"text": "t", "label": [1]}\n', r"expected a label, got \[1\]"),
        ("jsonl", '{"text": "t", "label": NaN}\n', "expected a label, got nan"),
        ("json", '[{"text": "t", "label": 0}, 3]', "row 2: expected an object"),
        ("json", "[]", "has no examples"),
        ("json", "[{]", r"train\.json: not JSON"),
        ("parquet", "text,label\n", "is not a parquet file: Parquet m"),
        ("parquet", "", r"train\.parquet is empty"),
        ("txt", "t\n", r"unknown suffix '\.txt', expected one of \.csv \.tsv \.json"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_an_own_file_is_located(tmp_path, suffix, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_examples(None, own(tmp_path, text, GOOD, suffix))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("jsonl", '{"text": "t", "label": ' + 10**5 * "[", "brackets are nested too"),
        ("jsonl", '{"text": "t", "label": ' + 5000 * "9" + "}", "Exceeds the limit"),
        ("jsonl", '{"text": "\\ud800", "label": "a"}', "half a surrogate pair"),
        ("csv", "text,label\nt,a\x1b[2J\n", "got 'a.x1b.2J'; labels are lines of"),
        (
            "csv",
            f"text,label\nt,{1001 * 'a'}\n",
            "labels are lines of at most 1000 cha",
        ),
        ("csv", f"text,label\n{1_000_001 * 'a'},a\n", "1,000,000 cha.* 1,000,001;"),
    ],
    ids=["deep", "digits", "surrogate", "control", "long label", "long text"],
)
def test_absurd_values_in_an_own_file_are_located(tmp_path, suffix, text, message):
    with pytest.raises(UserError, match=f"train.{suffix}, line [12].*{message}") as e:
        load_examples(None, own(tmp_path, text, GOOD, suffix))
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


def test_nulls_in_parquet_are_located(tmp_path):
    path = tmp_path / "data.parquet"
    table = pyarrow.table({"text": ["t", None], "label": [None, 1]})
    parquet.write_table(table, path)
    with pytest.raises(UserError, match="row 2, column 'text': expected a text, got n"):
        read_file(path, ("text",))
    with pytest.raises(UserError, match="row 1, column 'label': expected a label"):
        read_file(path, (), "label", ("1",))


def test_labels_of_which_nearly_each_is_another_are_no_classes(tmp_path):
    rows = "".join(f"t,name {i}\n" for i in range(1001))
    with pytest.raises(UserError, match="1001 different labels in 1001 .*--regression"):
        load_examples(None, own(tmp_path, "text,label\n" + rows))


def test_parquet_that_unpacks_to_absurdly_much_is_refused(tmp_path):
    path = tmp_path / "data.parquet"
    zeros = np.zeros(2_000_000, np.int8)
    column = pyarrow.DictionaryArray.from_arrays(zeros, ["a"])
    parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(UserError, match="claims to hold 2000000 rows of"):
        read_file(path, ("text",))


def test_parquet_with_texts_that_are_no_utf_8_is_refused(tmp_path):
    path = tmp_path / "data.parquet"
    offsets = pyarrow.py_buffer(np.array([0, 1], np.int32))
    texts = pyarrow.StringArray.from_buffers(1, offsets, pyarrow.py_buffer(b"\xff"))
    parquet.write_table(pyarrow.table({"text": texts}), path)
    with pytest.raises(UserError, match="is not a parquet file: .*UTF"):
        read_file(path, ("text",))


def test_one_class_is_not_enough_to_train_on(tmp_path):
    data = own(tmp_path, "text,label\nt,a\nu,a\n")
    with pytest.raises(UserError, match=r"csv: .*two classes .*all 2 labels are 'a'"):
        load_examples(None, data)


def test_a_label_that_train_lacks_is_refused(tmp_path):
    data = own(tmp_path, GOOD, "text,label\nt,a\nt,z\n")
    message = r"dev\.csv, line 3, .*unknown label 'z', expected one of 'a', 'b'$"
    with pytest.raises(UserError, match=message):
        load_examples(None, data)


@pytest.mark.parametrize("value", ["high", "nan", "inf", "1e39", "", "true"])
def test_labels_that_are_no_finite_numbers_are_refused(tmp_path, value):
    data = own(tmp_path, f"text,label\nt,1\nt,{value}\n", regression=True)
    with pytest.raises(UserError, match="line 3, column 'label': expected a finite"):
        load_examples(None, data)


def test_a_boolean_is_no_number(tmp_path):
    path = write(tmp_path / "data.jsonl", json.dumps({"text": "t", "label": True}))
    with pytest.raises(UserError, match="expected a finite number as label, got True"):
        read_file(path, ("text",), "label")


def test_a_folder_or_nothing_in_place_of_a_file_is_reported(tmp_path):
    (tmp_path / "data.csv").mkdir()
    with pytest.raises(UserError, match=r"data\.csv is a folder; expected a f"):
        read_file(tmp_path / "data.csv", ("text",))
    with pytest.raises(UserError, match=r"no file .*no\.parquet; .*'data\.csv'"):
        read_file(tmp_path / "no.parquet", ("text",))


# --- the holdout


def numbered(count):
    return "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(count))


def test_the_holdout_and_the_rest_are_train(tmp_path):
    data = own(tmp_path, numbered(20), holdout=0.25)
    _, splits = load_examples(None, data)
    kept, rest = splits["holdout"], splits["train"]
    assert len(kept) == len(labels_of(kept)) == 5
    assert sorted(kept.texts[0] + rest.texts[0]) == sorted(f"t{i}" for i in range(20))
    for part in (kept, rest):
        assert labels_of(part).tolist() == [int(t[1:]) % 2 for t in part.texts[0]]
    assert len(splits["validation"]) == 20


def test_with_a_holdout_no_validation_file_is_needed(tmp_path):
    data = own(tmp_path, numbered(20), holdout=0.25)
    _, splits = load_examples(None, dataclasses.replace(data, validation_file=None))
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 15,
        "holdout": 5,
    }


def test_the_holdout_is_the_same_for_ever(tmp_path):
    _, splits = load_examples(None, own(tmp_path, numbered(20), holdout=0.25))
    assert splits["holdout"].texts[0] == ["t6", "t8", "t9", "t10", "t18"]


@pytest.mark.parametrize(("part", "counts"), [(0.01, "0 .*20"), (0.99, "20 .*0")])
def test_a_holdout_that_leaves_a_part_empty_is_refused(tmp_path, part, counts):
    data = own(tmp_path, numbered(20), holdout=part)
    with pytest.raises(UserError, match=f"--holdout {part} of 20 .*keeps {counts} to"):
        load_examples(None, data)
