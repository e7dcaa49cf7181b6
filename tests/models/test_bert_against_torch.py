"""The encoder against torch's transformers, on real weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import traverse_util

from cwgnc_jax import models
from cwgnc_jax.models import batch as inputs
from cwgnc_jax.models import layers
from cwgnc_jax.models.names import to_checkpoint

LABELS = np.array([0, 1, 1, 0])


@pytest.fixture(scope="module")
def batch():
    """Pairs of 12, 9, 5 and 1 tokens; the last has nothing but padding behind."""
    rng = np.random.default_rng(0)
    positions = np.arange(12)
    attention_mask = (positions < np.array([[12], [9], [5], [1]])).astype(int)
    second = positions >= np.array([[6], [4], [3], [1]])
    input_ids = rng.integers(1000, 30000, (4, 12)) * attention_mask
    return input_ids, attention_mask, second * attention_mask


@pytest.fixture(scope="module")
def checkpoint(minilm):
    return models.load_pretrained(minilm, num_labels=2, key=jax.random.key(0))


@pytest.fixture(scope="module")
def reference(checkpoint, batch, tmp_path_factory):
    """Torch's hidden states, logits and gradients for the same parameters.

    In double precision: in single precision torch is as far from these as we are, and
    whether two such errors add up depends on the processor.
    """
    directory = tmp_path_factory.mktemp("minilm")
    models.save_pretrained(directory, checkpoint.config, checkpoint.params)
    model = transformers.BertForSequenceClassification.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float64
    ).eval()
    input_ids, attention_mask, token_type_ids = map(torch.tensor, batch)
    output = model(
        input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        labels=torch.tensor(LABELS),
        output_hidden_states=True,
    )
    output.loss.backward()
    return {
        "hidden_states": [h.detach().numpy() for h in output.hidden_states],
        "logits": output.logits.detach().numpy(),
        "grads": {name: np.asarray(p.grad) for name, p in model.named_parameters()},
    }


def computed(checkpoint, batch):
    def loss(params):
        output = models.apply(checkpoint.config, params, *batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, LABELS)
        return losses.mean(), output

    grads, output = jax.jit(jax.grad(loss, has_aux=True))(checkpoint.params)
    return output, {
        to_checkpoint(path): np.asarray(grad.T if path.endswith("/kernel") else grad)
        for path, grad in traverse_util.flatten_dict(grads, sep="/").items()
    }


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def forward_errors(output, reference):
    *expected, last = reference["hidden_states"]
    pairs = [
        *zip(output.hidden_states, expected, strict=True),
        (output.cls_hidden, last[:, 0]),
        (output.logits, reference["logits"]),
    ]
    return [relative_error(actual, expected) for actual, expected in pairs]


def test_hidden_states_and_logits_equal_torchs_layer_by_layer(
    checkpoint, batch, reference
):
    output, _ = computed(checkpoint, batch)
    assert len(output.hidden_states) == 6
    assert max(forward_errors(output, reference)) < 1e-5


def test_the_gradient_of_every_parameter_equals_torchs(checkpoint, batch, reference):
    _, grads = computed(checkpoint, batch)
    assert grads.keys() == reference["grads"].keys()
    for name, expected in reference["grads"].items():
        if name.endswith("self.key.bias"):
            # A key bias adds the same to all scores of a query, and softmax does not
            # see that: the gradient is 0 and what is left is rounding. So there is
            # no scale to be relative to, but that of the query bias beside it.
            scale = np.abs(reference["grads"][name.replace("key", "query")]).max()
            assert np.abs(grads[name]).max() < 1e-5 * scale, name
            assert np.abs(expected).max() < 1e-5 * scale, name
        else:
            assert relative_error(grads[name], expected) < 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "name", "wrong"),
    [
        (layers, "gelu", jax.nn.gelu),
        (inputs, "bias_of_mask", lambda mask: jnp.zeros(mask.shape)),
        (jnp, "tanh", lambda x: x),
    ],
    ids=["tanh gelu", "no mask", "linear pooler"],
)
def test_the_parity_tests_notice(
    checkpoint, batch, reference, monkeypatch, target, name, wrong
):
    monkeypatch.setattr(target, name, wrong)
    jax.clear_caches()  # A layer that was traced before is not traced again.
    output, grads = computed(checkpoint, batch)
    jax.clear_caches()
    assert max(forward_errors(output, reference)) > 1e-4
    kernel = "bert.encoder.layer.0.output.dense.weight"
    assert relative_error(grads[kernel], reference["grads"][kernel]) > 1e-3


def test_bfloat16_stays_close_to_torch_with_float32_gradients(
    checkpoint, batch, reference
):
    def logits(params):
        output = models.apply(checkpoint.config, params, *batch, dtype=jnp.bfloat16)
        return output.logits.sum(), output

    grads, output = jax.jit(jax.grad(logits, has_aux=True))(checkpoint.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.float32.dtype}
    assert output.cls_hidden.dtype == jnp.bfloat16
    assert output.logits.dtype == jnp.float32
    last = np.asarray(output.cls_hidden, np.float32)
    # 8 bits of mantissa, some tens of roundings on the way.
    assert relative_error(last, reference["hidden_states"][-1][:, 0]) < 2**-8 * 4
