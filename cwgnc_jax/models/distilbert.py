"""DistilBERT with a sequence classifier."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, PRNGKeyArray

from cwgnc_jax.models.attention import Hidden, MaskBias, self_attention
from cwgnc_jax.models.batch import EncoderOutput, Tokens
from cwgnc_jax.models.config import EncoderConfig
from cwgnc_jax.models.dropout import Noise, Rates, dropout
from cwgnc_jax.models.embedding import lookup, sinusoids
from cwgnc_jax.models.layers import (
    Wanted,
    gelu,
    layer_norm,
    logits_layer,
    run_layers,
)

_LAYER_NORM_EPS = 1e-12


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(EncoderConfig):
    """The config of a DistilBERT sequence classifier.

    DistilBERT is BERT with fewer layers, without token types and with a different head.
    Names and defaults are those of Hugging Face's config.json.

    Args:
      vocab_size: Number of word pieces.
      max_position_embeddings: The longest sequence.
      sinusoidal_pos_embds: Whether a fresh table of positions holds sines and cosines;
        it is trained either way.
      n_layers: Number of encoder layers.
      n_heads: Heads per layer; they divide dim.
      dim: Width of the residual stream.
      hidden_dim: Width of the feed-forward layer.
      dropout: Dropout after the embeddings and the feed-forward block.
      attention_dropout: Dropout of the attention probabilities.
      seq_classif_dropout: Dropout before the classifier.
      initializer_range: Standard deviation of fresh kernels and embeddings.
      num_labels: Width of the classifier; 1 for regression.

    Raises:
      ValueError: If a size is not a positive integer, heads do not divide ``dim``, or
        a rate lies outside [0, 1).

    Examples:
      >>> from cwgnc_jax import models
      >>> models.DistilBertConfig().num_hidden_layers
      6

    References:
      Sanh et al., `DistilBERT, a distilled version of BERT: smaller, faster, cheaper
      and lighter <https://arxiv.org/abs/1910.01108>`_, 2019
    """

    model_type = "distilbert"
    required = {"activation": "gelu"}
    _heads_and_width = ("n_heads", "dim")

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    initializer_range: float = 0.02
    num_labels: int = 2

    @property
    def num_hidden_layers(self) -> int:  # type: ignore[override]  # it is only read
        """The name of ``n_layers`` in the other types."""
        return self.n_layers

    @property
    def hidden_size(self) -> int:
        """The name of ``dim`` in the other types."""
        return self.dim

    @property
    def dropout_rates(self) -> Rates:
        """The rates for hidden states, attention and classifier."""
        return Rates(
            hidden=self.dropout,
            attention=self.attention_dropout,
            classifier=self.seq_classif_dropout,
        )

    def draw(
        self, path: str, shape: tuple[int, ...], key: PRNGKeyArray
    ) -> Float[Array, "..."]:
        """Draws a kernel or an embedding table; that of positions may be sinusoidal."""
        if self.sinusoidal_pos_embds and path.endswith(
            "/position_embeddings/embedding"
        ):
            return sinusoids(*shape)
        return super().draw(path, shape, key)


class _Embeddings(nnx.Module):
    def __init__(self, config: DistilBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        embed = functools.partial(nnx.Embed, features=config.dim, rngs=rngs)
        self.dtype = dtype
        self.word_embeddings = embed(config.vocab_size)
        self.position_embeddings = embed(config.max_position_embeddings)
        self.LayerNorm = layer_norm(config.dim, _LAYER_NORM_EPS, dtype, rngs)

    def __call__(self, tokens: Tokens) -> Float[Array, "rows length hidden"]:
        words = self.word_embeddings.embedding[...]
        positions = self.position_embeddings.embedding[: tokens.input_ids.shape[-1]]
        return self.LayerNorm(
            lookup(words, tokens.input_ids, self.dtype)
            + lookup(positions, tokens.position_ids, self.dtype)
        )


class _Attention(nnx.Module):
    def __init__(self, config: DistilBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        dense = functools.partial(
            nnx.Linear, config.dim, config.dim, dtype=dtype, rngs=rngs
        )
        self.heads = config.n_heads
        self.q_lin = dense()
        self.k_lin = dense()
        self.v_lin = dense()
        self.out_lin = dense()


class _FeedForward(nnx.Module):
    def __init__(self, config: DistilBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        dense = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.lin1 = dense(config.dim, config.hidden_dim)
        self.lin2 = dense(config.hidden_dim, config.dim)


class _Layer(nnx.Module):
    def __init__(self, config: DistilBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        norm = functools.partial(layer_norm, config.dim, _LAYER_NORM_EPS, dtype, rngs)
        self.attention = _Attention(config, dtype, rngs)
        self.sa_layer_norm = norm()
        self.ffn = _FeedForward(config, dtype, rngs)
        self.output_layer_norm = norm()

    def __call__(
        self, x: Hidden, mask_bias: MaskBias, noise: Noise, tokens: Wanted | None
    ) -> Hidden:
        attention, ffn = self.attention, self.ffn
        projections = (attention.q_lin, attention.k_lin, attention.v_lin)
        context = self_attention(
            projections, attention.heads, x, mask_bias, noise.at(0)
        )
        if tokens is not None:
            context, x = context[tokens], x[tokens]
        x = self.sa_layer_norm(attention.out_lin(context) + x)
        y = ffn.lin2(gelu(ffn.lin1(x)))
        y = dropout(noise.at(1).key, y, noise.rates.hidden)
        return self.output_layer_norm(y + x)


class _Transformer(nnx.Module):
    def __init__(self, config: DistilBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layer = nnx.List(
            _Layer(config, dtype, rngs) for _ in range(config.n_layers)
        )


class _DistilBert(nnx.Module):
    def __init__(self, config: DistilBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = _Embeddings(config, dtype, rngs)
        self.transformer = _Transformer(config, dtype, rngs)


class DistilBertForSequenceClassification(nnx.Module):
    """DistilBERT with two dense layers over the first token, and ReLU between them."""

    def __init__(self, config: DistilBertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.distilbert = _DistilBert(config, dtype, rngs)
        self.pre_classifier = nnx.Linear(config.dim, config.dim, dtype=dtype, rngs=rngs)
        self.classifier = logits_layer(config.dim, config.num_labels, rngs)

    def __call__(self, tokens: Tokens, noise: Noise, remat: bool) -> EncoderOutput:
        """Computes the output of a batch; see :func:`cwgnc_jax.models.apply`."""
        x = self.distilbert.embeddings(tokens)
        x = dropout(noise.at(0).key, x, noise.rates.hidden)
        hidden_states, first = run_layers(
            self.distilbert.transformer.layer, x, tokens, noise, remat
        )
        pooled = jax.nn.relu(self.pre_classifier(first))
        dropped = dropout(noise.at(1).key, pooled, noise.rates.classifier)
        logits = self.classifier(dropped.astype(jnp.float32))
        return EncoderOutput(logits, hidden_states, first, pooled)
