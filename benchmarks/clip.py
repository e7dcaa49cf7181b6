"""The clip alone and in front of Adam, against what else there is to pick.

    python -m benchmarks.clip [--sizes base large] [--json FILE]

It clips gradients of the shapes of BERT, 201 parameters in base and 393 in large, in
float32. All sides go in turn on the same gradients, after their results were compared.
The floor beside them is one more read of the gradients, at the bandwidth measured in
the same rounds. --quick takes less than two minutes on two cores. With --json a page is
written beside the file.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import cwgnc_jax
from benchmarks.measure import in_turn, machine, median_ratio, provenance, publish
from benchmarks.torch_version import clip_each_parameter
from cwgnc_jax import models
from train.huge_pages import use_huge_pages

MAX_NORM = 0.05
CONFIGS = {
    "quick": models.BertConfig(num_hidden_layers=2),
    "base": models.BertConfig(),
    "large": models.BertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    ),
}
OURS = "component_clip_by_global_norm"
_READ = "one read of the gradients"
_ONCE = ("trace", "compile")


def gradients_of(config: models.BertConfig) -> dict[str, Any]:
    """Random gradients; about half of the components are above the threshold."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))

    def draw(leaf):
        norm = MAX_NORM * rng.lognormal()
        values = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(values * np.float32(norm / np.linalg.norm(values)))

    return jax.tree.map(draw, shapes)


def clips(grads: Any) -> dict[str, optax.GradientTransformation]:
    """What JAX's users could put in front of Adam."""
    names = list(cwgnc_jax.component_sizes(grads))
    paths = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), grads
    )
    each = {name: optax.clip_by_global_norm(MAX_NORM) for name in names}
    return {
        OURS: cwgnc_jax.component_clip_by_global_norm(MAX_NORM),
        "optax.partition of clips": optax.partition(each, paths),
        "optax.clip_by_block_rms": optax.clip_by_block_rms(MAX_NORM),
        "optax.clip_by_global_norm": optax.clip_by_global_norm(MAX_NORM),
    }


class Jax:
    """A transform or a chain, compiled; the buffers of its state are reused."""

    def __init__(self, tx: optax.GradientTransformation, grads: Any):
        self.state, self.seconds = tx.init(grads), {}

        def update(grads, state):
            return tx.update(grads, state)

        start = time.perf_counter()
        traced = jax.jit(update, donate_argnums=1).trace(grads, self.state)
        self.seconds["trace"] = time.perf_counter() - start
        lowered = traced.lower()
        start = time.perf_counter()
        self.compiled = lowered.compile()
        self.seconds["compile"] = time.perf_counter() - start
        self.grads = grads

    def __call__(self) -> Any:
        """Clips once; the updates."""
        updates, self.state = self.compiled(self.grads, self.state)
        return updates


def torch_sides(grads: Any) -> tuple[dict[str, Callable[[], Any]], list[Any]]:
    """The torch version's loop, with its records and without, and the foreach form."""
    leaves = [torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(grads)]
    parameters = [torch.nn.Parameter(torch.zeros_like(leaf)) for leaf in leaves]
    for parameter, leaf in zip(parameters, leaves, strict=True):
        parameter.grad = leaf

    def loop():
        clip_each_parameter(parameters, MAX_NORM)

    def loop_with_records():
        # What the torch version writes down of each parameter, before it is clipped.
        for parameter in parameters:
            grad, weight = parameter.grad, parameter.data
            for tensor in (grad, weight):
                tensor.norm().item()
                tensor.min().item()
                tensor.max().item()
                tensor.mean().item()
            torch.nn.utils.clip_grad_norm_(parameter, MAX_NORM)

    def foreach():
        grads = [parameter.grad for parameter in parameters]
        norms = torch._foreach_norm(grads)
        factors = [torch.clamp(MAX_NORM / (norm + 1e-6), max=1.0) for norm in norms]
        torch._foreach_mul_(grads, factors)

    sides = {
        "torch, clip_grad_norm_ in a loop": loop,
        "torch, the same with its records": loop_with_records,
        "torch, foreach": foreach,
    }
    return sides, parameters


