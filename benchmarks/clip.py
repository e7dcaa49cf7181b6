"""The clip alone, in front of Adam and inside a step, against what else there is.

    python -m benchmarks.clip [--sizes base large] [--json FILE]

It clips gradients of the shapes of BERT, 201 parameters in base and 393 in large, in
float32 and in place. All sides go in turn on the same gradients, after their results
were compared. The floor beside them is one more read of the gradients, at the bandwidth
measured in the same rounds. --quick takes less than two minutes on two cores. With
--json a page is written beside the file.
"""

if __name__ == "__main__":
    # Before all other imports, which the process that is started anew makes again.
    from train.huge_pages import use_huge_pages

    use_huge_pages()

import argparse
import concurrent.futures
import functools
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax.typing import ArrayLike

import cwgnc_jax
from benchmarks.measure import in_turn, machine, median_ratio, provenance, publish
from benchmarks.torch_step import clip_foreach
from benchmarks.torch_version import clip_each_parameter, clip_with_records
from benchmarks.training import (
    BASE,
    LARGE,
    LEARNING_RATE,
    MAX_NORM,
    loss_of,
    random_texts,
    recipe_of,
)
from cwgnc_jax import models

CONFIGS = {
    "quick": models.BertConfig(num_hidden_layers=2),
    "base": BASE,
    "large": LARGE,
}
OURS = "component_clip_by_global_norm"
NORMS = f"{OURS}, and its norms"
NO_CLIP = "no clip"
READ = "one read of the gradients"
PARTITION = "optax.partition of clips"
RECORDS = "torch, clip_grad_norm_ in a loop with its records"
STEP_TEXTS, STEP_LENGTH = 16, 16
"""A step of few tokens, in which the clip has a larger share than in most."""


def gradients_of(config: models.BertConfig) -> dict[str, Any]:
    """Random gradients; about half of the components are above the threshold."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))

    def draw(leaf):
        norm = MAX_NORM * rng.lognormal()
        values = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(values * np.float32(norm / np.linalg.norm(values)))

    return jax.tree.map(draw, shapes)


def clips(
    grads: Any, max_norm: ArrayLike = MAX_NORM
) -> dict[str, optax.GradientTransformation]:
    """What JAX's users could put in front of Adam."""
    names = list(cwgnc_jax.component_sizes(grads))
    paths = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), grads
    )
    each = {name: optax.clip_by_global_norm(max_norm) for name in names}
    return {
        OURS: cwgnc_jax.component_clip_by_global_norm(max_norm),
        PARTITION: optax.partition(each, paths),
        "optax.clip_by_block_rms": optax.clip_by_block_rms(max_norm),
        "optax.clip_by_global_norm": optax.clip_by_global_norm(max_norm),
    }


def falling() -> Iterator[float]:
    """Thresholds for clips in place, so that each finds as much to clip as the first.

    Where a norm is not above the threshold, what XLA makes of optax's clips writes
    nothing.
    """
    return (MAX_NORM * 0.999**number for number in itertools.count())


class Program:
    """A compiled function, with what it took to make it and what it holds and moves.

    Args:
      function: It may write what it returns over its first argument.
      arguments: To compile it for.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        start = time.perf_counter()
        traced = jax.jit(function, donate_argnums=0).trace(*arguments)
        traced_at = time.perf_counter()
        lowered = traced.lower()
        lowered_at = time.perf_counter()
        self.call = lowered.compile()
        memory = self.call.memory_analysis()
        self.facts = {
            "trace": traced_at - start,
            "compile": time.perf_counter() - lowered_at,
            "reused_bytes": memory.alias_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "accessed_bytes": self.call.cost_analysis().get("bytes accessed"),
        }


class Alone:
    """A clip on its own, which works in place on gradients of its own."""

    def __init__(self, name: str, grads: Any):
        def clip(grads, max_norm):
            tx = clips(grads, max_norm)[name]
            return tx.update(grads, tx.init(grads))[0]

        self.program = Program(clip, grads, jnp.float32(MAX_NORM))
        self.grads, self.thresholds = jax.tree.map(jnp.copy, grads), falling()

    def __call__(self) -> Any:
        """Clips once."""
        self.grads = self.program.call(self.grads, np.float32(next(self.thresholds)))
        return self.grads


def torch_sides(grads: Any) -> tuple[dict[str, Callable[[], Any]], list[Any]]:
    """The torch version's loop, with its records and without, and the foreach form."""
    leaves = [torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(grads)]
    parameters = [torch.nn.Parameter(torch.zeros_like(leaf)) for leaf in leaves]
    for parameter, leaf in zip(parameters, leaves, strict=True):
        parameter.grad = leaf
    named = [(str(number), p) for number, p in enumerate(parameters)]
    grads_of = [parameter.grad for parameter in parameters]
    sides = {
        "torch, clip_grad_norm_ in a loop": functools.partial(
            clip_each_parameter, parameters
        ),
        RECORDS: functools.partial(clip_with_records, named),
        "torch, foreach": functools.partial(clip_foreach, grads_of),
    }

    def over(clip, thresholds):
        return lambda: clip(next(thresholds))

    return {name: over(clip, falling()) for name, clip in sides.items()}, parameters


