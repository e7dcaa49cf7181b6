"""Trains a decoder language model of Penzai, whose layers share their leaves.

Penzai (a JAX library of neural networks) stacks the decoder's blocks and scans over
them, so that one leaf holds a parameter of all blocks. ``stacked_axes`` keeps a
component for each of them. From a checkout: ``pip install penzai`` and
``python -m examples.decoder``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from penzai import pz
from penzai.models.transformer.variants import llamalike_common

import cwgnc_jax

TEXT = """the clip scales the gradient of every component on its own
the norm of one layer says little of the norm of another
a layer that races ahead is held back and the others are not
"""
STACKED_AXES = {"decoder/blocks": 0}
Params = dict[str, Any]
"""From a parameter's name to an array with named axes."""


def make_decoder(blocks: int, stacked: bool) -> tuple[pz.nn.Layer, Params]:
    """Makes a small decoder of letters.

    Args:
      blocks: How many layers it has.
      stacked: Whether they share their leaves.

    Returns:
      The model without its parameters, and these.
    """
    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=1,
        embedding_dim=32,
        projection_dim=16,
        mlp_hidden_dim=64,
        num_decoder_blocks=blocks,
        vocab_size=128,
        mlp_variant="swiglu",
        tie_embedder_and_logits=True,
        use_layer_stack=stacked,
    )
    model = llamalike_common.build_llamalike_transformer(
        config, init_base_rng=jax.random.key(0), name="decoder"
    )
    structure, values = pz.unbind_params(model, freeze=True)
    return structure, {value.label: value.value for value in values}


def loss_fn(structure: pz.nn.Layer, params: Params, tokens: jax.Array) -> jax.Array:
    """The mean loss of predicting each letter from those before it.

    Args:
      structure: The model without its parameters.
      params: The parameters.
      tokens: Letters of shape (lines, length); 0 fills up.
    """
    values = [pz.ParameterValue(label=k, value=v) for k, v in params.items()]
    model = pz.bind_variables(structure, values)
    read = pz.nx.wrap(tokens[:, :-1]).tag("lines", "seq")
    logits = model(read).unwrap("lines", "seq", "vocabulary")
    targets = tokens[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses, where=targets > 0) / jnp.sum(targets > 0)


def read_tokens(text: str) -> np.ndarray:
    """Turns each line into its letters' codes, (lines, length), filled up by 0."""
    lines = [line.encode("ascii") for line in text.splitlines()]
    width = max(map(len, lines))
    return np.array([list(line.ljust(width, b"\0")) for line in lines])


def train(blocks: int, steps: int) -> tuple[list[float], cwgnc_jax.ClipReport]:
    """Trains the decoder on ``TEXT``.

    Args:
      blocks: How many layers it has.
      steps: How many updates are made.

    Returns:
      The loss before each update, and what the clip did in the last one.
    """
    structure, params = make_decoder(blocks, stacked=True)
    tx = optax.chain(
        cwgnc_jax.component_clip_by_global_norm(
            0.05, stacked_axes=STACKED_AXES, keep_report=True
        ),
        optax.adam(3e-3),
    )
    tokens = read_tokens(TEXT)

    @jax.jit
    def train_step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn, argnums=1)(structure, params, tokens)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for _ in range(steps):
        params, opt_state, loss = train_step(params, opt_state)
        losses.append(float(loss))
    report = cwgnc_jax.clip_report(opt_state, params, stacked_axes=STACKED_AXES)
    return losses, report


def main() -> None:
    """Prints how the loss falls and which components were clipped at the end."""
    losses, report = train(blocks=4, steps=20)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps")
    for name, coefficient in report.coefficient.items():
        print(f"{float(coefficient):.3f}  {float(report.norm[name]):.3f}  {name}")


if __name__ == "__main__":
    main()
