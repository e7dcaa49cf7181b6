"""The layers of BERT, of which RoBERTa and ELECTRA are made as well.

The modules hold the structure; parameters live in a plain nested dict whose
"/"-joined paths are Hugging Face's names. Module attributes are therefore named as
there, ``LayerNorm`` and ``self`` included.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cwgnc_jax.models.attention import self_attention
from cwgnc_jax.models.batch import Tokens
from cwgnc_jax.models.dropout import Noise, dropout
from cwgnc_jax.models.embedding import lookup


class Embeddings(nnx.Module):
    """The sum of word, position and token type, normalised."""

    def __init__(self, config, features, dtype, rngs, first_position=0):
        embed = functools.partial(nnx.Embed, features=features, rngs=rngs)
        self.dtype = dtype
        self.first_position = first_position
        self.word_embeddings = embed(config.vocab_size)
        self.position_embeddings = embed(config.max_position_embeddings)
        self.token_type_embeddings = embed(config.type_vocab_size)
        self.LayerNorm = layer_norm(features, config.layer_norm_eps, dtype, rngs)

    def __call__(self, tokens: Tokens):
        """The embeddings, (rows, length, features)."""
        first, length = self.first_position, tokens.input_ids.shape[-1]
        known = slice(first, first + length)
        types = tokens.token_type_ids
        if self.token_type_embeddings.num_embeddings == 1:
            # Whatever a tokenizer says of the second text of a pair.
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
    """Dense, dropout, then LayerNorm of the sum with the block's input."""

    def __init__(self, config, features, dtype, rngs):
        width = config.hidden_size
        self.dense = nnx.Linear(features, width, dtype=dtype, rngs=rngs)
        self.LayerNorm = layer_norm(width, config.layer_norm_eps, dtype, rngs)

    def __call__(self, x, residual, noise):
        return self.LayerNorm(
            dropout(noise.key, self.dense(x), noise.rates.hidden) + residual
        )


class _SelfAttention(nnx.Module):
    def __init__(self, config, dtype, rngs):
        width = config.hidden_size
        dense = functools.partial(nnx.Linear, width, width, dtype=dtype, rngs=rngs)
        self.heads = config.num_attention_heads
        self.query = dense()
        self.key = dense()
        self.value = dense()

    def __call__(self, x, mask_bias, noise):
        projections = (self.query, self.key, self.value)
        return self_attention(projections, self.heads, x, mask_bias, noise)


class _Attention(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.self = _SelfAttention(config, dtype, rngs)
        self.output = _Residual(config, config.hidden_size, dtype, rngs)

    def __call__(self, x, mask_bias, noise, tokens):
        context = self.self(x, mask_bias, noise.at(0))
        if tokens is not None:
            context, x = context[tokens], x[tokens]
        return self.output(context, x, noise.at(1))


class Dense(nnx.Module):
    """A module of one dense layer, as Hugging Face nests it."""

    def __init__(self, config, features, dtype, rngs):
        self.dense = nnx.Linear(config.hidden_size, features, dtype=dtype, rngs=rngs)


class _Layer(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.attention = _Attention(config, dtype, rngs)
        self.intermediate = Dense(config, config.intermediate_size, dtype, rngs)
        self.output = _Residual(config, config.intermediate_size, dtype, rngs)

    def __call__(self, x, mask_bias, noise, tokens):
        x = self.attention(x, mask_bias, noise, tokens)
        return self.output(gelu(self.intermediate.dense(x)), x, noise.at(2))


class Stack(nnx.Module):
    """A stack of BERT's layers."""

    def __init__(self, config, dtype, rngs):
        self.layer = nnx.List(
            _Layer(config, dtype, rngs) for _ in range(config.num_hidden_layers)
        )


class ClassificationHead(nnx.Module):
    """Two dense layers over the first token, as RoBERTa and ELECTRA have them."""

    def __init__(self, config, dtype, rngs):
        width = config.hidden_size
        self.dense = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.out_proj = logits_layer(config, rngs)

    def __call__(self, x, activation, noise):
        """The logits, and what the last layer made them of but for the dropout."""
        x = dropout(noise.at(0).key, x, noise.rates.classifier)
        pooled = activation(self.dense(x))
        dropped = dropout(noise.at(1).key, pooled, noise.rates.classifier)
        return self.out_proj(dropped.astype(jnp.float32)), pooled


@functools.partial(jax.jit, static_argnums=0)
def _call_layer(graphdef, state, x, scope, noise, tokens):
    """A layer's output; layers that are alike are traced and differentiated at once."""
    return nnx.merge(graphdef, state)(x, scope, noise, tokens)


def run_layers(
    layers: Sequence[nnx.Module],
    x: Array,
    tokens: Tokens,
    noise: Noise,
    remat: bool,
) -> tuple[tuple[Array, ...], Array]:
    """Passes hidden states through layers that all attend to whole examples.

    See :func:`run_scoped_layers`: the scope of each layer is the bias of the mask, and
    of the last one's output the first tokens are wanted.
    """
    scopes = [tokens.mask_bias] * len(layers)
    return run_scoped_layers(layers, scopes, x, tokens.first_tokens, noise, remat)


def run_scoped_layers(
    layers: Sequence[nnx.Module],
    scopes: Sequence[Any],
    x: Array,
    wanted: Array | None,
    noise: Noise,
    remat: bool,
) -> tuple[tuple[Array, ...], Array]:
    """Passes hidden states through the layers of an encoder.

    Args:
      layers: Each is a function of hidden states (tokens, hidden), its scope, the
        noise, and the tokens whose output is wanted, or None for all.
      scopes: What each layer's attention has to know of the batch.
      x: The input of the first layer, (rows, length, hidden).
      wanted: Of which tokens the last layer's output is wanted, or None for all.
      noise: Layer i has the noise at place 2 + i.
      remat: Whether the backward pass computes each layer again.

    Returns:
      The input of each layer, (rows, length, hidden), and the last one's output for
      the wanted tokens, (tokens, hidden).
    """
    shape, hidden_states = x.shape, []
    # Rows and tokens are one axis to all but the attention: the products of the
    # backward pass are a tenth slower with both.
    x = x.reshape(-1, x.shape[-1])
    for index, (layer, scope) in enumerate(zip(layers, scopes, strict=True)):
        hidden_states.append(x.reshape(shape))
        # Of the last layer's output only these are read, and so only they go through
        # it, but for the attention.
        last = index == len(layers) - 1
        call = functools.partial(
            _call_layer,
            *nnx.split(layer),
            scope=scope,
            noise=noise.at(2 + index),
            tokens=wanted if last else None,
        )
        x = (jax.checkpoint(call) if remat else call)(x)
    return tuple(hidden_states), x


def gelu(x: Array) -> Array:
    """The exact GELU, in the dtype of ``x``."""
    # By erf as torch does; jax.nn.gelu takes erfc, at three times the cost on a CPU.
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


def layer_norm(features, epsilon, dtype, rngs, use_bias=True) -> nnx.LayerNorm:
    """A LayerNorm over the last axis."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_bias=use_bias,
        # The fast one, E[x²] - E[x]², cancels in float32 where |mean| >> std.
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )


def logits_layer(config, rngs) -> nnx.Linear:
    """The last dense layer, a handful of numbers: float32 whatever the dtype is."""
    return nnx.Linear(config.hidden_size, config.num_labels, rngs=rngs)
