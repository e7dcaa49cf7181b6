"""Random gradients over time, and what a clip makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 50


def random_grads(seed=0, steps=STEPS):
    """Gradients of some steps along the leading axis, with spikes."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        sizes = np.exp(rng.normal(size=(steps, *[1] * len(shape))))
        return jnp.asarray(rng.normal(size=(steps, *shape)) * sizes, jnp.float32)

    return {
        "a": {"kernel": leaf(3, 4), "bias": leaf(4)},
        "b": {"kernel": leaf(4, 2)},
    }


def norms_over_time(grads):
    """Norms ``[steps, components]`` of the modules, by numpy alone."""
    a = np.concatenate(
        [
            np.reshape(grads["a"][name], (len(grads["a"][name]), -1))
            for name in ("kernel", "bias")
        ],
        axis=1,
    )
    b = np.reshape(grads["b"]["kernel"], (len(grads["b"]["kernel"]), -1))
    norms = [np.linalg.norm(np.float64(grad), axis=1) for grad in (a, b)]
    return np.stack(norms, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def trajectory(tx, grads):
    """All updates, and the last state."""
    first = jax.tree.map(lambda leaf: leaf[0], grads)
    return jax.lax.scan(
        lambda state, grad: tx.update(grad, state)[::-1], tx.init(first), grads
    )[::-1]


def run(tx, grads):
    """Coefficients ``[steps, components]`` as the updates show them, and the state."""
    updates, state = trajectory(tx, grads)
    return norms_over_time(updates) / norms_over_time(grads), state
