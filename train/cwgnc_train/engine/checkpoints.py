"""The state of runs on disk: Orbax's checkpoints, with a manifest in each."""

import contextlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from cwgnc_jax import flatten_with_paths
from cwgnc_train.config import CheckpointsConfig, UserError
from cwgnc_train.engine import hosts
from cwgnc_train.engine.layout import Layout
from cwgnc_train.engine.step import RunState
from cwgnc_train.records import plain, verify_manifest, write_manifest

_SECONDS = 60.0
_SHARE = 0.02


class Checkpoints:
    """Writes checkpoints of runs while training goes on.

    Orbax writes the state, in the background and atomically; a manifest of all its
    files then marks a checkpoint as whole. The runs are at ``step``: checkpoints of
    later steps, and those that are not whole, are removed from ``folder``. ``clock``
    tells the time in seconds. Use as a context manager.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointsConfig,
        step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._folder, self._config, self._step = folder.absolute(), config, step
        self._clock, self._since = clock, clock()
        wanted = config.checkpoint_seconds
        self._apart = _SECONDS if wanted is None else wanted
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
        return self._clock() - self._since >= self._apart

    def save(
        self,
        step: int,
        states: RunState,
        notes: dict[str, Any],
        score: float | None = None,
    ) -> None:
        """Begins to write a checkpoint, when the one before is written.

        The runs may be changed as soon as this returns. Hparams and initial parameters
        are not written: they follow from the config. ``notes``, which are JSON, come
        back from :func:`find_checkpoint`. An OSError says that this checkpoint or the
        one before cannot be written; those before are intact.
        """
        self.wait()
        begun = time.monotonic()
        with self._failures(step):
            self.prune()
            if self._checkpointer is None:
                self._checkpointer = self._open()
            response = self._checkpointer.save_async(
                step,
                _saved(states)[0],
                force=True,
                metrics=None if score is None else {"score": score, "step": step},
                custom_metadata=plain(notes),
            )
        self._writing = self._thread.submit(self._finish, response, step, begun)
        self._since = self._clock()

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
        policies = _orbax().training.preservation_policies
        latest = policies.LatestN(self._config.keep or 1)
        best = policies.BestN(
            # The first of those with equal scores.
            get_metric_fn=lambda metrics: (metrics["score"], -metrics["step"]),
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = [latest, best] if self._config.keep_best else [latest]
        written = self._checkpointer.checkpoints
        policy = policies.AnyPreservationPolicy(keep)
        kept = policy.should_preserve(written, context=None)
        for checkpoint, keep_it in zip(written, kept, strict=True):
            if not keep_it:
                self._checkpointer.delete(checkpoint.step)

    def _open(self) -> Any:
        if hosts.is_primary():
            for path in _steps(self._folder):
                if int(path.name) > self._step or verify_manifest(path) is not None:
                    shutil.rmtree(path)
            self._folder.mkdir(parents=True, exist_ok=True)
        multihost_utils.sync_global_devices("checkpoints")
        # It keeps all; what goes is decided among whole ones, by :meth:`prune`.
        return _orbax().training.Checkpointer(
            self._folder, cleanup_tmp_directories=True
        )

    def _finish(self, response: Any, step: int, begun: float) -> None:
        with self._failures(step):
            response.result()
            if hosts.is_primary():
                write_manifest(self._folder / str(step))
        if self._config.checkpoint_seconds is None:
            self._apart = max(_SECONDS, (time.monotonic() - begun) / _SHARE)

    @contextlib.contextmanager
    def _failures(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            whole = [path for path in _steps(self._folder) if _is_finished(path)]
            last = f"the last one is {whole[0]}" if whole else "there is none before it"
            raise OSError(
                f"cannot write the checkpoint of step {step}: {str(error)[:200]}; "
                f"{last}. Check that {self._folder} can be written and the disk is not "
                f"full, and go on from there with --resume"
            ) from error


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

    ``say`` is told of each that is damaged or was not finished; ``problem`` says from
    the notes of one what is wrong with the records that belong to it. Returns its path
    and its notes; None if no checkpoint was finished. Finished ones of which none is
    whole are a UserError.
    """
    damaged = []
    for path in _steps(folder):
        if not _is_finished(path):
            say(f"{path} was not written to its end: not used")
            continue
        notes, wrong = {}, verify_manifest(path)
        if wrong is None:
            notes = _orbax().metadata(str(path.absolute())).custom_metadata
            wrong = problem(notes)
            if notes["step"] != int(path.name):
                wrong = f"it is the one of step {notes['step']}"
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
    """Reads a checkpoint of runs, which ``states`` are before their first step.

    They say what is expected and where it belongs. Arrays of other names, shapes or
    dtypes are a UserError.
    """
    expected, structure = _saved(states)
    want = _kinds(expected)
    have = _kinds(_orbax().metadata(str(path.absolute())).metadata)
    # Orbax itself would cast.
    wrong = [
        f"{name}: expected {want.get(name, 'none')}, got {have.get(name, 'none')}"
        for name in {**want, **have}
        if want.get(name) != have.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{path} is not a checkpoint of these runs: {'; '.join(wrong[:5])}{more}. "
            f"Give the model and the settings it was written with"
        )
    loaded = _orbax().load(str(path.absolute()), expected)
    params, opt_state, step, key = jax.tree.unflatten(
        structure, [loaded[name] for name in expected]
    )
    key = jax.random.wrap_key_data(key, impl=jax.random.key_impl(states.key))
    return states._replace(params=params, opt_state=opt_state, step=step, key=key)


def fingerprint(layout: Layout) -> dict[str, Any]:
    """Describes what of a process the bits of a run depend on."""
    # A CPU splits sums over the cores of the process; not all systems bind it to some.
    bound = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count() if bound is None else len(bound(0))
    return {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "device": layout.mesh.devices.flat[0].device_kind,
        "devices": layout.description,
        "cores": cores if layout.platform == "cpu" else None,
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


def _kinds(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _saved(states: RunState) -> tuple[dict[str, jax.Array], Any]:
    """The arrays of a checkpoint by name, and the structure that they are leaves of."""
    # Typed keys as numbers, which every version of Orbax reads.
    key = jax.random.key_data(states.key)
    paths, leaves, structure = flatten_with_paths(
        (states.params, states.opt_state, states.step, key)
    )
    names = [path.replace("/", ".") for path in paths]
    return dict(zip(names, leaves, strict=True)), structure
