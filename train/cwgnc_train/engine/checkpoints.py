"""The state of runs on disk: Orbax's checkpoints, with a manifest in each."""

import contextlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from cwgnc_jax import flatten_with_paths
from cwgnc_train.config import CheckpointsConfig, UserError
from cwgnc_train.engine import hosts
from cwgnc_train.engine.layout import Layout
from cwgnc_train.engine.step import RunState
from cwgnc_train.records import plain, verify_manifest, write_manifest

# By default checkpoints are at least so many seconds apart, and take at most this share
# of the time.
_SECONDS = 60.0
_SHARE = 0.02


class Cadence:
    """Orbax's policy of when to save: by time.

    Args:
      seconds: Time between two checkpoints; None for as often as takes 2 % of the time,
        and at least a minute apart.
      clock: Tells the time in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float]):
        self._wanted, self._clock = seconds, clock
        self._until = _SECONDS if seconds is None else seconds
        self._since = clock()

    def due(self) -> bool:
        """Says whether it is time for another checkpoint."""
        return self._clock() - self._since >= self._until

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        """Answers Orbax."""
        del step, previous_steps
        return self.due() and not context.is_saving_in_progress

    def saved(self) -> None:
        """Notes that a checkpoint has begun."""
        self._since = self._clock()

    def took(self, seconds: float) -> None:
        """Notes how long a checkpoint took."""
        if self._wanted is None:
            self._until = max(_SECONDS, seconds / _SHARE)


class Verified:
    """Orbax's policy of what to keep: another policy, among whole checkpoints.

    A checkpoint without a manifest is still being written. It is kept, and pushes no
    other out, so that there is a whole one whenever the process dies.

    Args:
      folder: Holds the checkpoints.
      policy: Decides among those with a manifest.
    """

    def __init__(self, folder: Path, policy: Any):
        self._folder, self._policy = folder, policy

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Answers Orbax."""
        whole = [c for c in checkpoints if _is_finished(self._folder / str(c.step))]
        kept = self._policy.should_preserve(whole, context=context)
        unwanted = {c.step for c, keep in zip(whole, kept, strict=True) if not keep}
        return [c.step not in unwanted for c in checkpoints]


