"""The state of runs on disk, written and read by Orbax."""

import importlib.metadata
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from train import hosts
from train.manifest import damage, seal, sync
from train.steps import Run

# Checkpoints that are due by themselves are at least so many seconds apart, and take
# at most this share of the time.
_SECONDS = 60.0
_SHARE = 0.02


class Checkpoints:
    """Writes checkpoints of runs into a folder while training goes on.

    A checkpoint is a folder named after its step: ``state``, by Orbax, ``notes.json``,
    and the manifest of both. It is written under another name and takes its own when
    all of it has reached the disk, so that it is there whole or not at all whenever
    the process dies. Those it outdates go only then. Of several processes each writes
    its shards, and the first all else. Use as a context manager.

    Args:
      folder: Holds the checkpoints.
      seconds: Time between two; None for so much that they take 2 % of the time, and a
        minute at least.
      keep: How many to keep, the last ones.
      keep_best: Whether to keep the one with the highest score besides.
      clock: Tells the time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float | None = None,
        keep: int = 1,
        keep_best: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._folder, self._clock = folder.absolute(), clock
        self._keep, self._keep_best = keep, keep_best
        self._wanted = seconds
        self._until = _SECONDS if seconds is None else seconds
        self._since = clock()
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._thread.shutdown()

    def due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return self._clock() - self._since >= self._until

    def save(
        self, step: int, runs: Run, notes: dict[str, Any], score: float | None = None
    ) -> None:
        """Begins to write a checkpoint, when the one before is written.

        The runs may be changed as soon as this returns. Hyperparameters and the weights
        that training started from are not written: they follow from the config.

        Args:
          step: How many steps are done.
          runs: The runs.
          notes: What :func:`latest` is to return with it; JSON.
          score: How well the runs do.

        Raises:
          OSError: If this or the one before cannot be written, the disk being full for
            instance; those before are intact.
        """
        self.wait()
        begun = time.monotonic()
        try:
            written = self._begin(step, runs)
        except Exception as error:
            raise self._failed(step, error) from error
        notes = {"step": step, "score": score, "notes": notes}
        self._writing = self._thread.submit(self._finish, written, notes, begun)
        self._since = self._clock()

    def wait(self) -> None:
        """Returns when all checkpoints are on the disk; raises as :meth:`save`."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _begin(self, step: int, runs: Run) -> Any:
        ocp = _orbax()
        part = self._part(step)
        if hosts.is_first():
            # What a process has left that died in between.
            for path in self._folder.glob("*.*"):
                shutil.rmtree(path)
            part.mkdir(parents=True)
        hosts.wait_for_all(f"checkpoint {step}")
        return ocp.save_async(str(part / "state"), _state(runs))

    def _finish(self, written: Any, notes: dict[str, Any], begun: float) -> None:
        part = self._part(notes["step"])
        path = part.with_suffix("")
        try:
            written.result()
            if not hosts.is_first():
                return
            (part / "notes.json").write_text(json.dumps(notes))
            seal(part)
            _remove(path)
            part.rename(path)
            sync(self._folder)
            self._prune(notes["step"])
        except Exception as error:
            shutil.rmtree(part, ignore_errors=True)
            raise self._failed(notes["step"], error) from error
        if self._wanted is None:
            self._until = max(_SECONDS, (time.monotonic() - begun) / _SHARE)

    def _prune(self, step: int) -> None:
        everything = _checkpoints(self._folder)
        # Those of later steps are damaged, or of runs that others have followed.
        paths = [path for path in everything if int(path.name) <= step]
        keep = set(paths[: self._keep])
        if self._keep_best:
            # The first of those that are equal.
            scores = {path: _score(path) for path in reversed(paths)}
            best = max(scores, key=lambda path: scores[path])
            if scores[best] > -math.inf:
                keep.add(best)
        for path in everything:
            if path not in keep:
                _remove(path)

    def _part(self, step: int) -> Path:
        return self._folder / f"{step:08d}.part"

    def _failed(self, step: int, error: Exception) -> OSError:
        paths = _checkpoints(self._folder)
        last = f"the last one is {paths[0]}" if paths else "there is none before it"
        return OSError(
            f"cannot write the checkpoint of step {step}: {str(error)[:200]}; {last}. "
            f"See that {self._folder} can be written and the disk is not full, and go "
            f"on from there"
        )


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints; none is left half there, whenever the process dies."""
    _remove(folder)


def latest(
    folder: Path,
    say: Callable[[str], None],
    problem: Callable[[dict[str, Any]], str | None] = lambda notes: None,
) -> tuple[Path, dict[str, Any]] | None:
    """Finds the newest whole checkpoint of a folder; changes nothing.

    Args:
      folder: Holds the checkpoints.
      say: Is told of each that is damaged.
      problem: From a checkpoint's notes to what is wrong with that which belongs to
        it, or None.

    Returns:
      Its path and its notes; None if no checkpoint has been written.

    Raises:
      ValueError: If there are checkpoints but no whole one.
    """
    damaged = []
    for path in _checkpoints(folder):
        wrong, notes = damage(path), {}
        if wrong is None:
            content = _read_notes(path)
            notes = content["notes"]
            if content["step"] != int(path.name):
                wrong = f"it is the one of step {content['step']}"
            else:
                wrong = problem(notes)
        if wrong is None:
            for line in damaged:
                say(f"{line}: not used")
            return path, notes
        damaged.append(f"{path} is damaged: {wrong}")
    if damaged:
        raise ValueError(
            f"{'; '.join(damaged[:5])}. No whole checkpoint is left: restore one, or "
            f"remove {folder} to start from the first step"
        )
    return None


def restore_runs(path: Path, runs: Run) -> Run:
    """Reads a checkpoint.

    Args:
      path: As :func:`latest` returns it.
      runs: The same runs before their first step; they say what is expected and on
        which devices it belongs.

    Returns:
      The runs as they were saved.

    Raises:
      ValueError: If the checkpoint holds arrays of other names, shapes or dtypes.
    """
    ocp = _orbax()
    state, folder = _state(runs), str(path.absolute() / "state")
    stored = ocp.metadata(folder).metadata
    have = {name: (tuple(x.shape), str(x.dtype)) for name, x in stored.items()}
    want = {name: (x.shape, str(x.dtype)) for name, x in state.items()}
    # Orbax itself would cast.
    wrong = [name for name in {**want, **have} if want.get(name) != have.get(name)]
    if wrong:
        lines = [
            f"{name}: expected {_array(want.get(name))}, got {_array(have.get(name))}"
            for name in wrong[:5]
        ]
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{path} is not a checkpoint of these runs: {'; '.join(lines)}{more}. "
            f"Give the model and the settings it was written with"
        )
    expected = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in state.items()
    }
    loaded = ocp.load(folder, expected)
    treedef = jax.tree.structure(_saved(runs))
    params, opt_state, step, key = jax.tree.unflatten(
        treedef, [loaded[name] for name in state]
    )
    key = jax.random.wrap_key_data(key, impl=jax.random.key_impl(runs.key))
    return runs._replace(params=params, opt_state=opt_state, step=step, key=key)


def fingerprint(devices: int | str) -> dict[str, Any]:
    """Where a run has the same bits again: what of a process they depend on.

    On a CPU these are the cores as well that the process may use: sums are split over
    them.

    Args:
      devices: How many are used, and how if that matters.
    """
    on_cpu = jax.default_backend() == "cpu"
    return {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "device": jax.devices()[0].device_kind,
        "devices": devices,
        "cores": _usable_cores() if on_cpu else None,
    }


def other_fingerprint(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """One line on how two fingerprints differ; None if they do not."""
    differences = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if not differences:
        return None
    return (
        f"the checkpoint was made elsewhere ({'; '.join(differences)}): "
        f"going on, but not to the same bits as without interruption"
    )


def _usable_cores() -> int | None:
    # Not all systems bind processes to cores.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _orbax() -> Any:
    # It takes a second to import.
    import orbax.checkpoint.experimental.v1 as ocp

    # What its threads raise is raised here as well, and said in one line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp


def _checkpoints(folder: Path) -> list[Path]:
    """Those that were written to their end, the newest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if path.name.isdigit()), reverse=True)


def _read_notes(path: Path) -> dict[str, Any]:
    return json.loads((path / "notes.json").read_bytes())


def _score(path: Path) -> float:
    try:
        score = _read_notes(path)["score"]
    except (OSError, ValueError):
        score = None
    return -math.inf if score is None else score


def _remove(folder: Path) -> None:
    gone = folder.with_name(folder.name + ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone)


def _array(kind: tuple[tuple[int, ...], str] | None) -> str:
    return "none" if kind is None else f"{kind[1]}{list(kind[0])}"


def _saved(runs: Run) -> tuple[Any, ...]:
    # Typed keys as numbers, which every version of Orbax reads.
    return runs.params, runs.opt_state, runs.step, jax.random.key_data(runs.key)


def _state(runs: Run) -> dict[str, jax.Array]:
    paths = jax.tree_util.tree_leaves_with_path(_saved(runs))
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in paths}
