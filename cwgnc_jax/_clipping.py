"""The component-wise clip, and the mechanism that all clips share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from cwgnc_jax._assignment import StackedAxes, assign, scaled, sizes_of
from cwgnc_jax._checks import check_nonnegative
from cwgnc_jax._components import ComponentFn, by_parameter, check_component_fn
from cwgnc_jax._norms import AxisName, norms_of, shards
from cwgnc_jax._report import ReportedState, empty_record, recorded
from cwgnc_jax._thresholds import MaxNorm, Thresholds

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class ScheduledClipState(NamedTuple):
    """The state of a clip whose threshold is a schedule."""

    count: Int[jax.Array, ""]  # type: ignore[assignment]  # shadows tuple.count
    """The number of steps taken."""


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
    r"""Clips the norm of each component's updates separately.

    The leaves :math:`g_1, \dots, g_n` of one component are scaled by the same factor

    .. math::
      \min\left(1, \frac{\text{max\_norm}}{\|(g_1, \dots, g_n)\|_2 + \text{eps}}\right)

    which does not depend on the other components. Put the clip before Adam. Adam
    cancels a factor that is constant over time, so what matters is how the factor
    varies from step to step.

    The norm is accumulated in float32; each leaf keeps its dtype and sharding. The clip
    has no state unless ``max_norm`` is a schedule or ``keep_report`` is set.

    Non-finite updates propagate by default, within their component only. If the norm is
    NaN, the whole component becomes NaN. If the norm is infinite, its finite elements
    become zero and the others NaN, as in torch. The norm is also infinite where the sum
    of squares overflows float32, which a single element of 1.8e19 causes.

    Args:
      max_norm: The largest norm that a component may keep. One of:

        - a positive number, or ``inf`` for no clipping;
        - a scalar array, which may be traced (swept by ``jax.vmap``, or injected by
          ``optax.inject_hyperparams(..., static_args="component_fn")``);
        - a schedule of the step;
        - :func:`per_element`, which grows with the size of the component;
        - :func:`relative_to_params`, which follows the norm of its parameters;
        - rules: pairs of a regular expression, which must match the whole name of a
          component, and any of the above, or None for no clipping. The first rule that
          matches wins. Together they must cover every component, and each must match
          at least one.
      component_fn: Maps a parameter's "/"-joined path to its component's name. The
        default, :func:`by_parameter`, is the paper's. With one component for all
        parameters this is :func:`optax.clip_by_global_norm`.
      eps: Added to the norm. ``1e-6`` is the rule of torch's ``clip_grad_norm_``; 0
        clips exactly.
      stacked_axes: For leaves that hold several layers, as in scanned models and under
        Linen's ``nn.scan``. Maps a regular expression, which must match the whole path
        of a module, to the axis of its parameters that counts the layers. With
        ``{"decoder/layers": 0}`` the third layer of ``decoder/layers/mlp/kernel`` has
        the path ``decoder/layers/2/mlp/kernel`` and is clipped as in a model that is
        not stacked. Each device must hold all layers.
      axis_name: The mesh axes over which leaves are sharded inside ``jax.shard_map``.
        One collective sums the squared norms of all components over them. With
        ``check_vma=True`` a leaf that does not vary over an axis counts once; without
        it every leaf counts as sharded. ``()`` says that each device holds components
        of its own. Not needed under ``jax.jit``, whose arrays are global.
      nonfinite: The treatment of a component whose norm is NaN or infinite:
        ``"propagate"``, as described above, or ``"zero"``, which sets the whole
        component to zero, so that the other components still take their step.
      keep_report: Whether the state keeps the norms and coefficients of the last step
        for :func:`clip_report`.

    Returns:
      An :class:`optax.GradientTransformation`.

    Raises:
      TypeError: If ``max_norm`` or ``eps`` is not a number or ``component_fn`` is not a
        function; from ``init`` on if ``component_fn`` does not return a string.
      ValueError: If ``max_norm`` is not positive, ``eps`` is negative or ``nonfinite``
        is unknown; from ``init`` on if rules leave a parameter without a component or a
        component without a threshold, or a rule matches nothing; in ``update`` if
        ``params`` are needed and missing, or a leaf is sharded inside ``jax.shard_map``
        and ``axis_name`` is None.

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

      Before an optimizer, with the paper's threshold:

      >>> tx = optax.chain(
      ...     cwgnc_jax.component_clip_by_global_norm(0.05), optax.adamw(2e-5)
      ... )
      >>> opt_state = tx.init(params)

      With separate thresholds for some components:

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
    check_nonnegative("eps", eps)
    if nonfinite not in ("propagate", "zero"):
        raise ValueError(f"nonfinite must be 'propagate' or 'zero', got {nonfinite!r}")

    def init_rule(names: list[str]) -> ScheduledClipState | optax.EmptyState:
        thresholds.check(names)
        if thresholds.scheduled:
            return ScheduledClipState(jnp.zeros((), jnp.int32))
        return optax.EmptyState()

    def rule(measured: Measured, state: Any) -> tuple[Coefficients, Any]:
        step = state.count if thresholds.scheduled else None
        coefficients: dict[str, ArrayLike | None] = {}
        for name, norm in measured.norms.items():
            threshold = thresholds.of(
                name, measured.sizes[name], measured.param_norms.get(name), step
            )
            if threshold is not None:
                threshold = clip_factor(norm, threshold, eps)
            coefficients[name] = threshold
        if step is not None:
            state = ScheduledClipState(jnp.asarray(optax.safe_increment(step)))
        return coefficients, state

    options = ClipOptions(
        stacked_axes=stacked_axes, axis_name=axis_name, keep_report=keep_report
    )
    return clip_components(
        init_rule,
        rule,
        component_fn,
        options,
        relative_to_params=thresholds.relative,
        zero_nonfinite=nonfinite == "zero",
    )


