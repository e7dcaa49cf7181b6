"""Sides that need another environment: each a process that takes steps when told to.

Both ends of the pipe are here. What a side is made of is in ``flax_peer`` and
``keras_peer``; they are run by the interpreter of an environment of their own, in which
nothing of this project but these files is imported.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ARRAYS = ("input_ids", "attention_mask", "token_type_ids", "labels")
_ROOT = Path(__file__).parent.parent


class Peer:
    """A side in a process of its own.

    Args:
      name: In the page.
      module: Of ``benchmarks``, run as a program; it calls :func:`serve`.
      python: The interpreter of the environment that it needs.
      directory: The weights, as transformers reads them.
      precision: "float32", "tf32" or "bfloat16".
      dropout: Whether there is dropout, at the model's rates.
    """

    same_adam = False

    def __init__(
        self,
        name: str,
        module: str,
        python: Path,
        directory: Path,
        precision: str,
        dropout: bool = True,
    ):
        self.name = name
        setting = {"precision": precision, "dropout": dropout}
        self._process = subprocess.Popen(
            # Not resolved: the interpreter of an environment is a link out of it.
            [
                *(python.absolute(), "-m", f"benchmarks.{module}"),
                *(directory, json.dumps(setting)),
            ],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions: dict[str, str] = self._reply()

    def ways(self, work: Any) -> dict[str, Callable[[], list[float]]]:
        """A function that takes the steps of the work; the losses before them."""
        arrays = {
            f"{number}/{name}": getattr(examples, name)
            for number, examples in enumerate(work.batches())
            for name in ARRAYS
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "batches.npz"
            np.savez(path, **arrays)
            number = self._ask({"load": str(path)})
        return {self.name: lambda: self._ask({"run": number})}

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_):
        """Ends the process: it reads until there is nothing more."""
        self._process.communicate()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"{self.name} ended with status {status}; see above")
        return json.loads(line)


def serve(
    make: Callable[[str, str, bool], Callable[[Mapping[str, Any]], Any]],
    versions: Mapping[str, str],
) -> None:
    """The other end: makes a side and takes the steps that are asked for.

    Args:
      make: From the folder of the weights, the precision, and whether there is dropout
        to a function that takes a step and returns its loss.
      versions: Of the libraries.
    """
    # Whatever else is printed goes where it is seen and not into the pipe.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(value):
        print(json.dumps(value), file=replies, flush=True)

    directory, setting = sys.argv[1], json.loads(sys.argv[2])
    step = make(directory, setting["precision"], setting["dropout"])
    reply(versions)
    loaded: list[list[dict[str, np.ndarray]]] = []
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            loaded.append(_batches(np.load(request["load"])))
            reply(len(loaded) - 1)
        else:
            losses = [step(batch) for batch in loaded[request["run"]]]
            reply([float(loss) for loss in losses])


def _batches(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    count = len(arrays) // len(ARRAYS)
    return [
        _cut({name: arrays[f"{number}/{name}"] for name in ARRAYS})
        for number in range(count)
    ]


def _cut(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """To the longest of the batch, in eights: every length is a program of its own."""
    longest = int(batch["attention_mask"].sum(axis=1).max())
    length = -(-longest // 8) * 8
    return {
        name: array[:, :length] if array.ndim == 2 else array
        for name, array in batch.items()
    }


def installed(names: Sequence[str]) -> dict[str, str]:
    """The versions of packages."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in names}
