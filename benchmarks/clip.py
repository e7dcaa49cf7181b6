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
    from cwgnc_train.commands import use_huge_pages

    use_huge_pages()

import argparse
import concurrent.futures
import functools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cwgnc_jax
from benchmarks.clip_sides import (
    OURS,
    PARTITION,
    Alone,
    Copy,
    Program,
    check_equal,
    clips,
    gradients_of,
    torch_sides,
)
from benchmarks.measure import in_turn, machine, median_ratio, provenance, publish
from benchmarks.training import (
    CONFIGS,
    LEARNING_RATE,
    MAX_NORM,
    NAMES,
    SIZES,
    loss_of,
    random_texts,
    step_config,
)
from cwgnc_jax import models

NORMS = f"{OURS}, and its norms"
NO_CLIP, AGAIN = "no clip", "no clip, once more"
READ = "one read of the gradients"
COPY = "a copy of the gradients"
NEEDED = {COPY: 2, NO_CLIP: 7}
CLIPPED_NEEDS = 8
"""How often the bytes of the gradients have to be read or written: parameters and both
moments twice, the gradients once, and behind a clip once more for their norms."""
STEP_TEXTS, STEP_LENGTH = 16, 16
"""A step of few tokens, in which the clip has a larger share than in most."""
STEP_ROUNDS = 5
"""How many rounds steps take for each of the others: their times differ by more than
what the clip adds."""


def measure_alone(size: str, rounds: int) -> list[dict[str, Any]]:
    """Times the clips on their own."""
    grads = gradients_of(CONFIGS[size])
    alone = {name: Alone(name, grads) for name in clips(grads)}
    check_equal(grads, alone[OURS](), alone[PARTITION]())
    theirs = torch_sides(grads)
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
    params = jax.tree.map(jnp.zeros_like, grads)
    rows = _in_turn_on(params, updates, grads, rounds, {COPY: Copy(grads)})
    [copy] = [row["seconds"] for row in rows if row["side"] == COPY]
    for row in rows:
        needed = NEEDED.get(row["side"], CLIPPED_NEEDS)
        row["share_of_copy"] = needed / NEEDED[COPY] * copy / row["seconds"]
    return rows


def measure_step(size: str, rounds: int) -> list[dict[str, Any]]:
    """Times a whole step of few tokens, with the clip and without.

    The step without is timed a second time as a side of its own: what it differs by is
    what these rounds cannot tell.
    """
    config = CONFIGS[size]
    texts = random_texts(config, STEP_TEXTS, STEP_LENGTH)
    loss_fn = loss_of(step_config(config), texts)

    def step_of(update):
        def step(kept, key):
            loss, grads = jax.value_and_grad(loss_fn)(kept[0], key)
            kept, norms = update(kept, grads)
            return kept, (loss, norms)

        return step

    clip = cwgnc_jax.component_clip_by_global_norm(MAX_NORM)
    steps = {
        NO_CLIP: step_of(update_of(None)),
        AGAIN: step_of(update_of(None)),
        NORMS: step_of(update_of(clip, with_norms=True)),
    }
    params = models.init_params(config, jax.random.key(0))
    rounds *= STEP_ROUNDS
    return _in_turn_on(params, steps, jax.random.key(1), rounds, {}, warm_up=False)


def _in_turn_on(
    params: Any,
    functions: Any,
    argument: Any,
    rounds: int,
    others: Any,
    warm_up: bool = True,
):
    """Times functions that all train the same parameters, in place, and others."""
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
    programs |= {name: other.program for name, other in others.items()}
    sides |= others
    warm_ups = sides if warm_up else dict.fromkeys(sides, lambda: None)
    return _rows(in_turn(sides, rounds, warm_ups), NO_CLIP, programs)


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
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["base", "large"])
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
        [floor] = [x["seconds"] for x in size["alone"] if x["side"] == READ]
        [copy] = [x["seconds"] for x in size["update"] if x["side"] == COPY]
        lines += [
            "",
            f"## {NAMES[size['size']]}: {size['components']} components, "
            f"{size['bytes'] / 2**20:.0f} MiB, read once in {1000 * floor:.0f} ms "
            f"({size['bytes'] / floor / 1e9:.0f} GB/s), copied in {1000 * copy:.0f} ms",
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
            "| update of all parameters by Adam | ms | more than without | of the "
            "copy's bandwidth | gradients read and written, times | temporary | "
            "trace | compile |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['side']} | {1000 * row['seconds']:.0f} | "
            f"{row['more_milliseconds']:.1f} ms | {row['share_of_copy']:.2f} | "
            f"{row['accessed_bytes'] / size['bytes']:.1f} | {_facts(row)} |"
            for row in size["update"]
            if row["side"] != COPY
        ]
        lines += [
            "",
            f"| whole step, {STEP_TEXTS} × {STEP_LENGTH} tokens, "
            f"{STEP_ROUNDS * result['rounds']} rounds | ms | × no clip | spread |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {row['side']} | {1000 * row['seconds']:.0f} | {row['ratio']:.3f} | "
            f"{row['spread']:.2f} |"
            for row in size["step"]
        ]
    lines += [
        "",
        "Temporary is what a program needs besides the arrays that it works on, as "
        "the compiler states it; a second copy of the gradients would be as large as "
        "they are. Of the copy's bandwidth is the share that an update reaches if it "
        f"moves no more than it has to: {CLIPPED_NEEDS} times the gradients with a "
        f"clip, {NEEDED[NO_CLIP]} without. "
        "In torch the clip runs on its own before the optimizer, and adds to a step "
        "what it takes alone. By what a step without a clip differs from itself, "
        "once more, its rounds cannot tell steps apart. `optax.clip_by_block_rms` and "
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
