"""What a training step must compute and keep, and how fast the machine multiplies."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

from benchmarks.sides import MATMUL
from benchmarks.torch_device import DEVICE, wait
from cwgnc_jax import models

_DTYPES = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}


def step_flops(config: models.BertConfig, lengths: Sequence[int]) -> int:
    """The floating-point operations of a step's matrix products, forward and backward.

    Two a multiplication and addition, and a backward pass of two products for each of
    the forward one: 6 for each parameter of a matrix and token that meets it. Padding
    is no token. Attention multiplies each token of an example with each other, twice.
    Of what comes behind the last layer's attention only the first tokens are needed.

    Args:
      config: The model.
      lengths: The tokens of each example of the batch.

    Returns:
      The number of operations.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    of_attention = 3 * hidden * hidden
    behind_it = hidden * hidden + 2 * hidden * config.intermediate_size
    of_the_head = hidden * hidden + hidden * config.num_labels
    pairs = sum(length * length for length in lengths)
    return 6 * (
        layers * of_attention * sum(lengths)
        + behind_it * ((layers - 1) * sum(lengths) + len(lengths))
        + layers * 2 * hidden * pairs
        + of_the_head * len(lengths)
    )


LEAST = (
    "3 P + layers × (4 H + heads × L) T + (2 H + I) ((layers − 1) T + E) + H T + V H "
    "numbers of 4 bytes, for P parameters with two moments each, T tokens in E texts "
    "of L, a hidden size H, an intermediate size I and a vocabulary of V: each layer "
    "keeps its input, query, key, value and what softmax came to, and its context, the "
    "input of its feed-forward block and what GELU was computed from, the last layer "
    "these of first tokens only; dropout is drawn again; and of the gradients only the "
    "largest is there, since each could be used up as soon as it exists"
)


def least_bytes(config: models.BertConfig, parameters: int, rows: int, length: int):
    """The least that a step holds at a time if no product is computed twice.

    Args:
      config: The model.
      parameters: How many there are.
      rows: Texts of the batch.
      length: Of each of them.

    Returns:
      The bytes, by the formula of ``LEAST``.
    """
    hidden, tokens = config.hidden_size, rows * length
    layers = config.num_hidden_layers
    kept = layers * (4 * hidden + config.num_attention_heads * length) * tokens
    behind_attention = 2 * hidden + config.intermediate_size
    kept += behind_attention * ((layers - 1) * tokens + rows) + hidden * tokens
    return 4 * (3 * parameters + kept + config.vocab_size * hidden)


def matmul_rate(precision: str) -> float:
    """Operations a second of a big square product, by the faster of both libraries."""
    size = 8192 if jax.default_backend() == "gpu" else 2048
    rates = [_rate(product, size) for product in _products(precision, size)]
    return max(rates)


def set_precision(precision: str) -> None:
    """Sets how both libraries multiply float32 matrices on a GPU."""
    jax.config.update("jax_default_matmul_precision", MATMUL[precision])
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def _products(precision: str, size: int):
    dtype = _DTYPES[precision]
    ours = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    yield lambda: product(ours, ours).block_until_ready()

    theirs = torch.ones((size, size), dtype=getattr(torch, dtype), device=DEVICE)

    def torch_product():
        torch.mm(theirs, theirs)
        wait()

    yield torch_product


def _rate(product: Any, size: int) -> float:
    product()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
