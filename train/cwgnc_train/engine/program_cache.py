"""Compiled programs that one command leaves on disk for the next."""

import contextlib
import os
from collections.abc import Iterator

import jax

from cwgnc_train.config import cache_folder, make_private

_MOST_BYTES = 2**30
# Below it, compiling costs hardly more than a file for each program and, on CPUs whose
# features XLA does not recognise as its own, a line in the log for each one loaded.
_LEAST_SECONDS = 0.05


def keep_programs() -> None:
    """Lets JAX keep compiled programs on disk, and load them the next time.

    The least recently used are removed at 1 GiB. A folder that JAX was given already,
    by JAX_COMPILATION_CACHE_DIR for instance, stays as it is; where nothing can be
    written there is no cache.
    """
    folder = cache_folder("programs")
    given = jax.config.values["jax_compilation_cache_dir"]
    if given is not None or folder is None:
        return
    try:
        make_private(folder)
        # JAX notes a program's time of use after the program itself. One whose writing
        # was cut off has none: every process would warn of it, and none replace it.
        for path in folder.glob("*-cache"):
            if not path.with_name(path.name.removesuffix("-cache") + "-atime").exists():
                path.unlink(missing_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


@contextlib.contextmanager
def seconds_saved() -> Iterator[list[float]]:
    """Yields a list of how much time each program that came from the disk saved."""
    saved: list[float] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/compilation_cache/compile_time_saved_sec":
            saved.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield saved
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
