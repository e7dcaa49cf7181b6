"""The report of the last clip, kept in the state of the optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cwgnc_jax._assignment import StackedAxes, assign
from cwgnc_jax._checks import is_known
from cwgnc_jax._components import ComponentFn

if TYPE_CHECKING:
    from jaxtyping import Float


class ReportedState(NamedTuple):
    """The state of a clip that keeps a report."""

    inner_state: Any

    record: Float[jax.Array, "*runs 2 components"]
    """The norms before the clip, and the factors, of the last step.

    One array: all that a scan carries, a checkpoint stores and a report transfers.
    """


class ClipReport(NamedTuple):
    """What the clip did in one step, as returned by :func:`clip_report`.

    The values are plain numbers, ready for JSON, or arrays inside ``jax.jit``.
    """

    norm: dict[str, Any]
    """The norm of each component before the clip."""

    coefficient: dict[str, Any]
    """The factor of each component, 1 if it was not clipped."""

    clipped: dict[str, Any]
    """Whether the norm of each component was reduced."""

    clip_rate_components: Any
    """The share of components that were clipped."""

    clip_rate_elements: Any
    """The share of elements whose component was clipped."""

    def scalars(self, prefix: str = "clip") -> dict[str, Any]:
        """Flattens the report to a dict of numbers, as loggers take it.

        Args:
          prefix: The first part of every name.

        Returns:
          The rates as ``clip/rate_components`` and ``clip/rate_elements``, and for each
          component ``clip/norm/NAME``, ``clip/coefficient/NAME`` and
          ``clip/clipped/NAME``; the last is 0 or 1.
        """
        scalars = {
            f"{prefix}/rate_components": self.clip_rate_components,
            f"{prefix}/rate_elements": self.clip_rate_elements,
        }
        for name in self.norm:
            scalars[f"{prefix}/norm/{name}"] = self.norm[name]
            scalars[f"{prefix}/coefficient/{name}"] = self.coefficient[name]
            clipped = self.clipped[name]
            scalars[f"{prefix}/clipped/{name}"] = (
                np.multiply(clipped, 1).tolist() if is_known(clipped) else clipped * 1
            )
        return scalars


def clip_report(
    opt_state: Any,
    params: Any,
    component_fn: ComponentFn | None = None,
    *,
    stacked_axes: StackedAxes | None = None,
) -> ClipReport:
    """Reads from an optimizer's state what the clip did in its last step.

    The clip keeps a report if it was made with ``keep_report=True``. Reading it takes
    one transfer from the device, however many components there are. The function also
    works inside ``jax.jit`` and ``jax.lax.scan``, so that a step can return parts of
    the report. Where a scan stacks the states, one call reads the reports of all steps.

    The state holds numbers only; their names come from the parameters.

    Args:
      opt_state: A state that contains the clip's at any depth. Leading axes that
        ``jax.vmap`` or ``jax.lax.scan`` added are kept: each number becomes a list.
      params: The parameters that the clip was initialised with, or a tree like them;
        the leaves need only a shape. For a clip under ``optax.masked`` or in a group of
        ``optax.partition`` it has ``optax.MaskedNode()`` for the others.
      component_fn: The clip's own; None is :func:`by_parameter`.
      stacked_axes: The clip's own.

    Returns:
      Norm, coefficient and whether it was clipped for each component, and the clip
      rates: numbers, or arrays where the state is traced. Before the first step the
      norms are 0 and the coefficients 1. A component whose norm was NaN has the
      coefficient NaN and does not count as clipped; with ``nonfinite="zero"`` it has 0
      and counts.

    Raises:
      ValueError: If not exactly one clip in the state keeps a report, or it has another
        number of components than the parameters.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = optax.chain(
      ...     cwgnc_jax.component_clip_by_global_norm(1.0, eps=0, keep_report=True),
      ...     optax.adam(1e-3),
      ... )
      >>> params = {"loud": jnp.ones(2), "quiet": jnp.ones(3)}
      >>> grads = {"loud": jnp.array([3.0, 4.0]), "quiet": jnp.array([0.6, 0.8, 0.0])}
      >>> _, opt_state = tx.update(grads, tx.init(params))
      >>> report = cwgnc_jax.clip_report(opt_state, params)
      >>> report.norm["loud"]
      5.0
      >>> report.clipped
      {'loud': True, 'quiet': False}
      >>> report.clip_rate_elements
      0.4
    """
    record = _only_record(opt_state)
    assigned = assign(params, component_fn, stacked_axes)
    if record.shape[-1] != len(assigned.names):
        raise ValueError(
            f"The clip in opt_state has {record.shape[-1]} components, but the "
            f"parameters given to clip_report have {len(assigned.names)}. Pass the "
            f"parameters that the clip was initialised with, and the clip's own "
            f"component_fn and stacked_axes; for a clip under optax.masked put "
            f"optax.MaskedNode() in the place of the others."
        )
    traced = not is_known(record)
    xp: Any = jnp if traced else np
    present = assigned.present()
    values = (record if traced else jax.device_get(record))[..., np.array(present, int)]
    norms, coefficients = xp.moveaxis(values, -2, 0)
    clipped = coefficients < 1
    all_sizes = assigned.sizes()
    sizes = xp.asarray([all_sizes[i] for i in present], float)
    sizes = xp.broadcast_to(sizes, clipped.shape)

    def plain(values: Any) -> Any:
        return values if traced else values.tolist()

    def by_name(values: Any) -> dict[str, Any]:
        columns = map(plain, xp.moveaxis(values, -1, 0))
        items = zip((assigned.names[i] for i in present), columns, strict=True)
        # A plain dict would come out sorted from jit and scan.
        return OrderedDict(items) if traced else dict(items)

    return ClipReport(
        norm=by_name(norms),
        coefficient=by_name(coefficients),
        clipped=by_name(clipped),
        clip_rate_components=plain(clipped.sum(-1) / max(len(present), 1)),
        clip_rate_elements=plain((clipped * sizes).sum(-1) / max(sum(all_sizes), 1)),
    )


def _only_record(opt_state: Any) -> Any:
    """Finds the array of the one clip that keeps a report."""

    def is_record(node: Any) -> bool:
        return isinstance(node, ReportedState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_record)
    # An nnx.Optimizer puts each array of the state in a box.
    records = [jax.tree.leaves(node.record)[0] for node in nodes if is_record(node)]
    if len(records) != 1:
        raise ValueError(
            f"clip_report needs the state of one clip that keeps a report, but found "
            f"{len(records)}. "
            + (
                "Pass the state of one of them, for instance opt_state[0] in a chain."
                if records
                else "Make the clip with keep_report=True."
            )
        )
    return records[0]


def empty_record(components: int) -> Float[jax.Array, "2 components"]:
    """Makes the record before the first step."""
    ones = jnp.ones(components, jnp.float32)
    return jnp.stack([jnp.zeros_like(ones), ones])


def recorded(
    record: Float[jax.Array, "2 components"],
    norms: Float[jax.Array, " components"],
    factors: Sequence[ArrayLike | None],
) -> Float[jax.Array, "2 components"]:
    """Makes the record of a step."""
    if not len(factors):
        return record
    ones = [jnp.asarray(1.0 if f is None else f, record.dtype) for f in factors]
    return jnp.stack([norms.astype(record.dtype), jnp.stack(ones)])
