"""Clips by thresholds that follow an average of each component's past norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._assignment import StackedAxes
from cwgnc_jax._checks import (
    check_at_least,
    check_count,
    check_flag,
    check_interval,
    check_nonnegative,
    check_positive,
    check_share,
    check_threshold,
    is_known,
)
from cwgnc_jax._clipping import ClipOptions, clip_factor
from cwgnc_jax._components import ComponentFn, by_module_type
from cwgnc_jax._learned import averaged, learned, learned_clip, multiple, zeros
from cwgnc_jax._norms import AxisName

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class AdaGCState(NamedTuple):
    """The state of :func:`adagc`."""

    count: Int[jax.Array, ""]  # type: ignore[assignment]  # shadows tuple.count
    """The number of steps taken."""

    average: Float[jax.Array, " components"]
    """In float32; 0 for a component that has learned nothing yet."""


class AGGCState(NamedTuple):
    """The state of :func:`aggc`."""

    average: Float[jax.Array, " components"]
    """In float32; 0 for a component that has learned nothing yet."""


class OlmoClipState(NamedTuple):
    """The state of :func:`olmo_clip`."""

    count: Int[jax.Array, ""]  # type: ignore[assignment]  # shadows tuple.count
    """The number of steps taken."""

    average: Float[jax.Array, " components"]
    """In float32; 0 for a component that has learned nothing yet."""


def adagc(
    ratio: ArrayLike = 1.05,
    component_fn: ComponentFn | None = None,
    *,
    decay: ArrayLike = 0.98,
    max_global_norm: ArrayLike = 1.0,
    warmup_steps: ArrayLike = 100,
    eps: ArrayLike = 0.0,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Clips each component relative to the average of its past norms (AdaGC).

    With :math:`\gamma` the average of a component and :math:`\hat g` its clipped
    updates,

    .. math::
      \hat g_t = \min\left(1, \frac{\text{ratio} \cdot \gamma_{t-1}}{\|g_t\|}\right) g_t
      \qquad
      \gamma_t = \text{decay} \cdot \gamma_{t-1} + (1 - \text{decay}) \|\hat g_t\|

    During the warm-up all components are clipped together by their global norm, and
    :math:`\gamma` is the smallest clipped norm so far.

    A component learns nothing from a norm that is zero, NaN or infinite; where it has a
    threshold such updates are treated as in :func:`component_clip_by_global_norm`,
    elsewhere they pass. During the warm-up a NaN spreads to all components, as with any
    global clip, and none learns from that step. A component that has learned nothing by
    the end of the warm-up learns from its first norm and is clipped from its second
    norm on.

    Rule and defaults are the paper's. The authors' published code sets ``ratio`` to
    1.04 and ``decay`` to 0.99, and adds 1e-6 to a norm before it clips. Here
    ``eps=1e-6`` shrinks a component whose norms are far below 1e-6 to almost nothing.

    Args:
      ratio: How far a norm may exceed the average.
      component_fn: Maps a parameter's "/"-joined path to its component's name; None is
        :func:`by_parameter`.
      decay: The average's decay.
      max_global_norm: The threshold of the global norm during the warm-up.
      warmup_steps: The number of steps with the global clip.
      eps: Added to the norm, as in :func:`component_clip_by_global_norm`.
      stacked_axes, axis_name, keep_report: See
        :func:`component_clip_by_global_norm`.

    Returns:
      An :class:`optax.GradientTransformation` whose state holds the number of steps and
      the averages.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If ``ratio`` or ``max_global_norm`` is not positive, ``decay`` lies
        outside [0, 1), or ``warmup_steps`` or ``eps`` is negative; from ``init`` on as
        :func:`component_clip_by_global_norm` does.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.adagc(warmup_steps=1)
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> for size in (1.0, 10.0):
      ...     updates, state = tx.update({"w": size * jnp.array([0.6, 0.8])}, state)
      >>> print(jnp.linalg.norm(updates["w"]))
      1.05

    References:
      Wang et al., `AdaGC: Enhancing LLM Pretraining Stability via Adaptive Gradient
      Clipping <https://arxiv.org/abs/2502.11034>`_, 2025; their code is
      https://github.com/lishuai-97/AdaGC
    """
    check_threshold("ratio", ratio)
    check_share("decay", decay)
    check_threshold("max_global_norm", max_global_norm)
    check_count("warmup_steps", warmup_steps, 0)
    check_nonnegative("eps", eps)

    def init(components: int) -> AdaGCState:
        return AdaGCState(jnp.zeros((), jnp.int32), zeros(components))

    def rule(
        norms: Float[jax.Array, " components"], state: AdaGCState
    ) -> tuple[Float[jax.Array, " components"], AdaGCState]:
        warming = state.count < warmup_steps
        together = clip_factor(jnp.sqrt(jnp.sum(norms**2)), max_global_norm, eps)
        apart = clip_factor(norms, multiple(ratio, state.average), eps)
        coefficients = jnp.where(warming, together, apart)
        clipped = coefficients * norms
        smallest = learned(state.average, clipped, jnp.minimum(state.average, clipped))
        average = jnp.where(warming, smallest, averaged(state.average, clipped, decay))
        count = jnp.asarray(optax.safe_increment(state.count))
        return coefficients, AdaGCState(count, average)

    options = ClipOptions(
        stacked_axes=stacked_axes, axis_name=axis_name, keep_report=keep_report
    )
    return learned_clip(init, rule, component_fn, options)


