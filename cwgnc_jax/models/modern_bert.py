"""ModernBERT: rotary positions, local and global attention, gated feed-forward layers.

Module attributes are named as in Hugging Face's checkpoints, ``Wqkv`` included.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from cwgnc_jax.models.attention import attend, split_heads
from cwgnc_jax.models.batch import EncoderOutput, Tokens
from cwgnc_jax.models.dropout import Noise, dropout
from cwgnc_jax.models.embedding import lookup
from cwgnc_jax.models.layers import gelu, layer_norm, logits_layer, run_scoped_layers
from cwgnc_jax.models.modern_bert_config import ModernBertConfig


class _Scope(NamedTuple):
    """What the layers of one type attend to, and the angles of positions to them."""

    mask_bias: Array  # (b, h, q, k), added to the attention scores
    cos: Array  # shape=(rows, 1, length, head_size / 2), dtype=jnp.float32
    sin: Array  # shape=(rows, 1, length, head_size / 2), dtype=jnp.float32


class _Embeddings(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.dtype = dtype
        self.tok_embeddings = nnx.Embed(
            config.vocab_size, config.hidden_size, rngs=rngs
        )
        self.norm = _norm(config, dtype, rngs)

    def __call__(self, input_ids):
        return self.norm(
            lookup(self.tok_embeddings.embedding[...], input_ids, self.dtype)
        )


class _Attention(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.heads = config.num_attention_heads
        dense = functools.partial(
            nnx.Linear,
            config.hidden_size,
            use_bias=config.attention_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.Wqkv = dense(3 * config.hidden_size)
        self.Wo = dense(config.hidden_size)

    def __call__(self, x, scope, noise, tokens):
        rows, rate = scope.cos.shape[0], noise.rates.attention
        query, key, value = (
            split_heads(y, rows, self.heads)
            for y in jnp.split(self.Wqkv(x), 3, axis=-1)
        )
        query, key = (_rotated(y, scope) for y in (query, key))
        context = attend(query, key, value, scope.mask_bias, noise.at(0).key, rate)
        if tokens is not None:
            context = context[tokens]
        return dropout(noise.at(1).key, self.Wo(context), rate)


class _FeedForward(nnx.Module):
    """GeGLU: one half of the first layer gates the other."""

    def __init__(self, config, dtype, rngs):
        dense = functools.partial(
            nnx.Linear, use_bias=config.mlp_bias, dtype=dtype, rngs=rngs
        )
        self.Wi = dense(config.hidden_size, 2 * config.intermediate_size)
        self.Wo = dense(config.intermediate_size, config.hidden_size)

    def __call__(self, x, noise):
        y, gate = jnp.split(self.Wi(x), 2, axis=-1)
        return self.Wo(dropout(noise.at(2).key, gelu(y) * gate, noise.rates.mlp))


class _Layer(nnx.Module):
    def __init__(self, config, first, dtype, rngs):
        # The embeddings end with a norm already.
        self.attn_norm = None if first else _norm(config, dtype, rngs)
        self.attn = _Attention(config, dtype, rngs)
        self.mlp_norm = _norm(config, dtype, rngs)
        self.mlp = _FeedForward(config, dtype, rngs)

    def __call__(self, x, scope, noise, tokens):
        """The output of all tokens, (tokens, hidden) as ``x``, or of some of them."""
        normed = x if self.attn_norm is None else self.attn_norm(x)
        attended = self.attn(normed, scope, noise, tokens)
        if tokens is not None:
            x = x[tokens]
        x = x + attended
        return x + self.mlp(self.mlp_norm(x), noise)


class _ModernBert(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.embeddings = _Embeddings(config, dtype, rngs)
        self.layers = nnx.List(
            _Layer(config, index == 0, dtype, rngs)
            for index in range(config.num_hidden_layers)
        )
        self.final_norm = _norm(config, dtype, rngs)


class _PredictionHead(nnx.Module):
    def __init__(self, config, dtype, rngs):
        size = config.hidden_size
        self.dense = nnx.Linear(
            size, size, use_bias=config.classifier_bias, dtype=dtype, rngs=rngs
        )
        self.norm = _norm(config, dtype, rngs)

    def __call__(self, x):
        return self.norm(gelu(self.dense(x)))


class ModernBertForSequenceClassification(nnx.Module):
    """A dense layer and a norm over the first token or the mean, and a dense layer."""

    def __init__(self, config: ModernBertConfig, dtype, rngs):
        self.config = config
        self.model = _ModernBert(config, dtype, rngs)
        self.head = _PredictionHead(config, dtype, rngs)
        self.classifier = logits_layer(config, rngs)

    def __call__(self, tokens: Tokens, noise: Noise, remat: bool) -> EncoderOutput:
        """See :func:`cwgnc_jax.models.apply`."""
        x = self.model.embeddings(tokens.input_ids)
        x = dropout(noise.at(0).key, x, noise.rates.embedding)
        of_type = _scopes(self.config, tokens)
        scopes = [of_type[layer_type] for layer_type in self.config.layer_types]
        mean = self.config.classifier_pooling == "mean"
        wanted = None if mean else tokens.first_tokens
        hidden_states, x = run_scoped_layers(
            self.model.layers, scopes, x, wanted, noise, remat
        )
        x = self.model.final_norm(x)
        if mean:
            x = _means(x, tokens)
        pooled = self.head(x)
        dropped = dropout(noise.at(1).key, pooled, noise.rates.classifier)
        logits = self.classifier(dropped.astype(jnp.float32))
        return EncoderOutput(logits, hidden_states, x, pooled)


def _scopes(config, tokens):
    """The scope of each type of layers."""
    positions = jnp.arange(tokens.input_ids.shape[1])
    # Examples are contiguous in a row: columns are as far apart as positions.
    near = jnp.abs(positions[:, None] - positions[None]) <= config.local_attention // 2
    bias = tokens.mask_bias
    local_bias = jnp.where(near[None, None], bias, jnp.finfo(bias.dtype).min)
    return {
        "full_attention": _Scope(
            bias, *_angles(config, config.global_rope_theta, tokens)
        ),
        "sliding_attention": _Scope(
            local_bias, *_angles(config, config.local_rope_theta, tokens)
        ),
    }


def _angles(config, theta, tokens):
    """Cosine and sine of the angle by which each pair of features is turned."""
    half = config.head_size // 2
    frequencies = np.float32(theta ** (-np.arange(half) / half))
    angles = tokens.position_ids[:, None, :, None] * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def _rotated(x, scope):
    """Turns pairs of features, of which the second lies half a head behind."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (
        first * scope.cos - second * scope.sin,
        second * scope.cos + first * scope.sin,
    )
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _means(x, tokens):
    """The mean over the tokens of each example, (examples, hidden)."""
    rows, length = tokens.input_ids.shape
    # What a first token attends to is its example.
    attended = jnp.broadcast_to(tokens.mask_bias[:, 0] == 0, (rows, length, length))
    own = attended.reshape(-1, length)[tokens.first_tokens]
    in_row = jnp.arange(rows)[None] == (tokens.first_tokens // length)[:, None]
    belongs = (in_row[:, :, None] & own[:, None]).reshape(len(own), -1)
    sums = jnp.dot(
        belongs.astype(jnp.float32),
        x.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    counts = jnp.sum(own, axis=1, keepdims=True)
    # A row may be nothing but padding.
    return (sums / jnp.maximum(counts, 1)).astype(x.dtype)


def _norm(config, dtype, rngs):
    return layer_norm(
        config.hidden_size, config.norm_eps, dtype, rngs, use_bias=config.norm_bias
    )
