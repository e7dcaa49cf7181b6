import json
import math

import numpy as np
import pytest

from cwgnc_train.analysis.component_courses import locate, read_component_courses
from cwgnc_train.config import UserError
from cwgnc_train.records import checked_line
from tests.train.analysis.conftest import (
    component_names,
    components_record,
    write_components,
)

NAMES = ["bert/encoder/layer/0/attention/self/query/kernel", "classifier/bias"]


def read(tmp_path, *records, runs=("a",)):
    return read_component_courses(write_components(tmp_path, NAMES, records), set(runs))


def test_components_know_their_layer_and_type():
    parts = {part.name: part for part in locate(component_names(24))}
    assert len(parts) == 24 * 16 + 9 == 393
    query = parts["bert/encoder/layer/23/attention/self/query/kernel"]
    assert (query.depth, query.kind) == (24, "attention/self/query/kernel")
    assert query.label == "query kernel"
    words = parts["bert/embeddings/word_embeddings/embedding"]
    assert (words.depth, words.label) == (0, "words")
    assert parts["bert/pooler/dense/bias"].label == "pooler bias"
    assert {parts[name].depth for name in parts if "layer" not in name} == {0, 25}
    assert sum(part.is_key_bias for part in parts.values()) == 24


def test_components_of_modern_bert_know_theirs_as_well():
    names = [
        "head/dense/kernel",
        "model/embeddings/tok_embeddings/embedding",
        "model/final_norm/scale",
        "model/layers/21/attn/Wqkv/kernel",
    ]
    parts = locate(names)
    assert [part.depth for part in parts] == [23, 0, 23, 22]
    assert parts[3].kind == "attn/Wqkv/kernel"
    assert [part.label for part in parts] == [
        "head dense kernel",
        "words",
        "last LayerNorm scale",
        "query, key and value kernel",
    ]


def test_components_are_ordered_from_the_embeddings_to_the_heads(tmp_path):
    names = component_names(2)
    line = components_record("a", 1, [0.0] * len(names))
    measured = read_component_courses(write_components(tmp_path, names, [line]), {"a"})
    labels = [measured.components[i].label for i in measured.places()]
    assert measured.layers == 2
    assert labels[0] == "words"
    assert labels[5:9] == [
        *("query kernel", "key kernel", "value kernel", "attention output kernel")
    ]
    assert labels[-1] == "classifier bias"
    assert len(measured.places(kind="attention/self/query/kernel")) == 2


def test_steps_are_sorted_and_the_last_of_two_counts(tmp_path):
    measured = read(
        tmp_path,
        components_record("a", 21, [1, 1]),
        components_record("a", 1, [0.5, 0.5]),
        components_record("a", 21, [2, math.inf]),
        components_record("unfinished", 1, [9, 9]),
    )
    assert measured.courses.keys() == {"a"}
    course = measured.courses["a"]
    np.testing.assert_array_equal(course.steps, [1, 21])
    np.testing.assert_array_equal(course.rmsd, [[0.5, 0.5], [2, math.inf]])
    assert course.cosine[1, 1] == -math.inf


def test_a_torn_last_line_is_left_out(tmp_path):
    path = write_components(tmp_path, NAMES, [components_record("a", 1, [0, 0])])
    with (path / "components.jsonl").open("a") as file:
        file.write('{"kind": "components", "ru')
    assert len(read_component_courses(tmp_path, {"a"}).courses["a"].steps) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "compon', "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"step": 1}', "the record of kind nothing lacks 'kind'"),
        (
            '{"kind": "components", "run": "a", "step": 1}',
            "the record of kind 'components' lacks 'rmsd'",
        ),
        (
            json.dumps(components_record("a", 1, [0, 0]) | {"cosine": ["x", 1]}),
            "the record of kind 'components' is wrong: .*'x'",
        ),
        (
            json.dumps(components_record("a", 1, [0, 0, 0])),
            "expected 2 numbers of each kind, got 3",
        ),
        (
            json.dumps(components_record("a", 1, [0, 0]) | {"rmsd": [1]}),
            "the record of kind 'components' is wrong: ",
        ),
        (
            '{"kind": "names", "components": ["b"]}',
            "the components differ from those named before",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    write_components(tmp_path, NAMES, [components_record("a", 1, [0, 0])])
    path = tmp_path / "components.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, line, second, ""]))
    with pytest.raises(
        UserError, match=f"components.jsonl, line 2: .*{message}"
    ) as error:
        read_component_courses(tmp_path, {"a"})
    assert "\n" not in str(error.value)


def test_norms_and_the_names_of_larger_components_are_left_out(tmp_path):
    line = components_record("a", 1, [1, 2])
    others = [
        {"kind": "names", "task": "rte", "by": "global", "components": ["all"]},
        {"kind": "norms", "run": "a", "step": 1, "norms": [3], "coefficients": [1]},
        {"kind": "names", "task": "mrpc", "by": "by_parameter", "components": NAMES},
    ]
    measured = read(tmp_path, *others, line)
    assert [part.name for part in measured.components] == NAMES
    np.testing.assert_array_equal(measured.courses["a"].rmsd, [[1, 2]])


def test_a_changed_line_is_named(tmp_path):
    write_components(tmp_path, NAMES, [])
    lines = [components_record("a", step, [0, 0]) for step in (1, 2)]
    with (tmp_path / "components.jsonl").open("ab") as file:
        file.write(b"".join(map(checked_line, lines)))
    assert len(read_component_courses(tmp_path, {"a"}).courses["a"].steps) == 2
    content = (tmp_path / "components.jsonl").read_bytes()
    changed = content.replace(b'"step": 2', b'"step": 3')
    (tmp_path / "components.jsonl").write_bytes(changed)
    with pytest.raises(UserError, match=r"components\.jsonl, line 3: has changed"):
        read_component_courses(tmp_path, {"a"})


def test_measurements_without_names_are_refused(tmp_path):
    write_components(tmp_path, [], [components_record("a", 1, [0, 0])])
    with pytest.raises(UserError, match="no line before it names the components"):
        read_component_courses(tmp_path, {"a"})


def test_a_study_without_statistics_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match="run the command with --statistics-every 20",
    ):
        read_component_courses(tmp_path, {"a"})


def test_components_of_other_encoders_are_known_too():
    parts = locate(
        [
            "distilbert/embeddings/word_embeddings/embedding",
            "distilbert/transformer/layer/0/attention/k_lin/bias",
            "distilbert/transformer/layer/1/output_layer_norm/scale",
            "electra/embeddings_project/kernel",
            "pre_classifier/kernel",
            "classifier/out_proj/bias",
        ]
    )
    assert [(part.depth, part.label) for part in parts] == [
        (0, "words"),
        (1, "key bias"),
        (2, "output LayerNorm scale"),
        (0, "projection kernel"),
        (3, "head dense kernel"),
        (3, "classifier bias"),
    ]
    assert [part.is_key_bias for part in parts] == [False, True, *[False] * 4]
