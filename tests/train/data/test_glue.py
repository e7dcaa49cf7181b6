import logging
import types

import numpy as np
import pytest

from cwgnc_train.config import DataConfig, UserError
from cwgnc_train.data import GLUE, find_task, load_examples, load_split, majority_line
from tests.train.conftest import labels_of

# Own sentences in the columns of the official files: folder, header, a row of train and
# dev, its texts and its label, and the header of test where that differs.
OFFICIAL = {
    "cola": (
        "CoLA",
        None,
        'x1\t0\t*\tCats the "sleep.',
        (['Cats the "sleep.'],),
        0,
    ),
    "sst2": ("SST-2", "sentence\tlabel", "a fine film \t1", (["a fine film "],), 1),
    "mrpc": (
        "MRPC",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t11\t12\tIt " rained .\tRain fell .',
        (['It " rained .'], ["Rain fell ."]),
        1,
    ),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1"
        "\tsentence2\tscore",
        "0\tg\tf\t2012\t1\tnone\tnone\tA cat.\tThe cat.\t3.800",
        (["A cat."], ["The cat."]),
        3.8,
    ),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "5\t1\t2\tWhy?\tHow?\t0",
        (["Why?"], ["How?"]),
        0,
    ),
    "mnli": (
        "MNLI",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse"
        "\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1"
        "\tsentence2\tlabel1\tgold_label",
        "0\t1\t1n\tg\tb\tb\tp\tp\tIt rains.\tIt is dry.\tneutral\tcontradiction",
        (["It rains."], ["It is dry."]),
        2,
    ),
    "qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel",
        "0\tWho?\tHe came.\tentailment",
        (["Who?"], ["He came."]),
        0,
    ),
    "rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel",
        "0\tIt rains.\tIt is wet.\tnot_entailment",
        (["It rains."], ["It is wet."]),
        1,
    ),
    "wnli": (
        "WNLI",
        "index\tsentence1\tsentence2\tlabel",
        "0\tHe saw it.\tHe saw rain.\t1",
        (["He saw it."], ["He saw rain."]),
        1,
    ),
}
RTE = OFFICIAL["rte"][1]
ROWS = (
    "0\tIt rains.\tIt is wet.\tentailment\n1\tIt snows.\tIt is hot.\tnot_entailment\n"
)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- the official files


@pytest.mark.parametrize("name", GLUE)
@pytest.mark.parametrize("lower", [False, True])
def test_the_official_files_of_a_task_are_read(tmp_path, name, lower):
    folder, header, row, texts, label = OFFICIAL[name]
    lines = [header, row] if header else [row]
    split, stem = "validation", "dev"
    if name == "mnli":
        split, stem = "validation_mismatched", "dev_mismatched"
    path = tmp_path / (name if lower else folder) / f"{stem}.tsv"
    write(path, "\n".join(lines) + "\n")
    examples = load_split(find_task(name), tmp_path, split)
    assert examples.texts == texts
    assert labels_of(examples).tolist() == pytest.approx([label])
    assert labels_of(examples).dtype == (np.float32 if name == "stsb" else np.int32)


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("cola", "index\tsentence", "0\tCats sleep."),
        ("mrpc", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tOne.\tTwo."),
        ("rte", "index\tsentence1\tsentence2", "0\tOne.\tTwo."),
    ],
)
def test_test_splits_have_texts_and_no_labels(tmp_path, name, header, row):
    write(tmp_path / name / "test.tsv", f"{header}\n{row}\n")
    examples = load_split(find_task(name), tmp_path, "test")
    assert examples.labels is None
    assert [texts[0] for texts in examples.texts] == row.split("\t")[
        -len(examples.texts) :
    ]


def test_mnli_has_two_validation_sets(tmp_path):
    _, header, row, *_ = OFFICIAL["mnli"]
    rows = f"{header}\n{row}\n{row.replace('contradiction', 'neutral')}\n"
    for stem in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path / "MNLI" / f"{stem}.tsv", rows)
    _, splits = load_examples("mnli", DataConfig(data_dir=tmp_path))
    assert list(splits) == ["train", "validation_matched", "validation_mismatched"]
    with pytest.raises(UserError, match="no split 'validation'; it has train valid"):
        load_split(find_task("mnli"), tmp_path, "validation")


