"""ModernBERT against torch's transformers, on random weights of small configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import traverse_util

from cwgnc_jax import models
from cwgnc_jax.models.names import to_checkpoint
from cwgnc_jax.models.parameters import parameter_shapes

LABELS = np.array([0, 2, 1, 0])
SMALL = {
    "vocab_size": 99,
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "num_labels": 3,
    "pad_token_id": 0,
}
WITHOUT_BIASES = {"classifier_pooling": "cls"}
WITH_BIASES = {
    "classifier_pooling": "mean",
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 3,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 300.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
    },
    "norm_eps": 1e-3,
    **dict.fromkeys(
        ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True
    ),
}


def random_model(architecture, directory, **entries):
    """Writes a model of transformers in which no parameter is 0 or 1."""
    config = transformers.ModernBertConfig(**SMALL | entries)
    torch.manual_seed(0)
    model = architecture(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(directory)
    return model


def load(directory):
    return models.load_pretrained(directory, num_labels=3, key=jax.random.key(0))


@pytest.fixture(
    scope="module", params=[WITHOUT_BIASES, WITH_BIASES], ids=["cls", "mean"]
)
def directory(request, tmp_path_factory):
    """A classifier as transformers saves it."""
    directory = tmp_path_factory.mktemp("modern_bert")
    architecture = transformers.ModernBertForSequenceClassification
    random_model(architecture, directory, **request.param)
    return directory


@pytest.fixture(scope="module")
def batch():
    """Texts of 23, 14, 3 and 1 tokens; local layers see 4 tokens to either side."""
    rng = np.random.default_rng(0)
    attention_mask = (np.arange(23) < np.array([[23], [14], [3], [1]])).astype(int)
    return rng.integers(1, 99, (4, 23)) * attention_mask, attention_mask


@pytest.fixture(scope="module")
def reference(directory, batch):
    """Torch's hidden states, logits and gradients, in double precision."""
    # The eager attention takes its softmax in single precision, where the mask of
    # double precision is -inf and padding out of reach of any token becomes NaN.
    model = transformers.ModernBertForSequenceClassification.from_pretrained(
        directory, attn_implementation="sdpa", dtype=torch.float64
    ).eval()
    input_ids, attention_mask = map(torch.tensor, batch)
    output = model(
        input_ids,
        attention_mask=attention_mask,
        labels=torch.tensor(LABELS),
        output_hidden_states=True,
    )
    output.loss.backward()
    return {
        "hidden_states": [h.detach().numpy() for h in output.hidden_states],
        "logits": output.logits.detach().numpy(),
        "grads": {name: np.asarray(p.grad) for name, p in model.named_parameters()},
    }


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


apply = jax.jit(models.apply, static_argnames="config")


def test_hidden_states_logits_and_all_gradients_equal_torchs(
    directory, batch, reference
):
    checkpoint = load(directory)
    assert checkpoint.new_parameters == ()

    def loss(params):
        output = models.apply(checkpoint.config, params, *batch, None)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, LABELS)
        return losses.mean(), output

    grads, output = jax.jit(jax.grad(loss, has_aux=True))(checkpoint.params)
    tokens = batch[1].astype(bool)
    assert len(output.hidden_states) == SMALL["num_hidden_layers"]
    # What padding turns into is of no account.
    *states, last = reference["hidden_states"]
    for actual, expected in zip(output.hidden_states, states, strict=True):
        assert relative_error(actual[tokens], expected[tokens]) < 1e-5
    if checkpoint.config.classifier_pooling == "cls":
        read = last[:, 0]
    else:
        read = np.stack(
            [x[own].mean(axis=0) for x, own in zip(last, tokens, strict=True)]
        )
    assert relative_error(output.cls_hidden, read) < 1e-5
    assert relative_error(output.logits, reference["logits"]) < 1e-5

    grads = {
        to_checkpoint(path): np.asarray(grad.T if path.endswith("/kernel") else grad)
        for path, grad in traverse_util.flatten_dict(grads, sep="/").items()
    }
    assert grads.keys() == reference["grads"].keys()
    for name, expected in reference["grads"].items():
        assert relative_error(grads[name], expected) < 1e-4, name


