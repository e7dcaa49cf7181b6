"""ELECTRA's discriminator with a sequence classifier."""

import dataclasses

from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from cwgnc_jax.models import layers
from cwgnc_jax.models.batch import EncoderOutput, Tokens
from cwgnc_jax.models.config import BertLikeConfig
from cwgnc_jax.models.dropout import Noise, dropout


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertLikeConfig):
    """The config of an ELECTRA sequence classifier.

    ELECTRA is BERT with a different head and embeddings that may be narrower than the
    layers. Names and defaults are those of Hugging Face's config.json, where a missing
    entry means the value of ELECTRA-small.

    Args:
      vocab_size: Number of word pieces.
      hidden_size: As in :class:`BertConfig`, like all fields that are not listed here.
      classifier_dropout: Dropout before both layers of the head; None means
        hidden_dropout_prob.
      embedding_size: Width of the embeddings. If it differs from ``hidden_size``, a
        dense layer follows them.

    Raises:
      ValueError: If a size is not a positive integer, the heads do not divide the
        hidden size, or a rate lies outside [0, 1).

    Examples:
      >>> from cwgnc_jax import models
      >>> config = models.ElectraConfig()
      >>> config.embedding_size, config.hidden_size
      (128, 256)

    References:
      Clark et al., `ELECTRA: Pre-training Text Encoders as Discriminators Rather Than
      Generators <https://arxiv.org/abs/2003.10555>`_, 2020
    """

    model_type = "electra"

    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    embedding_size: int = 128


class _Electra(nnx.Module):
    def __init__(self, config: ElectraConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        narrow, width = config.embedding_size, config.hidden_size
        self.embeddings = layers.Embeddings(config, narrow, dtype, rngs)
        self.embeddings_project = (
            None
            if narrow == width
            else nnx.Linear(narrow, width, dtype=dtype, rngs=rngs)
        )
        self.encoder = layers.Stack(config, dtype, rngs)

    def embed(self, tokens: Tokens, noise: Noise) -> Float[Array, "rows length hidden"]:
        x = self.embeddings(tokens)
        x = dropout(noise.key, x, noise.rates.hidden)
        return x if self.embeddings_project is None else self.embeddings_project(x)


class ElectraForSequenceClassification(nnx.Module):
    """ELECTRA with two dense layers over the first token, and GELU between them."""

    def __init__(self, config: ElectraConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.electra = _Electra(config, dtype, rngs)
        self.classifier = layers.ClassificationHead(config, dtype, rngs)

    def __call__(self, tokens: Tokens, noise: Noise, remat: bool) -> EncoderOutput:
        """Computes the output of a batch; see :func:`cwgnc_jax.models.apply`."""
        x = self.electra.embed(tokens, noise.at(0))
        hidden_states, first = layers.run_layers(
            self.electra.encoder.layer, x, tokens, noise, remat
        )
        logits, pooled = self.classifier(first, layers.gelu, noise.at(1))
        return EncoderOutput(logits, hidden_states, first, pooled)
