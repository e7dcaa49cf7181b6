"""Clips by thresholds that tell outliers from the spread of past norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._assignment import StackedAxes
from cwgnc_jax._checks import (
    check_count,
    check_nonnegative,
    check_percentile,
    check_positive,
    check_share,
    check_threshold,
)
from cwgnc_jax._clipping import ClipOptions, clip_factor
from cwgnc_jax._components import ComponentFn
from cwgnc_jax._learned import learnable, learned_clip, zeros
from cwgnc_jax._norms import AxisName

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class AutoClipState(NamedTuple):
    """The state of :func:`autoclip`."""

    count: Int[jax.Array, ""]  # type: ignore[assignment]  # shadows tuple.count
    """The number of steps taken."""

    history: Float[jax.Array, "components history_length"]
    """Past norms in float32, the oldest overwritten first; 0 where none was learned."""


class ZClipState(NamedTuple):
    """The state of :func:`zclip`."""

    learned: Int[jax.Array, " components"]
    """How many norms each component has learned from."""

    mean: Float[jax.Array, " components"]
    """The average of a component's norms, in float32."""

    variance: Float[jax.Array, " components"]
    """The average of their squared distances from the mean, in float32."""


def autoclip(
    percentile: ArrayLike = 10.0,
    component_fn: ComponentFn | None = None,
    *,
    history_length: int = 1000,
    eps: ArrayLike = 1e-6,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Clips each component to a percentile of its past norms (AutoClip).

    The threshold is a percentile, linearly interpolated, of the component's most recent
    norms before the clip, including the current one:

    .. math::
      c_t = \text{percentile}\left(\|g_{t - \text{history\_length} + 1}\|, \dots,
      \|g_t\|\right)

    and the component is scaled by :math:`\min(1, c_t / (\|g_t\| + \text{eps}))`. The
    paper keeps the history of the global norm, which is ``component_fn=lambda path:
    "all"``, and never forgets a norm, which is a ``history_length`` of at least the
    total number of steps. The history stays on the device, four bytes for each norm of
    each component.

    A norm that is zero, NaN or infinite leaves a gap in the history and does not count
    in the percentile; where there is one such updates are treated as in
    :func:`component_clip_by_global_norm`, elsewhere they pass.

    Args:
      percentile: From 0 to 100.
      component_fn: Maps a parameter's "/"-joined path to its component's name; None is
        :func:`by_parameter`.
      history_length: How many steps are remembered: an int, not an array. The paper's
        unbounded history is the total number of steps or more.
      eps: Added to the norm, as in :func:`component_clip_by_global_norm`.
      stacked_axes, axis_name, keep_report: See
        :func:`component_clip_by_global_norm`.

    Returns:
      An :class:`optax.GradientTransformation` whose state holds the history.

    Raises:
      TypeError: If ``history_length`` is not an int, or another argument is of the
        wrong kind.
      ValueError: If ``percentile`` lies outside [0, 100], ``history_length`` is less
        than 1, or ``eps`` is negative; from ``init`` on as
        :func:`component_clip_by_global_norm` does.

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
    check_nonnegative("eps", eps)

    def init(components: int) -> AutoClipState:
        history = jnp.zeros((components, history_length), jnp.float32)
        return AutoClipState(jnp.zeros((), jnp.int32), history)

    def rule(
        norms: Float[jax.Array, " components"], state: AutoClipState
    ) -> tuple[Float[jax.Array, " components"], AutoClipState]:
        learned = jnp.where(learnable(norms), norms, 0.0)
        history = state.history.at[:, state.count % history_length].set(
            learned.astype(state.history.dtype)
        )
        known = jnp.where(history > 0, history, jnp.nan)
        thresholds = jnp.nanpercentile(known, percentile, axis=1)
        thresholds = jnp.where(jnp.isnan(thresholds), jnp.inf, thresholds)
        count = jnp.asarray(optax.safe_increment(state.count))
        return clip_factor(norms, thresholds, eps), AutoClipState(count, history)

    options = ClipOptions(
        stacked_axes=stacked_axes, axis_name=axis_name, keep_report=keep_report
    )
    return learned_clip(init, rule, component_fn, options)


def zclip(
    z_threshold: ArrayLike = 2.5,
    component_fn: ComponentFn | None = None,
    *,
    decay: ArrayLike = 0.97,
    warmup_steps: ArrayLike = 25,
    max_global_norm: ArrayLike = float("inf"),
    eps: ArrayLike = 1e-6,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Clips each component whose norm is an outlier among its past norms (ZClip).

    With :math:`\mu` and :math:`\sigma` the mean and standard deviation of a
    component's norms, :math:`z_t = (\|g_t\| - \mu) / (\sigma + \text{eps})`. Where
    :math:`z_t` exceeds the threshold, the norm is reduced to

    .. math::
      \mu + \frac{\text{z\_threshold}^2}{z_t} \, \sigma

    so an outlier that lies further out ends nearer to the mean. The first
    ``warmup_steps`` norms are not clipped; their mean and variance start the averages.
    After that, with :math:`\hat n` the norm after the clip, :math:`\mu \leftarrow
    \text{decay} \cdot \mu + (1 - \text{decay}) \hat n` and, with the new mean,
    :math:`\sigma^2 \leftarrow \text{decay} \cdot \sigma^2 + (1 - \text{decay})
    (\hat n - \mu)^2`.

    With ``max_global_norm`` all components together are then clipped by their global
    norm, in every step and so also during the warm-up. What the averages learn is
    :math:`\hat n`, without this cap.

    Rule, numbers and eps are the paper's, which measures the global norm:
    ``component_fn=lambda path: "all"``. The authors' code caps it at 1 by default, for
    which ``max_global_norm=1.0`` is needed too. Where norms are around 1 or above, the
    cap clips far more steps than the rule.

    A component learns nothing from a norm that is zero, NaN or infinite, which does not
    count as a step of its warm-up; after it such updates are treated as in
    :func:`component_clip_by_global_norm`, during it they pass. Under the cap a NaN
    spreads to all components, as with any global clip.

    Args:
      z_threshold: The largest number of standard deviations above the mean.
      component_fn: Maps a parameter's "/"-joined path to its component's name; None is
        :func:`by_parameter`.
      decay: The averages' decay.
      warmup_steps: The number of norms that start the averages, at least 1.
      max_global_norm: The largest norm that all components together may keep, or
        ``inf``.
      eps: Added to the standard deviation, and to the norm as in
        :func:`component_clip_by_global_norm`.
      stacked_axes, axis_name, keep_report: See
        :func:`component_clip_by_global_norm`.

    Returns:
      An :class:`optax.GradientTransformation` whose state holds the mean and variance
      of each component's norms.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If ``z_threshold`` or ``max_global_norm`` is not positive, ``decay``
        lies outside [0, 1), ``warmup_steps`` is less than 1, or ``eps`` is negative;
        from ``init`` on as :func:`component_clip_by_global_norm` does.

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
    check_threshold("max_global_norm", max_global_norm)
    check_nonnegative("eps", eps)

    def init(components: int) -> ZClipState:
        # Separate arrays for mean and variance: one array cannot be donated twice.
        return ZClipState(
            learned=jnp.zeros(components, jnp.int32),
            mean=zeros(components),
            variance=zeros(components),
        )

    def rule(
        norms: Float[jax.Array, " components"], state: ZClipState
    ) -> tuple[Float[jax.Array, " components"], ZClipState]:
        learned, mean, variance = state
        deviation = jnp.sqrt(variance)
        z = (norms - mean) / (deviation + eps)
        # Unlike z > z_threshold this marks NaN as an outlier, so that it stays NaN.
        outlier = (learned >= warmup_steps) & ~(z <= z_threshold)
        reduced = mean + z_threshold**2 * deviation / jnp.where(outlier, z, 1.0)
        thresholds = jnp.where(outlier, reduced, jnp.inf)
        coefficients = clip_factor(norms, thresholds, eps)

        kept = jnp.minimum(norms, thresholds)
        together = jnp.sqrt(jnp.sum(kept**2))
        coefficients *= clip_factor(together, max_global_norm, eps)

        # The plain mean of the warm-up is an average with a decay of n / (n + 1).
        share = jnp.where(learned < warmup_steps, 1 / (learned + 1), 1 - decay)
        next_mean = mean + share * (kept - mean)
        # The plain variance needs the old mean here (Welford), the average the new one.
        other = jnp.where(learned < warmup_steps, mean, next_mean)
        next_variance = variance + share * (
            (kept - next_mean) * (kept - other) - variance
        )
        learns = learnable(norms)
        return coefficients, ZClipState(
            learned=learned + learns,
            mean=jnp.where(learns, next_mean, mean),
            variance=jnp.where(learns, next_variance, variance),
        )

    options = ClipOptions(
        stacked_axes=stacked_axes, axis_name=axis_name, keep_report=keep_report
    )
    return learned_clip(init, rule, component_fn, options)