def aggc(
    low: ArrayLike,
    high: ArrayLike,
    component_fn: ComponentFn | None = None,
    *,
    decay: ArrayLike = 0.98,
    min_factor: ArrayLike = 0.0,
    max_factor: ArrayLike = float("inf"),
    floor: ArrayLike = 0.0,
    raise_small: ArrayLike = True,
    eps: ArrayLike = 0.0,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Keeps each component's norm in an interval around its past average (AGGC).

    Let :math:`S` be the average of a component's norms after scaling. A norm above
    :math:`\text{high} \cdot S_{t-1}` is reduced to it, by a factor of at least
    ``min_factor``. Any other norm below :math:`\max(\text{low} \cdot S_{t-1},
    \text{floor})` is raised to it, by a factor of at most ``max_factor``. Then

    .. math::
      S_t = \text{decay} \cdot S_{t-1} + (1 - \text{decay}) \|\hat g_t\|

    The first norm that is finite and greater than zero is not reduced and starts the
    average. In this we differ from the authors' code, where the average starts at zero,
    so that the first norms lie far above the interval. A component learns nothing from
    a norm that is zero, NaN or infinite; where it has a threshold such updates are
    treated as in :func:`component_clip_by_global_norm`, elsewhere they pass.

    The authors run it with ``min_factor=0.9``, ``max_factor=1.1`` and ``eps=1e-12``,
    and further:

    - LoRA: ``decay=0.95``, ``low=0.95`` to 0.98, ``high=0.6`` to 0.7, ``floor=0.01``,
      ``raise_small=False``;
    - GRPO: ``decay=0.99``, ``low=0.98``, ``high=0.7`` to 0.999.

    For an end that moves during training, pass a schedule through
    ``optax.inject_hyperparams``. With ``high`` below 1 a component whose norm stays the
    same is multiplied by 0.9 in every step, which Adam cancels; without the
    ``min_factor`` its average would sink to zero.

    Args:
      low: The interval's lower end as a multiple of the average; with 0 no norm is
        raised.
      high: Its upper end. It may lie below ``low`` where ``min_factor`` is positive, as
        in the authors' runs.
      component_fn: Maps a parameter's "/"-joined path to its component's name; None is
        :func:`by_module_type`, as in the paper.
      decay: The average's decay; 0.98 is the default of the authors' code.
      min_factor: The least factor that reduces a norm.
      max_factor: The largest factor that raises a norm, or ``inf``.
      floor: A norm to which smaller ones are raised, whatever their average.
      raise_small: Whether norms are raised at all. May be a traced boolean.
      eps: Added to the norm, as in :func:`component_clip_by_global_norm`.
      stacked_axes, axis_name, keep_report: See
        :func:`component_clip_by_global_norm`. In a report a component whose norm was
        raised has a coefficient above 1 and does not count as clipped.

    Returns:
      An :class:`optax.GradientTransformation` whose state holds the averages.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If ``low``, ``floor`` or ``eps`` is negative, ``high`` is not positive
        or, without a ``min_factor``, less than ``low``, ``decay`` or ``min_factor``
        lies outside [0, 1), or ``max_factor`` is less than 1; from ``init`` on as
        :func:`component_clip_by_global_norm` does.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.aggc(0.5, 2.0, decay=0.0)
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> for size in (1.0, 10.0, 0.1):
      ...     updates, state = tx.update({"w": size * jnp.array([0.6, 0.8])}, state)
      ...     print(jnp.linalg.norm(updates["w"]))
      1.0
      2.0
      1.0

    References:
      Li et al., `AGGC: Adaptive Group Gradient Clipping for Stabilizing Large Language
      Model Training <https://arxiv.org/abs/2601.11864>`_, 2026; their code is
      https://github.com/ZhiyuanLi218/AGGC
    """
    check_share("min_factor", min_factor)
    if is_known(min_factor) and min_factor == 0:
        check_interval(low, high)
    check_threshold("high", high)
    check_nonnegative("low", low)
    check_share("decay", decay)
    check_at_least("max_factor", max_factor, 1)
    check_nonnegative("floor", floor)
    check_flag("raise_small", raise_small)
    check_nonnegative("eps", eps)

    def init(components: int) -> AGGCState:
        return AGGCState(zeros(components))

    def rule(
        norms: Float[jax.Array, " components"], state: AGGCState
    ) -> tuple[Float[jax.Array, " components"], AGGCState]:
        upper = multiple(high, state.average)
        lower = jnp.maximum(low * state.average, floor)
        # The caps must not keep an infinite norm, nor may a comparison hide a NaN.
        reduced = clip_factor(norms, upper, eps)
        reduced = jnp.where(jnp.isinf(norms), reduced, jnp.maximum(reduced, min_factor))
        raised = jnp.minimum(lower / (norms + eps), max_factor)
        is_small = raise_small & (norms > 0) & (norms <= upper) & (norms < lower)
        coefficients = jnp.where(is_small, raised, reduced)
        average = averaged(state.average, coefficients * norms, decay)
        return coefficients, AGGCState(average)

    options = ClipOptions(
        stacked_axes=stacked_axes, axis_name=axis_name, keep_report=keep_report
    )
    return learned_clip(
        init, rule, by_module_type if component_fn is None else component_fn, options
    )


def olmo_clip(
    ratio: ArrayLike,
    component_fn: ComponentFn | None = None,
    *,
    decay: ArrayLike = 0.95,
    warmup_steps: ArrayLike = 0,
    warmup_factor: ArrayLike = 5.0,
    eps: ArrayLike = 1e-6,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Clips each component relative to the average of its norms (OLMo's trainer).

    With :math:`\gamma` the average of a component's clipped norms,

    .. math::
      \hat g_t = \min\left(1, \frac{r_t \cdot \gamma_{t-1}}
      {\|g_t\| + \text{eps}}\right) g_t
      \qquad
      \gamma_t = \text{decay} \cdot \gamma_{t-1} + (1 - \text{decay}) \|\hat g_t\|

    and :math:`r_t = \text{warmup\_factor} \cdot \text{ratio}` in the first
    ``warmup_steps`` steps, and ``ratio`` after them.

    The first norm that is finite and greater than zero is not clipped and starts the
    average; in OLMo's trainer the norm of the second step starts it. A component learns
    nothing from a norm that is zero, NaN or infinite; where it has a threshold such
    updates are treated as in :func:`component_clip_by_global_norm`, elsewhere they
    pass.

    The rule and ``eps`` are those of the trainer's setting ``max_grad_norm_ratio``. The
    setting has no default, and none of the published OLMo configurations uses it: they
    clip by the global norm. The trainer's warm-up, ``grad_clip_warmup_steps`` and
    ``grad_clip_warmup_factor``, is off by default; OLMo-7B has it for the global norm,
    with a factor of 5 during the first 2.1 billion tokens.

    Args:
      ratio: How far a norm may exceed the average.
      component_fn: Maps a parameter's "/"-joined path to its component's name; None is
        :func:`by_parameter`.
      decay: The average's decay. OLMo's trainer takes the larger of Adam's two decays:
        0.95 in its published configurations, but 0.999 with the Adam of
        :func:`cwgnc_adamw`, to which it then has to be set.
      warmup_steps: The number of first steps with a larger ratio.
      warmup_factor: How much larger it is.
      eps: Added to the norm, as in :func:`component_clip_by_global_norm`. A component
        whose norms are far below it shrinks to almost nothing.
      stacked_axes, axis_name, keep_report: See
        :func:`component_clip_by_global_norm`.

    Returns:
      An :class:`optax.GradientTransformation` whose state holds the number of steps and
      the averages.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If ``ratio`` or ``warmup_factor`` is not positive, ``decay`` lies
        outside [0, 1), or ``warmup_steps`` or ``eps`` is negative; from ``init`` on as
        :func:`component_clip_by_global_norm` does.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.olmo_clip(2.0, eps=0)
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> for size in (1.0, 10.0):
      ...     updates, state = tx.update({"w": size * jnp.array([0.6, 0.8])}, state)
      >>> print(jnp.linalg.norm(updates["w"]), state.average)
      2.0 [1.05]

    References:
      The trainer of OLMo, https://github.com/allenai/OLMo (``olmo/optim.py``);
      Groeneveld et al., `OLMo: Accelerating the Science of Language Models
      <https://arxiv.org/abs/2402.00838>`_, 2024
    """
    check_threshold("ratio", ratio)
    check_share("decay", decay)
    check_count("warmup_steps", warmup_steps, 0)
    check_positive("warmup_factor", warmup_factor)
    check_nonnegative("eps", eps)

    def init(components: int) -> OlmoClipState:
        return OlmoClipState(jnp.zeros((), jnp.int32), zeros(components))

    def rule(
        norms: Float[jax.Array, " components"], state: OlmoClipState
    ) -> tuple[Float[jax.Array, " components"], OlmoClipState]:
        factor = jnp.where(state.count < warmup_steps, warmup_factor, 1.0)
        thresholds = multiple(ratio * factor, state.average)
        coefficients = clip_factor(norms, thresholds, eps)
        average = averaged(state.average, coefficients * norms, decay)
        count = jnp.asarray(optax.safe_increment(state.count))
        return coefficients, OlmoClipState(count, average)

    options = ClipOptions(
        stacked_axes=stacked_axes, axis_name=axis_name, keep_report=keep_report
    )
    return learned_clip(init, rule, component_fn, options)
