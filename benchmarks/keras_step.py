"""keras-hub's BERT on JAX, whose ``clipnorm`` clips each variable on its own."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax  # noqa: E402
import keras  # noqa: E402
import keras_hub  # noqa: E402  # pyright: ignore[reportMissingImports]  # side's own
import numpy as np  # noqa: E402
import safetensors.numpy  # noqa: E402

from benchmarks.sides import MATMUL, Ways, serve, stepwise  # noqa: E402


def make(
    directory: Path, precision: str, dropout: bool, learning_rate: float
) -> Callable[..., Ways]:
    """A function from the arrays of some work to the way to take its steps."""
    jax.config.update("jax_default_matmul_precision", MATMUL[precision])
    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    rate = 0.1 if dropout else 0.0
    backbone = keras_hub.models.BertBackbone.from_preset(str(directory), dropout=rate)
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None, dropout=rate
    )
    # The backbone brings its weights; the head's are not read.
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    head = weights["classifier.weight"].T, weights["classifier.bias"]
    model.get_layer("logits").set_weights(head)
    schedule = keras.optimizers.schedules.PolynomialDecay(learning_rate, 1000, 0.0)
    model.compile(
        keras.optimizers.AdamW(
            schedule,  # pyright: ignore[reportArgumentType]  # Keras takes schedules
            weight_decay=0.0,
            clipnorm=0.05,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
    )

    def take(batch: dict[str, np.ndarray]):
        inputs = {
            "token_ids": batch["input_ids"],
            "padding_mask": batch["attention_mask"],
            "segment_ids": batch["token_type_ids"],
        }
        # Else it returns the mean loss of all steps so far.
        model.reset_metrics()
        return model.train_on_batch(inputs, batch["labels"])

    return stepwise("keras-hub", take)


if __name__ == "__main__":
    serve(make, ["keras-hub", "keras", "jax"])
