"""The parts of other methods inside the training step, each against its own rule."""

import dataclasses
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.config import (
    FinetuneConfig,
    OptimizerConfig,
    RegularizationConfig,
    UserError,
    check_study,
)
from cwgnc_train.engine import Layout, make_mesh, start_runs
from cwgnc_train.engine.optimizer import make_hparams
from cwgnc_train.engine.step import init_run, train_step
from tests.train.conftest import MODEL, STEP_CONFIG, a_batch, padded

STEP = jax.jit(train_step, static_argnums=0)
PARAMS = models.init_params(MODEL, jax.random.key(0))
ADAM = OptimizerConfig(learning_rate=1e-2, eps=1e-3, max_norm=0.05)


def steps(config, optimizer, count=3):
    hparams = make_hparams(optimizer, RegularizationConfig(dropout=0.0), 10)
    run = init_run(config, PARAMS, jax.random.key(1), hparams)
    for step in range(count):
        run, metrics = STEP(config, run, a_batch(4, [0, step]))
    return run, metrics


def loss_fn(params, batch):
    logits = models.apply(MODEL, params, *padded(batch)).logits
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, batch["labels"]
    ).mean()


GRAD = jax.jit(jax.grad(loss_fn))


def by_hand(after_adam, count=3):
    """The same chain put together here, with what comes behind Adam."""
    tx = optax.chain(
        cwgnc_jax.component_clip_by_global_norm(0.05),
        cwgnc_jax.scale_by_adam(eps=1e-3),
        after_adam,
        optax.scale_by_schedule(lambda step: -1e-2 * (10 - step) / 10),
    )
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(count):
        grads = GRAD(params, a_batch(4, [0, step]))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_layer_decay_slows_lower_layers():
    config = dataclasses.replace(STEP_CONFIG, layer_decay=True)
    run, _ = steps(config, dataclasses.replace(ADAM, layer_decay=0.5))
    # One layer: heads 1, layer 1/2, embeddings 1/4.
    factors = jax.tree_util.tree_map_with_path(
        lambda path, _: (
            0.25
            if "embeddings" in str(path)
            else 0.5
            if "encoder" in str(path)
            else 1.0
        ),
        PARAMS,
    )
    scale = optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, factors))
    chex.assert_trees_all_close(run.params, by_hand(scale), atol=1e-5)


def test_prior_decay_pulls_towards_the_start():
    config = dataclasses.replace(STEP_CONFIG, prior_decay=True)
    run, _ = steps(config, dataclasses.replace(ADAM, prior_decay=5.0))
    # Zhang et al.'s code takes weight decay from what has one of these in its name.
    rates = jax.tree_util.tree_map_with_path(
        lambda path, _: 0 if "bias" in str(path) or "LayerNorm" in str(path) else 5,
        PARAMS,
    )
    assert {0, 5} == set(jax.tree.leaves(rates))
    pull = optax.stateless(
        lambda u, p: jax.tree.map(
            lambda u, p, o, r: u + r * (p - o), u, p, PARAMS, rates
        )
    )
    chex.assert_trees_all_close(run.params, by_hand(pull), atol=1e-5)
    free = by_hand(optax.identity())
    way = lambda params: optax.tree.norm(optax.tree.sub(params, PARAMS))
    assert way(run.params) < 0.99 * way(free)


def test_mixout_computes_the_loss_of_mixed_parameters():
    config = dataclasses.replace(STEP_CONFIG, mixout=True)
    regularization = RegularizationConfig(dropout=0.0, mixout=0.6)
    hparams = make_hparams(ADAM, regularization, 10)
    run = init_run(config, PARAMS, jax.random.key(1), hparams)
    other = models.init_params(MODEL, jax.random.key(7))
    run, batch = run._replace(params=other), a_batch(4, [0, 0])
    key = jax.random.fold_in(jax.random.fold_in(run.key, 0), 2**31)
    mixed = cwgnc_jax.mixout(other, PARAMS, 0.6, key)
    _, metrics = STEP(config, run, batch)
    assert metrics.loss == pytest.approx(float(loss_fn(mixed, batch)), rel=1e-5)
    assert abs(metrics.loss - loss_fn(other, batch)) > 1e-3


