"""RoBERTa and XLM-RoBERTa with a sequence classifier."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from cwgnc_jax.models import layers
from cwgnc_jax.models.batch import EncoderOutput, Tokens
from cwgnc_jax.models.config import BertLikeConfig
from cwgnc_jax.models.dropout import Noise, dropout


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertLikeConfig):
    """The config of a RoBERTa sequence classifier.

    RoBERTa is BERT with a different head and positions that start after the padding's.
    Names and defaults are those of Hugging Face's config.json; ``roberta-base`` has 514
    positions, one token type and a ``layer_norm_eps`` of 1e-5.

    Args:
      vocab_size: Number of word pieces.
      hidden_size: As in :class:`BertConfig`, like all fields that are not listed here.
      max_position_embeddings: The length of the longest sequence plus
        ``pad_token_id + 1``.
      classifier_dropout: Dropout before both layers of the head; None means
        hidden_dropout_prob.
      pad_token_id: The position of padding; the first token has the next one.

    Raises:
      ValueError: If a size is not a positive integer, the heads do not divide the
        hidden size, a rate lies outside [0, 1), or no position is left for a token.

    Examples:
      >>> from cwgnc_jax import models
      >>> models.RobertaConfig(max_position_embeddings=514).max_length
      512

    References:
      Liu et al., `RoBERTa: A Robustly Optimized BERT Pretraining Approach
      <https://arxiv.org/abs/1907.11692>`_, 2019
    """

    model_type = "roberta"

    vocab_size: int = 50265
    pad_token_id: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.max_length < 1:
            raise ValueError(
                f"max_position_embeddings must be at least pad_token_id + 2 = "
                f"{self.pad_token_id + 2}, got {self.max_position_embeddings}"
            )

    @property
    def first_position(self) -> int:
        """The position of the first token."""
        return self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """The largest number of tokens in an example."""
        return self.max_position_embeddings - self.first_position


@dataclasses.dataclass(frozen=True)
class XLMRobertaConfig(RobertaConfig):
    """The config of an XLM-RoBERTa sequence classifier.

    It differs from :class:`RobertaConfig` only in its vocabulary.

    Examples:
      >>> from cwgnc_jax import models
      >>> models.XLMRobertaConfig(vocab_size=250002).model_type
      'xlm-roberta'

    References:
      Conneau et al., `Unsupervised Cross-lingual Representation Learning at Scale
      <https://arxiv.org/abs/1911.02116>`_, 2020
    """

    model_type = "xlm-roberta"

    vocab_size: int = 30522


class _Roberta(nnx.Module):
    def __init__(self, config: RobertaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = layers.Embeddings(
            config, config.hidden_size, dtype, rngs, config.first_position
        )
        self.encoder = layers.Stack(config, dtype, rngs)


class RobertaForSequenceClassification(nnx.Module):
    """RoBERTa with two dense layers over the first token, and tanh between them."""

    def __init__(self, config: RobertaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.roberta = _Roberta(config, dtype, rngs)
        self.classifier = layers.ClassificationHead(config, dtype, rngs)

    def __call__(self, tokens: Tokens, noise: Noise, remat: bool) -> EncoderOutput:
        """Computes the output of a batch; see :func:`cwgnc_jax.models.apply`."""
        x = self.roberta.embeddings(tokens)
        x = dropout(noise.at(0).key, x, noise.rates.hidden)
        hidden_states, first = layers.run_layers(
            self.roberta.encoder.layer, x, tokens, noise, remat
        )
        logits, pooled = self.classifier(first, jnp.tanh, noise.at(1))
        return EncoderOutput(logits, hidden_states, first, pooled)
