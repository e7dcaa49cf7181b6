"""A training process killed at random moments, which must make no difference.

``python -m tests.faults.kills --count 1000`` starts fine-tuning runs of a tiny model
that write a checkpoint every few steps, kills each process with SIGKILL at a random
moment of its life, goes on with ``--resume``, and compares what each run comes to with
one that was never killed: parameters, moments, keys and records, by their sha256.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

PRELOADED = (
    *("train.loop", "train.restart", "orbax.checkpoint.experimental.v1"),
    *("transformers", "pandas", "sklearn.metrics", "matplotlib.pyplot"),
)


def train(arguments: list[str], log: Path) -> None:
    """The process: the command line as a person calls it, with its output in a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from train.__main__ import main

    sys.exit(main(arguments))


class Kills:
    """Runs in processes that share what they import and compile.

    A process is forked from one that has imported all it needs and done nothing else:
    so a restart takes a second.

    Args:
      folder: Where everything is written.
      seed: Draws the moments.
    """

    def __init__(self, folder: Path, seed: int):
        from tests.train.conftest import sentences, write_tiny_model, write_tsv

        self._folder, self._moments = folder, random.Random(seed)
        (folder / "model").mkdir()
        values = {
            "model": write_tiny_model(folder / "model"),
            "train-file": write_tsv(folder / "train.tsv", sentences(37)),
            "validation-file": write_tsv(folder / "dev.tsv", sentences(20, 41)),
            "text-columns": "text",
            "preset": "code",
            "epochs": 20,
            "learning-rate": 3e-3,
            "dropout": 0.1,
            "max-length": 16,
            "padding": "max_length",
            "norms-every": 7,
            "evaluations": 3,
            "checkpoint-seconds": 0,
            "keep": 2,
        }
        pairs = [(f"--{name}", str(value)) for name, value in values.items()]
        self._flags = ["finetune", *(part for pair in pairs for part in pair)]
        os.environ |= {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore::RuntimeWarning",
        }
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))
        self._whole("first")
        begun = time.monotonic()
        self.unbroken = self._whole("unbroken")
        self._seconds = time.monotonic() - begun

    def start(self, name: str):
        """Starts a process of a run, or goes on with it."""
        workdir = self._folder / name
        arguments = [*self._flags, "--workdir", str(workdir), "--resume"]
        log = self._folder / f"{name}.log"
        process = self._context.Process(target=train, args=(arguments, log))
        process.start()
        return process

    def kill(self, name: str) -> str | None:
        """Starts a process of a run and kills it; says when, or None if it was done."""
        begun = time.time()
        process = self.start(name)
        process.join(self._moments.uniform(0, 1.1 * self._seconds))
        if not process.is_alive():
            self._check(name, process)
            return None
        process.kill()
        process.join()

        def written(pattern: str) -> bool:
            paths = (self._folder / name).glob(pattern)
            return any(path.stat().st_mtime >= begun for path in paths)

        if written("checkpoint/*.*"):
            return "while a checkpoint was written or removed"
        if written("model"):
            return "while results were written"
        return "between checkpoints" if written("metrics.jsonl") else "before training"

    def digest(self, name: str) -> dict[str, str]:
        """What a run has come to, as sha256 by name."""
        import jax
        import orbax.checkpoint.experimental.v1 as ocp

        workdir = self._folder / name
        path, device = max(workdir.glob("checkpoint/*")) / "state", jax.devices()[0]
        stored = ocp.metadata(str(path)).metadata
        expected = {
            name: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(device)
            )
            for name, x in stored.items()
        }
        state = jax.device_get(ocp.load(str(path), expected))
        files = ["metrics.jsonl", "evaluations.jsonl", "model/model.safetensors"]
        results = json.loads((workdir / "results.json").read_text())
        del results["seconds"]
        content = {name: value.tobytes() for name, value in state.items()}
        content |= {name: (workdir / name).read_bytes() for name in files}
        content["results"] = json.dumps(results).encode()
        return {name: hashlib.sha256(x).hexdigest() for name, x in content.items()}

    def differences(self, name: str) -> list[str]:
        """What of a finished run differs from the unbroken one."""
        found = self.digest(name)
        return [
            part
            for part in {**self.unbroken, **found}
            if self.unbroken.get(part) != found.get(part)
        ]

    def finish(self, name: str) -> None:
        """Lets a run go on to its end."""
        process = self.start(name)
        process.join()
        self._check(name, process)

    def _whole(self, name: str) -> dict[str, str]:
        self.finish(name)
        return self.digest(name)

    def _check(self, name: str, process) -> None:
        if process.exitcode != 0:
            log = (self._folder / f"{name}.log").read_text()
            raise RuntimeError(f"{name} ended with {process.exitcode}:\n{log[-3000:]}")


def count_kills(count: int, seed: int = 0) -> tuple[collections.Counter, list[str]]:
    """Kills processes.

    Args:
      count: How many.
      seed: Draws when.

    Returns:
      How often at which stage, and a line for each run that came to something else.
    """
    moments, wrong, runs = collections.Counter(), [], 0
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(Path(folder), seed)
        while moments.total() < count:
            name, moment = f"run{runs}", ""
            while moment is not None and moments.total() < count:
                moment = kills.kill(name)
                if moment is not None:
                    moments[moment] += 1
            if moment is not None:
                kills.finish(name)
            wrong += [f"{name}: {part} differs" for part in kills.differences(name)]
            runs += 1
    moments["runs that were compared"] = runs
    return moments, wrong


def main() -> int:
    """Prints the counts; 1 if a run came to something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--processes", type=int, default=1, help="runs that are killed side by side"
    )
    arguments = parser.parse_args()
    moments, wrong = collections.Counter(), []
    seeds = [arguments.seed + i for i in range(arguments.processes)]
    counts = [len(range(i, arguments.count, len(seeds))) for i in range(len(seeds))]
    with concurrent.futures.ProcessPoolExecutor(
        len(seeds), multiprocessing.get_context("spawn")
    ) as pool:
        for some, lines in pool.map(count_kills, counts, seeds):
            moments += some
            wrong += lines
    for moment, number in sorted(moments.items()):
        print(f"{moment:44}{number:6}")
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
