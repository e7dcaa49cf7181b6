"""Bad and hostile input, counted by what becomes of it.

``python -m tests.faults.hostile`` changes a good model and good data in one thing at a
time and reads them as every command does. Each must end in an error for people, within
seconds and in bounded memory, with no code run and no file written. Random changes may
leave them valid and are counted apart.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cwgnc_train.config import DataConfig, FinetuneConfig, TrainingConfig, UserError
from cwgnc_train.study import prepare_study
from tests.faults.hostile_data import ROWS, TEXT_KINDS, Hostile, data_files, own, table
from tests.faults.hostile_models import CANARY, INDEX, Models
from tests.train.conftest import write_tiny_model

SECONDS = 20
MEGABYTES = 1500
FIELDS = ("train_file", "validation_file", "data_dir")


class TooSlow(BaseException):
    """An input has kept the reader busy for too long."""


@dataclasses.dataclass
class Inputs:
    """A folder that hostile inputs are written into, one after the other.

    Args:
      folder: It.
    """

    folder: Path

    def __post_init__(self):
        self.good = self.folder / "good"
        (self.good / "model").mkdir(parents=True)
        write_tiny_model(self.good / "model")
        for name in ("train.csv", "dev.csv"):
            (self.good / name).write_bytes(table("csv", ROWS))
        self._files = {
            path.relative_to(self.good).as_posix(): path.read_bytes()
            for path in self.good.rglob("*")
            if path.is_file()
        }
        self.canary = self.folder / "canary"
        self._written: dict[str, bytes] = {}

    def write(self, hostile: Hostile) -> Path:
        """Writes it in the place of the one before; returns its folder."""
        place = self.folder / "hostile"
        canary = str(self.canary).encode()
        wanted = {
            name: content.replace(CANARY, canary)
            for name, content in (self._files | hostile.files).items()
            if content is not None
        }
        for name in self._written.keys() - wanted.keys():
            (place / name).unlink()
        for name, content in wanted.items():
            if self._written.get(name) != content:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
        self._written = wanted
        return place


def data_config(place: Path, hostile: Hostile) -> DataConfig:
    """What a command is told of the data."""
    settings = hostile.settings
    if "task" not in settings:
        own_files = {"train_file": "train.csv", "validation_file": "dev.csv"}
        settings = own_files | {"text_columns": ("text",)} | settings
    paths = {name: place / settings[name] for name in FIELDS if name in settings}
    own = {name: settings[name] for name in settings if name != "task"}
    return DataConfig(**own | paths, max_length=16)


def read(place: Path, hostile: Hostile) -> None:
    """Reads all that a run is made from."""
    config = FinetuneConfig(
        model=str(place / "model"),
        workdir=place / "run",
        task=hostile.settings.get("task"),
        data=data_config(place, hostile),
        training=TrainingConfig(cache=False),
    )
    prepare_study(config)


def outcome(inputs: Inputs, hostile: Hostile) -> str:
    """Says what becomes of an input."""
    place = inputs.write(hostile)
    memory, begun = _megabytes(), time.monotonic()
    with _watch() as written, _limit(SECONDS):
        try:
            read(place, hostile)
            result = "WRONG: accepted" if hostile.bad else "still valid"
        except (UserError, OSError) as error:
            result = "refused" if str(error).strip() else "WRONG: says nothing"
        except TooSlow:
            result = "WRONG: too slow"
        except BaseException as error:
            # A panic of Rust is no Exception.
            result = f"WRONG: {type(error).__name__}: {str(error)[:80]!r}"
    if time.monotonic() - begun > SECONDS:
        result = "WRONG: too slow"
    if _megabytes() - memory > MEGABYTES:
        result = "WRONG: too much memory"
    if inputs.canary.exists():
        inputs.canary.unlink()
        result = "WRONG: ran code"
    return f"WRONG: wrote {written[0]}" if written else result


def everything(inputs: Inputs, mutations: int, seed: int = 0) -> Iterator[Hostile]:
    """All inputs, controls first.

    Args:
      inputs: Where they are going to be written.
      mutations: How many random changes of each file.
      seed: Draws them.
    """
    good = inputs.good / "model"
    yield from controls(Models(good))
    yield from data_files()
    yield from Models(good).all()
    yield from mutated(good, mutations, random.Random(seed))


def controls(of_model: Models) -> Iterator[Hostile]:
    """What the others were made from; it must be read."""
    for suffix in (*TEXT_KINDS, "parquet"):
        yield own("controls", suffix, bad=False)
    yield from of_model.controls()


def mutated(good: Path, count: int, rng: random.Random) -> Iterator[Hostile]:
    """Good files with a few bytes changed, taken away or put in."""
    for suffix in (*TEXT_KINDS, "parquet"):
        content = table(suffix, ROWS)
        for _ in range(count):
            yield own("mutations", suffix, mutate(content, rng), bad=False)
    sharded = Models(good).sharded
    for name in (
        "config.json",
        "vocab.txt",
        "tokenizer_config.json",
        "model.safetensors",
    ):
        content = (good / name).read_bytes()
        # Behind the header there are only numbers, any of which will do.
        header = 8 + int.from_bytes(content[:8], "little")
        size = header if name == "model.safetensors" else len(content)
        for _ in range(count):
            changed = mutate(content[:size], rng) + content[size:]
            yield Hostile("mutations", {f"model/{name}": changed}, bad=False)
    for _ in range(count):
        index = sharded[INDEX]
        assert index is not None
        files = sharded | {INDEX: mutate(index, rng)}
        yield Hostile("mutations", files, bad=False)


PIECES = (
    *(
        b"\0",
        b"\xff",
        b'"',
        b"'",
        b"\n",
        b"\t",
        b",",
        b"{",
        b"[",
        b"}",
        b"-",
        b"9" * 30,
    ),
    *(b"\\", b"\\u0000", b"null", b"NaN", b"1e999", b"../", b"\xef\xbb\xbf", b"\r"),
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Changes a file in one to three places."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(changed) + 1)
        length = rng.randint(1, 20)
        match rng.randrange(5):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = rng.choice(PIECES)
            case 3:
                changed[place:place] = changed[place : place + length]
            case _:
                changed[place : place + length] = rng.randbytes(length)
    return bytes(changed)


@dataclasses.dataclass
class Found:
    """What became of many inputs."""

    counts: collections.Counter[tuple[str, str]]
    """By family and outcome."""
    slowest: float
    """The most seconds that one took."""

    @property
    def wrong(self) -> list[tuple[str, str]]:
        """What should not have come of them."""
        return [pair for pair in self.counts if pair[1].startswith("WRONG")]

    @property
    def bad(self) -> int:
        """How many bad inputs that are no random changes were refused."""
        return sum(
            number
            for (family, outcome), number in self.counts.items()
            if outcome == "refused" and family != "mutations"
        )

    def summary(self) -> str:
        """The counts as lines."""
        lines = [f"{f:26}{o:30}{n:6}" for (f, o), n in sorted(self.counts.items())]
        random_ones = self.counts["mutations", "refused"]
        lines.append(
            f"refused: {self.bad} distinct bad inputs, and {random_ones} random ones; "
            f"the slowest took {self.slowest:.1f} s"
        )
        return "\n".join(lines)


def count_outcomes(mutations: int, seed: int = 0, every: int = 1) -> Found:
    """Reads the inputs, each of which is another.

    Args:
      mutations: How many random changes of each file.
      seed: Draws them.
      every: Leaves out all but each so many, and no control.

    Returns:
      How many of each family came to each outcome.
    """
    found = Found(collections.Counter(), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder))
        for i, hostile in enumerate(distinct(everything(inputs, mutations, seed))):
            if i % every and hostile.family != "controls":
                continue
            begun = time.monotonic()
            found.counts[hostile.family, outcome(inputs, hostile)] += 1
            found.slowest = max(found.slowest, time.monotonic() - begun)
    return found


def distinct(inputs: Iterable[Hostile]) -> Iterator[Hostile]:
    """Leaves out what has been there before."""
    seen = set()
    for hostile in inputs:
        digest = hashlib.sha256(repr(sorted(hostile.settings.items())).encode())
        for name, content in sorted(hostile.files.items()):
            digest.update(f"\n{name}\n{content is None}\n".encode())
            digest.update(content or b"")
        if digest.digest() not in seen:
            seen.add(digest.digest())
            yield hostile


_writes: list[str] | None = None


_LINKS = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
_RUNS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _writes is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writing = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        # Python compiles what is imported for the first time.
        if writing and "__pycache__" not in str(path) and path != os.devnull:
            _writes.append(f"{path} ({mode})")
    elif event in _LINKS and "__pycache__" not in str(arguments[0]):
        _writes.append(f"{event} {arguments[0]}")
    elif event in _RUNS or event == "socket.connect":
        _writes.append(f"{event} {arguments}")


@contextlib.contextmanager
def _watch() -> Iterator[list[str]]:
    """Lists what is written, started or unpickled."""
    global _writes
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    _writes = found = []
    try:
        yield found
    finally:
        _writes = None


_hooked: list[bool] = []


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(signum, frame):
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _megabytes() -> float:
    """The most memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Prints the counts; 1 if one of them is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = count_outcomes(arguments.mutations, arguments.seed)
    print(found.summary())
    return int(bool(found.wrong))


if __name__ == "__main__":
    sys.exit(main())
