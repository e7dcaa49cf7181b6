import dataclasses

import pytest
import transformers

from cwgnc_jax import models

BASE = {"model_type": "modernbert", "hidden_size": 24, "num_attention_heads": 3}
# As transformers 4 wrote the config.json of the published ModernBERT-base.
PUBLISHED = {
    "model_type": "modernbert",
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "layer_norm_eps": 1e-5,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
}


def test_both_spellings_of_a_config_say_the_same():
    newer = transformers.ModernBertConfig(**PUBLISHED).to_dict()
    assert "layer_types" in newer and "rope_parameters" in newer
    config = models.ModernBertConfig.from_dict(PUBLISHED, num_labels=2)
    assert config == models.ModernBertConfig.from_dict(newer, num_labels=2)
    assert config == models.ModernBertConfig(classifier_pooling="mean")
    assert config.layer_types is not None
    assert config.layer_types.count("full_attention") == 8


def test_the_bases_of_rotary_positions_are_read_in_both_spellings():
    older = BASE | {"global_rope_theta": 5.0, "local_rope_theta": 6.0}
    newer = BASE | {
        "global_rope_theta": 7.0,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 6.0},
        },
    }
    configs = {
        models.ModernBertConfig.from_dict(source, num_labels=2)
        for source in (older, newer)
    }
    assert len(configs) == 1
    config = configs.pop()
    assert (config.global_rope_theta, config.local_rope_theta) == (5.0, 6.0)


def test_what_transformers_reads_of_a_saved_config_is_the_same():
    config = models.ModernBertConfig.from_dict(
        BASE
        | {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "global_rope_theta": 5.0,
            "local_attention": 10,
            "norm_bias": True,
        },
        num_labels=2,
    )
    theirs = transformers.ModernBertConfig(**config.to_dict())
    assert tuple(theirs.layer_types) == config.layer_types
    assert theirs.rope_parameters is not None
    assert theirs.rope_parameters["full_attention"]["rope_theta"] == 5.0
    assert theirs.rope_parameters["sliding_attention"]["rope_theta"] == 10000.0
    assert theirs.norm_bias and theirs.sliding_window == 5
    source = {"model_type": "modernbert"} | theirs.to_dict()
    assert models.ModernBertConfig.from_dict(source, num_labels=2) == config


def test_every_other_layer_attends_globally_if_the_config_says_so():
    source = BASE | {"num_hidden_layers": 5, "global_attn_every_n_layers": 2}
    types = models.ModernBertConfig.from_dict(source, num_labels=2).layer_types
    assert types is not None
    assert [kind == "full_attention" for kind in types] == [True, False] * 2 + [True]
    fewer = dataclasses.replace(models.ModernBertConfig(), layer_types=None)
    assert fewer == models.ModernBertConfig()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation 'silu' .* expected 'gelu'"),
        ({"classifier_activation": "tanh"}, "classifier_activation 'tanh' is not supp"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling .* expected None"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type 'yarn' of full_attention is not supported: expected 'default'",
        ),
        ({"rope_parameters": [1]}, "rope_parameters must be an object with entries"),
        ({"rope_parameters": {"rope_theta": 5}}, "rope_parameters must be an object"),
        (
            {"rope_parameters": {"sliding_attention": 5}},
            "rope_parameters of sliding_attention must be an object, got 5",
        ),
        ({"global_rope_theta": 0}, "global_rope_theta must be a positive number"),
        ({"local_rope_theta": None}, "local_rope_theta must be a finite number"),
        ({"hidden_size": 25}, "num_attention_heads must divide hidden_size, got 3"),
        ({"hidden_size": 27}, "divide hidden_size into even numbers, got 3 heads and"),
        ({"classifier_pooling": "max"}, "must be one of cls, mean, got 'max'"),
        ({"layer_types": ["full_attention"]}, "for each of the 22 layers, got"),
        ({"layer_types": ["chunked"] * 22}, "layer_types must name full_attention or"),
        ({"layer_types": 22}, "layer_types must name full_attention or sliding_att"),
        ({"local_attention": -1}, "local_attention must be an integer of at least 1"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers must be an in"),
        ({"norm_bias": "yes"}, "norm_bias must be true or false, got 'yes'"),
        ({"mlp_dropout": 1.0}, r"mlp_dropout must be a rate in \[0, 1\), got 1.0"),
        ({"embedding_dropout": None}, "embedding_dropout must be a rate"),
        ({"initializer_cutoff_factor": 0}, "cutoff_factor must be a positive number"),
        ({"vocab_size": "99"}, "vocab_size must be an integer of at least 1"),
    ],
)
def test_what_is_not_computed_or_makes_no_sense_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        models.ModernBertConfig.from_dict(BASE | entries, num_labels=2)
