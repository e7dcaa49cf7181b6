"""The report of the last clip, kept in the state of the optimizer."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cwgnc_jax._checks import is_known

if TYPE_CHECKING:
    from jaxtyping import Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """The norms and coefficients of the last step, in one array.

    The names and sizes are static, so the array is all that a scan carries, a donation
    frees, a checkpoint stores and a report transfers.
    """

    values: Float[jax.Array, "*runs 2 components"]
    """In float32: the norms before the clip, and the coefficients."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})


class ReportedState(NamedTuple):
    """The state of a clip that keeps a report."""

    inner_state: Any
    record: ClipRecord


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
            scalars[f"{prefix}/clipped/{name}"] = self.clipped[name] * 1
        return scalars


def clip_report(opt_state: Any) -> ClipReport:
    """Reads from an optimizer's state what the clip did in its last step.

    The clip keeps a report if it was made with ``keep_report=True``. Reading it takes
    one transfer from the device, however many components there are. The function also
    works inside ``jax.jit`` and ``jax.lax.scan``, so that a step can return parts of
    the report. Where a scan stacks the states, one call reads the reports of all steps.

    Args:
      opt_state: A state that contains the clip's at any depth. Leading axes that
        ``jax.vmap`` or ``jax.lax.scan`` added are kept: each number becomes a list.

    Returns:
      Norm, coefficient and whether it was clipped for each component, and the clip
      rates: numbers, or arrays where the state is traced. Before the first step the
      norms are 0 and the coefficients 1. A component whose norm was NaN has the
      coefficient NaN and does not count as clipped.

    Raises:
      ValueError: If not exactly one clip in the state keeps a report.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = optax.chain(
      ...     cwgnc_jax.component_clip_by_global_norm(1.0, eps=0, keep_report=True),
      ...     optax.adam(1e-3),
      ... )
      >>> grads = {"loud": jnp.array([3.0, 4.0]), "quiet": jnp.array([0.6, 0.8, 0.0])}
      >>> _, opt_state = tx.update(grads, tx.init(grads))
      >>> report = cwgnc_jax.clip_report(opt_state)
      >>> report.norm["loud"]
      5.0
      >>> report.clipped
      {'loud': True, 'quiet': False}
      >>> report.clip_rate_elements
      0.4
    """
    nodes = jax.tree.leaves(
        opt_state, is_leaf=lambda node: isinstance(node, ClipRecord)
    )
    records = [node for node in nodes if isinstance(node, ClipRecord)]
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
    record = records[0]
    traced = not is_known(record.values)
    values = record.values if traced else jax.device_get(record.values)
    xp: Any = jnp if traced else np
    norms, coefficients = xp.moveaxis(values, -2, 0)
    clipped = coefficients < 1
    sizes = xp.broadcast_to(xp.asarray(record.sizes, float), clipped.shape)

    def plain(values: Any) -> Any:
        return values if traced else values.tolist()

    def by_name(values: Any) -> dict[str, Any]:
        columns = xp.moveaxis(values, -1, 0)
        items = zip(record.names, map(plain, columns), strict=True)
        # A plain dict would come out sorted from jit and scan.
        return OrderedDict(items) if traced else dict(items)

    return ClipReport(
        norm=by_name(norms),
        coefficient=by_name(coefficients),
        clipped=by_name(clipped),
        clip_rate_components=plain(clipped.sum(-1) / max(len(record.sizes), 1)),
        clip_rate_elements=plain((clipped * sizes).sum(-1) / max(sum(record.sizes), 1)),
    )


def empty_record(sizes: OrderedDict[str, int]) -> ClipRecord:
    """Makes the record before the first step."""
    ones = jnp.ones(len(sizes), jnp.float32)
    return ClipRecord(
        jnp.stack([jnp.zeros_like(ones), ones]), tuple(sizes), tuple(sizes.values())
    )


def recorded(
    record: ClipRecord,
    norms: OrderedDict[str, Float[jax.Array, ""]],
    coefficients: Mapping[str, ArrayLike | None],
) -> ClipRecord:
    """Makes the record of a step."""
    ones = {name: 1.0 if c is None else c for name, c in coefficients.items()}
    rows = [[norms[name], ones[name]] for name in record.names]
    if not rows:
        return record
    values = jnp.stack(
        [jnp.asarray(value, jnp.float32) for row in rows for value in row]
    )
    return dataclasses.replace(record, values=values.reshape(-1, 2).T)
