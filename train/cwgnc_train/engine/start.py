"""Runs before their first step, from one checkpoint."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwgnc_jax import models
from cwgnc_train.engine.layout import Layout, place
from cwgnc_train.engine.optimizer import Hparams
from cwgnc_train.engine.step import RunState, StepConfig, init_run


def start_runs(
    config: StepConfig,
    checkpoint: models.Checkpoint,
    seeds: Sequence[tuple[int, int]],
    hparams: Sequence[Hparams],
    layout: Layout,
    reinit_layers: int = 0,
    part: int = 0,
) -> RunState:
    """Starts runs from one checkpoint.

    Args:
      config: What is fixed at compilation.
      checkpoint: The pretrained weights.
      seeds: For each run the seed of its new parameters and that of its dropout.
      hparams: Each run's numbers.
      layout: How many runs there are and where they lie.
      reinit_layers: How many top layers to re-initialise, with the pooler.
      part: Counts the parts of a run that have dropout of their own.

    Returns:
      The runs, stacked along a leading axis.
    """
    drawn = models.top_parameters(config.model, reinit_layers)
    new = {*checkpoint.new_parameters, *drawn}
    trees = [
        models.redraw(config.model, checkpoint.params, new, _two_keys(seed)[0])
        for seed, _ in seeds
    ]
    # The checkpoint's own weights are the same for all; they are copied last.
    _, same = models.split_params(checkpoint.params, new.__contains__)
    parts = [models.split_params(tree, new.__contains__)[0] for tree in trees]
    keys = [_two_keys(seed)[1] for _, seed in seeds]
    if part:
        keys = [jax.random.fold_in(key, part) for key in keys]
    each = list(zip(parts, keys, hparams, strict=True))
    if layout.mesh.size > 1:
        same = jax.tree.map(lambda leaf: _place_weights(layout, leaf), same)
        return _start(config, layout, same, each)
    # Bound to its device, as a restored checkpoint is: otherwise JAX compiles the steps
    # of a resumed run anew.
    return jax.device_put(_start(config, layout, same, each), layout.over_runs())


def _place_weights(layout: Layout, leaf: Any) -> jax.Array:
    # As it will lie, without the axis of runs that it does not have yet.
    spec = layout.of_state((1, *leaf.shape)).spec
    sharding = jax.sharding.NamedSharding(
        layout.mesh, jax.sharding.PartitionSpec(*spec[1:])
    )
    return place(np.asarray(leaf), sharding)


# Few small programs: each is read from the disk before the first step.
def _two_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    return _split(jax.random.key(seed))


@jax.jit
def _split(key):
    first, second = jax.random.split(key)
    return first, second


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(config: StepConfig, layout: Layout, same, each) -> RunState:
    def start(own, key, hparams):
        return init_run(config, models.merge_params(same, own), key, hparams)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return layout.constrain(jax.vmap(start, axis_size=layout.runs)(*stacked))
