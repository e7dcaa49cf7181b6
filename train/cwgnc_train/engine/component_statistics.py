"""Measurements of every component, to see the race between them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from cwgnc_jax import component_norms, component_sizes, flatten_with_paths

STATISTICS = (
    *("rmsd", "cosine", "grad_norm", "clipped_norm", "coefficient"),
    *("param_norm", "update_norm", "grad_min", "grad_max", "grad_mean"),
    *("param_min", "param_max", "param_mean"),
)
"""The rows of :func:`component_statistics`."""


def component_statistics(
    params: PyTree, init_params: PyTree, grads: PyTree, clipped: PyTree, updates: PyTree
) -> Float[Array, "statistics components"]:
    """Measures each parameter, the paper's component, after a step.

    ``params`` are those after the update; ``grads`` and ``clipped`` the gradients
    before and after the clip.

    Returns:
      Rows in the order of ``STATISTICS``, columns in that of
      :func:`cwgnc_jax.component_norms`: root mean squared difference from the initial
      parameters; cosine of the angle with them (NaN for a vector of zeros); gradient
      norm before and after the clip; what the clip scaled it by (1 for a gradient of
      zeros); norms of parameter and update; smallest, largest and mean element of
      gradient and parameter.
    """
    norms = {
        name: _stacked(component_norms(tree))
        for name, tree in {
            "params": params,
            "init_params": init_params,
            "difference": jax.tree.map(jnp.subtract, params, init_params),
            "grads": grads,
            "clipped": clipped,
            "updates": updates,
        }.items()
    }
    moved, kept, was = norms["difference"], norms["params"], norms["init_params"]
    sizes = jnp.array(list(component_sizes(params).values()), jnp.float32)
    # Exact for small angles, where 1 - cos would be lost in the rounding of cos.
    turned = (moved**2 - (kept - was) ** 2) / (2 * kept * was)
    scaled = norms["clipped"] / norms["grads"]
    rows = {
        "rmsd": moved / jnp.sqrt(sizes),
        "cosine": jnp.where(kept * was == 0, jnp.nan, 1 - turned),
        "grad_norm": norms["grads"],
        "clipped_norm": norms["clipped"],
        "coefficient": jnp.where(norms["grads"] == 0, 1.0, scaled),
        "param_norm": kept,
        "update_norm": norms["updates"],
    }
    for tree_name, tree in (("grad", grads), ("param", params)):
        for name, function in (("min", jnp.min), ("max", jnp.max), ("mean", jnp.mean)):
            rows[f"{tree_name}_{name}"] = _stacked(_by_component(tree, function))
    # One array an interval goes to the host, not one a component and statistic.
    return jnp.stack([rows[name] for name in STATISTICS])


def _by_component(
    tree: Any, function: Callable[[jax.Array], jax.Array]
) -> dict[str, jax.Array]:
    paths, leaves, _ = flatten_with_paths(tree)
    by_path = dict(zip(paths, leaves, strict=True))
    return {name: function(by_path[name]) for name in component_sizes(tree)}


def _stacked(values: dict[str, jax.Array]) -> jax.Array:
    return jnp.stack([value.astype(jnp.float32) for value in values.values()])
