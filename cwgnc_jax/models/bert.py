"""BERT with a sequence classifier."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from cwgnc_jax.models import layers
from cwgnc_jax.models.batch import EncoderOutput, Tokens
from cwgnc_jax.models.config import BertLikeConfig
from cwgnc_jax.models.dropout import Noise, dropout


@dataclasses.dataclass(frozen=True)
class BertConfig(BertLikeConfig):
    """The config of a BERT sequence classifier.

    Names and defaults are those of Hugging Face's config.json, where a missing entry
    means the value of BERT-base. The values are checked on construction. The config is
    hashable, so that it can be a static argument of ``jax.jit``.

    Args:
      vocab_size: Number of word pieces.
      hidden_size: Width of the residual stream.
      num_hidden_layers: Number of encoder layers.
      num_attention_heads: Heads per layer; they divide hidden_size.
      intermediate_size: Width of the feed-forward layer.
      max_position_embeddings: The longest sequence.
      type_vocab_size: Number of token types (segments).
      hidden_dropout_prob: Dropout after the embeddings, the attention and the
        feed-forward block.
      attention_probs_dropout_prob: Dropout of the attention probabilities.
      classifier_dropout: Dropout before the classifier; None means
        hidden_dropout_prob.
      initializer_range: Standard deviation of fresh kernels and embeddings.
      layer_norm_eps: Added to the variance in every LayerNorm.
      num_labels: Width of the classifier; 1 for regression.

    Raises:
      ValueError: If a size is not a positive integer, the heads do not divide the
        hidden size, or a rate lies outside [0, 1).

    Examples:
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(hidden_size=1024, num_attention_heads=16)
      >>> config.head_size
      64

    References:
      Devlin et al., `BERT: Pre-training of Deep Bidirectional Transformers
      <https://arxiv.org/abs/1810.04805>`_, 2018
    """

    model_type = "bert"


class _Bert(nnx.Module):
    def __init__(self, config: BertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = layers.Embeddings(config, config.hidden_size, dtype, rngs)
        self.encoder = layers.Stack(config, dtype, rngs)
        self.pooler = layers.Dense(config, config.hidden_size, dtype, rngs)


class BertForSequenceClassification(nnx.Module):
    """BERT with a tanh pooler over the first token, and a dense layer."""

    def __init__(self, config: BertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.bert = _Bert(config, dtype, rngs)
        self.classifier = layers.logits_layer(
            config.hidden_size, config.num_labels, rngs
        )

    def __call__(self, tokens: Tokens, noise: Noise, remat: bool) -> EncoderOutput:
        """Computes the output of a batch; see :func:`cwgnc_jax.models.apply`."""
        x = self.bert.embeddings(tokens)
        x = dropout(noise.at(0).key, x, noise.rates.hidden)
        hidden_states, first = layers.run_layers(
            self.bert.encoder.layer, x, tokens, noise, remat
        )
        pooled = jnp.tanh(self.bert.pooler.dense(first))
        dropped = dropout(noise.at(1).key, pooled, noise.rates.classifier)
        logits = self.classifier(dropped.astype(jnp.float32))
        return EncoderOutput(logits, hidden_states, first, pooled)
