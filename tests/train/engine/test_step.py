"""The training step against the same step by hand."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.config import (
    PRESETS,
    OptimizerConfig,
    RegularizationConfig,
    TrainingConfig,
)
from cwgnc_train.data import BatchIndices, TokenTable
from cwgnc_train.engine import Layout, compile_train_steps, make_mesh
from cwgnc_train.engine.optimizer import Hparams, make_hparams, scheduled_rate
from cwgnc_train.engine.step import (
    CURVES,
    StepConfig,
    copies_to_multiply,
    init_run,
    loss_and_grads,
    train_step,
)
from tests.train.conftest import MODEL, STEP_CONFIG, a_batch, by_component, padded

STEP = jax.jit(train_step, static_argnums=0)


def hparams(**changes) -> Hparams:
    values = make_hparams(
        PRESETS["code"].complete(OptimizerConfig()), RegularizationConfig(), 10
    )._replace(learning_rate=jnp.float32(1e-2), dropout_rate=jnp.float32(0.0))
    return values._replace(**{k: jnp.asarray(v) for k, v in changes.items()})


def a_run(config=STEP_CONFIG, **changes):
    params = models.init_params(MODEL, jax.random.key(0))
    return init_run(config, params, jax.random.key(1), hparams(**changes))


def test_step_equals_autodiff_and_the_chain_by_hand():
    # At a tiny eps Adam makes whole steps of the key biases' rounding errors.
    run, batch = a_run(weight_decay=0.1, eps=1e-3), a_batch()

    def loss_fn(params):
        logits = models.apply(MODEL, params, *padded(batch)).logits
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"]
        ).mean()

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(run.params)
    tx = optax.chain(
        cwgnc_jax.component_clip_by_global_norm(0.05),
        cwgnc_jax.scale_by_adam(eps=1e-3),
        optax.add_decayed_weights(0.1, cwgnc_jax.decay_mask),
        optax.scale(-1e-2),
    )
    updates, _ = jax.jit(tx.update)(grads, tx.init(run.params), run.params)
    stepped, metrics = STEP(STEP_CONFIG, run, batch)
    assert metrics.loss == pytest.approx(float(loss), rel=1e-6)
    assert metrics.grad_norm == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    chex.assert_trees_all_close(
        stepped.params, optax.apply_updates(run.params, updates), atol=1e-6
    )
    assert stepped.step == 1


@pytest.mark.parametrize("trained_layers", [None, 1])
def test_copies_of_kernels_change_no_gradient_beyond_rounding(trained_layers):
    config = dataclasses.replace(
        STEP_CONFIG, dtype="bfloat16", trained_layers=trained_layers
    )
    parts = jax.tree.map(lambda *x: np.stack(x), a_batch(seed=0), a_batch(seed=1))
    run = a_run(config)
    # A CPU's program may multiply by kernels that were not rounded.
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), run.params)
    run = run._replace(params=rounded)
    copies = copies_to_multiply(config, run.params)
    kernels = [x for x in jax.tree.leaves(run.params) if x.ndim == 2]
    assert {x.dtype for x in jax.tree.leaves(copies)} == {jnp.dtype(jnp.bfloat16)}
    # The embeddings are tables of words, positions and types.
    assert len(jax.tree.leaves(copies)) == len(kernels) - 3
    found = jax.jit(loss_and_grads, static_argnums=0)
    expected = found(config, run, parts)
    with_copies = found(config, run, parts, copies=copies)
    chex.assert_trees_all_equal_shapes_and_dtypes(with_copies, expected)
    # It may also round gradients between functions, and then those below.
    for one, other in zip(*map(jax.tree.leaves, (with_copies, expected)), strict=True):
        largest = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, atol=2**-5 * largest, rtol=0)


def test_only_a_forward_pass_in_another_dtype_has_copies():
    run = a_run()
    assert copies_to_multiply(STEP_CONFIG, run.params) is None
    mixed = dataclasses.replace(STEP_CONFIG, dtype="bfloat16", mixout=True)
    assert copies_to_multiply(mixed, run.params) is None


def test_what_a_config_does_not_say_is_the_default_recipe():
    said, optimizer = StepConfig(MODEL), OptimizerConfig()
    assert said == StepConfig(
        model=MODEL,
        regression=False,
        components=optimizer.components,
        b1=optimizer.b1,
        b2=optimizer.b2,
        dtype=TrainingConfig().dtype,
        mixout=RegularizationConfig().mixout > 0,
        prior_decay=optimizer.prior_decay > 0,
        layer_decay=optimizer.layer_decay < 1,
        trained_layers=None,
        statistics=TrainingConfig().statistics_every > 0,
        remat=TrainingConfig().remat,
        nonfinite=optimizer.nonfinite,
        clip=optimizer.clip,
    )


def test_curves_are_the_metrics_of_one_number_a_step():
    _, metrics = STEP(STEP_CONFIG, a_run(), a_batch())
    numbers = {k for k, v in metrics._asdict().items() if np.shape(v) == ()}
    assert set(CURVES) == numbers - {"statistics"}


def test_devices_draw_the_dropout_of_the_parts_of_a_batch():
    run = a_run(dropout_rate=0.5)
    parts = jax.tree.map(lambda *x: np.stack(x), a_batch(seed=0), a_batch(seed=1))
    found = functools.partial(loss_and_grads, STEP_CONFIG)
    one = jax.jit(found)
    expected = one(run, parts)
    on_devices = jax.pmap(
        functools.partial(found, axis_name="data"),
        axis_name="data",
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:2],
    )
    chex.assert_trees_all_close(on_devices(run, parts), expected, rtol=1e-5, atol=1e-6)
    assert one(run._replace(step=run.step + 1), parts)[0] != expected[0]


def test_rows_of_weight_zero_count_for_nothing():
    batch = a_batch(4)
    longer = {k: np.concatenate([v, a_batch(3, 1)[k]]) for k, v in batch.items()}
    longer["cls_positions"] = 8 * np.arange(7)
    longer["weights"] = np.array([1, 1, 1, 1, 0, 0, 0], np.float32)
    short, short_metrics = STEP(STEP_CONFIG, a_run(), batch)
    long, long_metrics = STEP(STEP_CONFIG, a_run(), longer)
    np.testing.assert_allclose(short_metrics.loss, long_metrics.loss, rtol=1e-6)
    chex.assert_trees_all_close(
        short_metrics.norms, long_metrics.norms, rtol=1e-4, atol=1e-7
    )


def test_step_compiles_once_and_takes_over_its_buffers(monkeypatch):
    traced = chex.assert_max_traces(loss_and_grads, n=1)
    monkeypatch.setattr("cwgnc_train.engine.step.loss_and_grads", traced)
    layout = Layout(make_mesh(jax.devices()[:1]))
    batch = a_batch()
    table = layout.place_table(
        TokenTable(
            batch["input_ids"],
            batch["token_type_ids"],
            (batch["segment_ids"] > 0).sum(1),
            batch["labels"],
        )
    )
    rng = np.random.default_rng(0)
    orders = [rng.permutation(6) for _ in range(3)]
    batches = [
        layout.place_indices(
            [[BatchIndices(order, 8 * np.arange(6), np.ones(6, np.float32))]]
        )
        for order in orders
    ]
    run = jax.tree.map(lambda leaf: leaf[None], a_run())
    run = jax.device_put(run, layout.over_runs())
    steps = compile_train_steps(STEP_CONFIG, layout, (6, 8))
    program = steps.lower(layout.abstract(run), table, batches[0]).compile()
    old = run.params["classifier"]["kernel"]
    for indices in batches:
        run, _ = program(run, table, indices)
    assert old.is_deleted() and run.step == 3


@pytest.mark.parametrize(
    ("max_norm", "rate"), [(jnp.inf, 0.0), (1e-9, 1.0)], ids=["none", "nearly all"]
)
def test_clip_rates_count_what_the_clip_scales(max_norm, rate):
    _, metrics = STEP(STEP_CONFIG, a_run(max_norm=max_norm), a_batch())
    # Key biases have a gradient of zero up to rounding.
    assert metrics.clip_rate_components == pytest.approx(rate, abs=0.06)
    assert metrics.clip_rate_elements == pytest.approx(rate, abs=0.02)


def test_clip_rates_are_weighted_by_components_and_by_elements():
    _, metrics = STEP(STEP_CONFIG, a_run(max_norm=0.05), a_batch())
    params = models.init_params(MODEL, jax.random.key(0))
    sizes = cwgnc_jax.component_sizes(params)
    norms = by_component(metrics.norms, params)
    clipped = {k for k, norm in norms.items() if norm + 1e-6 > 0.05}
    assert 0 < len(clipped) < len(sizes)
    assert metrics.clip_rate_components == pytest.approx(len(clipped) / len(sizes))
    weighted = sum(sizes[k] for k in clipped) / sum(sizes.values())
    assert metrics.clip_rate_elements == pytest.approx(weighted, rel=1e-5)


def test_dropout_differs_from_step_to_step_and_follows_the_key():
    run, batch = a_run(dropout_rate=0.5, learning_rate=0.0), a_batch()
    run, first = STEP(STEP_CONFIG, run, batch)
    _, second = STEP(STEP_CONFIG, run, batch)
    _, again = STEP(STEP_CONFIG, a_run(dropout_rate=0.5, learning_rate=0.0), batch)
    assert first.loss != second.loss
    assert first.loss == again.loss


def test_regression_is_trained_on_squared_errors():
    model = dataclasses.replace(MODEL, num_labels=1)
    config = StepConfig(model, True, "by_parameter", 0.9, 0.999, "float32")
    params = models.init_params(model, jax.random.key(0))
    batch = a_batch() | {"labels": np.linspace(0, 5, 6).astype(np.float32)}
    run = init_run(config, params, jax.random.key(1), hparams())
    logits = models.apply(model, params, *padded(batch)).logits
    expected = np.mean((np.array(logits)[:, 0] - batch["labels"]) ** 2)
    assert STEP(config, run, batch)[1].loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("warmup", [0, 4])
def test_schedule_equals_the_one_of_transformers(warmup):
    import torch
    from transformers import get_linear_schedule_with_warmup

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-2)
    theirs = get_linear_schedule_with_warmup(optimizer, warmup, 10)
    of_run = hparams(warmup_steps=warmup, total_steps=10)
    for step in range(10):
        rate = scheduled_rate(of_run, step)
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        theirs.step()


def test_norms_of_the_step_cost_no_second_pass():
    run, batch = a_run(), a_batch()

    def reductions(step):
        text = jax.jit(step).lower(run, batch).compile().as_text()
        assert text is not None
        return text.count(" reduce(")

    def without_metrics(run, batch):
        return STEP(STEP_CONFIG, run, batch)[0]

    def with_metrics(run, batch):
        stepped, metrics = STEP(STEP_CONFIG, run, batch)
        return stepped, metrics.norms

    assert reductions(with_metrics) == reductions(without_metrics)


def test_frozen_parameters_keep_every_bit_and_have_no_moments():
    # A layer, and above it one that trains with the heads.
    model = dataclasses.replace(MODEL, num_hidden_layers=2)
    config = dataclasses.replace(STEP_CONFIG, model=model, trained_layers=1)
    params = models.init_params(model, jax.random.key(0))
    # Zero with a minus: an update that adds zero would lose it.
    params["bert"]["embeddings"]["LayerNorm"]["bias"] *= -1.0
    started = init_run(config, params, jax.random.key(1), hparams(weight_decay=0.1))
    run = started
    for step in range(3):
        run, metrics = STEP(config, run, a_batch(seed=step))
    (trained, frozen), (before, kept) = (
        models.split_params(tree, config.trains) for tree in (run.params, params)
    )
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(kept), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    for one, other in zip(
        jax.tree.leaves(trained), jax.tree.leaves(before), strict=True
    ):
        assert np.abs(one - other).max() > 0
    paths = list(cwgnc_jax.component_sizes(trained))
    assert all("/layer/1/" in p or p.startswith(("bert/pooler", "cl")) for p in paths)
    assert len(metrics.norms) == len(paths)
    words = kept["bert"]["embeddings"]["word_embeddings"]["embedding"]
    moments = [leaf.size for leaf in jax.tree.leaves(started.opt_state)]
    assert max(moments) == 8 * 16 < words.size


@pytest.mark.slow
def test_no_gradient_is_computed_below_the_lowest_layer_that_trains():
    model = dataclasses.replace(MODEL, num_hidden_layers=3)
    params = models.init_params(model, jax.random.key(0))

    def products(trained):
        config = dataclasses.replace(STEP_CONFIG, model=model, trained_layers=trained)
        run = init_run(config, params, jax.random.key(1), hparams())
        step = jax.jit(functools.partial(train_step, config))
        # Of the compiled program, without what no platform computes.
        text = step.lower(run, a_batch()).compile().as_text()
        assert text is not None
        return text.count(" dot(")

    # A layer has two in its attention and one for each of its six kernels; pooler and
    # classifier have one each.
    forward = 3 * 8 + 2
    one, two, full = map(products, (1, 2, None))
    # Of each product two are made backwards, less those of query, key and value for the
    # input of the lowest layer, which goes no further.
    assert (one - forward, two - one) == (2 * (8 + 2) - 3, 16)
    assert full - two == 16 + 3
