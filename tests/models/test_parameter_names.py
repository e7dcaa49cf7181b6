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


@pytest.mark.parametrize(
    ("model_type", "stored", "canonical"),
    [
        ("roberta", "encoder.layer.0.output.dense.bias", "roberta.encoder.layer.0."),
        ("roberta", "pooler.dense.weight", None),
        ("roberta", "roberta.pooler.dense.weight", None),
        ("xlm-roberta", "lm_head.layer_norm.weight", None),
        ("xlm-roberta", "roberta.embeddings.position_ids", None),
        ("electra", "embeddings_project.weight", "electra.embeddings_project."),
        ("electra", "discriminator_predictions.dense.weight", None),
        ("electra", "generator_predictions.LayerNorm.bias", None),
        ("electra", "generator_lm_head.bias", None),
        ("distilbert", "transformer.layer.0.ffn.lin1.bias", "distilbert.transformer."),
        ("distilbert", "vocab_layer_norm.weight", None),
        ("distilbert", "vocab_projector.bias", None),
    ],
)
def test_each_type_knows_its_parts_and_its_pretraining_heads(
    model_type, stored, canonical
):
    name = canonical_name(stored, ENCODERS[model_type])
    if canonical is None:
        assert name is None
    else:
        assert name is not None
        assert name.startswith(canonical) and name.endswith(stored)


def test_at_most_five_names_of_each_kind_are_listed():
    expected = {f"e{index}": () for index in range(7)}
    found = {f"f{index}": () for index in range(6)}
    assert describe_differences(expected, found) == (
        "missing e0, e1, e2, e3, e4 and 2 more; "
        "unexpected f0, f1, f2, f3, f4 and 1 more"
    )
    assert describe_differences(expected, expected) == ""
