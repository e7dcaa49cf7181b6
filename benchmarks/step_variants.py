"""What a training step costs that is frozen in part, or that measures components.

    python -m benchmarks.step_variants [--model DIR] [--json FILE]

Without --model it takes random weights in the shape of MiniLM. Iteration T of gradual
unfreezing trains the top T layers; it should cost the forward pass and T/L of the
backward pass. All sides go in turn on the same batch, after their losses were compared.
--quick takes less than two minutes on two cores. With --json a page is written beside
the file.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.measure import in_turn, machine, median_ratio, publish
from benchmarks.training import (
    CONFIGS,
    NAMES,
    Steps,
    loss_of,
    random_texts,
    setting,
    step_config,
)
from cwgnc_jax import models
from cwgnc_train.commands import use_huge_pages
from cwgnc_train.data import TokenArrays
from cwgnc_train.engine import StepConfig

EVERY = 20
_BETWEEN = "between measurements"


def forward(checkpoint, config: StepConfig, texts: TokenArrays) -> Any:
    """The loss alone, with dropout, as a function without arguments."""
    key, loss = jax.random.key(0), jax.jit(loss_of(config, texts))
    return lambda: jax.device_get(loss(checkpoint.params, key))


def measure(
    model: str | None, size: str, rows: int, length: int, rounds: int
) -> dict[str, Any]:
    """Measures all variants and returns what the JSON file holds."""
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            params = models.init_params(CONFIGS[size], jax.random.key(0))
            models.save_pretrained(folder, CONFIGS[size], params)
        checkpoint = models.load_pretrained(
            model or folder, num_labels=2, key=jax.random.key(0)
        )
    model_config = checkpoint.config
    texts = random_texts(model_config, rows, length)
    full = step_config(model_config)
    kept = dataclasses.replace(full, statistics=True)
    layers = model_config.num_hidden_layers
    sides = {"full": Steps(checkpoint, full, texts)}
    for trained in range(1, layers):
        config = dataclasses.replace(full, trained_layers=trained)
        sides[f"iteration {trained}"] = Steps(checkpoint, config, texts)
    sides[_BETWEEN] = Steps(checkpoint, kept, texts)
    sides["measured"] = Steps(checkpoint, kept, texts, measured=True)
    losses = np.concatenate([side.step() for side in sides.values()])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    functions: dict[str, Any] = {name: side.step for name, side in sides.items()}
    functions["forward"] = forward(checkpoint, full, texts)
    timed = in_turn(functions, rounds)
    shares = {name: median_ratio(timed, name, "full") for name in timed}
    return {
        "benchmark": "step_variants",
        "model": Path(model).name if model else f"{NAMES[size]} with random weights",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(checkpoint.params)),
        "layers": layers,
        "batch": rows,
        "length": length,
        "rounds": rounds,
        "machine": machine(),
        "full_seconds": timed["full"]["median"],
        "share_of_full": shares,
        "spread": {name: timed[name]["spread"] for name in timed},
        # Against the steps between, which are plain ones that carry the weights of the
        # start along; their own difference from a plain step is noise.
        "measuring_every_20": (shares["measured"] - shares[_BETWEEN]) / EVERY,
    }


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    shares = result["share_of_full"]
    lines = [
        "# What a step costs that is frozen in part, or measured",
        "",
        setting(result),
        "",
        f"A full step takes {1000 * result['full_seconds']:.0f} ms, its forward pass "
        f"{shares['forward']:.2f} of that.",
        "",
        "| gradual unfreezing | share of a full step | forward + T/L of the rest |",
        "|---|---:|---:|",
    ]
    for trained in range(1, result["layers"]):
        share = trained / result["layers"]
        expected = shares["forward"] + share * (1 - shares["forward"])
        cost = shares[f"iteration {trained}"]
        lines.append(f"| iteration {trained} | {cost:.2f} | {expected:.2f} |")
    lines += [
        f"| iteration {result['layers']}: a full step | 1.00 | 1.00 |",
        "",
        "The embeddings train with the last iteration; the iterations before it are "
        "spared their part of the backward pass and of Adam.",
        "",
        f"A step that measures every component takes {shares['measured']:.2f} of a "
        f"full step, the steps between {shares[_BETWEEN]:.3f}; at an interval of "
        f"{EVERY} measuring costs {100 * result['measuring_every_20']:.1f} %.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    size = "quick" if args.quick else "minilm"
    if args.quick:
        args.batch_size, args.length, args.rounds = 8, 16, 5
    result = measure(args.model, size, args.batch_size, args.length, args.rounds)
    publish(result, page(result), args.json)


if __name__ == "__main__":
    use_huge_pages()
    main()
