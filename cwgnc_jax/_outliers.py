"""Thresholds that tell a component's outliers from the spread of its past norms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._adaptive import clip_by_norms, learnable
from cwgnc_jax._assignment import StackedAxes
from cwgnc_jax._checks import (
    check_count,
    check_eps,
    check_percentile,
    check_positive,
    check_share,
)
from cwgnc_jax._clipping import clip_factor
from cwgnc_jax._components import ComponentFn, by_parameter
from cwgnc_jax._norms import AxisName


class AutoClipState(NamedTuple):
    """The state of :func:`autoclip`."""

    count: jax.Array  # type: ignore
    """The number of steps taken, an int32 scalar."""

    history: jax.Array
    """Float32 ``[components, history_length]``, a ring; 0 where nothing was learned."""


class ZClipState(NamedTuple):
    """The state of :func:`zclip`."""

    learned: jax.Array
    """Int32 ``[components]``: how many norms each has learned from."""

    mean: jax.Array
    """Float32 ``[components]``."""

    variance: jax.Array
    """Float32 ``[components]``."""


def autoclip(
    percentile: ArrayLike = 10.0,
    component_fn: ComponentFn = by_parameter,
    *,
    history_length: int = 1000,
    eps: ArrayLike = 1e-6,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Clips each component to a percentile of its past norms (AutoClip).

    The threshold is the percentile, linearly interpolated, of the component's last
    norms before the clip, the present one included:

    .. math::
      c_t = \text{percentile}\left(\|g_{t - \text{history\_length} + 1}\|, \dots,
      \|g_t\|\right)

    and the component is scaled by :math:`\min(1, c_t / (\|g_t\| + \text{eps}))`. The
    paper's history is that of the global norm, which is ``component_fn=lambda path:
    "all"``, and grows for ever; here its length is fixed and it stays on the device.

    A norm that is zero, NaN or infinite leaves a gap in the history and changes no
    percentile; the updates become what the plain clip makes of them.

    Args:
      percentile: From 0 to 100.
      component_fn: Maps a parameter's "/"-joined path to its component's name.
      history_length: How many steps are remembered: an int, no array.
      eps: Added to the norm, as in :func:`component_clip_by_global_norm`.
      stacked_axes: See :func:`component_clip_by_global_norm`.
      axis_name: See :func:`component_clip_by_global_norm`.
      keep_report: See :func:`component_clip_by_global_norm`.

    Returns:
      An :class:`optax.GradientTransformation`.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If a number lies outside its range, or as
        :func:`component_clip_by_global_norm` does from ``init`` on.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.autoclip(50, eps=0, history_length=8)
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> for size in (1.0, 2.0, 10.0):
      ...     updates, state = tx.update({"w": size * jnp.array([0.6, 0.8])}, state)
      >>> print(jnp.linalg.norm(updates["w"]))
      2.0

    References:
      Seetharaman et al., `AutoClip: Adaptive Gradient Clipping for Source Separation
      Networks <https://arxiv.org/abs/2007.14469>`_, 2020
    """
    check_percentile(percentile)
    check_count("history_length", history_length, 1, static=True)
    check_eps(eps)

    def init(count):
        history = jnp.zeros((count, history_length), jnp.float32)
        return AutoClipState(jnp.zeros((), jnp.int32), history)

    def rule(norms, state):
        learned = jnp.where(learnable(norms), norms, 0.0)
        history = state.history.at[:, state.count % history_length].set(learned)
        known = jnp.where(history > 0, history, jnp.nan)
        thresholds = jnp.nanpercentile(known, percentile, axis=1)
        thresholds = jnp.where(jnp.isnan(thresholds), jnp.inf, thresholds)
        state = AutoClipState(optax.safe_increment(state.count), history)
        return clip_factor(norms, thresholds, eps), state

    return clip_by_norms(
        init,
        rule,
        component_fn,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
        keep_report=keep_report,
    )


