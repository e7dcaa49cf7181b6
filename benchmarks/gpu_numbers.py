"""Training steps on an accelerator against the same steps on the processor beside it.

    python -m benchmarks.gpu_numbers --model DIR

Real texts' lengths, MiniLM, no dropout: three steps of one run and of eight, packed and
padded, with the clip and without, in the accelerator's float32, tf32 and bfloat16,
against float32 on the processor. Prints a line of JSON for each.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.sides import MATMUL
from benchmarks.training import LENGTH, SEED, Work, random_texts, start, step_config
from cwgnc_jax import models
from cwgnc_train.config import PaddingName
from cwgnc_train.data import TokenArrays, make_packing, token_table
from cwgnc_train.engine import Layout, StepConfig, compile_train_steps, make_mesh

STEPS = 3
RTOL = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 3e-2}
"""Of the losses, by precision."""


def texts_of_lengths(config: models.EncoderConfig, count: int) -> TokenArrays:
    """Random texts as long as RTE's are: most short, some at the limit."""
    texts = random_texts(config, count, LENGTH)
    lengths = np.clip(
        np.random.default_rng(1).lognormal(4.0, 0.45, count), 8, LENGTH
    ).astype(int)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    return TokenArrays(texts.input_ids * mask, mask, texts.token_type_ids, texts.labels)


@functools.cache
def program_of(
    config: StepConfig, layout: Layout, shape: tuple[int, int]
) -> Callable[..., Any]:
    """The steps of a layout, compiled once for each precision that JAX is set to.

    The clip's threshold is a number that they are given.
    """
    return compile_train_steps(config, layout, shape)


def trained(
    checkpoint: models.Checkpoint,
    work: Work,
    device: Any,
    *,
    precision: str,
    runs: int,
    padding: PaddingName,
    max_norm: float,
) -> tuple[np.ndarray, Any]:
    """Takes steps on a device; the losses [runs, steps] and the parameters."""
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    config = step_config(checkpoint.config, dtype)
    layout = Layout(make_mesh([device]), runs=runs, group=runs)
    seeds = range(SEED, SEED + runs)
    with jax.default_matmul_precision(MATMUL[precision] or "default"):
        states = start(checkpoint, config, seeds, layout, dropout=0.0)
        norms = np.full(runs, max_norm, np.float32)
        placed = jax.device_put(norms, layout.over_runs())
        states = states._replace(hparams=states.hparams._replace(max_norm=placed))
        packing = make_packing(work.examples, padding, work.batch, LENGTH)
        shape = packing.shape(list(seeds), work.steps)
        batches = [
            [packing.batch_indices(seed, step, shape) for step in work.steps]
            for seed in seeds
        ]
        states, metrics = program_of(config, layout, shape)(
            states,
            layout.place_table(token_table(work.examples)),
            layout.place_indices(batches),
        )
    return jax.device_get(metrics.loss), jax.device_get(states.params)


def compare(model: str, batch: int, runs: int) -> Iterator[dict[str, Any]]:
    """Yields what each comparison came to; float32 is compared in more ways."""
    checkpoint = models.load_pretrained(model, num_labels=2, key=jax.random.key(0))
    texts = texts_of_lengths(checkpoint.config, 4 * STEPS * batch)
    work = Work("", texts, tuple(range(STEPS)), batch)
    accelerator, processor = jax.devices()[0], jax.devices("cpu")[0]
    ways: list[tuple[PaddingName, int, float]] = [
        (padding, count, max_norm)
        for padding in ("packed", "max_length")
        for count in (1, runs)
        for max_norm in (0.05, np.inf)
    ]
    for padding, count, max_norm in ways:
        way: dict[str, Any] = {"runs": count, "padding": padding, "max_norm": max_norm}
        losses, params = trained(
            checkpoint, work, processor, precision="float32", **way
        )
        for precision in RTOL if padding == "packed" else ["float32"]:
            began = time.monotonic()
            found, found_params = trained(
                checkpoint, work, accelerator, precision=precision, **way
            )
            off = np.abs(found - losses) / np.abs(losses)
            apart = jax.tree.map(lambda x, y: np.abs(x - y).max(), found_params, params)
            yield {
                **way,
                "max_norm": str(max_norm),
                "precision": precision,
                "loss_off": float(off.max()),
                "params_off": float(max(jax.tree.leaves(apart))),
                "equal": bool((off < RTOL[precision]).all()),
                "seconds": time.monotonic() - began,
            }


def main() -> None:
    """Prints what each comparison came to, as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--runs", type=int, default=8)
    args = parser.parse_args()
    for row in compare(args.model, args.batch_size, args.runs):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
