"""The layers of BERT, which RoBERTa and ELECTRA share.

The modules define only the structure. The parameters are in a plain nested dict whose
"/"-joined paths are Hugging Face's names, so the attributes of the modules have these
names too, including ``LayerNorm`` and ``self``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from cwgnc_jax.models.attention import Hidden, MaskBias, self_attention
from cwgnc_jax.models.batch import Tokens
from cwgnc_jax.models.config import BertLikeConfig
from cwgnc_jax.models.dropout import Noise, dropout
from cwgnc_jax.models.embedding import lookup

Wanted = Int[Array, " wanted"]
"""The tokens whose output is wanted."""
_SITES = 3
"""Of dropout in a layer: attention, its output, the layer's output."""


class Embeddings(nnx.Module):
    """The normalised sum of the embeddings of word, position and token type."""

    def __init__(
        self,
        config: BertLikeConfig,
        features: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        first_position: int = 0,
    ):
        embed = functools.partial(nnx.Embed, features=features, rngs=rngs)
        self.dtype = dtype
        self.first_position = first_position
        self.word_embeddings = embed(config.vocab_size)
        self.position_embeddings = embed(config.max_position_embeddings)
        self.token_type_embeddings = embed(config.type_vocab_size)
        self.LayerNorm = layer_norm(features, config.layer_norm_eps, dtype, rngs)

    def __call__(self, tokens: Tokens) -> Float[Array, "rows length features"]:
        """Computes the embeddings of all tokens."""
        first, length = self.first_position, tokens.input_ids.shape[-1]
        known = slice(first, first + length)
        types = tokens.token_type_ids
        if self.token_type_embeddings.num_embeddings == 1:
            # A tokenizer may still give the second text of a pair type 1.
            types = jnp.zeros_like(types)
        tables_and_ids = (
            (self.word_embeddings.embedding[...], tokens.input_ids),
            (self.position_embeddings.embedding[known], tokens.position_ids),
            (self.token_type_embeddings.embedding[...], types),
        )
        words, positions, types = (
            lookup(table, ids, self.dtype) for table, ids in tables_and_ids
        )
        return self.LayerNorm(words + positions + types)


