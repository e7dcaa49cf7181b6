"""The component-wise clip, and the mechanism that all clips share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from cwgnc_jax._assignment import Assignment, Part, StackedAxes, assign
from cwgnc_jax._checks import check_inexact, check_nonnegative
from cwgnc_jax._components import ComponentFn, check_component_fn
from cwgnc_jax._norms import (
    AxisName,
    roots,
    shards,
    squared_norms,
    varying,
    wide_dtype,
)
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
    component_fn: ComponentFn | None = None,
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

    The norm is accumulated in float32, or in float64 for leaves of that dtype. Each
    leaf keeps its dtype and sharding; None passes. The clip has no state unless
    ``max_norm`` is a schedule or ``keep_report`` is set.

    Non-finite updates propagate by default, within their component only. If the norm is
    NaN, the whole component becomes NaN. If the norm is infinite, its finite elements
    become zero and the others NaN, as in torch. The norm is also infinite where the sum
    of squares overflows float32, which a single element of 1.8e19 causes.

    Args:
      max_norm: The largest norm that a component may keep. One of:

        - a positive number, or ``inf`` for no clipping;
        - a scalar array, which may be traced (swept by ``jax.vmap``, or injected by
          ``optax.inject_hyperparams``); below 0 it counts as 0;
        - a schedule of the step, which below 0 counts as 0;
        - :func:`per_element`, which grows with the size of the component;
        - :func:`relative_to_params`, which follows the norm of its parameters;
        - rules: pairs of a regular expression, which must match the whole name of a
          component, and any of the above, or None for no clipping. The first rule that
          matches wins. Together they must cover every component, and each must match
          at least one, unless ``optax.masked`` or its like hides some parameters.
      component_fn: Maps a parameter's "/"-joined path to its component's name. None,
        the default, is :func:`by_parameter`, the paper's. With one component for all
        parameters and ``eps=0`` this is :func:`optax.clip_by_global_norm`.
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
        ``check_vma=True`` a leaf that does not vary over an axis counts once, and a
        sharded leaf without ``axis_name`` is an error. With ``check_vma=False`` and in
        ``jax.pmap`` JAX does not say which leaves are sharded: every leaf counts as
        sharded over ``axis_name``, and without it as whole. ``()`` says that each
        device holds components of its own. Not needed under ``jax.jit``, whose arrays
        are global.
      nonfinite: The treatment of a component whose norm is NaN or infinite:
        ``"propagate"``, as described above, or ``"zero"``, which sets the whole
        component to zero, so that the other components still take their step.
      keep_report: Whether the state keeps the norms and coefficients of the last step
        for :func:`clip_report`.

    Returns:
      An :class:`optax.GradientTransformation`.

    Raises:
      TypeError: If ``max_norm`` or ``eps`` is not a number or ``component_fn`` is not a
        function; from ``init`` on if ``component_fn`` does not return a string, or a
        leaf is of an integer dtype.
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
    zeroing = nonfinite == "zero"

    def init_rule(assigned: Assignment) -> Any:
        names = [assigned.names[i] for i in assigned.present()]
        thresholds.check(names, whole=assigned.whole)
        if thresholds.scheduled:
            return ScheduledClipState(jnp.zeros((), jnp.int32))
        return optax.EmptyState()

    def rule(measured: Measured, state: Any) -> tuple[Factors, Any]:
        step = state.count if thresholds.scheduled else None
        names, sizes, squares, param_norms, present = measured
        clipped = [i for i in present if thresholds.clips(names[i])]
        factors: list[Any] = [None] * len(names)
        if clipped:
            max_norms = thresholds.of(
                [names[i] for i in clipped],
                [sizes[i] for i in clipped],
                None if param_norms is None else param_norms[np.array(clipped)],
                step,
            )
            own = cast(
                list[jax.Array],
                _clip_factors([squares[i] for i in clipped], max_norms, eps),
            )
            for i, factor in zip(clipped, own, strict=True):
                factors[i] = factor
        if zeroing:
            factors = [
                jnp.where(jnp.isfinite(square), 1.0 if factor is None else factor, 0.0)
                for square, factor in zip(squares, factors, strict=True)
            ]
        if step is not None:
            state = ScheduledClipState(jnp.asarray(optax.safe_increment(step)))
        return factors, state

    options = ClipOptions(
        stacked_axes=stacked_axes, axis_name=axis_name, keep_report=keep_report
    )
    return clip_components(
        init_rule,
        rule,
        component_fn,
        options,
        relative_to_params=thresholds.relative,
        zeroing=zeroing,
    )


class ClipOptions(NamedTuple):
    """The options that all clips share; see :func:`component_clip_by_global_norm`."""

    stacked_axes: StackedAxes | None
    axis_name: AxisName | None
    keep_report: bool


class Measured(NamedTuple):
    """The measurements of all components in one step, in the order of their names."""

    names: list[str]
    sizes: list[int]
    squares: list[Float[jax.Array, ""]]
    """The squared norms of the updates."""

    param_norms: Float[jax.Array, " components"] | None
    """The norms of the parameters, if the rule needs them."""

    present: list[int]
    """The components that have a leaf."""


Factors = Sequence[jax.Array | None]
"""The factor that scales each component; None leaves it unscaled."""


def clip_components(
    init_rule: Callable[[Assignment], Any],
    rule: Callable[[Measured, Any], tuple[Factors, Any]],
    component_fn: ComponentFn | None,
    options: ClipOptions,
    *,
    relative_to_params: bool = False,
    zeroing: bool = False,
) -> optax.GradientTransformation:
    """Scales each component by the factor that a rule derives from its norm.

    Args:
      init_rule: Makes the rule's first state for the components.
      rule: Takes the measurements and the rule's state, and returns factors and the
        next state.
      component_fn: Maps a path to its component's name.
      options: The options that all clips share.
      relative_to_params: Whether the rule needs the norms of the parameters.
      zeroing: Whether a factor of 0 also turns NaN and infinity into 0.

    Returns:
      The transformation.
    """
    check_component_fn(component_fn)
    stacked_axes, axis_name, keep_report = options

    def init_fn(params: optax.Params) -> Any:
        assigned = assign(params, component_fn, stacked_axes, check=True)
        _check_leaves(assigned)
        state = init_rule(assigned)
        if keep_report:
            return ReportedState(state, empty_record(len(assigned.names)))
        return state

    @jax.named_scope("component_clip")
    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        assigned = assign(updates, component_fn, stacked_axes)
        _check_leaves(assigned)
        trees = [assigned]
        if relative_to_params:
            if params is None:
                raise ValueError(
                    "A threshold that is relative_to_params needs the parameters: "
                    "call tx.update(grads, opt_state, params)."
                )
            trees.append(assign(params, component_fn, stacked_axes))
            if len(trees[1].names) != len(assigned.names):
                raise ValueError(
                    f"The updates have {len(assigned.names)} components, and the "
                    f"parameters {len(trees[1].names)}: call tx.update(grads, "
                    f"opt_state, params) with the parameters of these gradients."
                )
        squares, *param_squares = squared_norms(trees, axis_name)
        measured = Measured(
            assigned.names,
            assigned.sizes(lambda leaf: shards(leaf, axis_name)),
            squares,
            roots(param_squares[0]) if param_squares else None,
            assigned.present(),
        )
        if keep_report and not isinstance(state, ReportedState):
            raise TypeError(
                f"The clip keeps a report, but its state is {type(state).__name__}: "
                f"pass the state that its own init made."
            )
        inner_state = state.inner_state if keep_report else state
        factors, inner_state = rule(measured, inner_state)
        if keep_report:
            check_rows(state.record.shape[-1], assigned.names)
            record = recorded(state.record, roots(squares), factors)
            inner_state = ReportedState(inner_state, record)
        clipped = [_scaled_part(part, factors, zeroing) for part in assigned.parts]
        return jax.tree.unflatten(assigned.treedef, clipped), inner_state

    return optax.GradientTransformation(init_fn, update_fn)


def clip_factor(
    norm: Float[jax.Array, "*components"], max_norm: ArrayLike, eps: ArrayLike
) -> Float[jax.Array, "*components"]:
    """Computes the factor of a norm, or of each norm in a vector."""
    # A schedule may fall below 0; that counts as 0, so that no factor changes a sign.
    max_norm = jnp.maximum(jnp.asarray(max_norm, norm.dtype), 0.0)
    unlimited = jnp.isinf(max_norm)
    # Not inf / inf, whose derivative is NaN where it is not used either.
    max_norm = jnp.where(unlimited, 1.0, max_norm)
    # max_norm / max(norm + eps, max_norm) is the formula's minimum without a division
    # by 0, except where both are 0, as when a schedule has reached 0: hence tiny.
    least = np.finfo(norm.dtype).tiny
    factor = max_norm / jnp.maximum(jnp.maximum(norm + eps, max_norm), least)
    return jnp.where(unlimited, 1.0, factor)


# Traced once for all scalars.
_clip_factor: Callable[..., jax.Array] = jax.jit(clip_factor)


def check_rows(rows: int, names: list[str]) -> None:
    """Raises unless a state was made for as many components as the updates have."""
    if rows != len(names):
        raise ValueError(
            f"The updates have {len(names)} components, but the clip was initialised "
            f"for {rows}. Pass updates like the parameters that init was given, with "
            f"None for an array that has no gradient."
        )


def _check_leaves(assigned: Assignment) -> None:
    check_inexact((part.path, part.leaf) for part in assigned.parts)


@jax.jit
def _clip_factors(
    squares: list[Float[jax.Array, ""]],
    max_norms: Float[jax.Array, " components"],
    eps: ArrayLike,
) -> list[Float[jax.Array, ""]]:
    """Computes the factors of squared norms, as one array or each on its own.

    An accelerator has one kernel for an array, and one for each of many scalars. On a
    CPU no gradient waits there for the norm of another, and can be used up at once.
    """
    dtype = jnp.result_type(*squares)

    def together(squares: Any, max_norms: jax.Array) -> list[jax.Array]:
        return list(jnp.unstack(_clip_factor(roots(squares), max_norms, eps)))

    def apart(squares: Any, max_norms: jax.Array) -> list[jax.Array]:
        own = zip(squares, jnp.unstack(max_norms), strict=True)
        return [_clip_factor(jnp.sqrt(x.astype(dtype)), m, eps) for x, m in own]

    # Factors that are stacked count as varying over the mesh axes of any of them.
    if len(set(map(varying, squares))) > 1:
        return apart(squares, max_norms)
    found = jax.lax.platform_dependent(squares, max_norms, cpu=apart, default=together)
    return cast(list[jax.Array], found)


def _scaled_part(part: Part, factors: Factors, zeroing: bool) -> Any:
    """Multiplies a leaf by the factors of its components and keeps its dtype."""
    own = [factors[component] for component in part.components]
    if all(factor is None for factor in own):
        return part.leaf
    ones: list[Any] = [1.0 if factor is None else factor for factor in own]
    if part.axis is None:
        factor = ones[0]
    else:
        shape = [1] * jnp.ndim(part.leaf)
        shape[part.axis] = -1
        factor = jnp.stack(ones).reshape(shape)
    return _scaled(part.leaf, factor, zeroing)


# Jitted, so that it is traced once for all leaves of a shape.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _scaled(leaf: jax.Array, factor: jax.Array, zeroing: bool) -> jax.Array:
    wide = wide_dtype(leaf.dtype)
    real = cast(Any, jnp.finfo(wide)).dtype
    product = leaf.astype(wide) * factor.astype(real)
    if zeroing:
        product = jnp.where(factor > 0, product, 0)
    return product.astype(leaf.dtype)
