"""Self-attention, written so that XLA's CPU backend is quick about it as well."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from cwgnc_jax.models.dropout import dropout


class SelfAttention(nnx.Module):
    """Attention of each token to those of its example, in several heads."""

    def __init__(self, config, dtype, rngs):
        self.heads = config.num_attention_heads
        dense = functools.partial(
            nnx.Linear, config.hidden_size, config.hidden_size, dtype=dtype, rngs=rngs
        )
        self.query = dense()
        self.key = dense()
        self.value = dense()

    def __call__(self, x, mask_bias, noise):
        """The context of every token, (tokens, hidden) as ``x``; see ``bert.apply``."""
        rows = mask_bias.shape[0]

        def split_heads(y):
            # Transposed here and not by the einsums: XLA's CPU backend fuses the whole
            # attention then, and the forward pass takes two thirds of the time.
            return y.reshape(rows, -1, self.heads, y.shape[1] // self.heads).transpose(
                0, 2, 1, 3
            )

        query, key, value = map(split_heads, self._projected(x))
        scores = _scores(query, key)
        scores = scores * query.shape[-1] ** -0.5 + mask_bias
        probs = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        probs = dropout(noise.key, probs, noise.attention)
        context = jnp.einsum("bhqk,bhkd->bhqd", probs, value)
        return context.transpose(0, 2, 1, 3).reshape(x.shape)

    def _projected(self, x):
        """Query, key and value."""
        dense = (self.query, self.key, self.value)
        if jax.default_backend() == "cpu":
            # XLA's CPU backend would join the kernels of all layers ahead of the rest,
            # and keep them: a quarter of the memory of all gradients.
            return [d(x) for d in dense]
        # By one matrix product, which keeps a GPU busier; they stay three parameters.
        kernel = jnp.concatenate([d.kernel[...].astype(x.dtype) for d in dense], axis=1)
        bias = jnp.concatenate([d.bias[...].astype(x.dtype) for d in dense])
        return jnp.split(x @ kernel + bias[None], 3, axis=1)


def bias_of_mask(mask):
    """What is added to the attention scores; the mask broadcasts to (b, h, q, k)."""
    # Not -inf: a row without any token would be NaN, and one NaN spoils a whole batch.
    return jnp.where(mask.astype(bool), 0.0, jnp.finfo(jnp.float32).min)


@jax.custom_vjp
def _scores(query, key):
    """Each query's product with each key of its head, (b, h, q, k), in float32."""
    return jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)


def _scores_forward(query, key):
    return _scores(query, key), (query, key)


def _scores_backward(saved, grads):
    query, key = saved
    grads = grads.astype(query.dtype)
    # The product with the small matrix on the left: XLA's CPU backend takes twice the
    # time for "bhqk,bhqd->bhkd", which is what jax.grad writes.
    of_key = jnp.einsum("bhqd,bhqk->bhdk", query, grads).swapaxes(2, 3)
    return jnp.einsum("bhqk,bhkd->bhqd", grads, key), of_key


_scores.defvjp(_scores_forward, _scores_backward)