def test_mixout_draws_anew_each_step():
    config = dataclasses.replace(STEP_CONFIG, mixout=True)
    still = dataclasses.replace(ADAM, learning_rate=0.0)
    regularization = RegularizationConfig(dropout=0.0, mixout=0.6)
    hparams = make_hparams(still, regularization, 10)
    run = init_run(config, PARAMS, jax.random.key(1), hparams)
    run = run._replace(params=models.init_params(MODEL, jax.random.key(7)))
    batch, losses = a_batch(4, [0, 0]), []
    for _ in range(3):
        run, metrics = STEP(config, run, batch)
        losses.append(float(metrics.loss))
    assert len(set(losses)) == 3


@pytest.fixture
def checkpoint(tmp_path):
    models.save_pretrained(tmp_path, MODEL, PARAMS)
    return models.load_pretrained(tmp_path, num_labels=2, key=jax.random.key(0))


def test_reinit_draws_the_top_anew_for_each_run(checkpoint):
    hparams = [make_hparams(ADAM, RegularizationConfig(), 10)] * 2
    layout = Layout(make_mesh(jax.devices()[:1]))
    two = dataclasses.replace(layout, runs=2, group=2)
    seeds = [(1, 1), (2, 2)]
    runs = start_runs(STEP_CONFIG, checkpoint, seeds, hparams, two, 1)
    kernel = runs.params["bert"]["encoder"]["layer"]["0"]["output"]["dense"]["kernel"]
    pooler = runs.params["bert"]["pooler"]["dense"]["kernel"]
    for new in (kernel, pooler):
        assert (new[0] != new[1]).all()
        assert float(new.std()) == pytest.approx(MODEL.initializer_range, rel=0.3)
    embedding = runs.params["bert"]["embeddings"]["word_embeddings"]["embedding"]
    start = PARAMS["bert"]["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(embedding[0], start)
    with pytest.raises(ValueError, match="between 0 and the model's 1, got 2"):
        start_runs(STEP_CONFIG, checkpoint, seeds[:1], hparams[:1], layout, 2)


def test_only_what_needs_it_keeps_its_initial_parameters():
    assert steps(STEP_CONFIG, ADAM, count=1)[0].init_params is None
    mixed = dataclasses.replace(STEP_CONFIG, mixout=True)
    chex.assert_trees_all_equal(steps(mixed, ADAM, count=2)[0].init_params, PARAMS)


@pytest.mark.parametrize(
    ("regularization", "message"),
    [
        ({"mixout": 1.0, "dropout": 0.0}, r"--mixout must lie in \[0, 1\)"),
        ({"mixout": -0.1, "dropout": 0.0}, r"--mixout must lie in \[0, 1\)"),
        ({"mixout": 0.5}, "needs --dropout 0 beside it"),
        ({"reinit_layers": -1}, "--reinit-layers must be at least 0"),
    ],
)
def test_bad_regularization_is_refused(regularization, message):
    config = FinetuneConfig(
        model="any",
        workdir=Path("run"),
        task="rte",
        regularization=RegularizationConfig(**regularization),
    )
    with pytest.raises(UserError, match=message):
        check_study(config)


@pytest.mark.parametrize("layer_decay", [0.0, 1.5, float("nan")])
def test_bad_layer_decays_are_refused(layer_decay):
    config = FinetuneConfig(
        model="any",
        workdir=Path("run"),
        task="rte",
        optimizer=OptimizerConfig(layer_decay=layer_decay),
    )
    with pytest.raises(UserError, match=r"--layer-decay must lie in \(0, 1\]"):
        check_study(config)
