"""The numbers that make a ModernBERT, read from Hugging Face's config.json."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from cwgnc_jax.models.config import EncoderConfig

_THETAS = {
    "full_attention": "global_rope_theta",
    "sliding_attention": "local_rope_theta",
}
_POOLINGS = ("cls", "mean")


class ModernBertRates(NamedTuple):
    """How much is dropped where; None draws nothing, which a traced 0 would."""

    embedding: ArrayLike | None
    attention: ArrayLike | None
    mlp: ArrayLike | None
    classifier: ArrayLike | None


@dataclasses.dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """The shape of a ModernBERT sequence classifier and its rates.

    Names and defaults are those of Hugging Face's config.json, where a missing entry
    means ModernBERT-base's; both of its spellings are read, ``rope_parameters`` and
    ``layer_types`` of transformers 5 and the older ones. The values are checked on
    construction. Hashable, so that it can be a static argument of ``jax.jit``.

    Query, key and value of a layer are one parameter here, ``attn/Wqkv``, and so one
    component by default; likewise ``mlp/Wi`` holds the feed-forward layer and its gate.
    Scores outside a local layer's window are computed and masked, as short texts want
    it.

    Args:
      vocab_size: Number of word pieces.
      hidden_size: Width of the residual stream.
      num_hidden_layers: Number of encoder layers.
      num_attention_heads: Heads per layer; each has an even share of hidden_size.
      intermediate_size: Width of the gated feed-forward layer.
      max_position_embeddings: The longest sequence.
      global_attn_every_n_layers: Layers 0, n, 2n, … attend globally, the others
        locally; read where ``layer_types`` is None.
      layer_types: ``"full_attention"`` or ``"sliding_attention"`` for each layer.
      local_attention: The window of local layers: tokens at most half of it apart see
        each other.
      global_rope_theta: Base of the rotary positions of global layers.
      local_rope_theta: Base of the rotary positions of local layers.
      classifier_pooling: What the classifier reads, ``"cls"``, the first token, or
        ``"mean"``, the mean of all tokens.
      embedding_dropout: Dropout after the embeddings.
      attention_dropout: Dropout of the attention probabilities and of its output.
      mlp_dropout: Dropout inside the feed-forward layer.
      classifier_dropout: Dropout before the classifier.
      norm_bias: Whether the normalisation layers have a bias.
      attention_bias: Whether the projections of the attention have a bias.
      mlp_bias: Whether the feed-forward layers have a bias.
      classifier_bias: Whether the head before the classifier has a bias; the classifier
        has one in any case.
      initializer_range: Standard deviation of fresh kernels and embeddings.
      initializer_cutoff_factor: No fresh value is further from 0 than this many
        standard deviations.
      norm_eps: Added to the variance in every normalisation layer.
      num_labels: Width of the classifier; 1 for regression.

    Raises:
      ValueError: If a size is not a positive integer, heads do not divide the hidden
        size into even parts, a rate lies outside [0, 1), or a layer's type or the
        pooling is unknown.

    Examples:
      >>> from cwgnc_jax import models
      >>> config = models.ModernBertConfig(num_hidden_layers=4)
      >>> config.layer_types[2:]
      ('sliding_attention', 'full_attention')

    References:
      Warner et al., `Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder
      <https://arxiv.org/abs/2412.13663>`_, 2024
    """

    model_type = "modernbert"
    required = {
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "rope_scaling": None,
    }

    vocab_size: int = 50368
    hidden_size: int = 768
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    intermediate_size: int = 1152
    max_position_embeddings: int = 8192
    global_attn_every_n_layers: int = 3
    layer_types: tuple[str, ...] | None = None
    local_attention: int = 128
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    classifier_pooling: str = "cls"
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    classifier_dropout: float = 0.0
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    classifier_bias: bool = False
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    norm_eps: float = 1e-5
    num_labels: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.head_size % 2:
            raise ValueError(
                f"num_attention_heads must divide hidden_size into even parts, got "
                f"{self.num_attention_heads} heads and hidden_size {self.hidden_size}"
            )
        for name in (*_THETAS.values(), "initializer_cutoff_factor"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be a positive number, got 0")
        if self.classifier_pooling not in _POOLINGS:
            raise ValueError(
                f"classifier_pooling must be one of {', '.join(_POOLINGS)}, got "
                f"{self.classifier_pooling!r}"
            )
        object.__setattr__(self, "layer_types", self._checked_layer_types())

    def _checked_layer_types(self) -> tuple[str, ...]:
        if self.layer_types is None:
            every = self.global_attn_every_n_layers
            return tuple(
                "sliding_attention" if layer % every else "full_attention"
                for layer in range(self.num_hidden_layers)
            )
        types = self.layer_types
        if (
            not isinstance(types, (list, tuple))
            or len(types) != self.num_hidden_layers
            or any(kind not in tuple(_THETAS) for kind in types)
        ):
            raise ValueError(
                f"layer_types must name {' or '.join(_THETAS)} for each of the "
                f"{self.num_hidden_layers} layers, got {types!r}"
            )
        return tuple(types)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def dropout_rates(self) -> ModernBertRates:
        """Those of the embeddings, the attention, the feed-forward and the head."""
        rates = (
            self.embedding_dropout,
            self.attention_dropout,
            self.mlp_dropout,
            self.classifier_dropout,
        )
        return ModernBertRates(*(rate or None for rate in rates))

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], num_labels: int) -> Self:
        """Reads a config.json; see :meth:`EncoderConfig.from_dict`.

        Examples:
          >>> from cwgnc_jax import models
          >>> source = {"model_type": "modernbert", "global_rope_theta": 10000.0}
          >>> models.ModernBertConfig.from_dict(source, 3).global_rope_theta
          10000.0
        """
        return super().from_dict({**source, **dict(_thetas(source))}, num_labels)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entries of a config.json, those of the labels aside."""
        rope_parameters = {
            layer_type: {"rope_type": "default", "rope_theta": getattr(self, name)}
            for layer_type, name in _THETAS.items()
        }
        return super().to_dict() | {
            "layer_types": list(self.layer_types or ()),
            "rope_parameters": rope_parameters,
        }

    def draw(self, path: str, shape: tuple[int, ...], key: Array) -> Array:
        """Draws a kernel or a table of embeddings.

        What ends a residual branch, and the head, is smaller the more layers there are.
        """
        std = self.initializer_range
        if path == "classifier/kernel":
            std = self.hidden_size**-0.5
        elif path.endswith("/Wo/kernel") or path.startswith("head/"):
            std /= math.sqrt(2 * self.num_hidden_layers)
        cutoff = self.initializer_cutoff_factor
        return std * jax.random.truncated_normal(
            key, -cutoff, cutoff, shape, jnp.float32
        )


def _thetas(source: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The bases of the rotary positions as transformers 5 spells them, if it does."""
    rope = source.get("rope_parameters") or {}
    if not isinstance(rope, dict) or not rope.keys() <= _THETAS.keys():
        raise ValueError(
            f"rope_parameters must be an object with entries {' and '.join(_THETAS)}, "
            f"got {rope!r}"
        )
    for layer_type, parameters in rope.items():
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, dict):
            raise ValueError(
                f"rope_parameters of {layer_type} must be an object, got {parameters!r}"
            )
        kind = parameters.get("rope_type", "default")
        if kind != "default":
            raise ValueError(
                f"rope_type {kind!r} of {layer_type} is not supported: expected "
                f"'default'; choose a checkpoint of the original ModernBERT encoder"
            )
        if "rope_theta" in parameters:
            yield _THETAS[layer_type], parameters["rope_theta"]
