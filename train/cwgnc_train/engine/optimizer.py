"""The numbers of a run, which may be traced, and the clips by name."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

import cwgnc_jax
from cwgnc_train.config import OptimizerConfig, RegularizationConfig, UserError

COMPONENT_FNS = {
    "by_parameter": cwgnc_jax.by_parameter,
    "by_module": cwgnc_jax.by_module,
    "by_module_type": cwgnc_jax.by_module_type,
    "by_layer": cwgnc_jax.by_layer,
    "global": lambda path: "all",
}

LEARNED_CLIPS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adagc": cwgnc_jax.adagc,
    "aggc": cwgnc_jax.aggc,
    "olmo": cwgnc_jax.olmo_clip,
    "autoclip": cwgnc_jax.autoclip,
    "zclip": cwgnc_jax.zclip,
}


class Hparams(NamedTuple):
    """The numbers of a run: scalar arrays, so that runs that differ share a program.

    ``dropout_rate`` is None for the model's own rates. ``clip`` holds the numbers of a
    learned threshold by name; None for a fixed one.
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
            LEARNED_CLIPS[optimizer.clip](**dict(_clip_numbers(optimizer)))
        except ValueError as error:
            raise UserError(f"--clip-numbers: {error}") from None


def scheduled_rate(hparams: Hparams, step: ArrayLike) -> Array:
    """Returns the learning rate of a step: it rises from 0 and falls to 0 at the last.

    The rate of step t, counted from 0, is lr·t/w for t < w and lr·(T - t)/(T - w) from
    then on, for w steps of warm-up and T steps in all.
    """
    warmup, total = map(jnp.asarray, (hparams.warmup_steps, hparams.total_steps))
    rising = step / jnp.maximum(warmup, 1)
    falling = (total - step) / jnp.maximum(total - warmup, 1)
    share = jnp.where(step < warmup, rising, jnp.maximum(falling, 0.0))
    return jnp.multiply(hparams.learning_rate, share)


def _clip_numbers(optimizer: OptimizerConfig) -> list[tuple[str, float]]:
    return sorted(optimizer.all_clip_numbers.items())
