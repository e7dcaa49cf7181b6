"""From numbers that may be traced to the chain of Optax."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

import cwgnc_jax
from cwgnc_train.config import (
    CLIP_NUMBERS,
    OptimizerConfig,
    RegularizationConfig,
    UserError,
)

COMPONENT_FNS = {
    "by_parameter": cwgnc_jax.by_parameter,
    "by_module": cwgnc_jax.by_module,
    "by_module_type": cwgnc_jax.by_module_type,
    "by_layer": cwgnc_jax.by_layer,
    "global": lambda path: "all",
}

_LEARNED_CLIPS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adagc": cwgnc_jax.adagc,
    "aggc": cwgnc_jax.aggc,
    "olmo": cwgnc_jax.olmo_clip,
    "autoclip": cwgnc_jax.autoclip,
    "zclip": cwgnc_jax.zclip,
}


class Hparams(NamedTuple):
    """The numbers of a run: arrays, so that runs with different ones share a program.

    Each is a scalar; ``dropout_rate`` may be None for the model's own rates. ``clip``
    holds the numbers of a learned threshold by name; None for a fixed one.
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


def make_hparams(
    optimizer: OptimizerConfig, regularization: RegularizationConfig, total_steps: int
) -> Hparams:
    """Turns a config's numbers into NumPy's; warm-up is rounded up to whole steps."""
    dropout = regularization.dropout
    return Hparams(
        learning_rate=np.float32(optimizer.learning_rate),
        warmup_steps=np.int32(math.ceil((optimizer.warmup_ratio or 0) * total_steps)),
        total_steps=np.int32(total_steps),
        max_norm=np.float32(optimizer.max_norm),
        eps=np.float32(optimizer.eps),
        bias_correction=np.bool_(optimizer.bias_correction),
        weight_decay=np.float32(optimizer.weight_decay or 0),
        prior_decay=np.float32(optimizer.prior_decay),
        layer_decay=np.float32(optimizer.layer_decay),
        mixout_rate=np.float32(regularization.mixout),
        dropout_rate=None if dropout is None else np.float32(dropout),
        clip={name: np.float32(x) for name, x in _clip_numbers(optimizer)} or None,
    )


def check_clip(optimizer: OptimizerConfig) -> None:
    """Raises a UserError if a number of a learned threshold is out of range."""
    if optimizer.clip != "fixed":
        try:
            _LEARNED_CLIPS[optimizer.clip](**dict(_clip_numbers(optimizer)))
        except ValueError as error:
            raise UserError(f"--clip-numbers: {error}") from None


def linear_schedule(hparams: Hparams) -> optax.Schedule:
    """Returns a schedule that rises from 0 and falls to 0 at the last step.

    The rate of step t, counted from 0, is lr·t/w for t < w and lr·(T - t)/(T - w) from
    then on, for w steps of warm-up and T steps in all.
    """

    def schedule(step):
        warmup, total = hparams.warmup_steps, hparams.total_steps
        rising = step / jnp.maximum(warmup, 1)
        falling = (total - step) / jnp.maximum(total - warmup, 1)
        share = jnp.where(step < warmup, rising, jnp.maximum(falling, 0.0))
        return hparams.learning_rate * share

    return schedule


def make_clip(
    hparams: Hparams, clip: str, components: str, *, zero_nonfinite: bool = False
) -> optax.GradientTransformation:
    """Makes the clip, from numbers that may be traced; it keeps a report.

    Args:
      hparams: The run's numbers.
      clip: ``fixed``, or the name of a learned clip.
      components: What is clipped together, a key of ``COMPONENT_FNS``.
      zero_nonfinite: Whether to zero components whose gradient is not finite.

    Returns:
      The transformation.
    """
    component_fn = COMPONENT_FNS[components]
    if clip == "fixed":
        return cwgnc_jax.component_clip_by_global_norm(
            hparams.max_norm,
            component_fn,
            nonfinite="zero" if zero_nonfinite else "propagate",
            keep_report=True,
        )
    assert hparams.clip is not None
    return _LEARNED_CLIPS[clip](
        component_fn=component_fn, keep_report=True, **hparams.clip
    )


def make_optimizer(
    hparams: Hparams,
    clip: optax.GradientTransformation,
    *,
    learning_rate: ArrayLike,
    b1: float,
    b2: float,
    prior: Any = None,
    layer_decay: bool = False,
) -> optax.GradientTransformation:
    """Chains the clip, Adam, the decays and the learning rate of one step.

    Without ``prior`` and ``layer_decay``, and with a fixed threshold, this is
    ``cwgnc_jax.cwgnc_adamw``.

    Args:
      hparams: The run's numbers, which may be traced.
      clip: See :func:`make_clip`.
      learning_rate: The rate of this step. The schedule counts the run's steps, not
        the optimizer's, so that a skipped step is a step of the schedule.
      b1: Decay of Adam's first moment.
      b2: Decay of Adam's second moment.
      prior: Parameters to decay towards, if any.
      layer_decay: Whether lower layers have smaller learning rates.

    Returns:
      The chain.
    """
    parts = [
        clip,
        cwgnc_jax.scale_by_adam(
            b1, b2, hparams.eps, bias_correction=hparams.bias_correction
        ),
        # Optax types the rate as a float; a traced scalar works as well.
        optax.add_decayed_weights(hparams.weight_decay, cwgnc_jax.decay_mask),  # type: ignore
    ]
    if prior is not None:
        parts.append(cwgnc_jax.add_decayed_weights_towards(prior, hparams.prior_decay))
    if layer_decay:
        parts.append(cwgnc_jax.scale_by_layer_decay(hparams.layer_decay))
    # The same.
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))  # type: ignore


def _clip_numbers(optimizer: OptimizerConfig) -> list[tuple[str, float]]:
    numbers = CLIP_NUMBERS[optimizer.clip] | optimizer.clip_numbers
    return sorted(numbers.items())
