"""The numbers that make a BERT, read from Hugging Face's config.json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

SUPPORTED_MODEL_TYPES = ("bert",)

_REQUIRED = {
    # What the code computes; a config that asks for anything else is refused.
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_LARGEST = {"num_hidden_layers": 1000}
_LARGEST_SIZE = 2**24


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT sequence classifier and its rates.

    Names and defaults are those of Hugging Face's config.json, where a missing entry
    means BERT-base's. The values are checked on construction. Hashable, so that it can
    be a static argument of ``jax.jit``.

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
      ValueError: If a size is not a positive integer or beyond any model's, heads do
        not divide the hidden size, or a rate lies outside [0, 1).

    Examples:
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(hidden_size=1024, num_attention_heads=16)
      >>> config.head_size
      64
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    num_labels: int = 2

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                _check(field.name, value, int, "an integer of at least 1", 1)
                largest = _LARGEST.get(field.name, _LARGEST_SIZE)
                if value > largest:
                    raise ValueError(
                        f"{field.name} must be at most {largest:,}, got {value}"
                    )
            elif field.name.endswith(("_prob", "_dropout")):
                if not (field.name == "classifier_dropout" and value is None):
                    _check(field.name, value, float, "a rate in [0, 1)", 0, 1)
            else:
                _check(field.name, value, float, "a finite number of at least 0", 0)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got "
                f"{self.num_attention_heads} heads and hidden_size {self.hidden_size}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], num_labels: int) -> "BertConfig":
        """Reads the content of a config.json.

        Entries that say nothing about the computation (``use_cache``, token ids,
        versions) are passed over.

        Args:
          source: The decoded config.json.
          num_labels: Width of the classifier; what the file says of labels is the
            affair of its own head.

        Returns:
          The config.

        Raises:
          ValueError: If the file describes another architecture, or a variant of BERT
            that is not computed here.

        Examples:
          >>> from cwgnc_jax import models
          >>> source = {"model_type": "bert", "hidden_size": 384}
          >>> models.BertConfig.from_dict(source, num_labels=3).hidden_size
          384
        """
        model_type = source.get("model_type")
        if model_type not in SUPPORTED_MODEL_TYPES:
            raise ValueError(
                f"model_type {model_type!r} is not supported: expected one of "
                f"{', '.join(SUPPORTED_MODEL_TYPES)}; choose a checkpoint of BERT"
            )
        for name, expected in _REQUIRED.items():
            if source.get(name, expected) != expected:
                raise ValueError(
                    f"{name} {source[name]!r} is not supported: expected {expected!r}; "
                    f"choose a checkpoint of the original BERT encoder"
                )
        names = {field.name for field in dataclasses.fields(cls)} - {"num_labels"}
        known = {name: source[name] for name in names & source.keys()}
        return cls(**known, num_labels=num_labels)


def _check(name, value, kind, expected, low, high=math.inf):
    """Raises unless value is a number of the kind in [low, high)."""
    # bool is an int, and an int is as good as a float here.
    kinds = int if kind is int else (int, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not low <= value < high
    ):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
