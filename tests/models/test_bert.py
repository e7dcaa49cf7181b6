import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cwgnc_jax import models
from cwgnc_jax.models import attention, bert, layers
from cwgnc_jax.models.batch import read_tokens
from cwgnc_jax.models.parameters import parameter_shapes

# Without jit every operation is compiled on its own, which takes longer.
apply = jax.jit(models.apply, static_argnames="config")


@pytest.fixture
def shallow(config):
    return dataclasses.replace(config, num_hidden_layers=1)


def test_bert_large_has_393_parameters_of_the_published_size():
    config = models.BertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    shapes = parameter_shapes(config)
    assert len(shapes) == 24 * 16 + 9
    # 335,143,938 with the classifier of two labels.
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 335_143_938


def test_fresh_parameters_have_the_distributions_of_bert():
    config = models.BertConfig(vocab_size=500, hidden_size=96, num_hidden_layers=1)
    params = models.init_params(config, jax.random.key(1))
    leaves = traverse_util.flatten_dict(params, sep="/")
    assert leaves.keys() == parameter_shapes(config).keys()
    for path, leaf in leaves.items():
        assert leaf.dtype == jnp.float32
        if path.endswith("/bias"):
            assert (leaf == 0).all()
        elif path.endswith("/scale"):
            assert (leaf == 1).all()
        else:
            bound = 5 * 0.02 / np.sqrt(leaf.size)
            assert abs(leaf.mean()) < bound
            assert abs(leaf.std() - 0.02) < bound


def test_parameters_of_one_shape_are_drawn_independently(params):
    attention = params["bert"]["encoder"]["layer"]["0"]["attention"]["self"]
    other = params["bert"]["encoder"]["layer"]["1"]["attention"]["self"]
    kernels = [
        attention["query"]["kernel"],
        attention["key"]["kernel"],
        other["query"]["kernel"],
    ]
    correlations = np.corrcoef([kernel.ravel() for kernel in kernels])
    assert np.abs(correlations - np.eye(3)).max() < 0.2


def test_padding_does_not_change_a_sequence(config, params, batch):
    padded = apply(config, params, *batch)
    alone = apply(config, params, *(array[1:, :5] for array in batch))
    chex.assert_trees_all_close(padded.logits[1:], alone.logits, atol=1e-5)
    chex.assert_trees_all_close(
        padded.hidden_states[-1][1:, :5], alone.hidden_states[-1], atol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_row_without_any_token_is_not_nan(shallow, batch, dtype):
    params = models.init_params(shallow, jax.random.key(0))
    input_ids, attention_mask, token_type_ids = batch
    attention_mask = attention_mask * np.array([[1], [0]])

    @jax.jit
    @jax.grad
    def grad(params):
        output = models.apply(
            shallow, params, input_ids, attention_mask, token_type_ids, dtype=dtype
        )
        return output.logits.sum()

    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grad(params)))


def test_a_boolean_mask_and_the_lack_of_a_jit_change_nothing(config, params, batch):
    input_ids, attention_mask, token_type_ids = batch
    mask = attention_mask.astype(bool)
    output = models.apply(config, params, input_ids, mask, token_type_ids)
    chex.assert_trees_all_close(output, apply(config, params, *batch), atol=2e-5)
    assert len(output.hidden_states) == config.num_hidden_layers


def test_token_types_that_are_left_out_are_zero(config, batch):
    tokens = read_tokens(config, *batch[:2])
    expected = read_tokens(config, *batch[:2], np.zeros((2, 9), np.int32))
    chex.assert_trees_all_equal(tokens, expected)


def test_dropout_rate_zero_is_no_dropout(config, params, batch):
    key = jax.random.key(0)
    expected = apply(config, params, *batch)
    traced = apply(config, params, *batch, key=key, dropout_rate=0.0)
    chex.assert_trees_all_close(traced, expected, atol=2e-5)
    static = jax.jit(
        lambda params, key: models.apply(
            config, params, *batch, key=key, dropout_rate=0.0
        )
    )
    chex.assert_trees_all_close(static(params, key), expected, atol=2e-5)


def test_dropout_follows_the_key_and_the_rates_of_the_config(config, params, batch):
    def logits(seed, **rate):
        key = jax.random.key(seed)
        return apply(config, params, *batch, key=key, **rate).logits

    assert (logits(0) == logits(0)).all()
    assert (abs(logits(0) - logits(1)) > 1e-3).all()
    # The config's rates are all .1, classifier_dropout by way of None.
    chex.assert_trees_all_close(logits(0), logits(0, dropout_rate=0.1), atol=2e-5)
    assert (abs(logits(0) - logits(0, dropout_rate=0.2)) > 1e-3).any()


