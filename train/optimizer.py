"""From the config to the schedule to the chain of Optax."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

import cwgnc_jax
from train.config import CLIP_NUMBERS, OptimizerConfig, RegularizationConfig

COMPONENT_FNS = {
    "by_parameter": cwgnc_jax.by_parameter,
    "by_module": cwgnc_jax.by_module,
    "by_module_type": cwgnc_jax.by_module_type,
    "by_layer": cwgnc_jax.by_layer,
    "global": lambda path: "all",
}

CLIPS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adagc": cwgnc_jax.adagc,
    "aggc": cwgnc_jax.aggc,
    "olmo": cwgnc_jax.olmo_clip,
    "autoclip": cwgnc_jax.autoclip,
    "zclip": cwgnc_jax.zclip,
}
"""The clips whose thresholds are learned; their numbers are ``CLIP_NUMBERS``."""


class Hyperparameters(NamedTuple):
    """The numbers of a run: arrays, so that runs with different ones share a program.

    Each is a scalar; ``dropout_rate`` may be None for the model's own rates. ``clip``
    holds the numbers of a learned threshold by name, None for one that is given.
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
    clip: dict[str, ArrayLike] | None = None


def hyperparameters(
    optimizer: OptimizerConfig, regularization: RegularizationConfig, total_steps: int
) -> Hyperparameters:
    """Turns a config's numbers into numpy's; warm-up is rounded up to whole steps."""
    dropout = regularization.dropout
    return Hyperparameters(
        learning_rate=np.float32(optimizer.learning_rate),
        warmup_steps=np.int32(math.ceil(optimizer.warmup_ratio * total_steps)),
        total_steps=np.int32(total_steps),
        max_norm=np.float32(optimizer.max_norm),
        eps=np.float32(optimizer.eps),
        bias_correction=np.bool_(optimizer.bias_correction),
        weight_decay=np.float32(optimizer.weight_decay),
        prior_decay=np.float32(optimizer.prior_decay),
        layer_decay=np.float32(optimizer.layer_decay),
        mixout_rate=np.float32(regularization.mixout),
        dropout_rate=None if dropout is None else np.float32(dropout),
        clip={name: np.float32(x) for name, x in _clip_numbers(optimizer)} or None,
    )


def check_clip(optimizer: OptimizerConfig) -> None:
    """Raises a ValueError if a number of a learned threshold lies outside its range."""
    if optimizer.clip != "fixed":
        try:
            CLIPS[optimizer.clip](**dict(_clip_numbers(optimizer)))
        except ValueError as error:
            raise ValueError(f"--clip-numbers: {error}") from None


def _clip_numbers(optimizer: OptimizerConfig) -> list[tuple[str, float]]:
    numbers = CLIP_NUMBERS[optimizer.clip] | optimizer.clip_numbers
    return sorted(numbers.items())


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


def make_clip(
    numbers: Hyperparameters,
    clip: str,
    components: str,
    *,
    zero_nonfinite: bool = False,
    axis_name: str | None = None,
) -> optax.GradientTransformation:
    """The clip, from numbers that may be traced.

    One whose thresholds are learned keeps a report; one whose threshold is given has no
    state.

    Args:
      numbers: The run's hyperparameters.
      clip: ``fixed``, or a key of ``CLIPS``.
      components: What is clipped as one, a key of ``COMPONENT_FNS``.
      zero_nonfinite: Whether components whose gradient is not finite take no part.
      axis_name: Of the devices that parameters are split over, if they are.

    Returns:
      The transformation.
    """
    component_fn = COMPONENT_FNS[components]
    if clip == "fixed":
        return cwgnc_jax.component_clip_by_global_norm(
            numbers.max_norm,
            component_fn,
            axis_name=axis_name,
            nonfinite="zero" if zero_nonfinite else "propagate",
        )
    assert numbers.clip is not None
    return CLIPS[clip](
        component_fn=component_fn,
        axis_name=axis_name,
        keep_report=True,
        **numbers.clip,
    )


def make_optimizer(
    numbers: Hyperparameters,
    clip: optax.GradientTransformation,
    b1: float,
    b2: float,
    *,
    prior: Any = None,
    layer_decay: bool = False,
) -> optax.GradientTransformation:
    """The clip, Adam, the decays and the schedule, from numbers that may be traced.

    Without ``prior`` and ``layer_decay``, and with a fixed threshold, this is
    ``cwgnc_jax.cwgnc_adamw``.

    Args:
      numbers: The run's hyperparameters.
      clip: See :func:`make_clip`.
      b1: Decay of Adam's first moment.
      b2: Decay of Adam's second moment.
      prior: Decay towards these parameters, if at all.
      layer_decay: Whether lower layers have smaller learning rates.

    Returns:
      The chain.
    """
    parts = [
        clip,
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
