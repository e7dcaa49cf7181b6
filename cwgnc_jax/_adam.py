"""Adam with the eps and the bias correction with which BERT was fine-tuned."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._checks import check_inexact, check_nonnegative, check_share
from cwgnc_jax._tree_paths import places


def scale_by_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    bias_correction: ArrayLike = True,
) -> optax.GradientTransformation:
    r"""Rescales updates by Adam, with eps where transformers 4.12.5 puts it.

    With the moments :math:`m_t = b_1 m_{t-1} + (1 - b_1) g_t` and
    :math:`v_t = b_2 v_{t-1} + (1 - b_2) g_t^2` the update is

    .. math::
      c_t \, \frac{m_t}{\sqrt{v_t} + \text{eps}}, \qquad
      c_t = \frac{\sqrt{1 - b_2^t}}{1 - b_1^t}
      \text{ with bias correction, else } 1.

    :func:`optax.scale_by_adam` instead divides by :math:`\sqrt{\hat v_t} + \text{eps}`
    with the corrected :math:`\hat v_t`, where eps has less weight. The difference
    matters after a clip, which makes gradients small: with the default eps, the first
    update for gradients of 1e-4, 1e-5 and 1e-6 is .997, .970 and .767 times that of
    optax.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the root of the uncorrected second moment.
      bias_correction: Whether to correct the moments' bias; without it this is the
        BERT Adam of Devlin et al. (2019). May be a traced boolean, so that runs with
        and without it can share a program.

    Returns:
      An :class:`optax.GradientTransformation` with an
      :class:`optax.ScaleByAdamState`.

    Raises:
      TypeError: If an argument is not a number.
      ValueError: If a decay lies outside [0, 1), or eps is negative.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.scale_by_adam(eps=0, bias_correction=False)
      >>> grads = jnp.array([2.0, -0.001])
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> [f"{u:.2f}" for u in updates]  # (1 - b1) / sqrt(1 - b2), whatever the size
      ['3.16', '-3.16']

    References:
      Kingma and Ba, `Adam: A Method for Stochastic Optimization
      <https://arxiv.org/abs/1412.6980>`_, 2015; Mosbach et al., `On the Stability of
      Fine-tuning BERT <https://arxiv.org/abs/2006.04884>`_, 2021
    """
    check_share("b1", b1)
    check_share("b2", b2)
    check_nonnegative("eps", eps)

    def init_fn(params: optax.Params) -> optax.ScaleByAdamState:
        check_inexact(places(params).leaves)
        return optax.ScaleByAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
        )

    @jax.named_scope("scale_by_adam")
    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params

        def first(grad: jax.Array | None, mean: jax.Array) -> jax.Array:
            return mean if grad is None else _average(grad, mean, b1, 1 - b1)

        def second(grad: jax.Array | None, mean: jax.Array) -> jax.Array:
            return mean if grad is None else _average_square(grad, mean, b2, 1 - b2)

        def quotient(
            grad: jax.Array | None, mean: jax.Array, variance: jax.Array
        ) -> jax.Array | None:
            return grad if grad is None else _quotient(mean, variance, correction, eps)

        def over_updates(function: Any, *trees: Any) -> Any:
            # A gradient of None leaves the moments as they are.
            return jax.tree.map(
                function, updates, *trees, is_leaf=lambda node: node is None
            )

        mu = over_updates(first, state.mu)
        nu = over_updates(second, state.nu)
        count = jnp.asarray(optax.safe_increment(state.count))
        correction = jnp.where(
            bias_correction,
            jnp.sqrt(_one_minus_power(b2, count)) / _one_minus_power(b1, count),
            1.0,
        )
        return over_updates(quotient, mu, nu), optax.ScaleByAdamState(
            count=count, mu=mu, nu=nu
        )

    return optax.GradientTransformation(init_fn, update_fn)


# Jitted, so that each is traced once for all parameters of a shape.
@jax.jit
def _average(
    new: jax.Array, old: jax.Array, decay: jax.Array, rest: jax.Array
) -> jax.Array:
    return (rest * new + decay * old).astype(old.dtype)


@jax.jit
def _average_square(
    new: jax.Array, old: jax.Array, decay: jax.Array, rest: jax.Array
) -> jax.Array:
    parts = [new.real, new.imag] if jnp.iscomplexobj(new) else [new]
    square = rest * sum(map(jnp.square, parts)) + decay * old
    return square.astype(old.dtype)


@jax.jit
def _quotient(
    mean: jax.Array, variance: jax.Array, correction: jax.Array, eps: jax.Array
) -> jax.Array:
    return (correction * mean / (jnp.sqrt(variance) + eps)).astype(mean.dtype)


def _one_minus_power(decay: ArrayLike, count: jax.Array) -> jax.Array:
    # 1 - 0.999**1 in float32 has an error of 1e-5. With the logarithm in double
    # precision, expm1 is exact to rounding, like torch's computation in Python floats.
    if isinstance(decay, float):
        log_decay = math.log(decay) if decay > 0 else -math.inf
    else:
        log_decay = jnp.log(jnp.asarray(decay, jnp.float32))
    return -jnp.expm1(count * log_decay)