def check_equal(grads: Any, ours: Any, partition: Any, parameters: list[Any]) -> None:
    """Raises if the component-wise sides differ."""
    clip_each_parameter(parameters, MAX_NORM)
    sides = map(jax.tree.leaves, (grads, ours, partition))
    for before, one, other, parameter in zip(*sides, parameters, strict=True):
        np.testing.assert_allclose(one, parameter.grad.numpy(), rtol=1e-4, atol=1e-9)
        # Optax has no eps: a norm of the threshold is off by 1e-6 over it.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-9)
        parameter.grad.copy_(torch.from_numpy(np.array(before)))


def measure_alone(size: str, rounds: int) -> list[dict[str, Any]]:
    """Times the clips on their own."""
    grads = gradients_of(CONFIGS[size])
    alone = {name: Alone(name, grads) for name in clips(grads)}
    theirs, parameters = torch_sides(grads)
    check_equal(grads, alone[OURS](), alone[PARTITION](), parameters)
    read = jax.jit(lambda grads: jax.tree.map(jnp.sum, grads))
    timed = in_turn({**alone, **theirs, READ: lambda: read(grads)}, rounds)
    programs = {name: side.program for name, side in alone.items()}
    return _rows(timed, OURS, programs)


def update_of(clip: optax.GradientTransformation | None, with_norms: bool = False):
    """The update of all parameters: the clip, Adam, and the parameters anew.

    Returns:
      A function from parameters with Adam's state and from gradients to the former
      after the update, and the norms, if they are asked for.
    """
    adam = cwgnc_jax.scale_by_adam()

    def update(kept, grads):
        params, state = kept
        norms = cwgnc_jax.component_norms(grads) if with_norms else None
        if clip is not None:
            grads, _ = clip.update(grads, clip.init(params))
        updates, state = adam.update(grads, state)
        updates = jax.tree.map(lambda update: -LEARNING_RATE * update, updates)
        return (optax.apply_updates(params, updates), state), norms

    return update


def measure_update(size: str, rounds: int) -> list[dict[str, Any]]:
    """Times the update of all parameters, with a clip in front of Adam and without."""
    grads = gradients_of(CONFIGS[size])
    found = clips(grads)
    updates = {NO_CLIP: update_of(None), NORMS: update_of(found[OURS], with_norms=True)}
    updates |= {name: update_of(tx) for name, tx in found.items()}
    return _in_turn_on(jax.tree.map(jnp.zeros_like, grads), updates, grads, rounds)


def measure_step(size: str, rounds: int) -> list[dict[str, Any]]:
    """Times a whole step of few tokens, with the clip and without."""
    config = CONFIGS[size]
    texts = random_texts(config, STEP_TEXTS, STEP_LENGTH)
    loss_fn = loss_of(recipe_of(config), texts)

    def step_of(update):
        def step(kept, key):
            loss, grads = jax.value_and_grad(loss_fn)(kept[0], key)
            kept, norms = update(kept, grads)
            return kept, (loss, norms)

        return step

    clip = cwgnc_jax.component_clip_by_global_norm(MAX_NORM)
    steps = {
        NO_CLIP: step_of(update_of(None)),
        NORMS: step_of(update_of(clip, with_norms=True)),
    }
    params = models.init_params(config, jax.random.key(0))
    return _in_turn_on(params, steps, jax.random.key(1), rounds)


def _in_turn_on(params: Any, functions: Any, argument: Any, rounds: int):
    """Times functions that all train the same parameters, in place."""
    kept = params, cwgnc_jax.scale_by_adam().init(params)
    programs = {
        name: Program(function, kept, argument) for name, function in functions.items()
    }

    def call(program):
        nonlocal kept
        kept, reported = program.call(kept, argument)
        return kept, reported

    sides = {
        name: functools.partial(call, program) for name, program in programs.items()
    }
    return _rows(in_turn(sides, rounds), NO_CLIP, programs)


