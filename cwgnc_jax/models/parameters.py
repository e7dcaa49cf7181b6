"""The shapes and the initial values of a model's parameters."""

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from cwgnc_jax.models.config import EncoderConfig
from cwgnc_jax.models.encoders import encoder_of
from cwgnc_jax.models.forward import (
    Params,
    abstract_model,
    flat_params,
    nested_params,
)


def parameter_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Lists the parameters of a model.

    Args:
      config: The model's config.

    Returns:
      The shape of each parameter by its "/"-joined path.

    Examples:
      >>> from cwgnc_jax import models
      >>> from cwgnc_jax.models.parameters import parameter_shapes
      >>> shapes = parameter_shapes(models.BertConfig())
      >>> len(shapes), shapes["bert/encoder/layer/11/intermediate/dense/kernel"]
      (201, (768, 3072))
    """
    return dict(abstract_model(config, jnp.float32.dtype)[1])


def initial_value(
    config: EncoderConfig, path: str, key: PRNGKeyArray
) -> Float[Array, "..."]:
    """Draws one parameter, which depends only on the key, its path and its shape.

    So a fresh classifier is the same on a random encoder and on a loaded one.

    Args:
      config: The model's config.
      path: The parameter's "/"-joined path.
      key: The key of the whole model.

    Returns:
      A float32 array: zeros for a bias, ones for a scale, otherwise the result of the
      config's ``draw``.
    """
    shape = parameter_shapes(config)[path]
    match path.rpartition("/")[2]:
        case "bias":
            return jax.device_put(np.zeros(shape, np.float32))
        case "scale":
            return jax.device_put(np.ones(shape, np.float32))
        case _:
            key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            return config.draw(path, shape, key)


def init_params(config: EncoderConfig, key: PRNGKeyArray) -> dict[str, Any]:
    """Draws the parameters of a model from scratch.

    Kernels and embeddings are drawn from N(0, initializer_range²), or for ModernBERT
    from its own truncated normal distributions. Biases are 0 and LayerNorm scales 1.

    Args:
      config: The model's config.
      key: A random key.

    Returns:
      A nested dict of float32 arrays. The "/"-joined paths are Hugging Face's names,
      such as ``bert/encoder/layer/0/attention/self/query/kernel``. A kernel has the
      shape (in, out).

    Examples:
      >>> import jax
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
      ...                            num_attention_heads=2, intermediate_size=16)
      >>> params = models.init_params(config, jax.random.key(0))
      >>> params["classifier"]["kernel"].shape
      (8, 2)
    """
    return nested_params(
        {path: initial_value(config, path, key) for path in parameter_shapes(config)}
    )


def redraw(
    config: EncoderConfig, params: Params, paths: Iterable[str], key: PRNGKeyArray
) -> dict[str, Any]:
    """Replaces some parameters by newly drawn ones.

    This gives several runs from one checkpoint different classifiers. For the same key
    the result is that of :func:`cwgnc_jax.models.load_pretrained`.

    Args:
      config: The model's config.
      params: The parameters; they are not changed.
      paths: The "/"-joined paths of the parameters to draw.
      key: A random key; each draw depends only on it and the path.

    Returns:
      A new nested dict that shares all other leaves with ``params``.

    Examples:
      >>> import jax
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
      ...                            num_attention_heads=2, intermediate_size=16)
      >>> params = models.init_params(config, jax.random.key(0))
      >>> other = models.redraw(
      ...     config, params, ["classifier/kernel"], jax.random.key(1))
      >>> bool((other["classifier"]["kernel"] == params["classifier"]["kernel"]).any())
      False
      >>> other["bert"]["pooler"] == params["bert"]["pooler"]
      True
    """
    drawn = {path: initial_value(config, path, key) for path in paths}
    return nested_params(flat_params(params) | drawn)


def top_parameters(config: EncoderConfig, layers: int) -> tuple[str, ...]:
    """Lists the parameters of the top layers, and of the pooler if there is one.

    Args:
      config: The model's config.
      layers: The number of layers, counted from the top; with 0 the list is empty.

    Returns:
      The "/"-joined paths.

    Raises:
      ValueError: If ``layers`` is negative or more than the model has.

    Examples:
      >>> from cwgnc_jax import models
      >>> len(models.top_parameters(models.BertConfig(), 2))
      34
    """
    if not 0 <= layers <= config.num_hidden_layers:
        raise ValueError(
            f"layers must lie between 0 and the model's {config.num_hidden_layers}, "
            f"got {layers}"
        )
    encoder = encoder_of(config)
    numbers = range(config.num_hidden_layers - layers, config.num_hidden_layers)
    modules = [f"{encoder.layers}/{number}" for number in numbers]
    return tuple(
        path
        for path in parameter_shapes(config)
        if layers and is_below(path, (*modules, *encoder.pooler))
    )


def is_below(path: str, modules: Iterable[str]) -> bool:
    """Says whether a parameter belongs to one of these modules.

    Examples:
      >>> from cwgnc_jax.models.parameters import is_below
      >>> is_below("classifier/bias", ["class", "classifier"])
      True
    """
    return path.startswith(tuple(f"{module}/" for module in modules))


def split_params(
    params: Params, belongs: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into two parts, such as trained and frozen ones.

    Args:
      params: A nested dict of arrays.
      belongs: Says of a "/"-joined path whether it belongs to the first part.

    Returns:
      Two nested dicts, which :func:`merge_params` joins again.

    Examples:
      >>> from cwgnc_jax import models
      >>> params = {"bert": {"pooler": 1, "embeddings": 2}, "classifier": 3}
      >>> models.split_params(params, lambda path: path.startswith("bert/pooler"))
      ({'bert': {'pooler': 1}}, {'bert': {'embeddings': 2}, 'classifier': 3})
    """
    leaves = flat_params(params)
    first = {path: leaf for path, leaf in leaves.items() if belongs(path)}
    second = {path: leaf for path, leaf in leaves.items() if path not in first}
    return nested_params(first), nested_params(second)


def merge_params(one: Params, other: Params) -> dict[str, Any]:
    """Joins two parts of one nested dict.

    Args:
      one: A nested dict.
      other: A nested dict with other paths.

    Returns:
      A nested dict with the leaves of both.

    Examples:
      >>> from cwgnc_jax import models
      >>> models.merge_params({"bert": {"pooler": 1}}, {"bert": {"embeddings": 2}})
      {'bert': {'pooler': 1, 'embeddings': 2}}
    """
    return nested_params(flat_params(one) | flat_params(other))