class _Residual(nnx.Module):
    """A dense layer and dropout, then LayerNorm of the sum with the block's input."""

    def __init__(
        self, config: BertLikeConfig, features: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        width = config.hidden_size
        self.dense = nnx.Linear(features, width, dtype=dtype, rngs=rngs)
        self.LayerNorm = layer_norm(width, config.layer_norm_eps, dtype, rngs)

    def __call__(
        self, x: Float[Array, "tokens features"], residual: Hidden, noise: Noise
    ) -> Hidden:
        return self.LayerNorm(
            dropout(noise.key, self.dense(x), noise.rates.hidden) + residual
        )


class _SelfAttention(nnx.Module):
    def __init__(self, config: BertLikeConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.hidden_size
        dense = functools.partial(nnx.Linear, width, width, dtype=dtype, rngs=rngs)
        self.heads = config.num_attention_heads
        self.query = dense()
        self.key = dense()
        self.value = dense()

    def __call__(self, x: Hidden, mask_bias: MaskBias, noise: Noise) -> Hidden:
        projections = (self.query, self.key, self.value)
        return self_attention(projections, self.heads, x, mask_bias, noise)


class _Attention(nnx.Module):
    def __init__(self, config: BertLikeConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.self = _SelfAttention(config, dtype, rngs)
        self.output = _Residual(config, config.hidden_size, dtype, rngs)

    def __call__(
        self, x: Hidden, mask_bias: MaskBias, noise: Noise, tokens: Wanted | None
    ) -> Hidden:
        context = self.self(x, mask_bias, noise.at(0))
        if tokens is not None:
            context, x = context[tokens], x[tokens]
        return self.output(context, x, noise.at(1))


class Dense(nnx.Module):
    """A module around one dense layer, as in Hugging Face's models."""

    def __init__(
        self, config: BertLikeConfig, features: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.dense = nnx.Linear(config.hidden_size, features, dtype=dtype, rngs=rngs)


class _Layer(nnx.Module):
    def __init__(self, config: BertLikeConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention = _Attention(config, dtype, rngs)
        self.intermediate = Dense(config, config.intermediate_size, dtype, rngs)
        self.output = _Residual(config, config.intermediate_size, dtype, rngs)

    def __call__(
        self, x: Hidden, mask_bias: MaskBias, noise: Noise, tokens: Wanted | None
    ) -> Hidden:
        x = self.attention(x, mask_bias, noise, tokens)
        return self.output(gelu(self.intermediate.dense(x)), x, noise.at(2))


class Stack(nnx.Module):
    """A stack of BERT's layers."""

    def __init__(self, config: BertLikeConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layer = nnx.List(
            _Layer(config, dtype, rngs) for _ in range(config.num_hidden_layers)
        )


class ClassificationHead(nnx.Module):
    """The head of RoBERTa and ELECTRA: two dense layers over the first token."""

    def __init__(self, config: BertLikeConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.hidden_size
        self.dense = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.out_proj = logits_layer(width, config.num_labels, rngs)

    def __call__(
        self,
        x: Float[Array, "examples hidden"],
        activation: Callable[[Array], Array],
        noise: Noise,
    ) -> tuple[Float[Array, "examples num_labels"], Float[Array, "examples hidden"]]:
        """Computes the logits, and the input of the last layer before its dropout."""
        x = dropout(noise.at(0).key, x, noise.rates.classifier)
        pooled = activation(self.dense(x))
        dropped = dropout(noise.at(1).key, pooled, noise.rates.classifier)
        return self.out_proj(dropped.astype(jnp.float32)), pooled


@functools.partial(jax.jit, static_argnums=0)
def _call_layer(
    graphdef: nnx.GraphDef[Any],
    state: nnx.State[Any, Any],
    x: Hidden,
    scope: Any,
    noise: Noise,
    tokens: Wanted | None,
) -> Hidden:
    """Calls a layer; jitted, so that equal layers are traced only once."""
    return nnx.merge(graphdef, state)(x, scope, noise, tokens)


def run_layers(
    layers: Sequence[nnx.Module],
    x: Float[Array, "rows length hidden"],
    tokens: Tokens,
    noise: Noise,
    remat: bool,
) -> tuple[
    tuple[Float[Array, "rows length hidden"], ...], Float[Array, "examples hidden"]
]:
    """Passes hidden states through layers that attend to whole examples.

    See :func:`run_scoped_layers`. The scope of each layer is the bias of the mask, and
    of the last layer only the output at the first tokens is computed.
    """
    scopes = [tokens.mask_bias] * len(layers)
    return run_scoped_layers(layers, scopes, x, tokens.cls_positions, noise, remat)


def run_scoped_layers(
    layers: Sequence[nnx.Module],
    scopes: Sequence[Any],
    x: Float[Array, "rows length hidden"],
    wanted: Wanted | None,
    noise: Noise,
    remat: bool,
) -> tuple[
    tuple[Float[Array, "rows length hidden"], ...], Float[Array, "wanted hidden"]
]:
    """Passes hidden states through the layers of an encoder.

    Args:
      layers: Each is a function of hidden states (tokens, hidden), its scope, the
        noise, and the tokens whose output is wanted, or None for all.
      scopes: What the attention of each layer needs to know about the batch.
      x: The input of the first layer.
      wanted: The tokens whose output of the last layer is wanted, or None for all.
      noise: Layer i uses the noise of three sites of place 2 + i.
      remat: Whether the backward pass recomputes the inside of each layer.

    Returns:
      The input of each layer, and the output of the last layer for the wanted tokens.
    """
    shape = x.shape
    noises = noise.of_layers(2, len(layers), _SITES)
    hidden_states: list[Float[Array, "rows length hidden"]] = []
    # Rows and length are one axis outside the attention: with two the products of the
    # backward pass are a tenth slower.
    x = x.reshape(-1, x.shape[-1])
    for index, (layer, scope) in enumerate(zip(layers, scopes, strict=True)):
        hidden_states.append(x.reshape(shape))
        # After the attention of the last layer only the wanted tokens are computed.
        last = index == len(layers) - 1
        call = cast(
            Callable[[Hidden], Hidden],
            functools.partial(
                _call_layer,
                *nnx.split(layer),
                scope=scope,
                noise=noises[index],
                tokens=wanted if last else None,
            ),
        )
        x = cast(Hidden, (jax.checkpoint(call) if remat else call)(x))
    return tuple(hidden_states), x


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes the exact GELU in float32 and returns it in the dtype of ``x``."""
    # With erf, as in torch; jax.nn.gelu uses erfc, which costs three times as much on a
    # CPU.
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


def layer_norm(
    features: int,
    epsilon: float,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    use_bias: bool = True,
) -> nnx.LayerNorm:
    """Makes a LayerNorm over the last axis."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_bias=use_bias,
        # The fast variance, E[x²] - E[x]², cancels in float32 where |mean| >> std.
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )


def logits_layer(features: int, num_labels: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Makes the last dense layer, which is small and always computes in float32."""
    return nnx.Linear(features, num_labels, rngs=rngs)
