"""Where records go besides JSON lines: TensorBoard, Weights & Biases.

Their packages are extras that need not be installed.
"""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from cwgnc_train.config import UserError

# The extras that install them have the names of the writers.
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer(Protocol):
    """Takes records: a step, and numbers by name, which may be nested.

    Use as a context manager.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: Any) -> None: ...

    def append(self, record: dict[str, Any]) -> None:
        """Writes a record."""
        ...

    def flush(self) -> None:
        """Lets others read what has been written, as far as the writer can."""
        ...


class TensorBoardWriter:
    """Writes an event file.

    Args:
      folder: Holds the event files of a run, one for each process.
      first_step: The first step to be written: TensorBoard hides what earlier processes
        wrote from this step on.
    """

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX import SummaryWriter

        # Files of the same second are told apart by the suffix.
        self._writer = SummaryWriter(
            str(folder), purge_step=first_step, filename_suffix=f".{first_step}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._writer.close()

    def append(self, record: dict[str, Any]) -> None:
        """Writes the record's numbers, nested names joined by "/"."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def flush(self) -> None:
        """Lets TensorBoard show what has been written."""
        self._writer.flush()


class WandbWriter:
    """Writes a run of Weights & Biases, as its environment variables say.

    Args:
      folder: Where it keeps its files, in the folder ``wandb``.
      name: The run's name.
      config: The run's settings.
    """

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cwgnc_jax"),
            name=name,
            dir=str(folder),
            config=dict(config),
            reinit="create_new",
        )
        # Scores come before the last losses of their step, and its own steps must rise.
        self._run.define_metric("*", step_metric="step")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._run.finish()

    def append(self, record: dict[str, Any]) -> None:
        """Writes the record's numbers, nested names joined by "/"."""
        self._run.log({"step": record["step"]} | dict(scalars(record)))

    def flush(self) -> None:
        """Does nothing: W&B's own process sends what has been written."""


def check_writers(names: Iterable[str]) -> None:
    """Raises a UserError if the package of a writer is missing; it names the extra."""
    for name in names:
        package = _PACKAGES[name]
        spec = importlib.util.find_spec(package)
        # A folder of this name, such as the one W&B keeps its runs in, has no origin.
        if spec is None or spec.origin is None:
            raise UserError(
                f"--writers {name} needs the package {package}, which is not "
                f"installed: pip install 'cwgnc-jax[{name}]'"
            )


def open_writers(
    names: Iterable[str],
    workdir: Path,
    name: str,
    config: Mapping[str, Any],
    first_step: int,
) -> list[Writer]:
    """Opens the writers of a run.

    Args:
      names: Those that are wanted.
      workdir: Where they keep what they write.
      name: The run's name.
      config: The run's settings.
      first_step: The first step to be written.

    Returns:
      The writers.
    """
    made: list[Writer] = []
    for writer in dict.fromkeys(names):
        if writer == "tensorboard":
            made.append(TensorBoardWriter(workdir / "tensorboard" / name, first_step))
        else:
            made.append(WandbWriter(workdir, name or workdir.name, config))
    return made


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Finds the numbers of a record, all but its step.

    Args:
      record: A dict, which may hold others.
      prefix: What all names begin with.

    Yields:
      Names, those of nested dicts joined by "/", and numbers.
    """
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and f"{prefix}{name}" != "step":
            yield f"{prefix}{name}", value
