"""The sides of a benchmark of steps, each a process that takes steps when told to.

None shares another's memory, threads or environment; the peers need environments of
their own. Both ends of the pipe are here. What a side is made of is in ``our_step``,
``torch_step``, ``keras_step`` and ``flax_step``. Of this project the last two import
nothing but this file.
"""

import importlib.metadata
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
MATMUL = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": None}
"""How JAX multiplies float32 matrices, by the precision of a benchmark."""
_ROOT = Path(__file__).parent.parent

Losses = list[float]
Ways = Mapping[str, Callable[[], Losses]]
"""By name, functions that take the steps of some work; the losses before them."""


class Side:
    """A side in a process of its own; a context that it ends with.

    Args:
      module: Of ``benchmarks``, run as a program; it calls :func:`serve`.
      directory: The weights, as transformers reads them.
      python: The interpreter, if it needs another environment.
      setting: What else :func:`serve` is to make it from.
    """

    def __init__(
        self,
        module: str,
        directory: Path,
        python: Path = Path(sys.executable),
        **setting: Any,
    ):
        self.module = module
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

    def ways(self, work: Any) -> Ways:
        """The ways in which the side takes the steps of the work."""
        arrays = {name: getattr(work.examples, name) for name in ARRAYS}
        arrays |= {"steps": np.asarray(work.steps), "rows": work.rows()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "work.npz"
            np.savez(path, **arrays)
            number, names = self._ask({"load": str(path)})
        return {
            name: lambda name=name: self._ask({"run": [number, name]}) for name in names
        }

    def __enter__(self) -> "Side":
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
            self._process.communicate()
            status = self._process.returncode
            raise RuntimeError(f"{self.module} ended with status {status}; see above")
        return json.loads(line)


def serve(make: Callable[..., Callable[[Any], Ways]], versions: Sequence[str]) -> None:
    """The other end: makes a side and takes the steps that are asked for.

    Args:
      make: From the folder of the weights and the setting to a function from the arrays
        of some work (the examples, and for each step its number and its rows) to the
        side's ways.
      versions: The packages whose versions the side tells.
    """
    # Whatever else is printed goes where it is seen and not into the pipe.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(value):
        print(json.dumps(value), file=replies, flush=True)

    ways_of = make(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    reply({name: importlib.metadata.version(name) for name in versions})
    loaded: list[Ways] = []
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            loaded.append(ways_of(np.load(request["load"])))
            reply([len(loaded) - 1, list(loaded[-1])])
        else:
            number, name = request["run"]
            reply([float(loss) for loss in loaded[number][name]()])


def stepwise(name: str, take: Callable[[dict[str, np.ndarray]], Any]):
    """For :func:`serve`, a side with a single way that takes batch after batch.

    Args:
      name: Of the way.
      take: From a batch, padded to the longest of it, to the loss of its step.
    """

    def ways(work):
        examples = {name: work[name] for name in ARRAYS}
        batches = [
            _cut({name: array[rows] for name, array in examples.items()})
            for rows in work["rows"]
        ]
        return {name: lambda: [take(batch) for batch in batches]}

    return ways


def _cut(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """To the longest of the batch, in eights: every length is a program of its own."""
    longest = int(batch["attention_mask"].sum(axis=1).max())
    length = -(-longest // 8) * 8
    return {
        name: array[:, :length] if array.ndim == 2 else array
        for name, array in batch.items()
    }