class ClipOptions(NamedTuple):
    """The options that all clips share; see :func:`component_clip_by_global_norm`."""

    stacked_axes: StackedAxes | None
    axis_name: AxisName | None
    keep_report: bool


class Measured(NamedTuple):
    """The measurements of all components in one step, by name."""

    norms: OrderedDict[str, Float[jax.Array, ""]]
    sizes: OrderedDict[str, int]
    param_norms: Mapping[str, Float[jax.Array, ""]]
    """The norms of the parameters; empty unless the rule needs them."""


Coefficients = Mapping[str, ArrayLike | None]
"""The factor that scales each component; None leaves it unscaled."""


def clip_components(
    init_rule: Callable[[list[str]], Any],
    rule: Callable[[Measured, Any], tuple[Coefficients, Any]],
    component_fn: ComponentFn,
    options: ClipOptions,
    *,
    relative_to_params: bool = False,
    zero_nonfinite: bool = False,
) -> optax.GradientTransformation:
    """Scales each component by the coefficient that a rule derives from its norm.

    Args:
      init_rule: Makes the rule's first state from the names of the components.
      rule: Takes the measurements and the rule's state, and returns coefficients and
        the next state.
      component_fn: Maps a path to its component's name.
      options: The options that all clips share.
      relative_to_params: Whether the rule needs the norms of the parameters.
      zero_nonfinite: Whether a component with a non-finite norm becomes zero.

    Returns:
      The transformation.
    """
    check_component_fn(component_fn)
    stacked_axes, axis_name, keep_report = options

    def init_fn(params: optax.Params) -> Any:
        parts, _ = assign(params, component_fn, stacked_axes, check=True)
        sizes = sizes_of(parts)
        state = init_rule(list(sizes))
        return ReportedState(state, empty_record(sizes)) if keep_report else state

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
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

    return optax.GradientTransformation(init_fn, update_fn)


def clip_factor(
    norm: Float[jax.Array, "*components"], max_norm: ArrayLike, eps: ArrayLike
) -> Float[jax.Array, "*components"]:
    """Computes the factor of a norm, or of each norm in a vector."""
    max_norm = jnp.asarray(max_norm, jnp.float32)
    # max_norm / max(norm + eps, max_norm) is the formula's minimum without a division
    # by 0, except where both are 0, as when a schedule has reached 0: hence tiny.
    least = np.finfo(np.float32).tiny
    factor = max_norm / jnp.maximum(jnp.maximum(norm + eps, max_norm), least)
    return jnp.where(jnp.isinf(max_norm), 1.0, factor)
