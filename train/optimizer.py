"""From the config to the schedule to the chain of Optax."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

import cwgnc_jax
from train.config import OptimizerConfig, RegularizationConfig

COMPONENT_FNS = {
    "by_parameter": cwgnc_jax.by_parameter,
    "by_module": cwgnc_jax.by_module,
    "by_module_type": cwgnc_jax.by_module_type,
    "by_layer": cwgnc_jax.by_layer,
    "global": lambda path: "all",
}


class Hyperparameters(NamedTuple):
    """The numbers of a run: arrays, so that runs with different ones share a program.

    Each is a scalar; ``dropout_rate`` may be None for the model's own rates.
    """

    learning_rate: ArrayLike
    warmup_steps: ArrayLike
    total_steps: ArrayLike
    max_norm: ArrayLike
    eps: ArrayLike
    bias_correction: ArrayLike
    weight_decay: ArrayLike
    prior_decay: ArrayLike
    layer_decay: ArrayLike
    mixout_rate: ArrayLike
    dropout_rate: ArrayLike | None


def hyperparameters(
    optimizer: OptimizerConfig, regularization: RegularizationConfig, total_steps: int
) -> Hyperparameters:
    """Turns a config's numbers into arrays; warm-up is rounded up to whole steps."""
    dropout = regularization.dropout
    return Hyperparameters(
        learning_rate=jnp.float32(optimizer.learning_rate),
        warmup_steps=jnp.int32(math.ceil(optimizer.warmup_ratio * total_steps)),
        total_steps=jnp.int32(total_steps),
        max_norm=jnp.float32(optimizer.max_norm),
        eps=jnp.float32(optimizer.eps),
        bias_correction=jnp.bool_(optimizer.bias_correction),
        weight_decay=jnp.float32(optimizer.weight_decay),
        prior_decay=jnp.float32(optimizer.prior_decay),
        layer_decay=jnp.float32(optimizer.layer_decay),
        mixout_rate=jnp.float32(regularization.mixout),
        dropout_rate=None if dropout is None else jnp.float32(dropout),
    )


def linear_schedule(numbers: Hyperparameters) -> optax.Schedule:
    """Rises from 0 over the warm-up and falls to 0 at the last step.

    The rate of step t, counted from 0, is lr·t/w for t < w and lr·(T - t)/(T - w) from
    then on.
    """

    def schedule(step):
        warmup, total = numbers.warmup_steps, numbers.total_steps
        rising = step / jnp.maximum(warmup, 1)
        falling = (total - step) / jnp.maximum(total - warmup, 1)
        share = jnp.where(step < warmup, rising, jnp.maximum(falling, 0.0))
        return numbers.learning_rate * share

    return schedule


def make_optimizer(
    numbers: Hyperparameters,
    components: str,
    b1: float,
    b2: float,
    *,
    prior: Any = None,
    layer_decay: bool = False,
    zero_nonfinite: bool = False,
    axis_name: str | None = None,
) -> optax.GradientTransformation:
    """The clip, Adam, the decays and the schedule, from numbers that may be traced.

    Without ``prior`` and ``layer_decay`` this is ``cwgnc_jax.cwgnc_adamw``.

    Args:
      numbers: The run's hyperparameters.
      components: What is clipped as one, a key of ``COMPONENT_FNS``.
      b1: Decay of Adam's first moment.
      b2: Decay of Adam's second moment.
      prior: Decay towards these parameters, if at all.
      layer_decay: Whether lower layers have smaller learning rates.
      zero_nonfinite: Whether components whose gradient is not finite take no part.
      axis_name: Of the devices that parameters are split over, if they are.

    Returns:
      The chain.
    """
    parts = [
        cwgnc_jax.component_clip_by_global_norm(
            numbers.max_norm,
            COMPONENT_FNS[components],
            axis_name=axis_name,
            nonfinite="zero" if zero_nonfinite else "propagate",
        ),
        cwgnc_jax.scale_by_adam(
            b1, b2, numbers.eps, bias_correction=numbers.bias_correction
        ),
        optax.add_decayed_weights(numbers.weight_decay, cwgnc_jax.decay_mask),  # type: ignore
    ]
    if prior is not None:
        parts.append(cwgnc_jax.add_decayed_weights_towards(prior, numbers.prior_decay))
    if layer_decay:
        parts.append(cwgnc_jax.scale_by_layer_decay(numbers.layer_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(linear_schedule(numbers)))
