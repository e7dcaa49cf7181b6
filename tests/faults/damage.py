"""Random damage to the folder of a run, counted by what a resume makes of it.

``python -m tests.faults.damage --count 10000`` flips bits, truncates, empties, deletes
and swaps files of a small run with two checkpoints, once each on an intact copy. A
resume must find the state of a checkpoint as it was written, or refuse with an error
and have written nothing.
"""

import argparse
import collections
import random
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.checkpoint import Checkpoints, restore_runs
from train.config import DataConfig, FinetuneConfig, OptimizerConfig
from train.optimizer import Hyperparameters
from train.records import HashedLines, write_json
from train.restart import Restart, check_settings, described, find_restart
from train.steps import Run

INPUTS: Any = types.SimpleNamespace(data_digest="data", weights_digest="weights")
"""Stands for data and weights that have not changed."""


def runs_of(step: int) -> Run:
    """Small runs whose every number depends on the step."""
    rng = np.random.default_rng(step)
    params = {"kernel": jnp.asarray(rng.normal(size=(1, 16, 8)), jnp.float32)}
    numbers = Hyperparameters(*[jnp.ones(1)] * 11)
    return Run(
        params,
        optax.adam(1e-3).init(jax.tree.map(lambda x: x + step, params)),
        jax.random.split(jax.random.key(step), 1),
        jnp.full(1, step, jnp.int32),
        numbers,
    )


def make_run(workdir: Path) -> FinetuneConfig:
    """Writes a run's folder with checkpoints of steps 2 and 4; returns its config."""
    config = FinetuneConfig(
        "model", workdir, DataConfig(), OptimizerConfig(), resume=True, keep=2
    )
    workdir.mkdir()
    write_json(workdir / "config.json", described(config))
    with (
        HashedLines(workdir / "metrics.jsonl") as lines,
        Checkpoints(workdir / "checkpoint", keep=2) as checkpoints,
    ):
        for step in range(1, 7):
            lines.append({"step": step, "loss": 1 / step})
            if step in (2, 4):
                marks = {"metrics.jsonl": lines.mark()}
                reached = Restart(step=step, seconds=1.0, records=marks)
                notes = reached.notes(config, INPUTS)
                checkpoints.save(step, runs_of(step), notes)
        checkpoints.wait()
    return config


def state(runs: Run) -> list[bytes]:
    """The bits of runs."""
    tree = (runs.params, runs.opt_state, runs.step, jax.random.key_data(runs.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def harm(workdir: Path, rng: random.Random) -> str:
    """Does something to one file or two, and says what."""
    files = sorted(path for path in workdir.rglob("*") if path.is_file())
    path, other = rng.sample(files, 2)
    content = path.read_bytes()
    kind = rng.choice(["flip", "truncation", "emptying", "deletion", "swap"])
    if kind == "flip" and content:
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
    elif kind == "truncation" and content:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "emptying":
        path.write_bytes(b"")
    elif kind == "swap":
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        path.unlink()
        kind = "deletion"
    return kind


def contents(workdir: Path) -> dict[Path, bytes]:
    """All files of a folder."""
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def resumed(config: FinetuneConfig) -> str:
    """What a resume comes to."""
    before = contents(config.workdir)
    try:
        check_settings(config)
        restart = find_restart(config, INPUTS, lambda line: None)
    except (ValueError, OSError):
        outcome = "refused"
    else:
        if restart.path is None:
            return "WRONG: started anew"
        restored = restore_runs(restart.path, runs_of(0))
        want = runs_of(restart.step)
        if state(restored) != state(want):
            return "WRONG: another state"
        with HashedLines(
            config.workdir / "metrics.jsonl", restart.records["metrics.jsonl"]
        ):
            lines = (config.workdir / "metrics.jsonl").read_text().splitlines()
            want = [f'{{"step": {n}, "loss": {1 / n}}}' for n in range(1, 7)]
            if lines != want[: restart.step]:
                return "WRONG: other records"
        return f"went on at step {restart.step}"
    return outcome if contents(config.workdir) == before else "WRONG: wrote"


def count_outcomes(count: int, seed: int = 0) -> collections.Counter:
    """Damages a run many times.

    Args:
      count: How many times.
      seed: Draws what is done.

    Returns:
      How often each kind of damage came to each outcome.
    """
    rng, outcomes = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        workdir, intact = Path(folder) / "run", Path(folder) / "intact"
        config = make_run(workdir)
        assert resumed(config) == "went on at step 4"
        shutil.copytree(workdir, intact)
        for _ in range(count):
            shutil.rmtree(workdir)
            shutil.copytree(intact, workdir)
            outcomes[harm(workdir, rng), resumed(config)] += 1
    return outcomes


def main() -> int:
    """Prints the counts; 1 if one of them is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes = count_outcomes(arguments.count, arguments.seed)
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:12}{outcome:24}{number:8}")
    return int(any(outcome.startswith("WRONG") for _, outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
