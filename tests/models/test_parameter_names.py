import pytest

from cwgnc_jax.models.encoders import ENCODERS
from cwgnc_jax.models.names import (
    canonical_name,
    describe_differences,
    to_checkpoint,
)
from cwgnc_jax.models.parameters import parameter_shapes


def test_the_two_spellings_map_one_to_one(config):
    paths = parameter_shapes(config)
    names = [to_checkpoint(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert [canonical_name(name, ENCODERS["bert"]) for name in names] == names


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        (
            "encoder.layer.0.output.dense.weight",
            "bert.encoder.layer.0.output.dense.weight",
        ),
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
        ("pooler.dense.bias", "bert.pooler.dense.bias"),
        ("classifier.weight", "classifier.weight"),
        ("qa_outputs.weight", "qa_outputs.weight"),
        ("embeddings.position_ids", None),
        ("bert.embeddings.position_ids", None),
        ("cls.predictions.transform.LayerNorm.gamma", None),
        ("cls.seq_relationship.weight", None),
    ],
)
def test_old_and_bare_names_come_down_to_one(stored, canonical):
    assert canonical_name(stored, ENCODERS["bert"]) == canonical


def test_at_most_five_names_of_each_kind_are_listed():
    expected = {f"e{index}": () for index in range(7)}
    found = {f"f{index}": () for index in range(6)}
    assert describe_differences(expected, found) == (
        "missing e0, e1, e2, e3, e4 and 2 more; "
        "unexpected f0, f1, f2, f3, f4 and 1 more"
    )
    assert describe_differences(expected, expected) == ""
