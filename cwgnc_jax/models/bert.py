"""BERT for sequence classification: NNX modules with a functional core."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

Params = dict[str, Any]
"""A nested dict of arrays whose "/"-joined paths are Hugging Face's names."""


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The sizes and rates of a BERT classifier, named as in Hugging Face's config.

    Attributes:
      classifier_dropout: Dropout before the classifier; None for the rate of
        ``hidden_dropout_prob``.
      num_labels: Outputs of the classifier; 1 for a number.
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
            if field.type is int and not (type(value) is int and value > 0):
                raise ValueError(
                    f"{field.name} must be a positive whole number, got {value!r}"
                )
            if field.type is not int and not (
                (value is None and field.name == "classifier_dropout")
                or (type(value) in (int, float) and 0 <= value < 1)
            ):
                raise ValueError(f"{field.name} must lie in [0, 1), got {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got "
                f"{self.hidden_size} and {self.num_attention_heads}"
            )

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], *, num_labels: int) -> "BertConfig":
        """Reads a Hugging Face config, refusing what this encoder does not compute.

        Args:
          source: The content of ``config.json``.
          num_labels: Outputs of the classifier.

        Returns:
          The config.

        Raises:
          ValueError: If the config is of another architecture or has a setting that
            changes the computation, or its sizes make no sense.

        Examples:
          >>> from cwgnc_jax import models
          >>> source = {"model_type": "bert", "hidden_size": 384}
          >>> models.BertConfig.from_dict(source, num_labels=3).hidden_size
          384
        """
        model_type = source.get("model_type")
        if model_type != "bert":
            raise ValueError(
                f"The checkpoint's model_type is {model_type!r}; supported: 'bert'"
            )
        for name, supported in (
            ("hidden_act", "gelu"),
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
            ("add_cross_attention", False),
        ):
            value = source.get(name, supported)
            if value is not None and value != supported:
                raise ValueError(
                    f"The checkpoint's {name} is {value!r}; supported: {supported!r}"
                )
        known = {field.name for field in dataclasses.fields(cls)} - {"num_labels"}
        given = {name: source[name] for name in known if name in source}
        return cls(**given, num_labels=num_labels)


class BertOutput(NamedTuple):
    """What the classifier computes for a batch.

    Attributes:
      logits: float32, ``[batch, num_labels]``.
      hidden_states: The embeddings and the output of each layer, in the dtype of the
        computation, ``[batch, length, hidden_size]`` each.
      pooled: The first token's state behind the pooler, ``[batch, hidden_size]``.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...]
    pooled: jax.Array


def apply(
    config: BertConfig,
    params: Params,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    token_type_ids: jax.Array,
    *,
    key: jax.Array | None = None,
    dropout_rate: ArrayLike | None = None,
    dtype: DTypeLike = jnp.float32,
) -> BertOutput:
    """Classifies a batch of token sequences. A pure function.

    Args:
      config: The model's config.
      params: The model's parameters, float32.
      input_ids: Token ids, ``[batch, length]``.
      attention_mask: 1 for tokens and 0 for padding, ``[batch, length]``.
      token_type_ids: 0 for the first text and 1 for the second, ``[batch, length]``.
      key: Draws the dropout; without a key there is none.
      dropout_rate: Replaces the config's three rates; may be traced.
      dtype: The dtype of the computation. Softmax, normalisation statistics and
        logits are float32 whatever it is.

    Returns:
      Logits, hidden states and the pooled state.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(
      ...     vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...     intermediate_size=8, max_position_embeddings=6, num_labels=3)
      >>> params = models.init_params(config, jax.random.key(0))
      >>> ids, ones = jnp.array([[2, 5, 7]]), jnp.ones((1, 3), int)
      >>> models.apply(config, params, ids, ones, ones * 0).logits.shape
      (1, 3)

    References:
      Devlin et al., `BERT: Pre-training of Deep Bidirectional Transformers for
      Language Understanding <https://arxiv.org/abs/1810.04805>`_, 2019
    """
    model = nnx.merge(
        _graphdef(config, jnp.dtype(dtype)), nnx.restore_int_paths(params)
    )
    dropout = _Dropout(config, key, dropout_rate)
    return model(input_ids, attention_mask, token_type_ids, dropout)


def init_params(config: BertConfig, key: jax.Array) -> Params:
    """Initialises a classifier as BERT was before pretraining.

    Kernels and embeddings are normal with ``initializer_range``, biases zero and
    LayerNorm scales one.

    Args:
      config: The model's config.
      key: Draws the parameters.

    Returns:
      The parameters, float32.

    Examples:
      >>> import jax
      >>> from cwgnc_jax import models
      >>> params = models.init_params(models.BertConfig(
      ...     vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...     intermediate_size=8, max_position_embeddings=6), jax.random.key(0))
      >>> params["bert"]["encoder"]["layer"]["0"]["output"]["dense"]["kernel"].shape
      (8, 4)
    """
    model = BertForSequenceClassification(config, jnp.dtype("float32"), nnx.Rngs(key))
    return _string_keys(nnx.to_pure_dict(nnx.state(model)))


def abstract_params(config: BertConfig) -> Params:
    """Shapes and dtypes of the parameters, without computing any."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


