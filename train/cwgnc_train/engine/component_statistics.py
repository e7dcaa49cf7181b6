"""Measurements of every component, to see the race between them."""

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
    """Measures each parameter, the paper's component, after the update of a step.

    Returns:
      Rows in the order of ``STATISTICS``, columns in that of
      :func:`cwgnc_jax.component_norms`: root mean squared difference from the initial
      parameters; cosine of the angle with them (NaN for a vector of zeros); gradient
      norm before and after the clip; what the clip scaled it by (1 for a gradient of
      zeros); norms of parameter and update; smallest, largest and mean element of
      gradient (before the clip) and parameter.
    """
    difference = jax.tree.map(jnp.subtract, params, init_params)
    trees = params, init_params, difference, grads, clipped, updates
    norms = [_stacked(component_norms(tree)) for tree in trees]
    kept, was, moved, grad_norm, clipped_norm, update_norm = norms
    sizes = jnp.array(list(component_sizes(params).values()), jnp.float32)
    # Exact for small angles, where 1 - cos would be lost in the rounding of cos.
    turned = (moved**2 - (kept - was) ** 2) / (2 * kept * was)
    scaled = clipped_norm / grad_norm
    rows = {
        "rmsd": moved / jnp.sqrt(sizes),
        "cosine": jnp.where(kept * was == 0, jnp.nan, 1 - turned),
        "grad_norm": grad_norm,
        "clipped_norm": clipped_norm,
        "coefficient": jnp.where(grad_norm == 0, 1.0, scaled),
        "param_norm": kept,
        "update_norm": update_norm,
    }
    for tree_name, tree in (("grad", grads), ("param", params)):
        paths, leaves, _ = flatten_with_paths(tree)
        by_path = dict(zip(paths, leaves, strict=True))
        for name, function in (("min", jnp.min), ("max", jnp.max), ("mean", jnp.mean)):
            rows[f"{tree_name}_{name}"] = _stacked(
                {path: function(by_path[path]) for path in component_sizes(tree)}
            )
    # One array an interval goes to the host, not one a component and statistic.
    return jnp.stack([rows[name] for name in STATISTICS])


def _stacked(values: dict[str, jax.Array]) -> jax.Array:
    return jnp.stack([value.astype(jnp.float32) for value in values.values()])
