"""Clipping the gradient norm of each component on its own."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._assignment import StackedAxes, assign, scaled, sizes_of
from cwgnc_jax._checks import check_eps
from cwgnc_jax._components import ComponentFn, by_parameter, check_component_fn
from cwgnc_jax._norms import AxisName, norms_of, shards
from cwgnc_jax._report import ReportedState, empty_record, recorded
from cwgnc_jax._thresholds import MaxNorm, Thresholds


class ScheduledClipState(NamedTuple):
    """The state of a clip whose threshold is a schedule."""

    count: jax.Array  # type: ignore
    """The number of steps taken, an int32 scalar."""


def component_clip_by_global_norm(
    max_norm: MaxNorm,
    component_fn: ComponentFn = by_parameter,
    *,
    eps: ArrayLike = 1e-6,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
    nonfinite: Literal["propagate", "zero"] = "propagate",
    keep_report: bool = False,
) -> optax.GradientTransformation:
    r"""Clips the norm of each component's updates on its own.

    The leaves :math:`g_1, \dots, g_n` of one component are scaled together by

    .. math::
      \min\left(1, \frac{\text{max\_norm}}{\|(g_1, \dots, g_n)\|_2 + \text{eps}}\right)

    while the other components keep their own scale. Put it before Adam: the clip acts
    on the moments through its variation over time, since Adam itself is indifferent to
    a factor that is constant.

    The norm is accumulated in float32; a leaf keeps its dtype and sharding. There is
    no state unless ``max_norm`` is a schedule or ``keep_report`` is on. A component
    whose norm is NaN becomes NaN, and one with an infinite norm becomes zero where it
    is finite and NaN elsewhere, as in torch; the other components are untouched by
    either. A norm is infinite too where the sum of squares exceeds float32: from
    numbers of 1.8e19 on.

    Args:
      max_norm: The largest norm a component may keep: a positive number, ``inf`` for
        no clipping, or a scalar array, which may be traced (swept by ``jax.vmap`` or
        injected by ``optax.inject_hyperparams(..., static_args="component_fn")``). Or
        a schedule of the step; :func:`per_element`, which grows with the component's
        size; :func:`relative_to_params`, which follows the norm of its parameters; or
        rules, pairs of a regular expression that matches the component's whole name
        and any of these, or None to leave it untouched. The first rule that matches
        wins; together they must cover every component and each must match one.
      component_fn: Maps a parameter's "/"-joined path to its component's name. The
        default, :func:`by_parameter`, is the paper's; with one component for
        everything this is :func:`optax.clip_by_global_norm`.
      eps: Added to the norm. ``1e-6`` is the rule of torch's ``clip_grad_norm_``, 0
        the exact clip.
      stacked_axes: Where leaves hold several layers, as scanned models and Linen's
        ``nn.scan`` have them: a regular expression that matches the module's whole
        path, to the axis of its parameters that counts the layers. With
        ``{"decoder/layers": 0}`` the third layer of ``decoder/layers/mlp/kernel`` is
        ``decoder/layers/2/mlp/kernel`` for ``component_fn``, as it is in the model
        that is not stacked, and is clipped as there. The device must hold all layers.
      axis_name: The mesh axes over which leaves are sharded inside ``jax.shard_map``:
        the squared norms of all components are summed over them by one collective.
        Leaves that do not vary over an axis count once, as far as ``check_vma=True``
        tells; without it all leaves count as sharded. ``()`` says that each device
        holds components of its own. Needless under ``jax.jit``, where arrays are
        whole however they are sharded.
      nonfinite: What becomes of a component whose norm is NaN or infinite:
        ``"propagate"``, as above, or ``"zero"``, which makes all of it zero, so that
        the others' step counts.
      keep_report: Whether the state keeps the norms and coefficients of the last step
        for :func:`clip_report`.

    Returns:
      An :class:`optax.GradientTransformation`.

    Raises:
      TypeError: If ``max_norm`` or ``eps`` is no number, ``component_fn`` no function,
        or, from ``init`` on, if it returns no string.
      ValueError: If ``max_norm`` is not positive, ``eps`` negative or ``nonfinite``
        unknown; from ``init`` on if rules leave a parameter without a component, or a
        component without a threshold, or match none; in ``update`` if ``params`` are
        needed and missing, or a leaf is sharded inside ``jax.shard_map`` and there is
        no ``axis_name``.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> params = {"loud": jnp.zeros(2), "quiet": jnp.zeros(2)}
      >>> grads = {"loud": jnp.array([3.0, 4.0]), "quiet": jnp.array([0.3, 0.4])}
      >>> tx = cwgnc_jax.component_clip_by_global_norm(1.0, eps=0)
      >>> updates, _ = tx.update(grads, tx.init(params))
      >>> print(updates["loud"], updates["quiet"])
      [0.6 0.8] [0.3 0.4]

      In front of an optimizer, with the paper's threshold:

      >>> tx = optax.chain(
      ...     cwgnc_jax.component_clip_by_global_norm(0.05), optax.adamw(2e-5)
      ... )
      >>> opt_state = tx.init(params)

      With thresholds of their own for some components:

      >>> tx = cwgnc_jax.component_clip_by_global_norm(
      ...     [("loud", optax.linear_schedule(1.0, 0.1, 100)), (".*", None)]
      ... )
      >>> tx.init(params).count.dtype
      dtype('int32')

    References:
      Yang and Ma, `Improving Stability of Fine-Tuning Pretrained Language Models via
      Component-Wise Gradient Norm Clipping
      <https://aclanthology.org/2022.emnlp-main.322>`_, 2022, section 3

    .. seealso:: :func:`component_norms`, :func:`explain`, :func:`cwgnc_adamw`.
    """
    thresholds = Thresholds(max_norm)
    check_eps(eps)
    if nonfinite not in ("propagate", "zero"):
        raise ValueError(f"nonfinite must be 'propagate' or 'zero', got {nonfinite!r}")

    def init_rule(names):
        thresholds.check(names)
        if thresholds.scheduled:
            return ScheduledClipState(jnp.zeros((), jnp.int32))
        return optax.EmptyState()

    def rule(measured, state):
        step = state.count if thresholds.scheduled else None
        coefficients = {}
        for name, norm in measured.norms.items():
            threshold = thresholds.of(
                name, measured.sizes[name], measured.param_norms.get(name), step
            )
            if threshold is not None:
                threshold = clip_factor(norm, threshold, eps)
            coefficients[name] = threshold
        if step is not None:
            state = ScheduledClipState(optax.safe_increment(step))  # type: ignore
        return coefficients, state

    return clip_components(
        init_rule,
        rule,
        component_fn,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
        keep_report=keep_report,
        relative_to_params=thresholds.relative,
        zero_nonfinite=nonfinite == "zero",
    )


class Measured(NamedTuple):
    """What is known of the components in a step."""

    norms: OrderedDict[str, jax.Array]
    sizes: OrderedDict[str, int]
    param_norms: Mapping[str, jax.Array]
    """Empty unless the rule asked for it."""


Coefficients = Mapping[str, ArrayLike | None]
"""Component to what it is scaled by, None for untouched."""


def clip_components(
    init_rule: Callable[[list[str]], Any],
    rule: Callable[[Measured, Any], tuple[Coefficients, Any]],
    component_fn: ComponentFn,
    *,
    stacked_axes: StackedAxes | None,
    axis_name: AxisName | None,
    keep_report: bool,
    relative_to_params: bool = False,
    zero_nonfinite: bool = False,
) -> optax.GradientTransformation:
    """Scales every component by what a rule makes of its norm.

    Args:
      init_rule: From the components' names to the rule's first state.
      rule: From what was measured and the rule's state to coefficients and next state.
      component_fn: Maps a path to its component's name.
      stacked_axes: Where leaves hold several layers.
      axis_name: The mesh axes over which leaves are sharded.
      keep_report: Whether the state keeps what :func:`clip_report` reads.
      relative_to_params: Whether the rule needs the norms of the parameters.
      zero_nonfinite: Whether a component whose norm is not finite becomes zero.

    Returns:
      The transformation.
    """
    check_component_fn(component_fn)

    def init_fn(params):
        parts, _ = assign(params, component_fn, stacked_axes, check=True)
        sizes = sizes_of(parts)
        state = init_rule(list(sizes))
        return ReportedState(state, empty_record(sizes)) if keep_report else state

    def update_fn(updates, state, params=None):
        parts, treedef = assign(updates, component_fn, stacked_axes)
        trees = [parts]
        if relative_to_params:
            if params is None:
                raise ValueError(
                    "A threshold that is relative_to_params needs the parameters: "
                    "call tx.update(grads, opt_state, params)."
                )
            trees.append(assign(params, component_fn, stacked_axes)[0])
        norms, *param_norms = norms_of(trees, axis_name)
        measured = Measured(
            norms,
            sizes_of(parts, lambda leaf: shards(leaf, axis_name)),
            param_norms[0] if param_norms else {},
        )
        inner_state = state.inner_state if keep_report else state
        coefficients, inner_state = rule(measured, inner_state)
        if zero_nonfinite:
            coefficients = {
                name: jnp.where(jnp.isfinite(norms[name]), 1.0 if c is None else c, 0.0)
                for name, c in coefficients.items()
            }
        if keep_report:
            record = recorded(state.record, norms, coefficients)
            inner_state = ReportedState(inner_state, record)
        clipped = [scaled(part, coefficients, zero_nonfinite) for part in parts]
        return jax.tree.unflatten(treedef, clipped), inner_state

    return optax.GradientTransformation(init_fn, update_fn)  # type: ignore


def clip_factor(norm: jax.Array, max_norm: ArrayLike, eps: ArrayLike) -> jax.Array:
    """What a norm, or a vector of norms, is to be scaled by."""
    max_norm = jnp.asarray(max_norm, jnp.float32)
    # The larger of the two in the denominator is min(1, .) without a division by 0, but
    # where a schedule has come to 0 and the gradient is 0 too.
    least = jnp.finfo(jnp.float32).tiny
    factor = max_norm / jnp.maximum(jnp.maximum(norm + eps, max_norm), least)
    return jnp.where(jnp.isinf(max_norm), 1.0, factor)
