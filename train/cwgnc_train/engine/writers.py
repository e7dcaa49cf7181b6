"""Where records go besides JSON lines: TensorBoard, Weights & Biases."""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cwgnc_train.config import UserError

# Extras that need not be installed and have the names of the writers.
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class TensorBoardWriter:
    """Writes an event file into a folder, beside those of earlier processes.

    TensorBoard hides what those wrote from ``first_step`` on.
    """

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX import SummaryWriter

        # Files of the same second are told apart by the suffix.
        self._writer = SummaryWriter(
            str(folder), purge_step=first_step, filename_suffix=f".{first_step}"
        )
        self.close = self._writer.close

    def append(self, record: dict[str, Any]) -> None:
        """Writes the record's numbers, and lets TensorBoard show them."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()


class WandbWriter:
    """Writes a run of Weights & Biases, as its environment variables say."""

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
        self.close = self._run.finish

    def append(self, record: dict[str, Any]) -> None:
        """Hands the record's numbers to W&B's own process."""
        self._run.log({"step": record["step"]} | dict(scalars(record)))


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
) -> list[TensorBoardWriter | WandbWriter]:
    """Opens the writers of a run, whose settings ``config`` is."""
    return [
        TensorBoardWriter(workdir / "tensorboard" / name, first_step)
        if writer == "tensorboard"
        else WandbWriter(workdir, name, config)
        for writer in dict.fromkeys(names)
    ]


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers of a record but its step, nested names joined by "/"."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and f"{prefix}{name}" != "step":
            yield f"{prefix}{name}", value
