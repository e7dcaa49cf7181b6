"""What a command leaves on disk for the next one: compiled programs and tokens."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_MOST_BYTES = 2**30
# Below it, compiling costs hardly more than a file for each program and, on CPUs whose
# features XLA does not recognise as its own, a line in the log for each one loaded.
_LEAST_SECONDS = 0.05


def cache_folder(name: str) -> Path | None:
    """Where the application keeps what is called ``name``; makes no folder.

    Returns:
      The folder, within $XDG_CACHE_HOME or else ~/.cache; None if there is no home.
    """
    try:
        # The specification of XDG wants a relative path to be ignored.
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        base = base if base.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "cwgnc_jax" / name


def make_private(folder: Path) -> None:
    """Makes a folder whose contents others may not write: programs are run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def keep_programs() -> None:
    """Lets JAX keep compiled programs on disk, and take them from there the next time.

    The least recently used give way at 1 GiB. A folder that JAX was given already, by
    JAX_COMPILATION_CACHE_DIR for instance, is left alone with all that belongs to it;
    where nothing can be written there is no cache.
    """
    folder = cache_folder("programs")
    if jax.config.jax_compilation_cache_dir is not None or folder is None:
        return
    try:
        make_private(folder)
        _remove_torn(folder)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


@contextlib.contextmanager
def seconds_saved() -> Iterator[list[float]]:
    """Lists by how much each program came sooner from the disk than from the compiler.

    Yields:
      The list; a program of the compiler adds nothing to it.
    """
    saved: list[float] = []

    def note(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/compilation_cache/compile_time_saved_sec":
            saved.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield saved
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def _remove_torn(folder: Path) -> None:
    """Removes programs whose writing was cut off.

    JAX notes a program's time of use after it has written it. One without would be met
    with a warning in every process and never be replaced.
    """
    for path in folder.glob("*-cache"):
        if not path.with_name(path.name.removesuffix("-cache") + "-atime").exists():
            path.unlink(missing_ok=True)