def check_equal(grads: Any, ours: Any, partition: Any, parameters: list[Any]) -> None:
    """Raises if the component-wise sides differ."""
    clip_each_parameter(parameters, MAX_NORM)
    sides = map(jax.tree.leaves, (grads, ours, partition))
    for before, one, other, parameter in zip(*sides, parameters, strict=True):
        np.testing.assert_allclose(one, parameter.grad.numpy(), rtol=1e-4, atol=1e-9)
        # Optax has no eps: a norm of the threshold is off by 1e-6 over it.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-9)
        parameter.grad.copy_(torch.from_numpy(np.array(before)))


def measure_size(size: str, rounds: int) -> dict[str, Any]:
    """Measures one size of BERT."""
    grads = gradients_of(CONFIGS[size])
    bytes_ = 4 * sum(leaf.size for leaf in jax.tree.leaves(grads))
    alone = {name: Jax(tx, grads) for name, tx in clips(grads).items()}
    theirs, parameters = torch_sides(grads)
    check_equal(
        *(grads, alone[OURS](), alone["optax.partition of clips"](), parameters)
    )
    read = jax.jit(lambda grads: jax.tree.map(jnp.sum, grads))
    sides: dict[str, Callable[[], Any]] = {
        **alone,
        **theirs,
        _READ: lambda: read(grads),
    }
    timed = in_turn(sides, rounds)
    rows = [
        {
            "side": name,
            "seconds": timed[name]["median"],
            "spread": timed[name]["spread"],
            "processor_seconds": timed[name]["processor_seconds"],
            "times_ours": median_ratio(timed, name, OURS),
            **(alone[name].seconds if name in alone else {}),
        }
        for name in sides
    ]
    del alone, theirs, parameters, sides
    adam = cwgnc_jax.scale_by_adam()
    chains = {"no clip": adam} | {
        name: optax.chain(tx, adam) for name, tx in clips(grads).items()
    }
    whole = {name: Jax(tx, grads) for name, tx in chains.items()}
    timed = in_turn(whole, rounds)
    return {
        "size": size,
        "components": len(jax.tree.leaves(grads)),
        "bytes": bytes_,
        "alone": rows,
        "before_adam": [
            {
                "side": name,
                "seconds": timed[name]["median"],
                "spread": timed[name]["spread"],
                "times_no_clip": median_ratio(timed, name, "no clip"),
                "bytes_accessed": whole[name]
                .compiled.cost_analysis()
                .get("bytes accessed"),
            }
            for name in chains
        ],
    }


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# The clip",
        "",
        f"Random float32 gradients in the shapes of BERT, threshold {MAX_NORM}. "
        + provenance(result),
    ]
    for size in result["sizes"]:
        lines += [
            "",
            f"## BERT-{size['size']}: {size['components']} components, "
            f"{size['bytes'] / 2**20:.0f} MiB",
            "",
            "| alone | ms | × ours | trace | compile |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in size["alone"]:
            times = [f"{row[name]:.2f} s" if name in row else "" for name in _ONCE]
            lines.append(
                f"| {row['side']} | {1000 * row['seconds']:.0f} | "
                f"{row['times_ours']:.2f} | {' | '.join(times)} |"
            )
        lines += ["", "| in front of Adam | ms | × no clip |", "|---|---:|---:|"]
        lines += [
            f"| {row['side']} | {1000 * row['seconds']:.0f} | "
            f"{row['times_no_clip']:.2f} |"
            for row in size["before_adam"]
        ]
    lines += [
        "",
        "Alone, JAX writes the clipped gradients to new memory while torch works in "
        "place; in front of Adam nothing but Adam's own results is written. "
        "`optax.clip_by_block_rms` and `optax.clip_by_global_norm` compute something "
        "else.",
    ]
    return "\n".join(lines) + "\n"


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


if __name__ == "__main__":
    use_huge_pages()
    main()
