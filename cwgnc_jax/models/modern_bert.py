"""ModernBERT, with rotary positions, local attention and gated feed-forward layers.

The attributes of the modules have the names in Hugging Face's checkpoints, including
``Wqkv``.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from cwgnc_jax.models.attention import Hidden, attend, split_heads
from cwgnc_jax.models.batch import EncoderOutput, Tokens
from cwgnc_jax.models.dropout import Noise, dropout
from cwgnc_jax.models.embedding import lookup
from cwgnc_jax.models.layers import (
    Wanted,
    gelu,
    layer_norm,
    logits_layer,
    run_scoped_layers,
)
from cwgnc_jax.models.modern_bert_config import ModernBertConfig

_Rotation = Float[Array, " rows 1 length half_head"]


class _Scope(NamedTuple):
    """The mask and the rotary positions for the layers of one type.

    Attributes:
      mask_bias: Added to the attention scores.
      cos: The cosines of the angles by which pairs of features are rotated.
      sin: Their sines.
    """

    mask_bias: Float[Array, " rows 1 #length length"]
    cos: _Rotation
    sin: _Rotation


class _Embeddings(nnx.Module):
    def __init__(self, config: ModernBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.tok_embeddings = nnx.Embed(
            config.vocab_size, config.hidden_size, rngs=rngs
        )
        self.norm = _norm(config, dtype, rngs)

    def __call__(
        self, input_ids: Int[Array, "rows length"]
    ) -> Float[Array, "rows length hidden"]:
        return self.norm(
            lookup(self.tok_embeddings.embedding[...], input_ids, self.dtype)
        )


class _Attention(nnx.Module):
    def __init__(self, config: ModernBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
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

    def __call__(
        self, x: Hidden, scope: _Scope, noise: Noise, tokens: Wanted | None
    ) -> Hidden:
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
    """A GeGLU block: one half of the first layer gates the other."""

    def __init__(self, config: ModernBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        dense = functools.partial(
            nnx.Linear, use_bias=config.mlp_bias, dtype=dtype, rngs=rngs
        )
        self.Wi = dense(config.hidden_size, 2 * config.intermediate_size)
        self.Wo = dense(config.intermediate_size, config.hidden_size)

    def __call__(self, x: Hidden, noise: Noise) -> Hidden:
        y, gate = jnp.split(self.Wi(x), 2, axis=-1)
        return self.Wo(dropout(noise.at(2).key, gelu(y) * gate, noise.rates.mlp))


class _Layer(nnx.Module):
    def __init__(
        self, config: ModernBertConfig, first: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        # The embeddings already end with a norm.
        self.attn_norm = None if first else _norm(config, dtype, rngs)
        self.attn = _Attention(config, dtype, rngs)
        self.mlp_norm = _norm(config, dtype, rngs)
        self.mlp = _FeedForward(config, dtype, rngs)

    def __call__(
        self, x: Hidden, scope: _Scope, noise: Noise, tokens: Wanted | None
    ) -> Hidden:
        """Computes the output of all tokens, or of some of them."""
        normed = x if self.attn_norm is None else self.attn_norm(x)
        attended = self.attn(normed, scope, noise, tokens)
        if tokens is not None:
            x = x[tokens]
        x = x + attended
        return x + self.mlp(self.mlp_norm(x), noise)


class _ModernBert(nnx.Module):
    def __init__(self, config: ModernBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = _Embeddings(config, dtype, rngs)
        self.layers = nnx.List(
            _Layer(config, index == 0, dtype, rngs)
            for index in range(config.num_hidden_layers)
        )
        self.final_norm = _norm(config, dtype, rngs)


class _PredictionHead(nnx.Module):
    def __init__(self, config: ModernBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        size = config.hidden_size
        self.dense = nnx.Linear(
            size, size, use_bias=config.classifier_bias, dtype=dtype, rngs=rngs
        )
        self.norm = _norm(config, dtype, rngs)

    def __call__(
        self, x: Float[Array, "examples hidden"]
    ) -> Float[Array, "examples hidden"]:
        return self.norm(gelu(self.dense(x)))


class ModernBertForSequenceClassification(nnx.Module):
    """ModernBERT with a head over the first token or the mean of all tokens."""

    def __init__(self, config: ModernBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        self.model = _ModernBert(config, dtype, rngs)
        self.head = _PredictionHead(config, dtype, rngs)
        self.classifier = logits_layer(config.hidden_size, config.num_labels, rngs)

    def __call__(self, tokens: Tokens, noise: Noise, remat: bool) -> EncoderOutput:
        """Computes the output of a batch; see :func:`cwgnc_jax.models.apply`."""
        x = self.model.embeddings(tokens.input_ids)
        x = dropout(noise.at(0).key, x, noise.rates.embedding)
        of_type = _scopes(self.config, tokens)
        scopes = [of_type[layer_type] for layer_type in self.config.layer_types or ()]
        mean = self.config.classifier_pooling == "mean"
        wanted = None if mean else tokens.cls_positions
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


def _scopes(config: ModernBertConfig, tokens: Tokens) -> dict[str, _Scope]:
    """Computes the scope of each type of layer."""
    positions = jnp.arange(tokens.input_ids.shape[1])
    # Each example is contiguous in its row, so distances of columns are those of
    # positions.
    near = jnp.abs(positions[:, None] - positions[None]) <= config.local_attention // 2
    bias = tokens.mask_bias
    local_bias = jnp.where(near[None, None], bias, np.finfo(bias.dtype).min)
    return {
        "full_attention": _Scope(
            bias, *_angles(config, config.global_rope_theta, tokens)
        ),
        "sliding_attention": _Scope(
            local_bias, *_angles(config, config.local_rope_theta, tokens)
        ),
    }


def _angles(
    config: ModernBertConfig, theta: float, tokens: Tokens
) -> tuple[_Rotation, _Rotation]:
    """Computes cosine and sine of the angle that rotates each pair of features."""
    half = config.head_size // 2
    frequencies = np.asarray(theta ** (-np.arange(half) / half), np.float32)
    angles = tokens.position_ids[:, None, :, None] * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def _rotated(
    x: Float[Array, "rows heads length head_size"], scope: _Scope
) -> Float[Array, "rows heads length head_size"]:
    """Rotates pairs of features, the second of which is half a head further on."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (
        first * scope.cos - second * scope.sin,
        second * scope.cos + first * scope.sin,
    )
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _means(x: Hidden, tokens: Tokens) -> Float[Array, "examples hidden"]:
    """Averages over the tokens of each example."""
    rows, length = tokens.input_ids.shape
    # The first token of an example attends to exactly its tokens.
    attended = jnp.broadcast_to(tokens.mask_bias[:, 0] == 0, (rows, length, length))
    own = attended.reshape(-1, length)[tokens.cls_positions]
    in_row = jnp.arange(rows)[None] == (tokens.cls_positions // length)[:, None]
    belongs = (in_row[:, :, None] & own[:, None]).reshape(len(own), -1)
    sums = jnp.dot(
        belongs.astype(jnp.float32),
        x.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    counts = jnp.sum(own, axis=1, keepdims=True)
    # An example may have no tokens, in a row of padding alone.
    return (sums / jnp.maximum(counts, 1)).astype(x.dtype)


def _norm(config: ModernBertConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return layer_norm(
        config.hidden_size, config.norm_eps, dtype, rngs, use_bias=config.norm_bias
    )
