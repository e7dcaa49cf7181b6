"""keras-hub's BERT on JAX, whose ``clipnorm`` clips each variable on its own."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax  # noqa: E402
import keras  # noqa: E402
import keras_hub  # noqa: E402
import safetensors.numpy  # noqa: E402

from benchmarks.peers import installed, serve  # noqa: E402

MATMUL = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": None}


def make(directory: str, precision: str, dropout: bool):
    """A function that takes a step of a run."""
    jax.config.update("jax_default_matmul_precision", MATMUL[precision])
    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    rate = 0.1 if dropout else 0.0
    backbone = keras_hub.models.BertBackbone.from_preset(directory, dropout=rate)
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None, dropout=rate
    )
    # The backbone brings its weights; the head's are not read.
    weights = safetensors.numpy.load_file(Path(directory) / "model.safetensors")
    head = weights["classifier.weight"].T, weights["classifier.bias"]
    model.get_layer("logits").set_weights(head)
    schedule = keras.optimizers.schedules.PolynomialDecay(1e-4, 1000, 0.0)
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.0, clipnorm=0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
    )

    def take(batch: Mapping[str, Any]):
        inputs = {
            "token_ids": batch["input_ids"],
            "padding_mask": batch["attention_mask"],
            "segment_ids": batch["token_type_ids"],
        }
        # Keras's own running mean of the losses so far.
        return model.train_on_batch(inputs, batch["labels"])

    return take


if __name__ == "__main__":
    serve(make, installed(["keras-hub", "keras", "jax"]))
