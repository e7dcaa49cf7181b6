import json
import math

import numpy as np
import pytest

from tests.train.analysis.conftest import (
    component_names,
    components_record,
    write_components,
)
from train.analysis.components import locate, read_components

NAMES = ["bert/encoder/layer/0/attention/self/query/kernel", "classifier/bias"]


def read(tmp_path, *records, runs=("a",)):
    return read_components(write_components(tmp_path, NAMES, records), set(runs))


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
    measured = read_components(write_components(tmp_path, names, [line]), {"a"})
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
    assert len(read_components(tmp_path, {"a"}).courses["a"].steps) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "compon', "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"step": 1}', "the record lacks 'kind'"),
        ('{"kind": "components", "run": "a", "step": 1}', "the record lacks 'rmsd'"),
        (
            json.dumps(components_record("a", 1, [0, 0]) | {"cosine": ["x", 1]}),
            "the record is wrong: .*'x'",
        ),
        (
            json.dumps(components_record("a", 1, [0, 0, 0])),
            "expected 2 numbers of each kind, got 3",
        ),
        (
            json.dumps(components_record("a", 1, [0, 0]) | {"rmsd": [1]}),
            "the record is wrong: ",
        ),
        (
            '{"kind": "names", "components": ["b"]}',
            "the components are not those that were named before",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    write_components(tmp_path, NAMES, [components_record("a", 1, [0, 0])])
    path = tmp_path / "components.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, line, second, ""]))
    with pytest.raises(
        ValueError, match=f"components.jsonl, line 2: .*{message}"
    ) as error:
        read_components(tmp_path, {"a"})
    assert "\n" not in str(error.value)


def test_measurements_without_names_are_refused(tmp_path):
    write_components(tmp_path, [], [components_record("a", 1, [0, 0])])
    with pytest.raises(ValueError, match="no line before it names the components"):
        read_components(tmp_path, {"a"})


def test_a_study_without_statistics_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="no per-component statistics: run it with --statistics-every 20",
    ):
        read_components(tmp_path, {"a"})


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
