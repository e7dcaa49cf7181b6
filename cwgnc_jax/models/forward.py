"""The forward pass, a pure function of a dict of parameters."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Int, PRNGKeyArray

from cwgnc_jax._tree_paths import flatten_with_paths
from cwgnc_jax.models.batch import EncoderOutput, Ids, Mask, read_tokens
from cwgnc_jax.models.config import EncoderConfig
from cwgnc_jax.models.dropout import Noise
from cwgnc_jax.models.encoders import encoder_of
from cwgnc_jax.models.names import describe_differences

Params = dict[str, Any]
"""A nested dict with string keys and arrays for leaves."""


def flat_params(params: Params) -> dict[str, Any]:
    """Lists the leaves of a nested dict by their "/"-joined paths."""
    return traverse_util.flatten_dict(params, sep="/")


def nested_params(leaves: Mapping[str, Any]) -> Params:
    """Undoes :func:`flat_params`."""
    return traverse_util.unflatten_dict(leaves, sep="/")


@functools.lru_cache
def abstract_model(
    config: EncoderConfig, dtype: DTypeLike
) -> tuple[nnx.GraphDef[Any], dict[str, tuple[int, ...]]]:
    """Builds the module's structure, and the shape of each parameter by path."""
    module = encoder_of(config).module
    model = nnx.eval_shape(lambda: module(config, dtype, nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    paths, leaves, _ = flatten_with_paths(nnx.to_pure_dict(state))
    return graphdef, {
        path: leaf.shape for path, leaf in zip(paths, leaves, strict=True)
    }


def apply(
    config: EncoderConfig,
    params: Params,
    input_ids: Ids,
    attention_mask: Mask | None = None,
    token_type_ids: Ids | None = None,
    *,
    segment_ids: Ids | None = None,
    cls_positions: Int[Any, " examples"] | None = None,
    key: PRNGKeyArray | None = None,
    dropout_rate: ArrayLike | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> EncoderOutput:
    """Computes the logits of a batch.

    This is a pure function for use under ``jax.jit``, ``jax.grad`` and ``jax.vmap``
    over ``params``, ``key`` and ``dropout_rate``. It computes the same as Hugging
    Face's class for sequence classification with the config's type of model, such as
    ``BertForSequenceClassification``. With a key, each element of each example and head
    has its own dropout mask. In Hugging Face's former BERT in Flax, by contrast, the
    whole batch shared one dropout mask in the attention.

    To compute little on padding, a row may hold several examples, one after the other:
    a packed row. Then ``segment_ids`` and ``cls_positions`` take the place of
    ``attention_mask``. Each token attends to its own example only, and positions start
    at 0 in each. The logits are those of the examples in rows of their own, to float32
    rounding.

    Args:
      config: The model's config.
      params: The parameters, laid out as by :func:`cwgnc_jax.models.init_params`.
      input_ids: Token ids.
      attention_mask: 1 or True for tokens, 0 or False for padding, for rows of one
        example each.
      token_type_ids: The type of each token, such as 0 in the first text of a pair and
        1 in the second; None for 0 everywhere. Models that know one type or none ignore
        them.
      segment_ids: For packed rows: 0 for padding, and 1, 2, … for the tokens of a row's
        first, second, … example.
      cls_positions: For packed rows: the position of each example's first token,
        row * length + column.
      key: A random key, which turns dropout on; use a new one in each step.
      dropout_rate: A scalar, traced or not, that replaces all rates of the config.
      dtype: The dtype of the computation. Softmax, the statistics of LayerNorm, the
        classifier and the logits are always float32, and so are the gradients of
        float32 parameters.
      remat: Whether the backward pass recomputes the inside of each layer instead of
        storing it. This gives the same numbers with up to a third more arithmetic. It
        saves no memory on a CPU, where XLA removes the repetition.

    Returns:
      An :class:`EncoderOutput`, with one example for each row, or for each of
      ``cls_positions``. Of the last layer only the outputs that the head reads are
      computed.

    Raises:
      ValueError: If the inputs' shapes differ or are too long for the model, both or
        neither of ``attention_mask`` and ``segment_ids`` are given, or the parameters
        are not those of the config.
      TypeError: If ids or positions are not integers.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
      ...                            num_attention_heads=2, intermediate_size=16)
      >>> params = models.init_params(config, jax.random.key(0))
      >>> ids = jnp.ones((3, 5), int)
      >>> apply = jax.jit(models.apply, static_argnames="config")
      >>> output = apply(config, params, ids, attention_mask=ids)
      >>> output.logits.shape, output.cls_hidden.shape, len(output.hidden_states)
      ((3, 2), (3, 8), 1)

      Four examples packed into two rows, of 3 and 2 tokens, and of 1 and 4:

      >>> segments = jnp.array([[1, 1, 1, 2, 2], [1, 2, 2, 2, 2]])
      >>> output = apply(config, params, ids[:2], segment_ids=segments,
      ...                cls_positions=jnp.array([0, 3, 5, 6]))
      >>> output.logits.shape
      (4, 2)
    """
    tokens = read_tokens(
        config,
        input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        segment_ids=segment_ids,
        cls_positions=cls_positions,
    )
    graphdef, shapes = abstract_model(config, jnp.dtype(dtype))
    found = {path: jnp.shape(leaf) for path, leaf in flat_params(params).items()}
    if found != shapes:
        raise ValueError(
            "params are not those of the config: " + describe_differences(shapes, found)
        )
    rates = config.dropout_rates
    if dropout_rate is not None:
        rates = rates._make([dropout_rate] * len(rates))
    model = nnx.merge(graphdef, nnx.restore_int_paths(params))
    return model(tokens, Noise(key, rates), remat)
