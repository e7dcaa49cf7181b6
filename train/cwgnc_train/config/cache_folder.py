"""Where the application caches tokens and compiled programs."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Returns the folder for ``name``, made or not; None without a home directory."""
    try:
        # The XDG specification says to ignore a relative path.
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        base = base if base.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "cwgnc_jax" / name


def make_private(folder: Path) -> None:
    """Makes a folder that others may not write to: it holds programs that are run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