def test_dropout_acts_where_bert_has_it_with_a_key_for_each_place(
    config, params, batch, monkeypatch
):
    sites = []

    def record(key, x, rate):
        sites.append((rate, x.shape, tuple(jax.random.key_data(key).tolist())))
        return x

    for room in (attention, layers, bert):
        monkeypatch.setattr(room, "dropout", record)
    config = dataclasses.replace(
        config,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.2,
        classifier_dropout=0.3,
    )
    # Traced, all layers are one.
    with jax.disable_jit():
        models.apply(config, params, *batch, key=jax.random.key(0))
    # Attention probabilities, attention output, feed-forward output; of the last layer
    # the latter two are those of first tokens.
    layer = [(0.2, (2, 3, 9, 9)), (0.1, (18, 24)), (0.1, (18, 24))]
    last = [layer[0], (0.1, (2, 24)), (0.1, (2, 24))]
    expected = [(0.1, (2, 9, 24)), *layer, *last, (0.3, (2, 24))]
    assert [site[:2] for site in sites] == expected
    assert len({site[2] for site in sites}) == len(sites)


def test_runs_under_vmap_with_traced_rates_equal_single_runs(shallow, batch):
    keys = jax.random.split(jax.random.key(0), 3)
    rates = jnp.array([0.0, 0.1, 0.5])
    scales = jnp.array([1.0, 1.1, 0.9])
    params = jax.vmap(
        lambda scale, params: jax.tree.map(lambda leaf: scale * leaf, params),
        in_axes=(0, None),
    )(scales, models.init_params(shallow, jax.random.key(0)))

    def logits(params, key, rate):
        output = models.apply(shallow, params, *batch, key=key, dropout_rate=rate)
        return output.logits

    together = jax.jit(jax.vmap(logits))(params, keys, rates)
    alone = jax.jit(logits)
    for run in range(3):
        own = jax.tree.map(lambda leaf, run=run: leaf[run], (params, keys, rates))
        chex.assert_trees_all_close(together[run], alone(*own), atol=2e-5)


def test_every_parameter_but_the_key_bias_has_a_gradient(shallow, batch):
    params = models.init_params(shallow, jax.random.key(0))

    def loss(params):
        return models.apply(shallow, params, *batch).logits[:, 0].sum()

    grads = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
    silent = {path for path, grad in grads.items() if jnp.abs(grad).max() < 1e-5}
    assert silent == {"bert/encoder/layer/0/attention/self/key/bias"}


def test_the_same_shapes_are_compiled_once(shallow, batch):
    params = models.init_params(shallow, jax.random.key(0))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def logits(params, batch, key, rate):
        output = models.apply(shallow, params, *batch, key=key, dropout_rate=rate)
        return output.logits

    for seed in range(3):
        logits(params, batch, jax.random.key(seed), 0.1 * seed)


@pytest.mark.parametrize("which", [1, 2])
def test_inputs_of_different_shapes_are_refused(config, params, batch, which):
    batch = list(batch)
    batch[which] = batch[which][:, :8]
    with pytest.raises(ValueError, match=r"got \(2, 8\) where input_ids has \(2, 9\)"):
        models.apply(config, params, *batch)


def test_a_single_sequence_without_a_batch_axis_is_refused(config, params, batch):
    with pytest.raises(ValueError, match=r"input_ids must have the shape \(batch, len"):
        models.apply(config, params, *(array[0] for array in batch))


def test_too_long_inputs_are_refused(config, params):
    ids = np.ones((1, 17), int)
    with pytest.raises(ValueError, match="= 16 long, got 17; truncate"):
        models.apply(config, params, ids, ids, ids)


def test_ids_that_are_not_integers_are_refused(config, params, batch):
    input_ids, attention_mask, token_type_ids = batch
    with pytest.raises(TypeError, match="token_type_ids must be integers, got float"):
        models.apply(
            config, params, input_ids, attention_mask, token_type_ids * np.float32(1)
        )


def test_parameters_of_another_config_are_refused(config, params, batch):
    params["classifier"] = {"kernel": jnp.zeros((24, 2)), "weight": jnp.zeros(3)}
    with pytest.raises(
        ValueError,
        match=r"missing classifier/bias; unexpected classifier/weight; other shape "
        r"classifier/kernel: expected \(24, 3\), got \(24, 2\)",
    ):
        models.apply(config, params, *batch)


