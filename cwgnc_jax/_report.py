"""What the clip did in its last step, kept in the state of the optimizer."""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """The last step's norms and coefficients, in one array.

    The names and sizes are no data, so that the array is all that a scan carries, a
    donation frees, a checkpoint holds and a report fetches.
    """

    values: jax.Array
    """Float32 ``[2, components]``: norms before the clip, and coefficients."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})


class ReportedState(NamedTuple):
    """The state of a clip that keeps a report."""

    inner_state: Any
    record: ClipRecord


class ClipReport(NamedTuple):
    """What :func:`clip_report` returns: plain numbers, ready for a line of JSON.

    Inside ``jax.jit`` they are arrays instead.
    """

    norm: dict[str, Any]
    """Component to its norm before the clip."""

    coefficient: dict[str, Any]
    """Component to what the clip scaled it by, 1 if it was not clipped."""

    clipped: dict[str, Any]
    """Component to whether its norm was reduced."""

    clip_rate_components: Any
    """The share of components that were clipped."""

    clip_rate_elements: Any
    """The share of elements whose component was clipped."""

    def scalars(self, prefix: str = "clip") -> dict[str, Any]:
        """Flattens the report to one number a name, as writers of logs want it.

        Args:
          prefix: The first part of every name.

        Returns:
          The rates as ``clip/rate_components`` and ``clip/rate_elements``, and for each
          component ``clip/norm/NAME``, ``clip/coefficient/NAME`` and
          ``clip/clipped/NAME``, the last one 0 or 1.
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
    """Reads what the clip did in its last step out of an optimizer's state.

    The clip keeps a report if it is made with ``keep_report=True``. Reading it takes a
    single transfer from the device, whatever the number of components. It may be called
    inside ``jax.jit`` and ``jax.lax.scan`` as well, so that a step returns what it
    needs of the report; or stack the states of a scan and read the report of all steps.

    Args:
      opt_state: A state, however deep the clip lies in it. Below ``jax.vmap`` or
        stacked by ``jax.lax.scan`` its leading axes are kept: lists of numbers take
        the place of numbers.

    Returns:
      Norm, coefficient and whether it was clipped, by component name, and the clip
      rates: numbers, or arrays where the state is traced. Before the first step the
      norms are 0 and the coefficients 1. A component whose norm was NaN has the
      coefficient NaN and does not count as clipped.

    Raises:
      ValueError: If no clip or more than one in it keeps a report.

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
    traced = isinstance(record.values, jax.core.Tracer)
    values = record.values if traced else jax.device_get(record.values)
    xp, plain = (jnp, lambda x: x) if traced else (np, lambda x: x.tolist())
    # As an output of jit, of scan and the like a plain dict would be sorted.
    by = OrderedDict if traced else dict
    norms, coefficients = xp.moveaxis(values, -2, 0)
    clipped = coefficients < 1
    sizes = xp.broadcast_to(xp.asarray(record.sizes, float), clipped.shape)

    def by_name(values):
        columns = xp.moveaxis(values, -1, 0)
        return by(zip(record.names, map(plain, columns), strict=True))

    return ClipReport(
        norm=by_name(norms),
        coefficient=by_name(coefficients),
        clipped=by_name(clipped),
        clip_rate_components=plain(clipped.sum(-1) / max(len(record.sizes), 1)),
        clip_rate_elements=plain((clipped * sizes).sum(-1) / max(sum(record.sizes), 1)),
    )


def empty_record(sizes: OrderedDict[str, int]) -> ClipRecord:
    """The record of no step yet."""
    ones = jnp.ones(len(sizes), jnp.float32)
    return ClipRecord(
        jnp.stack([jnp.zeros_like(ones), ones]), tuple(sizes), tuple(sizes.values())
    )


def recorded(
    record: ClipRecord,
    norms: OrderedDict[str, jax.Array],
    coefficients: Mapping[str, ArrayLike | None],
) -> ClipRecord:
    """The record of a step."""
    ones = {name: 1.0 if c is None else c for name, c in coefficients.items()}
    rows = [[norms[name], ones[name]] for name in record.names]
    if not rows:
        return record
    values = jnp.stack(
        [jnp.asarray(value, jnp.float32) for row in rows for value in row]
    )
    return dataclasses.replace(record, values=values.reshape(-1, 2).T)
