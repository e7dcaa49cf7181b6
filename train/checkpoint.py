"""The state of runs on disk, written and read by Orbax."""

import shutil
from pathlib import Path
from typing import Any

import jax

from train.steps import Run


def save_runs(folder: Path, step: int, runs: Run, notes: dict[str, Any]) -> None:
    """Writes the runs under way; the checkpoint before it goes when this one is whole.

    Keys and hyperparameters are not written: they follow from the runs' config.

    Args:
      folder: Holds the checkpoints, one after the other.
      step: How many steps are done.
      runs: The runs.
      notes: What :func:`latest` is to return with it; JSON.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    path = folder.absolute() / f"{step:08d}"
    ocp.save(path, _state(runs), overwrite=True, custom_metadata=notes)
    for other in folder.iterdir():
        if other != path:
            shutil.rmtree(other)


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints; none is left half there, whenever the process dies."""
    gone = folder.with_name(folder.name + ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone)


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Finds the newest whole checkpoint of a folder, and its notes."""
    import orbax.checkpoint.experimental.v1 as ocp

    paths = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    for path in paths:
        # What was being written when the process died has another name, or no notes.
        if path.name.isdigit() and ocp.is_orbax_checkpoint(path):
            notes = ocp.metadata(path.absolute()).custom_metadata
            if notes:
                return path, notes
    return None


def restore_runs(path: Path, runs: Run) -> Run:
    """Reads a checkpoint.

    Args:
      path: As :func:`latest` returns it.
      runs: The same runs before their first step; they say what is expected and on
        which devices it belongs.

    Returns:
      The runs as they were saved.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    expected = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in _state(runs).items()
    }
    state = ocp.load(path.absolute(), expected)
    treedef = jax.tree.structure((runs.params, runs.opt_state, runs.step))
    leaves = [state[name] for name in _state(runs)]
    params, opt_state, step = jax.tree.unflatten(treedef, leaves)
    return runs._replace(params=params, opt_state=opt_state, step=step)


def _state(runs: Run) -> dict[str, jax.Array]:
    tree = (runs.params, runs.opt_state, runs.step)
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in paths}
