"""Model configs, as read from Hugging Face's config.json."""

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from cwgnc_jax.models.dropout import Rates

# Larger than in any model; a number of a hundred digits would exhaust the memory.
_LARGEST = {"num_hidden_layers": 1000, "n_layers": 1000}
_LARGEST_SIZE = 2**24


class EncoderConfig(abc.ABC):
    """The base class of the configs of all types of models.

    Each type is a frozen dataclass, so that it can be a static argument of ``jax.jit``.
    Names and defaults are those of Hugging Face's config.json, where a missing entry
    means the default. The values are checked on construction.

    Attributes:
      model_type: The name of the type in config.json.
      vocab_size: Number of word pieces.
      num_hidden_layers: Number of encoder layers.
      max_position_embeddings: Number of positions that the model knows.
      type_vocab_size: Number of token types; with 1 token types are ignored.
      initializer_range: Standard deviation of fresh kernels and embeddings.
      num_labels: Width of the classifier; 1 for regression.
    """

    model_type: ClassVar[str]
    required: ClassVar[Mapping[str, Any]]
    """The entries of config.json that are supported with these values only."""
    _heads_and_width: ClassVar[tuple[str, str]] = ("num_attention_heads", "hidden_size")

    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    type_vocab_size: int = 1
    initializer_range: float
    num_labels: int

    # dataclasses.fields accepts self and cls: each subclass is a dataclass, which type
    # checkers cannot know of this class.
    def __post_init__(self):
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # see above
            _check(field, getattr(self, field.name))
        heads, width = self._heads_and_width
        if getattr(self, width) % getattr(self, heads):
            raise ValueError(
                f"{heads} must divide {width}, got {getattr(self, heads)} heads and "
                f"{width} {getattr(self, width)}"
            )

    @property
    def max_length(self) -> int:
        """The largest number of tokens in an example."""
        return self.max_position_embeddings

    @property
    @abc.abstractmethod
    def dropout_rates(self) -> Any:
        """The rates of dropout: a NamedTuple that the type's module reads."""

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], num_labels: int) -> Self:
        """Reads the content of a config.json.

        Entries that do not affect the computation (``use_cache``, token ids, versions)
        are ignored.

        Args:
          source: The decoded config.json.
          num_labels: Width of the classifier; labels in the file belong to the head it
            was saved with.

        Returns:
          The config.

        Raises:
          ValueError: If the file describes another type of model, or a variant of this
            type that is not supported.

        Examples:
          >>> from cwgnc_jax import models
          >>> source = {"model_type": "bert", "hidden_size": 384}
          >>> models.BertConfig.from_dict(source, num_labels=3).hidden_size
          384
        """
        model_type = source.get("model_type")
        if model_type != cls.model_type:
            raise ValueError(
                f"model_type {model_type!r} is not the type of a {cls.__name__}: "
                f"expected {cls.model_type!r}; models.load_pretrained finds the right "
                f"class"
            )
        for name, expected in cls.required.items():
            if source.get(name, expected) != expected:
                raise ValueError(
                    f"{name} {source[name]!r} is not supported: expected {expected!r}; "
                    f"choose a checkpoint of the original {cls.model_type} encoder"
                )
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # see above
        names = {field.name for field in fields} - {"num_labels"}
        values = {name: source[name] for name in names & source.keys()}
        return cls(**values, num_labels=num_labels)  # type: ignore[call-arg]

    def to_dict(self) -> dict[str, Any]:
        """Returns the entries of a config.json, except those of the labels."""
        entries = dataclasses.asdict(self)  # type: ignore[call-overload]  # see above
        # transformers derives it from id2label.
        del entries["num_labels"]
        return entries | dict(self.required) | {"model_type": self.model_type}

    def draw(
        self, path: str, shape: tuple[int, ...], key: PRNGKeyArray
    ) -> Float[Array, "..."]:
        """Draws a kernel or an embedding table, from N(0, initializer_range²).

        Args:
          path: The parameter's "/"-joined path.
          shape: Its shape.
          key: A random key for this parameter.

        Returns:
          The parameter, in float32.
        """
        return _normal(key, np.float32(self.initializer_range), shape)


# One program for each shape.
@functools.partial(jax.jit, static_argnames="shape")
def _normal(
    key: PRNGKeyArray, std: Array, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    return std * jax.random.normal(key, shape, jnp.float32)


@dataclasses.dataclass(frozen=True)
class BertLikeConfig(EncoderConfig):
    """The fields that BERT shares with its successors."""

    required = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }

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

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def dropout_rates(self) -> Rates:
        """The rates for hidden states, attention and classifier."""
        hidden, head = self.hidden_dropout_prob, self.classifier_dropout
        return Rates(
            hidden=hidden,
            attention=self.attention_probs_dropout_prob,
            classifier=hidden if head is None else head,
        )


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises unless a value is possible for a field of this type and name."""
    if field.type is bool:
        fits, expected = isinstance(value, bool), "true or false"
    elif field.type is int:
        low = 0 if field.name.endswith("_id") else 1
        fits = _is_number(value, int) and value >= low
        expected = f"an integer of at least {low}"
        largest = _LARGEST.get(field.name, _LARGEST_SIZE)
        if fits and value > largest:
            raise ValueError(f"{field.name} must be at most {largest:,}, got {value}")
    elif field.name.endswith(("_prob", "dropout")):
        if value is None:
            fits = field.type is not float
        else:
            fits = _is_number(value, int | float) and 0 <= value < 1
        expected = "a rate in [0, 1)"
    elif field.type is float:
        fits = _is_number(value, int | float) and 0 <= value < math.inf
        expected = "a finite number of at least 0"
    else:  # Its own class checks it.
        return
    if not fits:
        raise ValueError(f"{field.name} must be {expected}, got {value!r}")


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Says whether a value that was read from JSON is an object."""
    return isinstance(value, dict)


def _is_number(value: Any, kinds: Any) -> bool:
    # A bool is an int too.
    return isinstance(value, kinds) and not isinstance(value, bool)
