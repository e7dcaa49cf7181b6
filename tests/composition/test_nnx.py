"""Transforms in the optimizer of NNX, whose states are variables."""

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import cwgnc_jax
from tests.composition.transforms import GRADS, PARAMS, PRETRAINED, TRANSFORMS, length
from tests.composition.trees import TREES

BUILD = TREES["NNX Module"].build


def state_of(flat):
    return nnx.state(BUILD(flat), nnx.Param)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_optimizer_of_nnx_moves_each_parameter_by_its_update(name):
    transform = TRANSFORMS[name]
    model = BUILD(PARAMS)
    tx = transform.make(state_of(PRETRAINED))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    step(model, optimizer, state_of(GRADS[0]))
    [updates] = transform.alone(PARAMS, GRADS[:1])
    right = {path: PARAMS[path] + np.asarray(updates[path]) for path in PARAMS}
    moved = jax.tree.leaves(nnx.state(model, nnx.Param))
    chex.assert_trees_all_close(
        moved, jax.tree.leaves(state_of(right)), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_the_report_of_an_optimizer_of_nnx_is_read(inside):
    model = BUILD(PARAMS)
    clip = cwgnc_jax.component_clip_by_global_norm(1.5, keep_report=True)
    tx = optax.chain(clip, optax.adam(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def read(model, optimizer):
        params = nnx.state(model, nnx.Param)
        return cwgnc_jax.clip_report(optimizer.opt_state, params)

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)
        return read(model, optimizer) if inside else None

    report = step(model, optimizer, state_of(GRADS[0]))
    report = report or read(model, optimizer)
    norms = {path: length([leaf]) for path, leaf in GRADS[0].items()}
    assert dict(report.norm) == pytest.approx(norms, rel=1e-5)
    assert dict(report.clipped) == {path: norm > 1.5 for path, norm in norms.items()}


def test_gradients_of_a_whole_model_are_clipped_by_path():
    model = BUILD(PARAMS)

    def loss(model):
        return sum((leaf**2).sum() / 2 for leaf in jax.tree.leaves(model))

    grads = nnx.grad(loss)(model)
    tx = cwgnc_jax.component_clip_by_global_norm(0.5)
    updates, _ = tx.update(grads, tx.init(nnx.state(model)))
    [right] = TRANSFORMS["clip"].alone(PARAMS, [PARAMS])
    chex.assert_trees_all_close(
        jax.tree.leaves(updates), jax.tree.leaves(state_of(right)), rtol=2e-5
    )
