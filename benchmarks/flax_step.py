"""The retired Flax BERT of transformers 4.57, with what Optax offers around it."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Only transformers 4.57, in this side's own environment, has it.
from transformers import (
    FlaxBertForSequenceClassification,  # pyright: ignore[reportAttributeAccessIssue]
)

from benchmarks.sides import MATMUL, Ways, serve, stepwise


def make(
    directory: Path, precision: str, dropout: bool, learning_rate: float
) -> Callable[..., Ways]:
    """A function from the arrays of some work to the way to take its steps."""
    jax.config.update("jax_default_matmul_precision", MATMUL[precision])
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    model = FlaxBertForSequenceClassification.from_pretrained(
        directory,
        from_pt=True,
        dtype=jnp.bfloat16 if precision == "bfloat16" else jnp.float32,
        **({} if dropout else dict.fromkeys(rates, 0.0)),
    )
    params = jax.tree.map(jnp.array, model.params)
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path), params
    )
    clips = {name: optax.clip_by_global_norm(0.05) for name in jax.tree.leaves(names)}
    tx = optax.chain(
        optax.partition(clips, names),
        optax.adamw(optax.linear_schedule(learning_rate, 0, 1000), weight_decay=0.0),
    )

    def step(params, state, key, batch):
        inputs = {name: array for name, array in batch.items() if name != "labels"}
        key, own = jax.random.split(key)

        def loss_fn(params):
            logits = model(**inputs, params=params, dropout_rng=own, train=True).logits
            return optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), batch["labels"]
            ).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, key), loss

    compiled = jax.jit(step, donate_argnums=(0, 1))
    run = params, tx.init(params), jax.random.key(0)

    def take(batch: dict[str, np.ndarray]):
        nonlocal run
        run, loss = compiled(*run, batch)
        return loss

    return stepwise("Flax BERT", take)


if __name__ == "__main__":
    serve(make, ["transformers", "jax", "flax", "optax"])
