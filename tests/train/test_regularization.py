"""The parts of other methods inside the training step, each against its own rule."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import models
from tests.train.conftest import MODEL, RECIPE, a_batch
from train.config import (
    OptimizerConfig,
    RegularizationConfig,
)
from train.config_checks import check_optimizer, check_regularization
from train.optimizer import hyperparameters
from train.parallel import ONE_RUN, Layout, init_runs
from train.steps import init_run, train_step

pytestmark = pytest.mark.usefixtures("compilation_cache")

STEP = jax.jit(train_step, static_argnums=0)
PARAMS = models.init_params(MODEL, jax.random.key(0))
ADAM = OptimizerConfig(learning_rate=1e-2, eps=1e-3, max_norm=0.05)


def steps(recipe, optimizer, count=3):
    numbers = hyperparameters(optimizer, RegularizationConfig(dropout=0.0), 10)
    run = init_run(recipe, PARAMS, jax.random.key(1), numbers)
    for step in range(count):
        run, metrics = STEP(recipe, run, a_batch(4, [0, step]))
    return run, metrics


def loss_fn(params, batch):
    names = ("input_ids", "attention_mask", "token_type_ids")
    logits = models.apply(MODEL, params, *(batch[name] for name in names)).logits
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
    recipe = dataclasses.replace(RECIPE, layer_decay=True)
    run, _ = steps(recipe, dataclasses.replace(ADAM, layer_decay=0.5))
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
    recipe = dataclasses.replace(RECIPE, prior_decay=True)
    run, _ = steps(recipe, dataclasses.replace(ADAM, prior_decay=5.0))
    pull = optax.stateless(
        lambda u, p: jax.tree.map(lambda u, p, o: u + 5 * (p - o), u, p, PARAMS)
    )
    chex.assert_trees_all_close(run.params, by_hand(pull), atol=1e-5)
    free = by_hand(optax.identity())
    way = lambda params: optax.tree.norm(optax.tree.sub(params, PARAMS))
    assert way(run.params) < 0.99 * way(free)


def test_mixout_computes_the_loss_of_mixed_parameters():
    recipe = dataclasses.replace(RECIPE, mixout=True)
    regularization = RegularizationConfig(dropout=0.0, mixout=0.6)
    numbers = hyperparameters(ADAM, regularization, 10)
    run = init_run(recipe, PARAMS, jax.random.key(1), numbers)
    other = models.init_params(MODEL, jax.random.key(7))
    run, batch = run._replace(params=other), a_batch(4, [0, 0])
    key = jax.random.fold_in(jax.random.fold_in(run.key, 0), 2**31)
    mixed = cwgnc_jax.mixout(other, PARAMS, 0.6, key)
    _, metrics = STEP(recipe, run, batch)
    assert metrics.loss == pytest.approx(float(loss_fn(mixed, batch)), rel=1e-5)
    assert abs(metrics.loss - loss_fn(other, batch)) > 1e-3


def test_mixout_draws_anew_each_step():
    recipe = dataclasses.replace(RECIPE, mixout=True)
    still = dataclasses.replace(ADAM, learning_rate=0.0)
    regularization = RegularizationConfig(dropout=0.0, mixout=0.6)
    numbers = hyperparameters(still, regularization, 10)
    run = init_run(recipe, PARAMS, jax.random.key(1), numbers)
    run = run._replace(params=models.init_params(MODEL, jax.random.key(7)))
    batch, losses = a_batch(4, [0, 0]), []
    for _ in range(3):
        run, metrics = STEP(recipe, run, batch)
        losses.append(float(metrics.loss))
    assert len(set(losses)) == 3


@pytest.fixture
def checkpoint(tmp_path):
    models.save_pretrained(tmp_path, MODEL, PARAMS)
    return models.load_pretrained(tmp_path, num_labels=2, key=jax.random.key(0))


def test_reinit_draws_the_top_anew_for_each_run(checkpoint):
    numbers = [hyperparameters(ADAM, RegularizationConfig(), 10)] * 2
    runs = init_runs(RECIPE, checkpoint, [(1, 1), (2, 2)], numbers, Layout(2, 2), 1)
    kernel = runs.params["bert"]["encoder"]["layer"]["0"]["output"]["dense"]["kernel"]
    pooler = runs.params["bert"]["pooler"]["dense"]["kernel"]
    for new in (kernel, pooler):
        assert (new[0] != new[1]).all()
        assert float(new.std()) == pytest.approx(MODEL.initializer_range, rel=0.3)
    embedding = runs.params["bert"]["embeddings"]["word_embeddings"]["embedding"]
    start = PARAMS["bert"]["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(embedding[0], start)
    with pytest.raises(ValueError, match="between 0 and the model's 1, got 2"):
        init_runs(RECIPE, checkpoint, [(1, 1)], numbers[:1], ONE_RUN, 2)


def test_only_what_needs_it_keeps_its_origin():
    assert steps(RECIPE, ADAM, count=1)[0].origin is None
    mixed = dataclasses.replace(RECIPE, mixout=True)
    chex.assert_trees_all_equal(steps(mixed, ADAM, count=2)[0].origin, PARAMS)


@pytest.mark.parametrize(
    ("regularization", "message"),
    [
        ({"mixout": 1.0, "dropout": 0.0}, r"--mixout must lie in \[0, 1\)"),
        ({"mixout": -0.1, "dropout": 0.0}, r"--mixout must lie in \[0, 1\)"),
        ({"mixout": 0.5}, "needs --dropout 0 beside it"),
        ({"reinit_layers": -1}, "--reinit-layers must be 0 or more"),
    ],
)
def test_bad_regularization_is_refused(regularization, message):
    with pytest.raises(ValueError, match=message):
        check_regularization(RegularizationConfig(**regularization))


@pytest.mark.parametrize("layer_decay", [0.0, 1.5, float("nan")])
def test_bad_layer_decays_are_refused(layer_decay):
    with pytest.raises(ValueError, match=r"--layer-decay must lie in \(0, 1\]"):
        check_optimizer(dataclasses.replace(ADAM, layer_decay=layer_decay))
