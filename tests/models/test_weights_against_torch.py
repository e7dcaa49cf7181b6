"""Checkpoints that go to and come from torch's transformers."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers

from cwgnc_jax import models

apply = jax.jit(models.apply, static_argnames="config")


@pytest.fixture
def torch_config():
    return transformers.BertConfig(
        vocab_size=99,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.3,
        num_labels=3,
        attn_implementation="eager",
    )


def load(directory, num_labels=3):
    return models.load_pretrained(
        directory, num_labels=num_labels, key=jax.random.key(0)
    )


def torch_output(model, batch):
    input_ids, attention_mask, token_type_ids = map(torch.tensor, batch)
    with torch.no_grad():
        return model.eval()(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            output_hidden_states=True,
        )


def assert_same_encoder(checkpoint, model, batch):
    """Compares the last layer's output of every token."""
    input_ids, attention_mask, token_type_ids = batch
    every = np.flatnonzero(attention_mask)
    output = apply(
        checkpoint.config,
        checkpoint.params,
        input_ids,
        token_type_ids=token_type_ids,
        segment_ids=attention_mask,
        cls_positions=every,
    )
    expected = torch_output(model, batch).hidden_states[-1].flatten(0, 1)[every]
    np.testing.assert_allclose(output.cls_hidden, expected.numpy(), atol=2e-5)
    return apply(checkpoint.config, checkpoint.params, *batch)


def test_an_encoder_of_transformers_is_read(torch_config, batch, tmp_path):
    model = transformers.BertModel(torch_config)
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    output = assert_same_encoder(checkpoint, model, batch)
    expected = torch_output(model, batch).pooler_output.numpy()
    np.testing.assert_allclose(output.pooled, expected, atol=2e-5)
    assert checkpoint.new_parameters == ("classifier/bias", "classifier/kernel")


def test_a_masked_language_model_is_read_and_gets_a_pooler(
    torch_config, batch, tmp_path
):
    model = transformers.BertForMaskedLM(torch_config)
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    assert_same_encoder(checkpoint, model, batch)
    assert checkpoint.new_parameters == (
        "bert/pooler/dense/bias",
        "bert/pooler/dense/kernel",
        "classifier/bias",
        "classifier/kernel",
    )


def test_a_pretraining_model_is_read_with_its_pooler(torch_config, batch, tmp_path):
    model = transformers.BertForPreTraining(torch_config)
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    assert_same_encoder(checkpoint, model, batch)
    assert checkpoint.new_parameters == ("classifier/bias", "classifier/kernel")


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"])
def test_a_classifier_is_read_with_its_head(
    torch_config, batch, tmp_path, max_shard_size
):
    model = transformers.BertForSequenceClassification(torch_config)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (max_shard_size == "10KB")
    checkpoint = load(tmp_path)
    output = assert_same_encoder(checkpoint, model, batch)
    expected = torch_output(model, batch).logits.numpy()
    np.testing.assert_allclose(output.logits, expected, atol=2e-5)
    assert checkpoint.new_parameters == ()


def test_a_float16_classifier_is_read(torch_config, batch, tmp_path):
    model = transformers.BertForSequenceClassification(torch_config).half()
    model.save_pretrained(tmp_path)
    output = assert_same_encoder(load(tmp_path), model.float(), batch)
    assert output.logits.dtype == np.float32


def test_a_classifier_for_tokens_is_no_classifier_for_sequences(torch_config, tmp_path):
    transformers.BertForTokenClassification(torch_config).save_pretrained(tmp_path)
    with pytest.raises(models.CheckpointError, match="missing bert.pooler.dense.bias"):
        load(tmp_path)


@pytest.mark.parametrize("regression", [False, True])
def test_transformers_opens_what_is_saved_here(config, batch, tmp_path, regression):
    if regression:
        config = dataclasses.replace(config, num_labels=1)
    label_names = ["score"] if regression else ["no", "maybe", "yes"]
    params = models.init_params(config, jax.random.key(1))
    models.save_pretrained(
        tmp_path, config, params, label_names=label_names, regression=regression
    )
    model, info = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )  # pyright: ignore[reportGeneralTypeIssues]  # a pair, if asked for
    assert not any(info.values()), info
    assert list(model.config.id2label.values()) == label_names
    assert model.config.num_labels == len(label_names)
    assert model.config.problem_type == (
        "regression" if regression else "single_label_classification"
    )
    output = apply(config, params, *batch)
    expected = torch_output(model, batch).logits.numpy()
    np.testing.assert_allclose(output.logits, expected, atol=2e-5)
