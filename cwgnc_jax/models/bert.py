"""BERT with a sequence classifier: NNX modules behind a pure function of a dict.

The modules hold the structure; parameters live in a plain nested dict whose
"/"-joined paths are Hugging Face's names. Module attributes are therefore named as
there, ``LayerNorm`` and ``self`` included.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from cwgnc_jax.models.attention import SelfAttention, bias_of_mask
from cwgnc_jax.models.config import BertConfig
from cwgnc_jax.models.dropout import dropout, fold_in
from cwgnc_jax.models.embedding import lookup
from cwgnc_jax.models.names import describe_differences

Params = dict[str, Any]
"""A nested dict with string keys and arrays for leaves."""


class BertOutput(NamedTuple):
    """What :func:`apply` returns."""

    logits: Array  # shape=(examples, num_labels), dtype=jnp.float32
    hidden_states: tuple[Array, ...]  # after the embeddings and each layer but the last
    first_hidden: Array  # shape=(examples, hidden), after the last layer
    pooled: Array  # shape=(examples, hidden)


class _Noise(NamedTuple):
    """The dropout of one forward pass: where its masks come from, and its rates."""

    key: Array | None
    hidden: ArrayLike
    attention: ArrayLike
    classifier: ArrayLike

    def at(self, site: int) -> "_Noise":
        return self._replace(key=fold_in(self.key, site))


class _Embeddings(nnx.Module):
    def __init__(self, config, dtype, rngs):
        embed = functools.partial(nnx.Embed, features=config.hidden_size, rngs=rngs)
        self.dtype = dtype
        self.word_embeddings = embed(config.vocab_size)
        self.position_embeddings = embed(config.max_position_embeddings)
        self.token_type_embeddings = embed(config.type_vocab_size)
        self.LayerNorm = _layer_norm(config, dtype, rngs)

    def __call__(self, input_ids, token_type_ids, position_ids):
        length = input_ids.shape[-1]
        tables_and_ids = (
            (self.word_embeddings.embedding[...], input_ids),
            (self.position_embeddings.embedding[:length], position_ids),
            (self.token_type_embeddings.embedding[...], token_type_ids),
        )
        words, positions, types = (
            lookup(table, ids, self.dtype) for table, ids in tables_and_ids
        )
        return self.LayerNorm(words + positions + types)


class _Residual(nnx.Module):
    """Dense, dropout, then LayerNorm of the sum with the block's input."""

    def __init__(self, config, features, dtype, rngs):
        self.dense = nnx.Linear(features, config.hidden_size, dtype=dtype, rngs=rngs)
        self.LayerNorm = _layer_norm(config, dtype, rngs)

    def __call__(self, x, residual, noise):
        return self.LayerNorm(
            dropout(noise.key, self.dense(x), noise.hidden) + residual
        )


