import collections
import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_jax.models import attention, modern_bert
from cwgnc_jax.models.parameters import parameter_shapes

# Without jit every operation is compiled on its own, which takes longer.
apply = jax.jit(models.apply, static_argnames="config")


CLS = models.ModernBertConfig(
    vocab_size=99,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=32,
    local_attention=4,
    initializer_range=0.3,
    num_labels=3,
)


@pytest.fixture(params=["cls", "mean"])
def config(request):
    return dataclasses.replace(CLS, classifier_pooling=request.param)


@pytest.fixture
def params(config):
    return models.init_params(config, jax.random.key(0))


@pytest.fixture
def batch():
    """Two sequences of 12 and 7 tokens, without token types."""
    rng = np.random.default_rng(0)
    attention_mask = np.array([[1] * 12, [1] * 7 + [0] * 5])
    return rng.integers(1, 99, (2, 12)) * attention_mask, attention_mask, None


def test_examples_packed_into_rows_equal_those_in_rows_of_their_own(config, params):
    """Logits, hidden states and gradients; lengths 9, 3, 8 and 2 in two rows of 12."""
    rng = np.random.default_rng(1)
    lengths = [9, 3, 8, 2]
    ids = rng.integers(1, 99, (4, 9))
    mask = (np.arange(9) < np.array(lengths)[:, None]).astype(int)
    rows = np.zeros((2, 2, 12), int)
    firsts = [0, 9, 12, 20]
    for example, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        cells = np.unravel_index(np.arange(first, first + length), (2, 12))
        rows[0][cells], rows[1][cells] = ids[example, :length], example % 2 + 1

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_grad(params, ids, mask, firsts):
        packed = {"segment_ids": mask, "cls_positions": firsts}
        layout = {"attention_mask": mask} if firsts is None else packed
        output = models.apply(config, params, ids, **layout)
        return (output.logits * jnp.arange(12.0).reshape(4, 3)).sum(), output

    (_, plain), expected = loss_and_grad(params, ids, mask, None)
    (_, packed), grads = loss_and_grad(params, *rows, np.array(firsts))
    chex.assert_trees_all_close(packed.logits, plain.logits, atol=1e-5)
    chex.assert_trees_all_close(grads, expected, rtol=1e-3, atol=1e-4)
    last = packed.hidden_states[-1].reshape(24, -1)
    for example, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        chex.assert_trees_all_close(
            last[first : first + length],
            plain.hidden_states[-1][example, :length],
            atol=1e-5,
        )
    # A token that attends to its neighbour would be seen.
    (_, mixed), _ = loss_and_grad(params, rows[0], 0 * rows[1] + 1, np.array(firsts))
    assert jnp.abs(mixed.logits[0] - plain.logits[0]).max() > 1e-3


def test_a_local_layer_sees_half_a_window_to_either_side(batch):
    config = dataclasses.replace(CLS, layer_types=("sliding_attention",) * 2)
    params = models.init_params(config, jax.random.key(0))
    ids, mask, _ = (None if x is None else x[:1] for x in batch)
    assert ids is not None
    changed = ids.copy()
    changed[0, 5] += 1
    first, second = (apply(config, params, x, mask, None) for x in (ids, changed))
    difference = jnp.abs(first.hidden_states[1] - second.hidden_states[1]).max(-1)[0]
    seen = [bool(x) for x in difference > 1e-6]
    assert seen == [abs(column - 5) <= 2 for column in range(12)]
    # Two such layers see twice as far: token 0 is 5 away from the change.
    chex.assert_trees_all_close(first.logits, second.logits, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_row_without_any_token_is_not_nan(batch, dtype):
    config = dataclasses.replace(CLS, classifier_pooling="mean")
    params = models.init_params(config, jax.random.key(0))
    input_ids, attention_mask, _ = batch
    attention_mask = attention_mask * np.array([[1], [0]])

    @jax.jit
    @jax.grad
    def grad(params):
        output = models.apply(
            config, params, input_ids, attention_mask, None, dtype=dtype
        )
        return output.logits.sum()

    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grad(params)))


def test_token_types_change_nothing(batch):
    params = models.init_params(CLS, jax.random.key(0))
    expected = apply(CLS, params, *batch)
    typed = apply(CLS, params, *batch[:2], np.ones((2, 12), int))
    chex.assert_trees_all_equal(typed, expected)


