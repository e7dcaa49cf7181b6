"""The threshold of each component: a number, a schedule or a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from cwgnc_jax._checks import check_positive, check_scalar, check_threshold
from cwgnc_jax._rules import FirstMatch, is_list

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class PerElement:
    """The result of :func:`per_element`."""

    threshold: ArrayLike


@dataclasses.dataclass(frozen=True)
class RelativeToParams:
    """The result of :func:`relative_to_params`."""

    ratio: ArrayLike
    min_norm: ArrayLike


Threshold = ArrayLike | optax.Schedule | PerElement | RelativeToParams
"""The threshold of a component."""

MaxNorm = Threshold | Sequence[tuple[str, Threshold | None]]
"""One threshold for all components, or rules that choose it by their names."""


def per_element(threshold: ArrayLike) -> PerElement:
    r"""Makes a threshold that grows with the size of the component.

    A component of :math:`n` elements may keep a norm of up to
    :math:`\text{threshold} \cdot \sqrt{n}`: its root mean square may not exceed the
    threshold. With one component for each parameter and ``eps=0`` this is
    :func:`optax.clip_by_block_rms`.

    Args:
      threshold: The largest root mean square: a positive number, or a scalar array,
        which may be traced.

    Returns:
      A ``max_norm`` for :func:`component_clip_by_global_norm`.

    Raises:
      TypeError: If ``threshold`` is not a number.
      ValueError: If it is not positive.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.component_clip_by_global_norm(
      ...     cwgnc_jax.per_element(1.0), eps=0
      ... )
      >>> grads = {"w": jnp.array([0.0, 0.0, 0.0, 4.0])}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> print(updates["w"])
      [0. 0. 0. 2.]
    """
    check_threshold("threshold", threshold)
    return PerElement(threshold)


def relative_to_params(
    ratio: ArrayLike, min_norm: ArrayLike = 1e-3
) -> RelativeToParams:
    r"""Makes a threshold relative to the norm of the component's parameters.

    A component with parameters :math:`w` may keep a norm of up to
    :math:`\text{ratio} \cdot \max(\|w\|_2, \text{min\_norm})`. This is adaptive
    gradient clipping by component, where the paper clips by unit. The transformation's
    ``update`` then needs ``params``.

    Args:
      ratio: The largest ratio of the norms, 0.01 in the paper: a positive number, or a
        scalar array, which may be traced.
      min_norm: A lower bound of the parameters' norm, without which parameters that are
        zero at the start could never grow.

    Returns:
      A ``max_norm`` for :func:`component_clip_by_global_norm`.

    Raises:
      TypeError: If an argument is not a number.
      ValueError: If an argument is not positive.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.component_clip_by_global_norm(
      ...     cwgnc_jax.relative_to_params(0.1), eps=0
      ... )
      >>> params, grads = {"w": jnp.array([6.0, 8.0])}, {"w": jnp.array([3.0, 4.0])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(updates["w"])
      [0.6 0.8]

    References:
      Brock et al., `High-Performance Large-Scale Image Recognition Without
      Normalization <https://arxiv.org/abs/2102.06171>`_, 2021, section 4.1
    """
    check_threshold("ratio", ratio)
    check_positive("min_norm", min_norm)
    return RelativeToParams(ratio, min_norm)


class Thresholds:
    """Finds the threshold of each component.

    Args:
      max_norm: See :func:`component_clip_by_global_norm`.
    """

    def __init__(self, max_norm: MaxNorm):
        if _is_rules(max_norm):
            rules = [(pattern, threshold) for pattern, threshold in max_norm]
            self._rules = FirstMatch(
                rules,
                kind="threshold rule",
                thing="component",
                key="name",
                last='(".*", None)',
            )
            self._thresholds = [threshold for _, threshold in rules]
            for pattern, threshold in rules:
                if threshold is not None:
                    _check(f"max_norm of {pattern!r}", threshold)
        else:
            self._rules, self._thresholds = None, [max_norm]
            _check("max_norm", max_norm)
        self.scheduled = any(map(callable, self._thresholds))
        self.relative = any(
            isinstance(threshold, RelativeToParams) for threshold in self._thresholds
        )

    def check(self, names: list[str], *, whole: bool) -> None:
        """Raises if a component has no threshold, or a rule matches no component.

        Args:
          names: The components in sight.
          whole: Whether these are all; otherwise a rule may match one of the others.
        """
        if self._rules and names:
            self._rules.cover(names)
            if whole:
                self._rules.check_all_used(names)

    def clips(self, name: str) -> bool:
        """Says whether a component has a threshold."""
        return self._thresholds[self._rules_of([name])[0]] is not None

    def of(
        self,
        names: list[str],
        sizes: list[int],
        param_norms: Float[jax.Array, " components"] | None,
        step: Int[jax.Array, ""] | None,
    ) -> Float[jax.Array, " components"]:
        """Computes the thresholds of components that have one.

        Args:
          names: The components' names.
          sizes: The numbers of their elements.
          param_norms: The norms of their parameters, where a threshold is relative to
            them.
          step: The number of steps taken, where a threshold is a schedule.

        Returns:
          The thresholds.
        """
        own_rules = self._rules_of(names)
        rules = np.array(own_rules)
        thresholds = jnp.zeros(len(names))
        own: Any
        for rule in sorted(set(own_rules)):
            threshold = self._thresholds[rule]
            if isinstance(threshold, PerElement):
                own = threshold.threshold * np.sqrt(np.array(sizes, np.float32))
            elif isinstance(threshold, RelativeToParams):
                assert param_norms is not None
                own = threshold.ratio * jnp.maximum(param_norms, threshold.min_norm)
            elif callable(threshold):
                assert step is not None
                own = threshold(step)
                check_scalar("What the schedule max_norm returns", own)
            else:
                own = cast(ArrayLike, threshold)
            thresholds = jnp.where(rules == rule, own, thresholds)
        return thresholds

    def _rules_of(self, names: list[str]) -> list[int]:
        if self._rules is None:
            return [0] * len(names)
        return [rule for rule, _ in self._rules.cover(names)]


def _check(argument: str, threshold: Any) -> None:
    if not (
        isinstance(threshold, (PerElement, RelativeToParams)) or callable(threshold)
    ):
        check_threshold(argument, threshold)


def _is_rules(max_norm: Any) -> TypeGuard[Sequence[tuple[str, Threshold | None]]]:
    return (
        is_list(max_norm)
        and len(max_norm) > 0
        and all(
            is_list(rule) and len(rule) == 2 and isinstance(rule[0], str)
            for rule in max_norm
        )
    )
