"""Our training steps on the device that is here, with the estimate of their program.

    python -m benchmarks.gpu_steps --size large --precision bfloat16 --batch-size 16

Prints a line of JSON for one run, and one for each number of --runs in one program: ten
steps timed, what the same program was estimated to take, and the clip's and Adam's own
programs beside them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import cwgnc_jax
from benchmarks.sides import MATMUL
from benchmarks.training import CONFIGS, LENGTH, random_texts, start, step_config
from cwgnc_jax import models
from cwgnc_train.data import BatchIndices, token_table
from cwgnc_train.engine import Layout, compile_train_steps, make_mesh, memory
from cwgnc_train.plan import ACCELERATORS, Accelerator, estimate, read_program

STEPS = 10
ROUNDS = 5


def accelerator_here() -> Accelerator | None:
    """The accelerator of the first device, if it is one that is known."""
    kind = jax.devices()[0].device_kind.lower()
    known = [each for each in ACCELERATORS.values() if each.name in kind]
    return known[0] if known else None


def measure_steps(size: str, precision: str, batch: int, runs: int) -> dict[str, Any]:
    """Times ten steps of some runs in one program."""
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    model = CONFIGS[size]
    params = models.init_params(model, jax.random.key(0))
    checkpoint = models.Checkpoint(model, params, Path(), (), {})
    config = step_config(model, dtype)
    layout = Layout(make_mesh(jax.devices()[:1]), runs=runs, group=min(runs, 8))
    states = start(checkpoint, config, range(runs), layout)
    texts = random_texts(model, batch, LENGTH)
    own = np.arange(batch, dtype=np.int32)
    indices = BatchIndices(own, own * LENGTH, np.ones(batch, np.float32))
    inputs = (
        layout.place_table(token_table(texts)),
        layout.place_indices([[indices] * STEPS] * runs),
    )
    began = time.monotonic()
    program = compile_train_steps(config, layout, (batch, LENGTH))
    compiled = program.lower(states, *inputs).compile()
    compile_seconds = time.monotonic() - began
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.monotonic()
        states, metrics = compiled(states, *inputs)
        jax.block_until_ready(metrics.loss)
        seconds.append(time.monotonic() - began)
    per_step = statistics.median(seconds[1:]) / STEPS
    row = {
        "size": size,
        "precision": precision,
        "batch": batch,
        "runs": runs,
        "seconds_per_step": per_step,
        "examples_per_second": runs * batch / per_step,
        "compile_seconds": compile_seconds,
        "bytes": memory.bytes_needed(compiled),
    }
    if accelerator := accelerator_here():
        costs = estimate(read_program(compiled.as_text()), accelerator)
        row |= {
            "accelerator": accelerator.name,
            "estimated_seconds": costs.seconds / STEPS,
            "kernels": costs.count / STEPS,
            "flops": costs.flops / STEPS,
            "of_rate": costs.flops / STEPS / per_step / accelerator.rates[precision],
        }
    return row


def measure_updates(size: str) -> dict[str, float]:
    """Times the clip, Adam, and both, for the parameters of a model."""
    params = models.init_params(CONFIGS[size], jax.random.key(0))
    clip = cwgnc_jax.component_clip_by_global_norm(0.05, keep_report=True)
    adam = cwgnc_jax.scale_by_adam()
    found = {}
    for name, tx in {
        "clip": clip,
        "adam": adam,
        "clip and adam": optax.chain(clip, adam),
    }.items():
        update = jax.jit(tx.update, donate_argnums=(0, 1))
        updates, state = jax.tree.map(jax.numpy.copy, params), tx.init(params)
        seconds = []
        for _ in range(ROUNDS + 1):
            began = time.monotonic()
            for _ in range(STEPS):
                updates, state = update(updates, state)
            jax.block_until_ready(updates)
            seconds.append((time.monotonic() - began) / STEPS)
        found[f"{name}_seconds"] = statistics.median(seconds[1:])
    return found


def main() -> None:
    """Prints a line for each number of runs, as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=CONFIGS, required=True)
    parser.add_argument("--precision", choices=MATMUL, default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--runs", type=int, nargs="+", default=[1])
    parser.add_argument("--updates", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", MATMUL[args.precision])
    for runs in args.runs:
        row = measure_steps(args.size, args.precision, args.batch_size, runs)
        if args.updates and runs == 1:
            row |= measure_updates(args.size)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