@pytest.mark.parametrize("directory", [WITH_BIASES], indirect=True, ids=["mean"])
@pytest.mark.parametrize(
    "different",
    [
        {"local_attention": 10},
        {"global_rope_theta": 10.0},
        {"local_rope_theta": 10.0},
        {"layer_types": ("full_attention",) * 5},
        {"norm_eps": 0.1},
        {"classifier_pooling": "cls"},
    ],
    ids=str,
)
def test_the_parity_test_would_notice(directory, batch, reference, different):
    checkpoint = load(directory)
    config = dataclasses.replace(checkpoint.config, **different)
    output = apply(config, checkpoint.params, *batch, None)
    assert relative_error(output.logits, reference["logits"]) > 1e-3


@pytest.mark.parametrize("directory", [WITH_BIASES], indirect=True, ids=["mean"])
def test_bfloat16_stays_close_to_torch_with_float32_gradients(
    directory, batch, reference
):
    checkpoint = load(directory)

    def loss(params):
        output = models.apply(
            checkpoint.config, params, *batch, None, dtype=jnp.bfloat16
        )
        return output.logits.sum(), output

    grads, output = jax.jit(jax.grad(loss, has_aux=True))(checkpoint.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.float32.dtype}
    assert output.cls_hidden.dtype == jnp.bfloat16
    assert output.logits.dtype == jnp.float32
    # 8 bits of mantissa, some tens of roundings on the way.
    assert relative_error(output.logits, reference["logits"]) < 2**-8 * 8


def test_transformers_opens_what_is_saved_here(directory, batch, reference, tmp_path):
    checkpoint = load(directory)
    models.save_pretrained(
        tmp_path,
        checkpoint.config,
        checkpoint.params,
        label_names=["a", "b", "c"],
        source_config=checkpoint.source_config,
    )
    model, info = transformers.ModernBertForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )  # pyright: ignore[reportGeneralTypeIssues]  # a pair, if asked for
    assert not any(info.values()), info
    assert list(model.config.id2label.values()) == ["a", "b", "c"]
    with torch.no_grad():
        input_ids, attention_mask = map(torch.tensor, batch)
        logits = model.eval()(input_ids, attention_mask=attention_mask).logits
    assert relative_error(logits.numpy(), reference["logits"]) < 1e-5
    assert load(tmp_path).config == checkpoint.config


def test_an_encoder_of_transformers_gets_a_head(batch, tmp_path):
    model = random_model(transformers.ModernBertModel, tmp_path)
    checkpoint = load(tmp_path)
    assert checkpoint.new_parameters == (
        "head/dense/kernel",
        "head/norm/scale",
        "classifier/bias",
        "classifier/kernel",
    )
    output = apply(checkpoint.config, checkpoint.params, *batch, None)
    with torch.no_grad():
        input_ids, attention_mask = map(torch.tensor, batch)
        states = model.eval()(input_ids, attention_mask=attention_mask)
    expected = states.last_hidden_state[:, 0].numpy()
    assert relative_error(output.cls_hidden, expected) < 1e-5


def test_a_masked_language_model_brings_its_head(batch, tmp_path):
    model = random_model(transformers.ModernBertForMaskedLM, tmp_path)
    checkpoint = load(tmp_path)
    assert checkpoint.new_parameters == ("classifier/bias", "classifier/kernel")
    output = apply(checkpoint.config, checkpoint.params, *batch, None)
    with torch.no_grad():
        input_ids, attention_mask = map(torch.tensor, batch)
        states = model.eval().model(input_ids, attention_mask=attention_mask)
        expected = model.head(states.last_hidden_state[:, 0]).numpy()
    assert relative_error(output.pooled, expected) < 1e-5


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "intermediate_size": 2624,
        },
    ],
    ids=["base", "large"],
)
def test_names_and_shapes_of_the_published_sizes_are_torchs(entries):
    with torch.device("meta"):
        model = transformers.ModernBertForSequenceClassification(
            transformers.ModernBertConfig(**entries)
        )
    shapes = {
        to_checkpoint(path): shape[::-1] if path.endswith("/kernel") else shape
        for path, shape in parameter_shapes(models.ModernBertConfig(**entries)).items()
    }
    assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}
