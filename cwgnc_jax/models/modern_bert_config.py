"""The config of ModernBERT, as read from Hugging Face's config.json."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray

from cwgnc_jax._rules import is_list
from cwgnc_jax.models.config import EncoderConfig, is_object

_THETAS = {
    "full_attention": "global_rope_theta",
    "sliding_attention": "local_rope_theta",
}
_POOLINGS = ("cls", "mean")


class ModernBertRates(NamedTuple):
    """The rates of dropout; with None no mask is drawn, unlike with a traced 0."""

    embedding: ArrayLike | None
    attention: ArrayLike | None
    mlp: ArrayLike | None
    classifier: ArrayLike | None


@dataclasses.dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """The config of a ModernBERT sequence classifier.

    Names and defaults are those of Hugging Face's config.json, where a missing entry
    means the value of ModernBERT-base. Both formats of the file are read: that of
    transformers 5, with ``rope_parameters`` and ``layer_types``, and the older one. The
    values are checked on construction. The config is hashable, so that it can be a
    static argument of ``jax.jit``.

    The query, key and value of a layer are one parameter, ``attn/Wqkv``, and so by
    default one component. Likewise ``mlp/Wi`` holds the feed-forward layer and its
    gate. Attention scores outside the window of a local layer are computed and then
    masked, which suits short texts.

    Args:
      vocab_size: Number of word pieces.
      hidden_size: Width of the residual stream.
      num_hidden_layers: Number of encoder layers.
      num_attention_heads: Heads per layer; they divide hidden_size into even numbers.
      intermediate_size: Width of the gated feed-forward layer.
      max_position_embeddings: The longest sequence.
      global_attn_every_n_layers: Layers 0, n, 2n, … attend globally, the others
        locally; only used where ``layer_types`` is None.
      layer_types: ``"full_attention"`` or ``"sliding_attention"`` for each layer.
      local_attention: The window of local layers: tokens see each other up to a
        distance of half the window.
      global_rope_theta: Base of the rotary positions of global layers.
      local_rope_theta: Base of the rotary positions of local layers.
      classifier_pooling: The input of the classifier: ``"cls"``, the first token, or
        ``"mean"``, the mean of all tokens.
      embedding_dropout: Dropout after the embeddings.
      attention_dropout: Dropout of the attention probabilities and of its output.
      mlp_dropout: Dropout inside the feed-forward layer.
      classifier_dropout: Dropout before the classifier.
      norm_bias: Whether the normalisation layers have a bias.
      attention_bias: Whether the projections of the attention have a bias.
      mlp_bias: Whether the feed-forward layers have a bias.
      classifier_bias: Whether the head before the classifier has a bias; the classifier
        always has one.
      initializer_range: Standard deviation of fresh kernels and embeddings.
      initializer_cutoff_factor: Fresh values are at most this many standard deviations
        from 0.
      norm_eps: Added to the variance in every normalisation layer.
      num_labels: Width of the classifier; 1 for regression.

    Raises:
      ValueError: If a size is not a positive integer, heads do not divide the hidden
        size into even numbers, a rate lies outside [0, 1), or the type of a layer or
        the pooling is unknown.

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
                f"num_attention_heads must divide hidden_size into even numbers, got "
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
        object.__setattr__(
            self, "layer_types", self._checked_layer_types(self.layer_types)
        )

    def _checked_layer_types(self, types: Any) -> tuple[str, ...]:
        if types is None:
            every = self.global_attn_every_n_layers
            return tuple(
                "sliding_attention" if layer % every else "full_attention"
                for layer in range(self.num_hidden_layers)
            )
        if (
            not is_list(types)
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
        """The rates for embeddings, attention, feed-forward layers and classifier."""
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
        """Returns the entries of a config.json, except those of the labels."""
        rope_parameters = {
            layer_type: {"rope_type": "default", "rope_theta": getattr(self, name)}
            for layer_type, name in _THETAS.items()
        }
        return super().to_dict() | {
            "layer_types": list(self.layer_types or ()),
            "rope_parameters": rope_parameters,
        }

    def draw(
        self, path: str, shape: tuple[int, ...], key: PRNGKeyArray
    ) -> Float[Array, "..."]:
        """Draws a kernel or an embedding table from a truncated normal distribution.

        The kernels of the head and at the end of each residual branch are the smaller
        the more layers there are.
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
    """Reads the bases of the rotary positions from the entry of transformers 5."""
    rope = source.get("rope_parameters") or {}
    if not is_object(rope) or not rope.keys() <= _THETAS.keys():
        raise ValueError(
            f"rope_parameters must be an object with entries {' and '.join(_THETAS)}, "
            f"got {rope!r}"
        )
    for layer_type, parameters in rope.items():
        parameters = {} if parameters is None else parameters
        if not is_object(parameters):
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