def zclip(
    z_threshold: ArrayLike = 2.5,
    component_fn: ComponentFn = by_parameter,
    *,
    decay: ArrayLike = 0.97,
    warmup_steps: ArrayLike = 25,
    eps: ArrayLike = 1e-6,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Clips each component where its norm is an outlier of its past (ZClip).

    With :math:`\mu` and :math:`\sigma` the mean and standard deviation of a
    component's norms, :math:`z_t = (\|g_t\| - \mu) / (\sigma + \text{eps})`. Where it
    exceeds the threshold, the norm is reduced to

    .. math::
      \mu + \frac{\text{z\_threshold}^2}{z_t} \, \sigma

    the further out, the nearer to the mean. The first ``warmup_steps`` norms are not
    clipped; their mean and variance start the averages. Then, with :math:`\hat n` the
    norm after the clip, :math:`\mu \leftarrow \text{decay} \cdot \mu + (1 -
    \text{decay}) \hat n` and, with the new mean, :math:`\sigma^2 \leftarrow
    \text{decay} \cdot \sigma^2 + (1 - \text{decay}) (\hat n - \mu)^2`.

    Rule, defaults and eps are the authors'. They measure the global norm, which is
    ``component_fn=lambda path: "all"``, and their code clips it to 1 besides; put
    :func:`component_clip_by_global_norm` behind this for that. A component learns
    nothing from a norm that is zero, NaN or infinite, which does not count as a step of
    its warm-up either, and its updates become what the plain clip makes of them.

    Args:
      z_threshold: The largest number of standard deviations above the mean.
      component_fn: Maps a parameter's "/"-joined path to its component's name.
      decay: The averages' decay.
      warmup_steps: The number of norms to start from, at least 1.
      eps: Added to the standard deviation, and to the norm as in
        :func:`component_clip_by_global_norm`.
      stacked_axes: See :func:`component_clip_by_global_norm`.
      axis_name: See :func:`component_clip_by_global_norm`.
      keep_report: See :func:`component_clip_by_global_norm`.

    Returns:
      An :class:`optax.GradientTransformation`.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If a number lies outside its range, or as
        :func:`component_clip_by_global_norm` does from ``init`` on.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.zclip(2.0, warmup_steps=2, eps=0)
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> for size in (1.0, 3.0, 6.0):
      ...     updates, state = tx.update({"w": size * jnp.array([0.6, 0.8])}, state)
      >>> print(f"{jnp.linalg.norm(updates['w']):.4f}")
      3.0000

    References:
      Kumar et al., `ZClip: Adaptive Spike Mitigation for LLM Pre-Training
      <https://arxiv.org/abs/2504.02507>`_, 2025; their code is
      https://github.com/bluorion-com/ZClip
    """
    check_positive("z_threshold", z_threshold)
    check_share("decay", decay)
    check_count("warmup_steps", warmup_steps, 1)
    check_eps(eps)

    def init(count):
        # Arrays of their own each, or they could not be donated together.
        return ZClipState(
            jnp.zeros(count, jnp.int32),
            jnp.zeros(count, jnp.float32),
            jnp.zeros(count, jnp.float32),
        )

    def rule(norms, state):
        learned, mean, variance = state
        deviation = jnp.sqrt(variance)
        z = (norms - mean) / (deviation + eps)
        # Not z > z_threshold, so that NaN counts as an outlier and stays NaN.
        outlier = (learned >= warmup_steps) & ~(z <= z_threshold)
        reduced = mean + z_threshold**2 * deviation / jnp.where(outlier, z, 1.0)
        thresholds = jnp.where(outlier, reduced, jnp.inf)
        coefficients = clip_factor(norms, thresholds, eps)

        kept = jnp.minimum(norms, thresholds)
        # The plain mean of the warm-up is an average whose decay is n / (n + 1).
        share = jnp.where(learned < warmup_steps, 1 / (learned + 1), 1 - decay)
        next_mean = mean + share * (kept - mean)
        # What a mean of squares needs where the average above takes the new mean.
        other = jnp.where(learned < warmup_steps, mean, next_mean)
        next_variance = variance + share * (
            (kept - next_mean) * (kept - other) - variance
        )
        learns = learnable(norms)
        return coefficients, ZClipState(
            learned + learns,
            jnp.where(learns, next_mean, mean),
            jnp.where(learns, next_variance, variance),
        )

    return clip_by_norms(
        init,
        rule,
        component_fn,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
        keep_report=keep_report,
    )
