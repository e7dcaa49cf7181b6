import pytest

from cwgnc_jax import models

BASE = {"model_type": "bert", "hidden_size": 24, "num_attention_heads": 3}


def test_a_config_is_hashable_and_equal_by_value():
    configs = {models.BertConfig.from_dict(BASE, num_labels=2) for _ in range(2)}
    assert len(configs) == 1


def test_entries_that_say_nothing_about_the_computation_are_passed_over():
    source = BASE | {"use_cache": True, "pad_token_id": 0, "id2label": {"0": "a"}}
    config = models.BertConfig.from_dict(source, num_labels=5)
    assert config.num_labels == 5
    assert config.num_hidden_layers == 12


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "t5"}, "'t5' is not the type of a BertConfig: expected 'bert'"),
        ({"model_type": None}, "model_type None is not the type of a BertConfig"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' .* expected 'gelu'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type 'relative_key' .* expected 'absolute'",
        ),
        ({"is_decoder": True}, "is_decoder True .* expected False"),
        ({"add_cross_attention": True}, "add_cross_attention True .* expected False"),
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1, got 0"),
        ({"vocab_size": 2**62}, "vocab_size must be at most 16,777,216, got 46116860"),
        ({"num_hidden_layers": 1001}, "num_hidden_layers must be at most 1,000"),
        ({"hidden_size": "24"}, "hidden_size must be an integer .* got '24'"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be an integer .* got 2.0"),
        ({"intermediate_size": True}, "intermediate_size must be an integer"),
        (
            {"hidden_size": 25},
            "must divide hidden_size, got 3 heads and hidden_size 25",
        ),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be a rate in \[0, 1"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob must be a rate"),
        ({"classifier_dropout": -0.1}, "classifier_dropout must be a rate"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a finite number"),
        ({"initializer_range": -1}, "initializer_range must be a finite number"),
    ],
)
def test_what_is_not_computed_or_makes_no_sense_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        models.BertConfig.from_dict(BASE | entries, num_labels=2)


def test_a_model_without_labels_is_refused():
    with pytest.raises(ValueError, match="num_labels must be an integer of at least 1"):
        models.BertConfig.from_dict(BASE, num_labels=0)
