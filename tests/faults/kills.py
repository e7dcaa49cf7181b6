"""Training processes killed at random moments, which must make no difference.

``python -m tests.faults.kills --count 1000`` starts fine-tuning commands of a tiny
model that write a checkpoint every few steps, kills each process with SIGKILL at a
random moment of its life, goes on with ``--resume``, and compares the result with that
of a command that was never killed: parameters, moments, keys, records and the model, by
their sha256.
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
from typing import Any

PRELOADED = (
    *("cwgnc_train.study", "cwgnc_train.analysis", "orbax.checkpoint.experimental.v1"),
    *("transformers", "pandas", "sklearn.metrics", "matplotlib.pyplot"),
)

VARIANTS = {
    "kept": ["--keep", "2"],
    "removed": [],
    "seeds": ["--seeds", "3", "--runs-per-program", "2", "--epochs", "4"],
}
"""Commands that take turns: with the checkpoints compared as well, with them removed
at the end, and with several seeds, of which the third waits for the first two."""

VOLATILE = {"seconds", "own_seconds", "finished_at", "crc32"}


def train(arguments: list[str], log: Path) -> None:
    """The process: the command line as a person calls it, with its output in a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from cwgnc_train.commands import run

    sys.exit(run(arguments))


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
            "epochs": 8,
            "learning-rate": 3e-3,
            "dropout": 0.1,
            "max-length": 16,
            "padding": "max_length",
            "norms-every": 7,
            "evaluations": 3,
            "checkpoint-seconds": 0,
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
        self.unbroken: dict[str, dict[str, str]] = {}
        self._seconds: dict[str, float] = {}
        for variant in VARIANTS:
            self.finish(f"{variant}-first")
            begun = time.monotonic()
            self.finish(f"{variant}-unbroken")
            self._seconds[variant] = time.monotonic() - begun
            self.unbroken[variant] = self.digest(f"{variant}-unbroken")

    def start(self, name: str):
        """Starts a process of a run, or goes on with it."""
        workdir, variant = self._folder / name, name.partition("-")[0]
        arguments = [*self._flags, "--workdir", str(workdir), "--resume"]
        # The last value of a flag counts.
        arguments += VARIANTS[variant]
        log = self._folder / f"{name}.log"
        process = self._context.Process(target=train, args=(arguments, log))
        process.start()
        return process

    def kill(self, name: str) -> str | None:
        """Starts a process of a run and kills it; says when, or None if it was done."""
        begun, variant = time.time(), name.partition("-")[0]
        process = self.start(name)
        process.join(self._moments.uniform(0, 1.1 * self._seconds[variant]))
        if not process.is_alive():
            self._check(name, process)
            self._seconds[variant] *= 0.9
            return None
        process.kill()
        process.join()

        def written(pattern: str) -> bool:
            paths = (self._folder / name).glob(pattern)
            return any(path.stat().st_mtime >= begun for path in paths)

        if written("checkpoints/*.gone") or written("checkpoints/*/*.*"):
            return "while a checkpoint was written or removed"
        if written("model*") or written("results.json"):
            return "while results were written"
        if written("records.jsonl"):
            return "between checkpoints"
        # Other work has slowed the machine down.
        self._seconds[variant] *= 1.05
        return "before training"

    def digest(self, name: str) -> dict[str, str]:
        """Returns what a run has come to, as sha256 by name."""
        workdir = self._folder / name
        kept = "--keep" in VARIANTS[name.partition("-")[0]]
        content = self._last_states(workdir) if kept else {}
        for path in sorted((workdir / "model").iterdir()):
            content[f"model/{path.name}"] = path.read_bytes()
        for file in ("records", "components", "predictions"):
            lines = (workdir / f"{file}.jsonl").read_text().splitlines()
            content[file] = json.dumps([_lasting(json.loads(x)) for x in lines])
        content["results"] = json.dumps(
            _lasting(json.loads((workdir / "results.json").read_text()))
        )
        left = {path.name for path in workdir.iterdir()}
        content["files"] = json.dumps(sorted(left - {"curves.png"}))
        return {
            name: hashlib.sha256(x if isinstance(x, bytes) else x.encode()).hexdigest()
            for name, x in content.items()
        }

    def _last_states(self, workdir: Path) -> dict[str, bytes]:
        import jax
        import orbax.checkpoint.experimental.v1 as ocp

        steps = [path for path in workdir.glob("checkpoints/*/*") if path.is_dir()]
        path = max(steps, key=lambda path: int(path.name))
        on_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        expected = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_device)
            for name, x in ocp.metadata(str(path)).metadata.items()
        }
        state = jax.device_get(ocp.load(str(path), expected))
        return {f"checkpoint/{name}": value.tobytes() for name, value in state.items()}

    def differences(self, name: str) -> list[str]:
        """Lists what of a finished run differs from the unbroken one."""
        found, unbroken = self.digest(name), self.unbroken[name.partition("-")[0]]
        return [
            part
            for part in {**unbroken, **found}
            if unbroken.get(part) != found.get(part)
        ]

    def finish(self, name: str) -> None:
        """Lets a run go on to its end."""
        process = self.start(name)
        process.join()
        self._check(name, process)

    def _check(self, name: str, process) -> None:
        if process.exitcode != 0:
            log = (self._folder / f"{name}.log").read_text()
            raise RuntimeError(f"{name} ended with {process.exitcode}:\n{log[-3000:]}")


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in VOLATILE}


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
            variant = list(VARIANTS)[runs % len(VARIANTS)]
            name, moment = f"{variant}-{runs}", ""
            while moment is not None and moments.total() < count:
                moment = kills.kill(name)
                if moment is not None:
                    moments[moment] += 1
            if moment is not None:
                kills.finish(name)
            wrong += [f"{name}: {part} differs" for part in kills.differences(name)]
            runs += 1
    moments["commands that were compared"] = runs
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
