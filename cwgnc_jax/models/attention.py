"""Self-attention in a form that XLA also compiles well for CPUs."""

from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Shaped

from cwgnc_jax.models.dropout import Noise, dropout

Hidden = Float[Array, "tokens hidden"]
"""Hidden states; rows and length are one axis."""
MaskBias = Float[Array, " rows #heads #length length"]
"""Added to the attention scores; see :func:`bias_of_mask`."""
_PerHead = Float[Array, "rows heads length head_size"]
_Scores = Float[Array, "rows heads length length"]
# For each of several dense layers: its copy of the input, its kernel and its bias.
_Operands = tuple[
    list[Hidden],
    list[Float[Array, "hidden features"]],
    list[Float[Array, " features"]],
]
_Products = list[Float[Array, "tokens features"]]


def self_attention(
    projections: Sequence[nnx.Linear],
    heads: int,
    x: Hidden,
    mask_bias: MaskBias,
    noise: Noise,
) -> Hidden:
    """Lets each token attend to the tokens of its example, in several heads.

    Args:
      projections: The dense layers of query, key and value.
      heads: The number of heads.
      x: The hidden states.
      mask_bias: See :func:`bias_of_mask`.
      noise: Its rates include one named ``attention``.

    Returns:
      The context of each token.
    """
    rows = mask_bias.shape[0]
    query, key, value = (
        split_heads(y, rows, heads) for y in _projected(projections, x)
    )
    return attend(query, key, value, mask_bias, noise.key, noise.rates.attention)


def split_heads(y: Hidden, rows: int, heads: int) -> _PerHead:
    """Splits the tokens into rows and their features into heads."""
    # Transposed here rather than in the einsums: then XLA's CPU backend fuses the whole
    # attention, which takes a third off the time of the forward pass.
    return y.reshape(rows, -1, heads, y.shape[1] // heads).transpose(0, 2, 1, 3)


def attend(
    query: _PerHead,
    key: _PerHead,
    value: _PerHead,
    mask_bias: MaskBias,
    dropout_key: PRNGKeyArray | None,
    rate: ArrayLike | None,
) -> Hidden:
    """Computes the context of each token from query, key and value."""
    scores = cast(_Scores, _scores(query, key))
    scores = scores * query.shape[-1] ** -0.5 + mask_bias
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    probs = dropout(dropout_key, probs, rate)
    context = jnp.einsum("bhqk,bhkd->bhqd", probs, value).transpose(0, 2, 1, 3)
    return context.reshape(-1, context.shape[-2] * context.shape[-1])


def _projected(projections: Sequence[nnx.Linear], x: Hidden) -> list[Hidden]:
    """Computes query, key and value of each token."""
    # Reversed, so that the gradients of x are summed in the order of autodiff.
    layers = projections[::-1]
    kernels: list[Array] = []
    biases: list[Array] = []
    for dense in layers:
        assert dense.bias is not None
        kernels.append(dense.kernel[...].astype(x.dtype))
        biases.append(dense.bias[...].astype(x.dtype))
    return _dense([x] * len(layers), kernels, biases)[::-1]


@jax.custom_vjp
def _dense(
    copies: list[Hidden],
    kernels: list[Float[Array, "hidden features"]],
    biases: list[Float[Array, " features"]],
) -> _Products:
    """Applies dense layers to one input, with products that suit the platform.

    Each layer has its own copy of the input. So each has its own gradient, and autodiff
    sums them in an order that does not depend on the platform.
    """
    return jax.lax.platform_dependent(
        copies, kernels, biases, cpu=three_products, default=one_product
    )


def _dense_forward(
    copies: list[Array], kernels: list[Array], biases: list[Array]
) -> tuple[_Products, _Operands]:
    return _dense(copies, kernels, biases), (copies, kernels, biases)


def _dense_backward(saved: _Operands, grads: _Products) -> _Operands:
    # Hence custom_vjp: autodiff would keep the residuals of both kinds of products.
    def pullback(
        products: Callable[..., _Products],
    ) -> Callable[[_Operands, _Products], _Operands]:
        def pull(saved: _Operands, grads: _Products) -> _Operands:
            return jax.vjp(products, *saved)[1](grads)

        return pull

    return jax.lax.platform_dependent(
        saved,
        grads,
        cpu=pullback(three_products),
        default=pullback(one_product),
    )


_dense.defvjp(_dense_forward, _dense_backward)


def three_products(
    copies: list[Array], kernels: list[Array], biases: list[Array]
) -> _Products:
    """Applies each layer by a product of its own.

    With one product XLA's CPU backend would concatenate the kernels of all encoder
    layers in advance and keep them: a quarter of the memory of all gradients.
    """
    layers = zip(copies, kernels, biases, strict=True)
    return [x @ kernel + bias[None] for x, kernel, bias in layers]


def one_product(
    copies: list[Array], kernels: list[Array], biases: list[Array]
) -> _Products:
    """Applies all layers by one product, which uses a GPU better."""
    kernel = jnp.concatenate(kernels, axis=1)
    bias = jnp.concatenate(biases)
    return jnp.split(copies[0] @ kernel + bias[None], len(kernels), axis=1)


def bias_of_mask(
    mask: Shaped[Array, " rows #heads #length length"],
) -> MaskBias:
    """Turns a mask of the keys that each query sees into a bias for the scores."""
    # With -inf a row without tokens would be NaN, which spreads to the whole batch.
    return jnp.where(mask.astype(bool), 0.0, np.finfo(np.float32).min)


@jax.custom_vjp
def _scores(query: _PerHead, key: _PerHead) -> _Scores:
    """Multiplies each query with each key of its head, in float32."""
    return jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)


def _scores_forward(
    query: _PerHead, key: _PerHead
) -> tuple[_Scores, tuple[_PerHead, _PerHead]]:
    return _scores(query, key), (query, key)


def _scores_backward(
    saved: tuple[_PerHead, _PerHead], grads: _Scores
) -> tuple[_PerHead, _PerHead]:
    query, key = saved
    grads = grads.astype(query.dtype)
    # The smaller matrix comes first: XLA's CPU backend takes twice as long for
    # "bhqk,bhqd->bhkd", which is what autodiff would write.
    of_key = jnp.einsum("bhqd,bhqk->bhdk", query, grads).swapaxes(2, 3)
    return jnp.einsum("bhqk,bhkd->bhqd", grads, key), of_key


_scores.defvjp(_scores_forward, _scores_backward)
