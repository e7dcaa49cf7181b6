"""Thresholds that each component learns from an average of its own past norms.

A component learns from the norms that remain after the clip, if they are finite and
greater than zero; any other step leaves its state as it was.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._assignment import StackedAxes
from cwgnc_jax._checks import (
    check_count,
    check_eps,
    check_interval,
    check_positive,
    check_share,
)
from cwgnc_jax._clipping import clip_components, clip_factor
from cwgnc_jax._components import ComponentFn, by_module_type, by_parameter
from cwgnc_jax._norms import AxisName


class AdaGCState(NamedTuple):
    """The state of :func:`adagc`."""

    count: jax.Array  # type: ignore
    """The number of steps taken, an int32 scalar."""

    average: jax.Array
    """Float32 ``[components]``; 0 for a component that has learned nothing yet."""


class NormAverageState(NamedTuple):
    """The state of :func:`aggc` and :func:`olmo_clip`."""

    average: jax.Array
    """Float32 ``[components]``; 0 for a component that has learned nothing yet."""


def adagc(
    ratio: ArrayLike = 1.05,
    component_fn: ComponentFn = by_parameter,
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

    With :math:`\gamma` a component's average and :math:`\hat g` its clipped updates,

    .. math::
      \hat g_t = \min\left(1, \frac{\text{ratio} \cdot \gamma_{t-1}}{\|g_t\|}\right) g_t
      \qquad
      \gamma_t = \text{decay} \cdot \gamma_{t-1} + (1 - \text{decay}) \|\hat g_t\|

    During the warm-up all components are clipped together by their global norm, and
    :math:`\gamma` is the smallest clipped norm so far.

    A component learns nothing from a norm that is zero, NaN or infinite, and its
    updates become what the plain clip makes of them. In the warm-up a NaN reaches all
    components, as with any global clip, and none learns from that step. A component
    that has learned nothing by its end is clipped from its second norm on.

    Rule and defaults are the paper's. The authors' published code has 1.04 for
    ``ratio`` and 0.99 for ``decay``, and adds 1e-6 to a norm that it clips; with
    ``eps=1e-6`` a component whose norms are far below that is silenced here.

    Args:
      ratio: How far a norm may exceed the average.
      component_fn: Maps a parameter's "/"-joined path to its component's name.
      decay: The average's decay.
      max_global_norm: The threshold of the global norm during the warm-up.
      warmup_steps: The number of steps with the global clip.
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
    check_positive("ratio", ratio)
    check_share("decay", decay)
    check_positive("max_global_norm", max_global_norm)
    check_count("warmup_steps", warmup_steps, 0)
    check_eps(eps)

    def rule(norms, state):
        warming = state.count < warmup_steps
        together = clip_factor(jnp.sqrt(jnp.sum(norms**2)), max_global_norm, eps)
        apart = clip_factor(norms, _times(ratio, state.average), eps)
        coefficients = jnp.where(warming, together, apart)
        clipped = coefficients * norms
        smallest = _learned(state.average, clipped, jnp.minimum(state.average, clipped))
        average = jnp.where(warming, smallest, _averaged(state.average, clipped, decay))
        return coefficients, AdaGCState(optax.safe_increment(state.count), average)

    return clip_by_norms(
        lambda count: AdaGCState(jnp.zeros((), jnp.int32), _zeros(count)),
        rule,
        component_fn,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
        keep_report=keep_report,
    )


def aggc(
    low: ArrayLike,
    high: ArrayLike,
    component_fn: ComponentFn = by_module_type,
    *,
    decay: ArrayLike = 0.98,
    eps: ArrayLike = 0.0,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Keeps each component's norm in an interval around its past average (AGGC).

    With :math:`S` the average of a component's scaled norms, one above
    :math:`\text{high} \cdot S_{t-1}` is reduced to it, one below
    :math:`\text{low} \cdot S_{t-1}` is raised to it, and then

    .. math::
      S_t = \text{decay} \cdot S_{t-1} + (1 - \text{decay}) \|\hat g_t\|

    The first norm that is finite and greater than zero passes as it is and starts the
    average. That is ours: the authors' code starts it at zero, so that the first norms
    lie far above the interval. A component learns nothing from a norm that is zero, NaN
    or infinite, and its updates become what the plain clip makes of them.

    The interval has no defaults, since the authors' runs do not carry over: with 0.6 or
    0.7 for ``high`` they hold every factor between 0.9 and 1.1, without which the
    average would sink to nothing. The paper moves the interval during training: for
    that schedule ``low`` and ``high`` by ``optax.inject_hyperparams(...,
    static_args="component_fn")``.

    Args:
      low: The interval's lower end as a multiple of the average; 0 raises nothing.
      high: Its upper end.
      component_fn: Maps a parameter's "/"-joined path to its component's name; the
        paper's is by the type of the module.
      decay: The average's decay; 0.98 is the default of the authors' code.
      eps: Added to the norm, as in :func:`component_clip_by_global_norm`; 1e-12 in the
        authors' code.
      stacked_axes: See :func:`component_clip_by_global_norm`.
      axis_name: See :func:`component_clip_by_global_norm`.
      keep_report: See :func:`component_clip_by_global_norm`; a component that was
        raised has a coefficient above 1 and does not count as clipped.

    Returns:
      An :class:`optax.GradientTransformation`.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If a number lies outside its range, or as
        :func:`component_clip_by_global_norm` does from ``init`` on.

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
    check_interval(low, high)
    check_share("decay", decay)
    check_eps(eps)

    def rule(norms, state):
        lowered = clip_factor(norms, _times(high, state.average), eps)
        floor = low * state.average
        raised = (norms > 0) & (norms < floor)
        # At most one of the two is not 1, and NaN stays NaN.
        coefficients = lowered * jnp.where(raised, floor / (norms + eps), 1.0)
        average = _averaged(state.average, coefficients * norms, decay)
        return coefficients, NormAverageState(average)

    return clip_by_norms(
        lambda count: NormAverageState(_zeros(count)),
        rule,
        component_fn,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
        keep_report=keep_report,
    )


def olmo_clip(
    ratio: ArrayLike,
    component_fn: ComponentFn = by_parameter,
    *,
    decay: ArrayLike = 0.95,
    eps: ArrayLike = 1e-6,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Clips each component relative to the average of its norms, as OLMo's trainer.

    With :math:`\gamma` the average of a component's clipped norms,

    .. math::
      \hat g_t = \min\left(1, \frac{\text{ratio} \cdot \gamma_{t-1}}
      {\|g_t\| + \text{eps}}\right) g_t
      \qquad
      \gamma_t = \text{decay} \cdot \gamma_{t-1} + (1 - \text{decay}) \|\hat g_t\|

    The first norm that is finite and greater than zero passes as it is and starts the
    average; in OLMo's trainer the second step's does. A component learns nothing from a
    norm that is zero, NaN or infinite, and its updates become what the plain clip makes
    of them. Unlike :func:`adagc` there is no warm-up.

    The rule and eps are those of the trainer's setting ``max_grad_norm_ratio``. It has
    no default, and none of the published OLMo configurations sets it: they clip by the
    global norm.

    Args:
      ratio: How far a norm may exceed the average.
      component_fn: Maps a parameter's "/"-joined path to its component's name.
      decay: The average's decay; OLMo's trainer takes the larger of Adam's two, 0.95 in
        its published configurations.
      eps: Added to the norm, as in :func:`component_clip_by_global_norm`. It silences
        a component whose norms are far below it.
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
    check_positive("ratio", ratio)
    return aggc(
        0.0,
        ratio,
        component_fn,
        decay=decay,
        eps=eps,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
        keep_report=keep_report,
    )


def clip_by_norms(
    init: Callable[[int], Any],
    rule: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    component_fn: ComponentFn,
    **options: Any,
) -> optax.GradientTransformation:
    """Scales components by what a rule makes of the vector of all their norms.

    Args:
      init: From the number of components to the first state.
      rule: From norms ``[components]`` and a state to coefficients and the next state.
      component_fn: Maps a path to its component's name.
      **options: Those of ``clip_components``.

    Returns:
      The transformation.
    """

    def on_vector(measured, state):
        if not measured.norms:
            return {}, state
        norms = jnp.stack(list(measured.norms.values()))
        coefficients, next_state = rule(norms, state)
        # Hyperparameters of another dtype must not change that of the state.
        state = jax.tree.map(lambda old, new: new.astype(old.dtype), state, next_state)
        coefficients = jnp.unstack(coefficients)
        return dict(zip(measured.norms, coefficients, strict=True)), state

    return clip_components(
        lambda names: init(len(names)), on_vector, component_fn, **options
    )


def learnable(norms: jax.Array) -> jax.Array:
    """Which norms teach something: one step must not spoil all that follow."""
    return jnp.isfinite(norms) & (norms > 0)


def _averaged(average: jax.Array, norms: jax.Array, decay: ArrayLike) -> jax.Array:
    return _learned(average, norms, decay * average + (1 - decay) * norms)


def _learned(before: jax.Array, norms: jax.Array, after: jax.Array) -> jax.Array:
    return jnp.where(learnable(norms), jnp.where(before > 0, after, norms), before)


def _times(ratio: ArrayLike, average: jax.Array) -> jax.Array:
    return jnp.where(average > 0, ratio * average, jnp.inf)


def _zeros(count: int) -> jax.Array:
    return jnp.zeros(count, jnp.float32)