class BertForSequenceClassification(nnx.Module):
    """The encoder, its pooler and a linear classifier on the first token."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.bert = _Bert(config, dtype, rngs)
        self.classifier = _linear(
            config, config.hidden_size, config.num_labels, dtype, rngs
        )

    def __call__(self, input_ids, attention_mask, token_type_ids, dropout):
        """Computes a :class:`BertOutput`; see :func:`apply`."""
        hidden_states = self.bert(input_ids, attention_mask, token_type_ids, dropout)
        pooled = self.bert.pooler(hidden_states[-1][:, 0])
        logits = self.classifier(dropout.classifier(pooled))
        return BertOutput(logits.astype(jnp.float32), hidden_states, pooled)


class _Bert(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.embeddings = _Embeddings(config, dtype, rngs)
        self.encoder = _Encoder(config, dtype, rngs)
        self.pooler = _Pooler(config, dtype, rngs)

    def __call__(self, input_ids, attention_mask, token_type_ids, dropout):
        position_ids = jnp.arange(input_ids.shape[1])[None]
        hidden = self.embeddings(input_ids, position_ids, token_type_ids, dropout)
        return self.encoder(hidden, _padding_bias(attention_mask), dropout)


class _Embeddings(nnx.Module):
    def __init__(self, config, dtype, rngs):
        def table(size):
            init = nnx.initializers.normal(config.initializer_range)
            return nnx.Embed(
                size, config.hidden_size, embedding_init=init, dtype=dtype, rngs=rngs
            )

        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = table(config.max_position_embeddings)
        self.token_type_embeddings = table(config.type_vocab_size)
        self.LayerNorm = _layer_norm(config, dtype, rngs)

    def __call__(self, input_ids, position_ids, token_type_ids, dropout):
        embedded = (
            self.word_embeddings(input_ids)
            + self.token_type_embeddings(token_type_ids)
            + self.position_embeddings(position_ids)
        )
        return dropout.hidden(self.LayerNorm(embedded))


class _Encoder(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.layer = nnx.List(
            [_Layer(config, dtype, rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(self, hidden, bias, dropout):
        hidden_states = [hidden]
        for layer in self.layer:
            hidden_states.append(layer(hidden_states[-1], bias, dropout))
        return tuple(hidden_states)


class _Layer(nnx.Module):
    def __init__(self, config, dtype, rngs):
        inner, outer = config.intermediate_size, config.hidden_size
        self.attention = _Attention(config, dtype, rngs)
        self.intermediate = _Intermediate(config, dtype, rngs)
        self.output = _Residual(config, inner, outer, dtype, rngs)

    def __call__(self, hidden, bias, dropout):
        attended = self.attention(hidden, bias, dropout)
        return self.output(self.intermediate(attended), attended, dropout)


class _Attention(nnx.Module):
    def __init__(self, config, dtype, rngs):
        size = config.hidden_size
        self.self = _SelfAttention(config, dtype, rngs)
        self.output = _Residual(config, size, size, dtype, rngs)

    def __call__(self, hidden, bias, dropout):
        return self.output(self.self(hidden, bias, dropout), hidden, dropout)


class _SelfAttention(nnx.Module):
    def __init__(self, config, dtype, rngs):
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = _linear(config, size, size, dtype, rngs)
        self.key = _linear(config, size, size, dtype, rngs)
        self.value = _linear(config, size, size, dtype, rngs)

    def __call__(self, hidden, bias, dropout):
        def split(projected):
            return projected.reshape(*projected.shape[:2], self.heads, -1)

        query, key, value = (
            split(project(hidden)) for project in (self.query, self.key, self.value)
        )
        scale = 1 / math.sqrt(query.shape[-1])
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key)
        scores = scores.astype(jnp.float32) + bias
        weights = dropout.attention(jax.nn.softmax(scores)).astype(value.dtype)
        context = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return context.reshape(hidden.shape)


class _Intermediate(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.dense = _linear(
            config, config.hidden_size, config.intermediate_size, dtype, rngs
        )

    def __call__(self, hidden):
        return jax.nn.gelu(self.dense(hidden), approximate=False)


class _Residual(nnx.Module):
    def __init__(self, config, inputs, outputs, dtype, rngs):
        self.dense = _linear(config, inputs, outputs, dtype, rngs)
        self.LayerNorm = _layer_norm(config, dtype, rngs)

    def __call__(self, inner, residual, dropout):
        return self.LayerNorm(dropout.hidden(self.dense(inner)) + residual)


class _Pooler(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.dense = _linear(
            config, config.hidden_size, config.hidden_size, dtype, rngs
        )

    def __call__(self, first_token):
        return jnp.tanh(self.dense(first_token))


class _Dropout:
    """Masks that are independent at every site, example, head and position."""

    def __init__(self, config, key, rate):
        def rate_or(configured):
            return configured if rate is None else rate

        classifier = config.classifier_dropout
        if classifier is None:
            classifier = config.hidden_dropout_prob
        self.hidden = self._at(rate_or(config.hidden_dropout_prob))
        self.attention = self._at(rate_or(config.attention_probs_dropout_prob))
        self.classifier = self._at(rate_or(classifier))
        self._key = key
        self._sites = 0

    def _at(self, rate):
        def drop(x):
            if self._key is None:
                return x
            self._sites += 1
            key = jax.random.fold_in(self._key, self._sites)
            rate_ = jnp.asarray(rate, jnp.float32)
            # Comparing raw bits spares bernoulli's conversion of them to floats.
            threshold = (rate_ * 2.0**32).astype(jnp.uint32)
            kept = jax.random.bits(key, x.shape, jnp.uint32) >= threshold
            return jnp.where(kept, x / (1 - rate_).astype(x.dtype), 0)

        return drop


def _padding_bias(attention_mask: jax.Array) -> jax.Array:
    """0 for what may be attended to, the lowest finite float32 for padding."""
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(attention_mask[:, None, None, :] > 0, 0.0, lowest)


def _linear(config, inputs, outputs, dtype, rngs):
    init = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(inputs, outputs, kernel_init=init, dtype=dtype, rngs=rngs)


def _layer_norm(config, dtype, rngs):
    # The fast variance, E[x²] - E[x]², cancels.
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )


@functools.lru_cache(maxsize=32)
def _graphdef(config: BertConfig, dtype: jnp.dtype) -> nnx.GraphDef:
    return nnx.graphdef(
        nnx.eval_shape(
            lambda: BertForSequenceClassification(config, dtype, nnx.Rngs(0))
        )
    )


def _string_keys(tree: Mapping[Any, Any]) -> Params:
    return {
        str(name): _string_keys(child) if isinstance(child, Mapping) else child
        for name, child in tree.items()
    }
