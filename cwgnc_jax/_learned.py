"""The mechanism of clips whose thresholds are learned from past norms.

A rule sees the norms of all components as one vector, and keeps what it has learned in
arrays with one row for each component. A component learns nothing from a norm that is
zero, NaN or infinite: its row stays the same, so that one bad step cannot spoil all
later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._clipping import (
    ClipOptions,
    Factors,
    Measured,
    check_rows,
    clip_components,
)
from cwgnc_jax._components import ComponentFn
from cwgnc_jax._norms import roots

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

State = TypeVar("State")
"""What a rule has learned: a NamedTuple of arrays."""


def learned_clip(
    init: Callable[[int], State],
    rule: Callable[
        [Float[jax.Array, " components"], State],
        tuple[Float[jax.Array, " components"], State],
    ],
    component_fn: ComponentFn | None,
    options: ClipOptions,
) -> optax.GradientTransformation:
    """Scales each component by the coefficient that a rule gives it.

    Args:
      init: Makes the first state for a number of components.
      rule: Takes norms and a state, and returns coefficients and the next state.
      component_fn: Maps a path to its component's name.
      options: The options that all clips share.

    Returns:
      The transformation.
    """

    # Hyperparameters of another dtype must not change that of the state.
    def keep_dtype(old: jax.Array, new: jax.Array) -> jax.Array:
        return new.astype(old.dtype)

    def on_vector(measured: Measured, state: State) -> tuple[Factors, State]:
        rows = next((len(x) for x in jax.tree.leaves(state) if jnp.ndim(x)), 0)
        check_rows(rows, measured.names)
        if not measured.names:
            return [], state
        factors, next_state = rule(roots(measured.squares), state)
        state = jax.tree.map(keep_dtype, state, next_state)
        return jnp.unstack(factors), state

    return clip_components(
        lambda assigned: init(len(assigned.names)), on_vector, component_fn, options
    )


def zeros(components: int) -> Float[jax.Array, " components"]:
    """Makes the row of zeros that stands for nothing learned yet."""
    return jnp.zeros(components, jnp.float32)


def learnable(
    norms: Float[jax.Array, " components"],
) -> Bool[jax.Array, " components"]:
    """Marks the norms that a component may learn from."""
    return jnp.isfinite(norms) & (norms > 0)


def learned(
    before: Float[jax.Array, " components"],
    norms: Float[jax.Array, " components"],
    after: Float[jax.Array, " components"],
) -> Float[jax.Array, " components"]:
    """Updates a statistic where the norm is learnable; the first norm starts it."""
    return jnp.where(learnable(norms), jnp.where(before > 0, after, norms), before)


def averaged(
    average: Float[jax.Array, " components"],
    norms: Float[jax.Array, " components"],
    decay: ArrayLike,
) -> Float[jax.Array, " components"]:
    """Updates an exponential average of norms."""
    return learned(average, norms, jnp.asarray(decay * average + (1 - decay) * norms))


def multiple(
    ratio: ArrayLike, average: Float[jax.Array, " components"]
) -> Float[jax.Array, " components"]:
    """Multiplies an average by a ratio; without one the threshold is infinite."""
    return jnp.where(average > 0, ratio * average, jnp.inf)
