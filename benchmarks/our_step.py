"""This project's training step, as ``python -m train finetune`` takes it."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.sides import MATMUL, Losses, Ways, serve
from benchmarks.training import LENGTH, SEED, Work, recipe_of, start
from cwgnc_jax import models
from train import parallel
from train.packing import Padding, make_packing, training_set
from train.parallel import ONE_RUN


def make(
    directory: Path, precision: str, dropout: bool, learning_rate: float
) -> Callable[..., Ways]:
    """A function from the arrays of some work to the ways to take its steps."""
    jax.config.update("jax_default_matmul_precision", MATMUL[precision])
    checkpoint = models.load_pretrained(directory, num_labels=2, key=jax.random.key(0))
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    recipe = recipe_of(checkpoint.config, dtype)
    run = start(
        *(checkpoint, recipe),
        dropout=None if dropout else 0.0,
        learning_rate=learning_rate,
    )
    program_of = functools.cache(
        functools.partial(parallel.compile_train_steps, recipe, ONE_RUN)
    )

    def over(work: Work, padding: Padding) -> Callable[[], Losses]:
        packing = make_packing(work.examples, padding, work.batch, LENGTH)
        examples = parallel.place_training_set(ONE_RUN, training_set(work.examples))
        programs, first, count = [], 0, len(work.steps)
        while first < count:
            taken, _ = parallel.steps_of_program(first, count)
            first = taken.stop
            steps = [work.steps[number] for number in taken]
            shape = packing.shape([SEED], steps)
            plans = [packing.plan(SEED, step, shape) for step in steps]
            placed = parallel.place_plans(ONE_RUN, [plans])
            programs.append((program_of(shape), placed))

        def take():
            nonlocal run
            losses = []
            for program, plans in programs:
                run, metrics = program(run, examples, plans)
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