class Checkpoints:
    """Writes checkpoints of runs while training goes on.

    Orbax writes the state, in the background and atomically; a manifest of all its
    files then marks a checkpoint as whole. Use as a context manager.

    Args:
      folder: Holds the checkpoints. Those of later steps, and those that are not whole,
        are removed from it.
      config: When to write and what to keep.
      step: The step that the runs are at.
      clock: Tells the time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointsConfig,
        step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._folder, self._config, self._step = folder.absolute(), config, step
        self._cadence = Cadence(config.checkpoint_seconds, clock)
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._checkpointer: Any = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        self._thread.shutdown()
        if self._checkpointer is not None:
            # What made a save fail is raised once more here.
            known = () if kind is None else (Exception,)
            with contextlib.suppress(*known):
                self._checkpointer.close()

    def due(self) -> bool:
        """Says whether it is time for another checkpoint."""
        return self._cadence.due()

    def save(
        self,
        step: int,
        states: RunState,
        notes: dict[str, Any],
        score: float | None = None,
    ) -> None:
        """Begins to write a checkpoint, when the one before is written.

        The runs may be changed as soon as this returns. Hparams and initial parameters
        are not written: they follow from the config.

        Args:
          step: How many steps are done.
          states: The runs.
          notes: What :func:`find_checkpoint` is to return with it; JSON.
          score: How well the runs do.

        Raises:
          OSError: If this checkpoint or the one before cannot be written; those before
            are intact.
        """
        self.wait()
        begun = time.monotonic()
        try:
            if self._checkpointer is None:
                self._checkpointer = self._open()
            response = self._checkpointer.save_async(
                step,
                _saved_arrays(states),
                force=True,
                metrics=None if score is None else {"score": score, "step": step},
                custom_metadata=plain(notes),
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self._writing = self._thread.submit(self._finish, response, step, begun)
        self._cadence.saved()

    def wait(self) -> None:
        """Returns when all checkpoints are on the disk; raises as :meth:`save`."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def prune(self) -> None:
        """Removes what is not to be kept, once all is written."""
        self.wait()
        if self._checkpointer is None:
            return
        written = self._checkpointer.checkpoints
        kept = self._policy.should_preserve(written, context=None)
        for checkpoint, keep in zip(written, kept, strict=True):
            if not keep:
                self._checkpointer.delete(checkpoint.step)

    def _open(self) -> Any:
        policies = _orbax().training.preservation_policies
        keep: list[Any] = [policies.LatestN(self._config.keep or 1)]
        if self._config.keep_best:
            best = policies.BestN(
                # The first of those with equal scores.
                get_metric_fn=lambda metrics: (metrics["score"], -metrics["step"]),
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            keep.append(best)
        self._policy = Verified(self._folder, policies.AnyPreservationPolicy(keep))
        if hosts.is_primary():
            for path in _steps(self._folder):
                if int(path.name) > self._step or verify_manifest(path) is not None:
                    shutil.rmtree(path)
            self._folder.mkdir(parents=True, exist_ok=True)
        hosts.wait_for_all("checkpoints")
        return _orbax().training.Checkpointer(
            self._folder,
            save_decision_policy=self._cadence,
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
        )

    def _finish(self, response: Any, step: int, begun: float) -> None:
        try:
            response.result()
            if hosts.is_primary():
                write_manifest(self._folder / str(step))
        except Exception as error:
            raise self._failed(step, error) from error
        self._cadence.took(time.monotonic() - begun)

    def _failed(self, step: int, error: Exception) -> OSError:
        whole = [path for path in _steps(self._folder) if _is_finished(path)]
        last = f"the last one is {whole[0]}" if whole else "there is none before it"
        return OSError(
            f"cannot write the checkpoint of step {step}: {str(error)[:200]}; {last}. "
            f"Check that {self._folder} can be written and the disk is not full, and "
            f"go on from there with --resume"
        )


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints; none is left half there, whenever the process dies."""
    gone = folder.with_name(folder.name + ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone)


def find_checkpoint(
    folder: Path,
    say: Callable[[str], None],
    problem: Callable[[dict[str, Any]], str | None] = lambda notes: None,
) -> tuple[Path, dict[str, Any]] | None:
    """Finds the newest whole checkpoint of a folder; changes nothing.

    Args:
      folder: Holds the checkpoints.
      say: Is told of each that is damaged or was not finished.
      problem: Says from a checkpoint's notes what is wrong with the records that belong
        to it, or None.

    Returns:
      Its path and its notes; None if no checkpoint was finished.

    Raises:
      UserError: If there are finished checkpoints but no whole one.
    """
    damaged = []
    for path in _steps(folder):
        if not _is_finished(path):
            say(f"{path} was not written to its end: not used")
            continue
        notes: dict[str, Any] = {}
        wrong = verify_manifest(path)
        if wrong is None:
            notes = _orbax().metadata(str(path.absolute())).custom_metadata
            if notes["step"] != int(path.name):
                wrong = f"it is the one of step {notes['step']}"
            else:
                wrong = problem(notes)
        if wrong is None:
            for line in damaged:
                say(f"{line}: not used")
            return path, notes
        damaged.append(f"{path} is damaged: {wrong}")
    if damaged:
        raise UserError(
            f"{'; '.join(damaged[:5])}. No whole checkpoint is left: restore one, or "
            f"remove {folder} to start from the first step"
        )
    return None


def restore(path: Path, states: RunState) -> RunState:
    """Reads a checkpoint.

    Args:
      path: As :func:`find_checkpoint` returns it.
      states: The same runs before their first step; they say what is expected and where
        it belongs.

    Returns:
      The runs as they were saved.

    Raises:
      UserError: If the checkpoint holds arrays of other names, shapes or dtypes.
    """
    expected = _saved_arrays(states)
    stored = _orbax().metadata(str(path.absolute())).metadata
    have = {name: (tuple(x.shape), str(x.dtype)) for name, x in stored.items()}
    want = {name: (x.shape, str(x.dtype)) for name, x in expected.items()}
    # Orbax itself would cast.
    wrong = [name for name in {**want, **have} if want.get(name) != have.get(name)]
    if wrong:
        lines = [
            f"{name}: expected {_array(want.get(name))}, got {_array(have.get(name))}"
            for name in wrong[:5]
        ]
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{path} is not a checkpoint of these runs: {'; '.join(lines)}{more}. "
            f"Give the model and the settings it was written with"
        )
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in expected.items()
    }
    loaded = _orbax().load(str(path.absolute()), abstract)
    params, opt_state, step, key = jax.tree.unflatten(
        jax.tree.structure(_saved(states)), [loaded[name] for name in expected]
    )
    key = jax.random.wrap_key_data(key, impl=jax.random.key_impl(states.key))
    return states._replace(params=params, opt_state=opt_state, step=step, key=key)


def fingerprint(layout: Layout) -> dict[str, Any]:
    """Describes what of a process the bits of a run depend on.

    On a CPU that includes the cores the process may use: sums are split over them.
    """
    return {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "device": layout.mesh.devices.flat[0].device_kind,
        "devices": layout.description,
        "cores": _usable_cores() if layout.platform == "cpu" else None,
    }


def other_fingerprint(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Returns one line on how two fingerprints differ; None if they do not."""
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

    return ocp


def _steps(folder: Path) -> list[Path]:
    """The checkpoints that Orbax has committed, the newest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    numbered = [path for path in paths if path.name.isdigit()]
    return sorted(numbered, key=lambda path: int(path.name), reverse=True)


def _is_finished(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _array(kind: tuple[tuple[int, ...], str] | None) -> str:
    return "none" if kind is None else f"{kind[1]}{list(kind[0])}"


def _saved(states: RunState) -> tuple[Any, ...]:
    # Typed keys as numbers, which every version of Orbax reads.
    key = jax.random.key_data(states.key)
    return states.params, states.opt_state, states.step, key


def _saved_arrays(states: RunState) -> dict[str, jax.Array]:
    paths, leaves, _ = flatten_with_paths(_saved(states))
    names = [path.replace("/", ".") for path in paths]
    return dict(zip(names, leaves, strict=True))