@pytest.mark.slow
def test_dropout_acts_where_modern_bert_has_it_with_a_key_for_each_place(
    batch, monkeypatch
):
    sites = []

    def record(key, x, rate):
        sites.append((rate, x.shape, tuple(jax.random.key_data(key).tolist())))
        return x

    for room in (attention, modern_bert):
        monkeypatch.setattr(room, "dropout", record)
    config = dataclasses.replace(
        CLS,
        embedding_dropout=0.1,
        attention_dropout=0.2,
        mlp_dropout=0.3,
        classifier_dropout=0.4,
    )
    params = models.init_params(config, jax.random.key(0))
    # Traced, layers that are alike are one.
    with jax.disable_jit():
        models.apply(config, params, *batch, key=jax.random.key(0))
    # Attention probabilities, attention output, feed-forward; of the last layer the
    # latter two are those of first tokens.
    layer = [(0.2, (2, 3, 12, 12)), (0.2, (24, 24)), (0.3, (24, 20))]
    last = [layer[0], (0.2, (2, 24)), (0.3, (2, 20))]
    expected = [(0.1, (2, 12, 24)), *layer, *last, (0.4, (2, 24))]
    assert [site[:2] for site in sites] == expected
    assert len({site[2] for site in sites}) == len(sites)


def test_rates_of_zero_in_the_config_draw_nothing_and_a_given_rate_does(batch):
    params = models.init_params(CLS, jax.random.key(0))

    def drawn(**rate):
        noisy = functools.partial(models.apply, CLS, key=jax.random.key(0), **rate)
        return str(jax.make_jaxpr(noisy)(params, *batch)).count("random_bits")

    assert drawn() == 0
    assert drawn(dropout_rate=0.1) > 0


def test_layers_that_are_alike_are_traced_once(batch, monkeypatch):
    calls = []
    gelu = modern_bert.gelu
    monkeypatch.setattr(modern_bert, "gelu", lambda x: calls.append(1) or gelu(x))
    config = dataclasses.replace(CLS, num_hidden_layers=12, layer_types=None)
    shapes = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))
    jax.clear_caches()  # A layer that was traced before is not traced again.
    jax.eval_shape(lambda params: models.apply(config, params, *batch), shapes)
    # The first layer, which lacks a norm, a local and a global one, the last; the head.
    assert len(calls) == 5


def test_fresh_parameters_have_the_distributions_of_modern_bert():
    config = models.ModernBertConfig(
        vocab_size=500,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        norm_bias=True,
        num_labels=50,
    )
    leaves = traverse_util.flatten_dict(
        models.init_params(config, jax.random.key(1)), sep="/"
    )
    # A normal distribution that is cut off at two standard deviations has this one.
    cut = 0.8796256610342398
    deep = 0.02 / math.sqrt(2 * 2)
    expected = {
        "model/embeddings/tok_embeddings/embedding": 0.02,
        "model/layers/1/attn/Wqkv/kernel": 0.02,
        "model/layers/1/mlp/Wi/kernel": 0.02,
        "model/layers/1/attn/Wo/kernel": deep,
        "model/layers/1/mlp/Wo/kernel": deep,
        "head/dense/kernel": deep,
        "classifier/kernel": 96**-0.5,
    }
    for path, std in expected.items():
        leaf = leaves[path]
        assert abs(leaf.std() / (cut * std) - 1) < 5 / math.sqrt(leaf.size), path
        assert jnp.abs(leaf).max() <= 2 * std * (1 + 1e-6), path
    assert (leaves["model/layers/1/mlp_norm/scale"] == 1).all()
    assert (leaves["model/layers/1/mlp_norm/bias"] == 0).all()
    assert (leaves["classifier/bias"] == 0).all()


def test_components_and_depths_fit_modern_bert():
    config = models.ModernBertConfig()
    shapes = parameter_shapes(config)
    # The embeddings, 22 layers of 6 parameters, the first without its first norm, the
    # last norm, the head and the classifier.
    assert len(shapes) == 2 + 22 * 6 - 1 + 1 + 2 + 2
    depths = collections.Counter(map(cwgnc_jax.encoder_depth, shapes))
    assert depths == {0: 2, 1: 5, math.inf: 5} | {i: 6 for i in range(2, 23)}
    assert {cwgnc_jax.by_layer(path) for path in shapes} == {
        "model/embeddings",
        *(f"model/layers/{i}" for i in range(22)),
        "model/final_norm",
        "head/dense",
        "head/norm",
        "classifier",
    }
    assert "model/layers/attn/Wqkv" in set(map(cwgnc_jax.by_module_type, shapes))


def test_the_top_of_modern_bert_is_its_head_and_last_layers():
    config = models.ModernBertConfig()
    top = models.top_parameters(config, 2)
    assert {path for path in top if not path.startswith("model/layers/2")} == {
        "head/dense/kernel",
        "head/norm/scale",
    }
    assert len(top) == 2 * 6 + 2
    assert models.top_parameters(config, 0) == ()
