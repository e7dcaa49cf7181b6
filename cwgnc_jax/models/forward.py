"""The forward pass: NNX modules behind a pure function of a dict."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from cwgnc_jax.models.batch import EncoderOutput, read_tokens
from cwgnc_jax.models.config import EncoderConfig
from cwgnc_jax.models.dropout import Noise
from cwgnc_jax.models.encoders import encoder_of
from cwgnc_jax.models.names import describe_differences

Params = dict[str, Any]
"""A nested dict with string keys and arrays for leaves."""


@functools.lru_cache
def abstract_model(config: EncoderConfig, dtype: DTypeLike):
    """The module's structure, and the shape of each parameter by its path."""
    module = encoder_of(config).module
    model = nnx.eval_shape(lambda: module(config, dtype, nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    shapes = {
        jax.tree_util.keystr(key_path, simple=True, separator="/"): leaf.shape
        for key_path, leaf in leaves
    }
    return graphdef, shapes


def apply(
    config: EncoderConfig,
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
) -> EncoderOutput:
    """Computes the logits of a batch.

    A pure function, to be used under ``jax.jit``, ``jax.grad`` and ``jax.vmap`` over
    ``params``, ``key`` and ``dropout_rate``. It computes what Hugging Face's class for
    sequence classification does for the config's type of model, such as
    ``BertForSequenceClassification``. With a key every element of every example and
    head has a dropout mask of its own, unlike the retired Flax BERT, whose attention
    mask was shared by the whole batch.

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
      token_type_ids: Segment ids, integers of shape (batch, length); models of one
        type of them, or of none, pass over them.
      first_tokens: For rows of several examples where each example begins, counted
        through all rows: row * length + column, integers of shape (examples,). Without
        it each row is one example.
      key: A random key turns dropout on; it should be a new one each step.
      dropout_rate: A scalar, traced or not, that replaces all rates of the config.
      dtype: The dtype of the computation. Softmax, the statistics of LayerNorm, the
        classifier and the logits are float32 in any case, and so are the gradients of
        float32 parameters.
      remat: Whether the backward pass computes each layer again instead of keeping
        what is inside it: up to a third more arithmetic, the same numbers. On a CPU XLA
        finds the repetition and undoes it, so that no memory is saved.

    Returns:
      An :class:`EncoderOutput`: float32 logits (examples, num_labels); hidden states,
      one of shape (batch, length, hidden) after the embeddings and after each layer but
      the last; of the last layer the first tokens alone (examples, hidden), since
      nothing else is read of it, and these pooled (examples, hidden), as the last dense
      layer reads them. There are as many examples as rows, or as ``first_tokens``
      names.

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
    """
    tokens = read_tokens(
        config, input_ids, attention_mask, token_type_ids, first_tokens
    )
    graphdef, shapes = abstract_model(config, jnp.dtype(dtype))
    leaves: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    found = {path: jnp.shape(leaf) for path, leaf in leaves.items()}
    if found != shapes:
        raise ValueError(
            "params are not those of the config: " + describe_differences(shapes, found)
        )
    rates = config.dropout_rates
    if dropout_rate is not None:
        rates = type(rates)(*[dropout_rate] * len(rates))
    model = nnx.merge(graphdef, nnx.restore_int_paths(params))
    return model(tokens, Noise(key, rates), remat)