def test_the_folder_of_the_task_itself_will_do(tmp_path):
    for stem in ("train", "dev"):
        write(tmp_path / f"{stem}.tsv", f"{RTE}\n{ROWS}")
    task, splits = load_examples("rte", DataConfig(data_dir=tmp_path))
    assert task is find_task("rte")
    assert list(splits) == ["train", "validation"]
    assert labels_of(splits["train"]).tolist() == [0, 1]


def test_only_line_feeds_end_an_official_line(tmp_path):
    row = "0\tIt\u0085 ra\x0bins.\tIt\u2028 is \x1cwet.\tentailment\r\n"
    write(tmp_path / "RTE/train.tsv", f"{RTE}\r\n{row}")
    examples = load_split(find_task("rte"), tmp_path, "train")
    assert examples.texts == (["It\u0085 ra\x0bins."], ["It\u2028 is \x1cwet."])


def test_broken_rows_of_qqp_are_dropped_and_counted(tmp_path, caplog):
    header = OFFICIAL["qqp"][1]
    rows = "1\t1\t2\tWhy\n so?\tHow?\t1\n2\t3\t4\tWho?\tWhat?\t0\n"
    write(tmp_path / "QQP/train.tsv", f"{header}\n{rows}")
    with caplog.at_level(logging.WARNING):
        examples = load_split(find_task("qqp"), tmp_path, "train")
    assert examples.texts == (["Who?"], ["What?"])
    assert "train.tsv: dropped 2 of 3 rows" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{RTE}\n{ROWS}2\tIt rains.\n",
            r"train\.tsv, line 4: expected 4 columns .* 2",
        ),
        (
            f"{RTE}\n0\ta\tb\t\n",
            "line 2, column 'label': expected a label, got nothing",
        ),
        (
            f"{RTE}\n0\ta\tb\t1\n",
            "line 2, .*unknown label '1', expected .*'entailment'",
        ),
        (f"{RTE}\n", r"train\.tsv has no examples, only column names"),
        ("", r"train\.tsv is empty"),
        ("\n\n", r"train\.tsv is empty"),
        (ROWS, r"train\.tsv has no column 'sentence1'; it has '0', 'It rains\.'"),
        (RTE.encode() + b"\n0\ta\xff", r"train\.tsv: byte 35 \(0xff\) is not UTF-8"),
        (RTE.encode() + b"\n0\ta\0", r"train\.tsv: byte 35 is NUL"),
        (
            f"{RTE}\tlabel\n0\ta\tb\tc\td\n",
            "has 2 columns named 'label'; rename all but one",
        ),
    ],
)
def test_what_is_wrong_in_an_official_file_is_located(tmp_path, text, message):
    write(tmp_path / "RTE/train.tsv", text)
    with pytest.raises(UserError, match=message) as caught:
        load_split(find_task("rte"), tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_reported_with_what_is_there(tmp_path):
    for name in "ABCDEFG":
        (tmp_path / name).mkdir()
    expected = "no folder RTE or rte .*has 'A', 'B', 'C', 'D', 'E' and 2 more"
    with pytest.raises(UserError, match=expected):
        load_split(find_task("rte"), tmp_path, "train")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_split(find_task("rte"), tmp_path / "nowhere", "train")


def test_a_missing_file_is_reported_with_what_is_there(tmp_path):
    write(tmp_path / "RTE/train.tsv", RTE)
    with pytest.raises(UserError, match=r"no file .*dev\.tsv; .*'train\.tsv'"):
        load_split(find_task("rte"), tmp_path, "validation")


# --- the hub


@pytest.fixture
def hub(monkeypatch):
    """Puts a data set, or an error, in the place of the hub's GLUE."""
    import datasets

    def put(splits, names=None):
        label = datasets.ClassLabel(names=names) if names else datasets.Value("float32")
        texts = {c: datasets.Value("string") for c in next(iter(splits.values()))}
        features = datasets.Features(texts | {"label": label})
        answer = datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(columns, features)
                for split, columns in splits.items()
            }
        )
        monkeypatch.setattr(
            datasets, "load_dataset", lambda path, name, revision: answer
        )

    return put


