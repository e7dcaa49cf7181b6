"""This project's training step, as ``cwgnc finetune`` takes it."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.sides import MATMUL, Losses, Ways, serve
from benchmarks.training import LENGTH, SEED, Work, one_run, start, step_config
from cwgnc_jax import models
from cwgnc_train.config import PaddingName
from cwgnc_train.data import make_packing, token_table
from cwgnc_train.engine import compile_train_steps, steps_of_program


def make(
    directory: Path, precision: str, dropout: bool, learning_rate: float
) -> Callable[..., Ways]:
    """A function from the arrays of some work to the ways to take its steps."""
    jax.config.update("jax_default_matmul_precision", MATMUL[precision])
    checkpoint = models.load_pretrained(directory, num_labels=2, key=jax.random.key(0))
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    config, layout = step_config(checkpoint.config, dtype), one_run()
    states = start(
        checkpoint,
        config,
        dropout=None if dropout else 0.0,
        learning_rate=learning_rate,
    )
    program_of = functools.cache(functools.partial(compile_train_steps, config, layout))

    def over(work: Work, padding: PaddingName) -> Callable[[], Losses]:
        packing = make_packing(work.examples, padding, work.batch, LENGTH)
        table = layout.place_table(token_table(work.examples))
        programs, first, count = [], 0, len(work.steps)
        while first < count:
            taken, _ = steps_of_program(layout.platform, first, count)
            first = taken.stop
            steps = [work.steps[number] for number in taken]
            shape = packing.shape([SEED], steps)
            batches = [packing.batch_indices(SEED, step, shape) for step in steps]
            placed = layout.place_indices([batches])
            programs.append((program_of(shape), placed))

        def take():
            nonlocal states
            losses = []
            for program, indices in programs:
                states, metrics = program(states, table, indices)
                losses.append(metrics.loss[0])
            return np.concatenate(jax.device_get(losses)).tolist()

        return take

    def ways(arrays) -> Ways:
        work = Work.of(arrays)
        found = {"this project": over(work, "packed")}
        if work.padded:
            found["this project, --padding longest"] = over(work, "longest")
        return found

    return ways


if __name__ == "__main__":
    serve(make, ["jax", "jaxlib", "optax", "flax"])
