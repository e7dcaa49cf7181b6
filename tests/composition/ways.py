"""Every way to execute an optimizer for some steps.

A way takes an optimizer, its parameters and the gradients of each step, and returns the
updates of each step. In a batch it runs them beside others, which must not matter.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, PartitionSpec


def looped(update, state, params, grads):
    history = []
    for of_step in grads:
        updates, state = update(of_step, state, params)
        history.append(updates)
    return history


def eager(tx, params, grads):
    return looped(tx.update, tx.init(params), params, grads)


def jit(tx, params, grads):
    return looped(jax.jit(tx.update), tx.init(params), params, grads)


def nnx_jit(tx, params, grads):
    return looped(nnx.jit(tx.update), tx.init(params), params, grads)


def filter_jit(tx, params, grads):
    return looped(eqx.filter_jit(tx.update), tx.init(params), params, grads)


def scan(tx, params, grads):
    @jax.jit
    def run(params, stacked):
        def step(state, of_step):
            updates, state = tx.update(of_step, state, params)
            return state, updates

        return jax.lax.scan(step, tx.init(params), stacked)[1]

    history = run(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads))
    return [row(history, i) for i in range(len(grads))]


def vmap(tx, params, grads):
    return batched(lambda function: jax.jit(jax.vmap(function)), tx, params, grads)


def pmap(tx, params, grads):
    two = jax.devices()[:2]
    return batched(lambda function: jax.pmap(function, devices=two), tx, params, grads)


def batched(mapped, tx, params, grads):
    """Runs beside a member with other parameters and gradients."""

    def pair(tree):
        return jax.tree.map(lambda leaf: jnp.stack([3 * leaf + 1, leaf]), tree)

    states = mapped(tx.init)(pair(params))
    rows = looped(mapped(tx.update), states, pair(params), map(pair, grads))
    return [row(updates, 1) for updates in rows]


def shard_map(tx, params, grads):
    """Cuts each leaf in two along its first axis."""
    return over_two_devices(tx, params, grads, PartitionSpec("x"), check_vma=False)


def shard_map_of_copies(tx, params, grads):
    return over_two_devices(tx, params, grads, PartitionSpec())


def over_two_devices(tx, params, grads, spec, **kwargs):
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("x",), auto, devices=jax.devices()[:2])

    def run(params, grads):
        return looped(tx.update, tx.init(params), params, grads)

    run = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, **kwargs)
    return jax.jit(run)(params, grads)


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


WAYS = {
    "eager": eager,
    "jit": jit,
    "scan": scan,
    "vmap": vmap,
    "pmap": pmap,
    "shard_map": shard_map,
    "shard_map of copies": shard_map_of_copies,
    "nnx.jit": nnx_jit,
    "eqx.filter_jit": filter_jit,
}