class _Attention(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.self = SelfAttention(config, dtype, rngs)
        self.output = _Residual(config, config.hidden_size, dtype, rngs)

    def __call__(self, x, mask_bias, noise, tokens):
        context = self.self(x, mask_bias, noise.at(0))
        if tokens is not None:
            context, x = context[tokens], x[tokens]
        return self.output(context, x, noise.at(1))


class _Dense(nnx.Module):
    """A module of one dense layer, as Hugging Face nests it."""

    def __init__(self, config, features, dtype, rngs):
        self.dense = nnx.Linear(config.hidden_size, features, dtype=dtype, rngs=rngs)


class _Layer(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.attention = _Attention(config, dtype, rngs)
        self.intermediate = _Dense(config, config.intermediate_size, dtype, rngs)
        self.output = _Residual(config, config.intermediate_size, dtype, rngs)

    def __call__(self, x, mask_bias, noise, tokens):
        """The output of all tokens, (tokens, hidden) as ``x``, or of some of them."""
        x = self.attention(x, mask_bias, noise, tokens)
        return self.output(_gelu(self.intermediate.dense(x)), x, noise.at(2))


@functools.partial(jax.jit, static_argnums=0)
def _call_layer(graphdef, state, x, mask_bias, noise, tokens):
    """A layer's output; all layers are traced and differentiated at once."""
    return nnx.merge(graphdef, state)(x, mask_bias, noise, tokens)


class _Encoder(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.layer = nnx.List(
            _Layer(config, dtype, rngs) for _ in range(config.num_hidden_layers)
        )


class _Bert(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.embeddings = _Embeddings(config, dtype, rngs)
        self.encoder = _Encoder(config, dtype, rngs)
        self.pooler = _Dense(config, config.hidden_size, dtype, rngs)


class _BertForSequenceClassification(nnx.Module):
    def __init__(self, config, dtype, rngs):
        self.bert = _Bert(config, dtype, rngs)
        # The head is a handful of numbers: it stays in float32 whatever dtype is.
        self.classifier = nnx.Linear(config.hidden_size, config.num_labels, rngs=rngs)

    def __call__(
        self,
        input_ids,
        token_type_ids,
        position_ids,
        mask_bias,
        first_tokens,
        noise,
        remat,
    ):
        embeddings = self.bert.embeddings(input_ids, token_type_ids, position_ids)
        x = dropout(noise.at(0).key, embeddings, noise.hidden)
        hidden_states = []
        # Rows and tokens are one axis to all but the attention: the products of the
        # backward pass are a tenth slower with both.
        x = x.reshape(-1, x.shape[-1])
        layers = self.bert.encoder.layer
        for index, layer in enumerate(layers):
            hidden_states.append(x.reshape(embeddings.shape))
            # Of the last layer's output only the first tokens are read, and so only
            # they go through it, but for the attention.
            last = index == len(layers) - 1
            call = functools.partial(
                _call_layer,
                *nnx.split(layer),
                mask_bias=mask_bias,
                noise=noise.at(2 + index),
                tokens=first_tokens if last else None,
            )
            x = (jax.checkpoint(call) if remat else call)(x)
        pooled = jnp.tanh(self.bert.pooler.dense(x))
        dropped = dropout(noise.at(1).key, pooled, noise.classifier)
        logits = self.classifier(dropped.astype(jnp.float32))
        return BertOutput(logits, tuple(hidden_states), x, pooled)


def _gelu(x):
    # By erf as torch does; jax.nn.gelu takes erfc, at three times the cost on a CPU.
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


def _layer_norm(config, dtype, rngs):
    # The fast variance, E[x²] - E[x]², cancels in float32 where |mean| >> std.
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )


@functools.lru_cache
def abstract_model(config: BertConfig, dtype: DTypeLike):
    """The module's structure, and the shape of each parameter by its path."""
    model = nnx.eval_shape(
        lambda: _BertForSequenceClassification(config, dtype, nnx.Rngs(0))
    )
    graphdef, state = nnx.split(model)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    shapes = {
        jax.tree_util.keystr(key_path, simple=True, separator="/"): leaf.shape
        for key_path, leaf in leaves
    }
    return graphdef, shapes


def apply(
    config: BertConfig,
    params: Params,
    input_ids: ArrayLike,
    attention_mask: ArrayLike,
    token_type_ids: ArrayLike,
    *,
    first_tokens: ArrayLike | None = None,
    key: Array | None = None,
    dropout_rate: ArrayLike | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> BertOutput:
    """Computes the logits of a batch.

    A pure function, to be used under ``jax.jit``, ``jax.grad`` and ``jax.vmap`` over
    ``params``, ``key`` and ``dropout_rate``. It computes what Hugging Face's
    ``BertForSequenceClassification`` does: LayerNorm after each residual sum, exact
    GELU, a tanh pooler over the first token. With a key every element of every example
    and head has a dropout mask of its own, unlike the retired Flax BERT, whose
    attention mask was shared by the whole batch.

    A row may hold several examples, one behind the other, so that little is computed on
    padding: with ``first_tokens`` the mask numbers the examples of a row, each token
    attends to those of its own example, and positions begin anew with each. The logits
    are those of the examples in rows of their own, to float32 rounding.

    Args:
      config: The model's config.
      params: The parameters, as :func:`cwgnc_jax.models.init_params` lays
        them out.
      input_ids: Token ids, integers of shape (batch, length).
      attention_mask: 1 (or True) for tokens, 0 for padding; shape (batch, length). With
        ``first_tokens`` the tokens of a row's examples have 1, 2, and so on.
      token_type_ids: Segment ids, integers of shape (batch, length).
      first_tokens: For rows of several examples where each example begins, counted
        through all rows: row * length + column, integers of shape (examples,). Without
        it each row is one example.
      key: A random key turns dropout on; it should be a new one each step.
      dropout_rate: A scalar, traced or not, that replaces the config's three rates.
      dtype: The dtype of the computation. Softmax, the statistics of LayerNorm, the
        classifier and the logits are float32 in any case, and so are the gradients of
        float32 parameters.
      remat: Whether the backward pass computes each layer again instead of keeping
        what is inside it: up to a third more arithmetic, the same numbers. On a CPU XLA
        finds the repetition and undoes it, so that no memory is saved.

    Returns:
      A :class:`BertOutput`: float32 logits (examples, num_labels); hidden states, one
      of shape (batch, length, hidden) after the embeddings and after each layer but the
      last; of the last layer the first tokens alone (examples, hidden), since nothing
      else is read of it, and these pooled (examples, hidden). There are as many
      examples as rows, or as ``first_tokens`` names.

    Raises:
      ValueError: If the inputs' shapes differ or are too long for the model, or the
        parameters are not those of the config.
      TypeError: If the ids are not integers.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
      ...                            num_attention_heads=2, intermediate_size=16)
      >>> params = models.init_params(config, jax.random.key(0))
      >>> ids = jnp.ones((3, 5), int)
      >>> apply = jax.jit(models.apply, static_argnames="config")
      >>> output = apply(config, params, ids, ids, 0 * ids)
      >>> output.logits.shape, output.first_hidden.shape, len(output.hidden_states)
      ((3, 2), (3, 8), 1)

      Four examples in two rows, of 3 and 2 tokens, and of 1 and 4:

      >>> numbers = jnp.array([[1, 1, 1, 2, 2], [1, 2, 2, 2, 2]])
      >>> firsts = jnp.array([0, 3, 5, 6])
      >>> two = ids[:2]
      >>> apply(config, params, two, numbers, 0 * two, first_tokens=firsts).logits.shape
      (4, 2)

    References:
      Devlin et al., `BERT: Pre-training of Deep Bidirectional Transformers
      <https://arxiv.org/abs/1810.04805>`_, 2018
    """
    input_ids, attention_mask, token_type_ids = _checked_inputs(
        config, input_ids, attention_mask, token_type_ids
    )
    rows, length = input_ids.shape
    if first_tokens is None:
        first_tokens = jnp.arange(rows) * length
        position_ids = jnp.broadcast_to(jnp.arange(length), (rows, length))
        mask_bias = bias_of_mask(attention_mask[:, None, None, :])
    else:
        first_tokens = _checked_first_tokens(first_tokens)
        same = attention_mask[:, :, None] == attention_mask[:, None, :]
        # As many tokens of the same example are before a token in its row.
        position_ids = jnp.sum(jnp.tril(same, -1), axis=-1, dtype=jnp.int32)
        mask_bias = bias_of_mask(same[:, None])
    graphdef, shapes = abstract_model(config, jnp.dtype(dtype))
    leaves: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    found = {path: jnp.shape(leaf) for path, leaf in leaves.items()}
    if found != shapes:
        raise ValueError(
            "params are not those of the config: " + describe_differences(shapes, found)
        )
    if dropout_rate is not None:
        noise = _Noise(key, dropout_rate, dropout_rate, dropout_rate)
    else:
        hidden, head = config.hidden_dropout_prob, config.classifier_dropout
        noise = _Noise(
            key,
            hidden=hidden,
            attention=config.attention_probs_dropout_prob,
            classifier=hidden if head is None else head,
        )
    model = nnx.merge(graphdef, nnx.restore_int_paths(params))
    return model(
        input_ids,
        token_type_ids,
        position_ids,
        mask_bias,
        first_tokens,
        noise,
        remat,
    )


def _checked_first_tokens(first_tokens):
    first_tokens = jnp.asarray(first_tokens)
    if first_tokens.ndim != 1 or not jnp.issubdtype(first_tokens.dtype, jnp.integer):
        raise TypeError(
            f"first_tokens must be integers of shape (examples,), got "
            f"{first_tokens.dtype} of shape {first_tokens.shape}"
        )
    return first_tokens


def _checked_inputs(config, input_ids, attention_mask, token_type_ids):
    arrays = {
        "input_ids": jnp.asarray(input_ids),
        "attention_mask": jnp.asarray(attention_mask),
        "token_type_ids": jnp.asarray(token_type_ids),
    }
    shape = arrays["input_ids"].shape
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape != shape:
            raise ValueError(
                f"{name} must have the shape (batch, length) of input_ids, got "
                f"{array.shape} where input_ids has {shape}"
            )
        if name != "attention_mask" and not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, got {array.dtype}")
    if shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"input_ids must be at most max_position_embeddings = "
            f"{config.max_position_embeddings} long, got {shape[1]}; truncate the texts"
        )
    return arrays.values()