def test_a_dropout_rate_outside_its_range_is_refused(config, params, batch):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got 1.0"):
        models.apply(config, params, *batch, key=jax.random.key(0), dropout_rate=1.0)


def test_examples_packed_into_rows_equal_those_in_rows_of_their_own(config, params):
    """Logits, hidden states and gradients; lengths 5, 4, 6 and 2 in two rows of 9."""
    rng = np.random.default_rng(1)
    lengths = [5, 4, 6, 2]
    ids, types = rng.integers(1, 99, (4, 6)), rng.integers(0, 2, (4, 6))
    mask = (np.arange(6) < np.array(lengths)[:, None]).astype(int)
    rows = np.zeros((3, 2, 9), int)
    firsts = [0, 5, 9, 15]
    for example, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        cells = np.unravel_index(np.arange(first, first + length), (2, 9))
        values = ids[example], 0 * ids[example] + example % 2 + 1, types[example]
        for target, source in zip(rows, values, strict=True):
            target[cells] = source[:length]

    @jax.jit
    def loss(params, ids, segment_ids, types, firsts):
        output = models.apply(
            config,
            params,
            ids,
            token_type_ids=types,
            segment_ids=segment_ids,
            cls_positions=firsts,
        )
        return (output.logits * jnp.arange(12.0).reshape(4, 3)).sum(), output

    grad = jax.grad(loss, has_aux=True)
    packed = grad(params, *rows, np.array(firsts))
    alone = grad(params, ids, mask, types, np.arange(4) * 6)
    plain = apply(config, params, ids, mask, types)
    chex.assert_trees_all_close(alone[1].logits, plain.logits, atol=1e-5)
    chex.assert_trees_all_close(packed[1].logits, plain.logits, atol=1e-5)
    chex.assert_trees_all_close(packed[0], alone[0], rtol=1e-3, atol=1e-4)
    last = packed[1].hidden_states[-1].reshape(18, -1)
    for example, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        chex.assert_trees_all_close(
            last[first : first + length],
            plain.hidden_states[-1][example, :length],
            atol=1e-5,
        )
    # A token that attends to its neighbour would be seen.
    mixed = apply(config, params, rows[0], 0 * rows[1] + 1, rows[2])
    assert jnp.abs(mixed.logits[0] - plain.logits[0]).max() > 1e-3


def test_layers_computed_again_give_the_same_numbers(config, params, batch):
    def loss(params, remat):
        key = jax.random.key(0)
        output = models.apply(config, params, *batch, key=key, remat=remat)
        return output.logits[:, 0].sum()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    chex.assert_trees_all_close(grad(params, True), grad(params, False), atol=1e-5)
    again, kept = (
        grad.lower(params, remat).as_text().count("dot_general")
        for remat in (True, False)
    )
    assert again > kept


def test_cls_positions_that_are_no_integers_are_refused(config, params, batch):
    with pytest.raises(
        TypeError, match=r"cls_positions must be integers of shape \(ex"
    ):
        models.apply(
            config, params, batch[0], segment_ids=batch[1], cls_positions=np.zeros(2)
        )


@pytest.mark.parametrize(
    ("names", "got"),
    [
        ([], "none of them"),
        (["segment_ids"], "segment_ids"),
        (["cls_positions"], "cls_positions"),
        (["attention_mask", "cls_positions"], "attention_mask and cls_positions"),
        (
            ["attention_mask", "segment_ids", "cls_positions"],
            "attention_mask and segment_ids and cls_positions",
        ),
    ],
)
def test_a_mask_and_packed_rows_exclude_each_other(config, params, batch, names, got):
    values = {
        "attention_mask": batch[1],
        "segment_ids": batch[1],
        "cls_positions": np.arange(2),
    }
    chosen = {name: values[name] for name in names}
    with pytest.raises(ValueError, match=f"expected attention_mask .*got {got}$"):
        models.apply(config, params, batch[0], **chosen)


def test_segment_ids_of_another_shape_or_dtype_are_refused(config, params, batch):
    ids, mask, _ = batch
    firsts = np.arange(2)
    with pytest.raises(ValueError, match=r"segment_ids must have the shape \(batch"):
        models.apply(
            config, params, ids, segment_ids=mask[:, :-1], cls_positions=firsts
        )
    with pytest.raises(TypeError, match="segment_ids must be integers, got float32"):
        models.apply(
            config,
            params,
            ids,
            segment_ids=mask.astype(np.float32),
            cls_positions=firsts,
        )