def _rows(timed: Any, reference: str, programs: Any) -> list[dict[str, Any]]:
    milliseconds = {
        name: 1000 * np.asarray(found["seconds"]) for name, found in timed.items()
    }
    return [
        {
            "side": name,
            "seconds": found["median"],
            "spread": found["spread"],
            "processor_seconds": found["processor_seconds"],
            "against": reference,
            "ratio": median_ratio(timed, name, reference),
            "more_milliseconds": float(
                np.median(milliseconds[name] - milliseconds[reference])
            ),
            **(programs[name].facts if name in programs else {}),
        }
        for name, found in timed.items()
    ]


def measure_size(size: str, rounds: int) -> dict[str, Any]:
    """Measures one size of BERT."""
    shapes = jax.eval_shape(
        lambda: models.init_params(CONFIGS[size], jax.random.key(0))
    )
    leaves = jax.tree.leaves(shapes)
    return {
        "size": size,
        "components": len(leaves),
        "bytes": sum(4 * leaf.size for leaf in leaves),
        "alone": _in_its_own_process(measure_alone, size, rounds),
        "update": _in_its_own_process(measure_update, size, rounds),
        "step": _in_its_own_process(measure_step, size, rounds),
    }


def _in_its_own_process(measure: Callable[..., Any], size: str, rounds: int) -> Any:
    """Measures where nothing has used up the huge pages before.

    Behind the other two in one process a step of BERT-base with the clip took 1.3 times
    as long as one without.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
        return process.submit(measure, size, rounds).result()


def main() -> None:
    """Measures, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=CONFIGS, default=["base", "large"]
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = ["quick"], 5
    result = {
        "benchmark": "clip",
        "rounds": args.rounds,
        "machine": machine(),
        "sizes": [measure_size(size, args.rounds) for size in args.sizes],
    }
    publish(result, page(result), args.json)


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# The clip",
        "",
        f"Random float32 gradients in the shapes of BERT, threshold {MAX_NORM}. "
        f"Everything works in place. {provenance(result)}",
    ]
    for size in result["sizes"]:
        floor = next(x["seconds"] for x in size["alone"] if x["side"] == READ)
        lines += [
            "",
            f"## BERT-{size['size']}: {size['components']} components, "
            f"{size['bytes'] / 2**20:.0f} MiB, read once in {1000 * floor:.0f} ms "
            f"({size['bytes'] / floor / 1e9:.0f} GB/s)",
            "",
            "| alone | ms | × ours | × the read | temporary | trace | compile |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['side']} | {1000 * row['seconds']:.0f} | {row['ratio']:.2f} | "
            f"{row['seconds'] / floor:.1f} | {_facts(row)} |"
            for row in size["alone"]
        ]
        lines += [
            "",
            "| update of all parameters by Adam | ms | more than without | gradients "
            "read and written, times | temporary | trace | compile |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['side']} | {1000 * row['seconds']:.0f} | "
            f"{row['more_milliseconds']:.1f} ms | "
            f"{row['accessed_bytes'] / size['bytes']:.1f} | {_facts(row)} |"
            for row in size["update"]
        ]
        lines += [
            "",
            f"| whole step, {STEP_TEXTS} × {STEP_LENGTH} tokens | ms | × no clip |",
            "|---|---:|---:|",
        ]
        lines += [
            f"| {row['side']} | {1000 * row['seconds']:.0f} | {row['ratio']:.3f} |"
            for row in size["step"]
        ]
    lines += [
        "",
        "Temporary is what a program needs besides the arrays that it works on, as "
        "the compiler states it; a second copy of the gradients would be as large as "
        "they are. "
        "In torch the clip runs on its own before the optimizer, and adds to a step "
        "what it takes alone. `optax.clip_by_block_rms` and "
        "`optax.clip_by_global_norm` compute something else.",
    ]
    return "\n".join(lines) + "\n"


def _facts(row: dict[str, Any]) -> str:
    if "compile" not in row:
        return "| | "
    return (
        f"{row['temporary_bytes'] / 2**20:.1f} MiB | {row['trace']:.2f} s | "
        f"{row['compile']:.2f} s"
    )


if __name__ == "__main__":
    main()