def test_the_hubs_columns_are_mapped(hub):
    columns = {
        "premise": ["It rains.", "It snows."],
        "hypothesis": ["It is wet.", "It is dry."],
    }
    splits = {
        "train": columns | {"label": [0, 2]},
        "validation_matched": columns | {"label": [1, 1]},
        "validation_mismatched": columns | {"label": [2, 1]},
        "test_matched": columns | {"label": [-1, -1]},
    }
    hub(splits, ["entailment", "neutral", "contradiction"])
    task, loaded = load_examples("mnli", DataConfig())
    assert loaded["train"].texts == (columns["premise"], columns["hypothesis"])
    assert labels_of(loaded["train"]).tolist() == [0, 2]
    assert labels_of(loaded["validation_mismatched"]).tolist() == [2, 1]
    assert load_split(task, None, "test_matched").labels is None


def test_the_hubs_scores_are_numbers(hub):
    columns = {"sentence1": ["a"], "sentence2": ["b"], "label": [2.5]}
    hub({"validation": columns})
    labels = labels_of(load_split(find_task("stsb"), None, "validation"))
    assert labels.dtype == np.float32
    assert labels.tolist() == [2.5]


def test_unlabelled_rows_of_the_hub_are_refused(hub):
    columns = {"sentence1": ["a", "b"], "sentence2": ["b", "c"], "label": [0, -1]}
    hub({"train": columns}, ["entailment", "not_entailment"])
    with pytest.raises(UserError, match="rte, train, row 2.*'-1'.* -1 marks an unlab"):
        load_split(find_task("rte"), None, "train")


def test_a_hub_with_another_order_of_classes_is_refused(hub):
    columns = {"sentence1": ["a"], "sentence2": ["b"], "label": [0]}
    hub({"train": columns}, ["not_entailment", "entailment"])
    with pytest.raises(UserError, match="expected the classes 'entailment', 'not_e"):
        load_split(find_task("rte"), None, "train")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("online", [True, False])
def test_the_commit_of_the_hubs_data_is_known(hub, monkeypatch, online):
    import datasets
    import huggingface_hub

    columns = {"sentence1": ["a", "b"], "sentence2": ["b", "c"], "label": [0, 1]}
    hub({"train": columns}, ["entailment", "not_entailment"])
    answer, asked = datasets.load_dataset("", "", revision=None), []
    if not online:
        file = f"hf://datasets/nyu-mll/glue@{COMMIT}/rte/train-00000-of-00001.parquet"
        answer["train"].info.download_checksums = {file: {"num_bytes": 1}}
    api = huggingface_hub.HfApi
    found = types.SimpleNamespace(sha=COMMIT)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: not online)
    monkeypatch.setattr(api, "dataset_info", lambda self, name, timeout: found)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *a, revision: (asked.append(revision), answer)[1],
    )
    assert load_split(find_task("rte"), None, "train").commit == COMMIT
    assert asked == [COMMIT if online else None]


OFFLINE = (
    r"^cannot get task rte from the hub \(.+\); .*--data-dir.*HF_HUB_OFFLINE=1.*"
    r"--train-file$"
)


def test_offline_mode_with_an_empty_cache_names_the_ways_out(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=OFFLINE):
        load_examples("rte", DataConfig())


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    import huggingface_hub

    asked = []

    def dataset_info(self, repo_id, timeout):
        asked.append(repo_id)
        raise RuntimeError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(UserError, match=OFFLINE) as caught:
        load_examples("rte", DataConfig())
    assert "RuntimeError: no route to host)" in str(caught.value)
    assert asked == ["nyu-mll/glue"]


# --- real GLUE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train", "validation", "line"),
    [
        ("rte", 2490, 277, {"accuracy": 0.527}),
        ("mrpc", 3668, 408, {"f1": 0.812, "accuracy": 0.684}),
        ("cola", 8551, 1043, {"matthews_correlation": 0}),
    ],
)
def test_real_glue_has_its_known_sizes_and_lines(
    glue_dir, name, train, validation, line
):
    task, splits = load_examples(name, DataConfig(data_dir=glue_dir))
    assert len(splits["train"]) == train
    assert len(splits["validation"]) == validation
    found = majority_line(task, labels_of(splits["validation"]))
    assert found == pytest.approx(line, abs=5e-4)
