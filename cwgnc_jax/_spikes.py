"""What to do about a step whose gradient is a spike: leave it out, or forget it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from cwgnc_jax._adam import scale_by_adam
from cwgnc_jax._assignment import assign
from cwgnc_jax._checks import (
    check_count,
    check_inexact,
    check_positive,
    check_threshold,
    check_transformation,
)
from cwgnc_jax._norms import AxisName, roots, squared_norms
from cwgnc_jax._tree_paths import places

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class SpikeSkipState(NamedTuple):
    """The state of :func:`spike_skip`."""

    inner_state: Any

    count: Int[jax.Array, ""]  # type: ignore[assignment]  # shadows tuple.count
    """How many finite norms there were."""

    norms: Float[jax.Array, " window"]
    """The last of them in float32, the oldest overwritten first."""

    skipped: Int[jax.Array, ""]
    """How many steps were skipped."""


def spike_skip(
    inner: optax.GradientTransformation,
    sigmas: ArrayLike = 6.0,
    *,
    window: int = 128,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Leaves out steps whose global gradient norm is an outlier among recent ones.

    With :math:`\mu` and :math:`\sigma` the mean and standard deviation of the last
    ``window`` norms before this one, a step is skipped if

    .. math::
      \|g_t\| > \mu + \text{sigmas} \cdot \sigma

    that is, its updates are zero and the state of ``inner`` does not change: neither
    moments nor counts nor schedules know of it. A finite norm is judged only once it
    and those before it fill half of the window, and at least two came before it. A
    skipped norm enters the window, so that a new level of norms is soon no outlier any
    more.

    A norm that is NaN or infinite, also one whose square overflows float32, is skipped
    from the first step on and does not enter the window.

    Rule and defaults are those of OLMo-core and MaxText, with the sample standard
    deviation, but for two points. They judge the loss in the same way, which a
    transformation of gradients does not see. And they take a step with a NaN as long as
    the window is not half full, and let NaN into the window. Where the two differ we
    follow MaxText: OLMo-core also skips a norm that lies as far below the mean, and
    never judges with fewer than 19 norms.

    Args:
      inner: The transformation that takes no part in a skipped step: the whole
        optimizer, or all but what must go on.
      sigmas: How many standard deviations above the mean a norm may lie.
      window: How many norms are remembered: an int of at least 4, not an array.
      axis_name: See :func:`component_clip_by_global_norm`.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` whose state holds that of
      ``inner``, the window, and the number of skipped steps.

    Raises:
      TypeError: If ``inner`` is not a transformation, ``window`` is not an int, or
        ``sigmas`` is not a number; from ``init`` on if a leaf is of an integer dtype.
      ValueError: If ``sigmas`` is not positive or ``window`` is less than 4; in
        ``update`` if a leaf is sharded inside ``jax.shard_map`` and ``axis_name`` is
        None.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = cwgnc_jax.spike_skip(optax.sgd(1.0), window=4)
      >>> state = tx.init({"w": jnp.zeros(())})
      >>> for size in (1.0, 2.0, 100.0, 1.5):
      ...     updates, state = tx.update({"w": jnp.array(size)}, state)
      ...     print(updates["w"])
      -1.0
      -2.0
      0.0
      -1.5
      >>> int(state.skipped)
      1

    References:
      ``src/olmo_core/optim/skip_step_optimizer.py`` of
      https://github.com/allenai/OLMo-core; ``skip_step_on_spikes`` in
      ``src/maxtext/optimizers/optimizers.py`` of
      https://github.com/AI-Hypercomputer/maxtext

    .. seealso:: :func:`optax.apply_if_finite`, which looks for NaN and infinity only.
    """
    check_transformation("inner", inner)
    check_positive("sigmas", sigmas)
    check_count("window", window, 4, static=True)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> SpikeSkipState:
        check_inexact(places(params).leaves)
        return SpikeSkipState(
            inner_state=inner.init(params),
            count=jnp.zeros((), jnp.int32),
            norms=jnp.zeros(window, jnp.float32),
            skipped=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SpikeSkipState]:
        inner_state, count, norms, skipped = state
        assigned = assign(updates, lambda path: "all", None)
        check_inexact((part.path, part.leaf) for part in assigned.parts)
        norm = jnp.sum(roots(squared_norms([assigned], axis_name)[0]))
        norm = norm.astype(jnp.float32)
        finite = jnp.isfinite(norm)
        takes = finite & ~_is_outlier(norm, norms, count, sigmas)

        # Both are computed, and the compiler selects where it writes the new ones.
        updates, next_state = inner.update(updates, inner_state, params, **extra_args)
        updates = _selected(takes, updates, optax.tree.zeros_like(updates))
        inner_state = _selected(takes, next_state, inner_state)
        learned = norms.at[count % window].set(norm)
        return updates, SpikeSkipState(
            inner_state=inner_state,
            count=jnp.where(finite, optax.safe_increment(count), count),
            norms=jnp.where(finite, learned, norms),
            skipped=jnp.where(takes, skipped, optax.safe_increment(skipped)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _selected(condition: Bool[jax.Array, ""], new: Any, old: Any) -> Any:
    def select(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(condition, new, old)

    return jax.tree.map(select, new, old)


def _is_outlier(
    norm: Float[jax.Array, ""],
    norms: Float[jax.Array, " window"],
    count: Int[jax.Array, ""],
    sigmas: ArrayLike,
) -> Bool[jax.Array, ""]:
    window = len(norms)
    known = jnp.minimum(count, window)
    is_known = jnp.arange(window) < known
    # As multiples of the largest, so that no square leaves the range of float32.
    unit = jnp.maximum(jnp.max(norms), np.finfo(np.float32).tiny)
    past = norms / unit
    mean = jnp.sum(past, where=is_known) / jnp.maximum(known, 1)
    squares = jnp.sum((past - mean) ** 2, where=is_known)
    deviation = jnp.sqrt(squares / jnp.maximum(known - 1, 1))
    return (known + 1 >= max(3, window // 2)) & (
        norm / unit - mean > sigmas * deviation
    )


def scale_by_spam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-6,
    *,
    interval: ArrayLike = 500,
    threshold: ArrayLike = 5000.0,
    spared_steps: ArrayLike = 20,
    warmup_steps: ArrayLike = 150,
) -> optax.GradientTransformation:
    r"""Rescales updates by Adam that clips spikes and forgets its moments (SPAM).

    This is :func:`scale_by_adam` with three additions. In each step :math:`t` that is a
    multiple of ``interval`` both moments start anew from zero, so that a spike is felt
    for at most so long. Each element of a gradient is clipped by its own past:

    .. math::
      \hat g_t = \operatorname{sign}(g_t) \min\left(|g_t|,
      \sqrt{\text{threshold} \cdot v_{t-1}}\right)

    where :math:`k = t \bmod \text{interval}` is at least ``spared_steps``. And from the
    first reset on, the updates of steps with :math:`k < \text{warmup\_steps}` are
    scaled by

    .. math::
      1 - 0.99 \cdot \frac{1}{2}
      \left(1 + \cos\frac{\pi k}{\text{warmup\_steps} + 1}\right)

    Rule and defaults are those of the authors' code, in which Adam's bias correction
    counts on at a reset, too. In three points we differ. An element whose second moment
    is zero is not clipped; theirs would be zero until the next reset, such as the row
    of a word that is not in the first batches. We have no momentum for only a part of a
    matrix. And weight decay is a transformation of its own.

    An infinite element is clipped like any other: not in the spared steps, nor where
    the second moment is zero. What is not clipped, and NaN, stays in the moments until
    the next reset.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the root of the uncorrected second moment.
      interval: The number of steps between resets.
      threshold: How many times its second moment the square of an element may be;
        ``inf`` for no clipping.
      spared_steps: The number of steps without clipping from each reset on, in which
        the second moment is still far too small.
      warmup_steps: The number of steps with reduced updates from each reset on.

    Returns:
      An :class:`optax.GradientTransformation` with an
      :class:`optax.ScaleByAdamState`.

    Raises:
      TypeError: If an argument is not a number; from ``init`` on if a leaf is of an
        integer dtype.
      ValueError: If a decay lies outside [0, 1), ``eps``, ``spared_steps`` or
        ``warmup_steps`` is negative, ``interval`` is less than 1, or ``threshold`` is
        not positive.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.scale_by_spam(interval=3, warmup_steps=1)
      >>> state = tx.init(jnp.zeros(()))
      >>> for grad in (1.0, 1e6, 1.0):
      ...     updates, state = tx.update(jnp.array(grad), state)
      >>> print(f"{state.mu:.2f}")  # The moments know the last gradient only.
      0.10

    References:
      Huang et al., `SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training
      <https://arxiv.org/abs/2501.06842>`_, 2025; their code is
      https://github.com/TianjinYellow/SPAM-Optimizer
    """
    adam = scale_by_adam(b1, b2, eps)
    check_count("interval", interval, 1)
    check_threshold("threshold", threshold)
    check_count("spared_steps", spared_steps, 0)
    check_count("warmup_steps", warmup_steps, 0)

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        step = jnp.asarray(optax.safe_increment(state.count))
        since_reset = jnp.asarray(step % jnp.asarray(interval))
        spared = since_reset < jnp.asarray(spared_steps)
        warming = (step >= jnp.asarray(interval)) & (
            since_reset < jnp.asarray(warmup_steps)
        )
        moments = (state.mu, state.nu)
        mu, nu = _selected(since_reset == 0, optax.tree.zeros_like(moments), moments)

        def clip(grad: jax.Array | None, square: jax.Array) -> jax.Array | None:
            if grad is None:
                return grad
            wide = jnp.promote_types(square.real.dtype, jnp.float32)
            largest = jnp.sqrt(threshold * square.real.astype(wide))
            too_large = (jnp.abs(grad) > largest) & (largest > 0)
            clipped = jnp.sign(grad) * largest
            return jnp.where(too_large & ~spared, clipped, grad).astype(grad.dtype)

        updates = jax.tree.map(clip, updates, nu, is_leaf=lambda node: node is None)
        updates, state = adam.update(updates, state._replace(mu=mu, nu=nu))
        angle = jnp.pi * since_reset / (1 + jnp.asarray(warmup_steps))
        share = jnp.where(warming, 1 - 0.99 * (1 + jnp.cos(angle)) / 2, 1.0)

        def scale(update: jax.Array) -> jax.Array:
            return (share * update).astype(update.dtype)

        return jax.tree.map(scale, updates), state

    return optax.GradientTransformation(adam.init, update_fn)
