"""Random damage to the folder of a study, counted by what a resume makes of it.

``python -m tests.faults.damage --count 10000`` trains two seeds of a tiny model and
stops in the second, which leaves a model, the records of a finished run, and two
checkpoints of the other. Then it flips bits, truncates, empties, deletes and swaps
files, once each on an intact copy. A resume must go on with the state and the records
of a checkpoint as they were written, or refuse with an error and have written nothing.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from cwgnc_train import config, engine, records, study
from cwgnc_train.engine import checkpoints
from cwgnc_train.study import study as study_module
from cwgnc_train.study import worker
from tests.train.conftest import sentences, write_tiny_model, write_tsv

RECORDS = ("records.jsonl", "components.jsonl", "predictions.jsonl")
STEPS = (2, 4)
"""Those of the checkpoints."""


class Reached(BaseException):
    """Where a resume has come to, just before its next step.

    Args:
      step: How many steps are done.
      state: The bits of the runs.
    """

    def __init__(self, step: int, state: list[bytes]):
        super().__init__()
        self.step, self.state = step, state


class Probe:
    """Stands for training: restores the runs, and takes no step."""

    def __init__(self, group: Any, start: Any, *, recorder: Any, **others: Any):
        del others
        self._group, self._start, self._recorder = group, start, recorder

    def train(self):
        """Raises what has been reached."""
        start = self._start
        self._recorder.begin(self._group.runs, start.step, start.records)
        if start.checkpoint is None:
            raise Reached(start.step, [])
        started = self._group.start()
        raise Reached(start.step, bits(checkpoints.restore(start.checkpoint, started)))


@dataclasses.dataclass
class Intact:
    """A study's folder before any damage."""

    config: config.FinetuneConfig
    states: dict[int, list[bytes]]
    """The bits of the runs, by the step of the checkpoint."""
    records: dict[int, list[bytes]]
    """The files of records up to there."""


def bits(states: Any) -> list[bytes]:
    """Returns the bits of runs."""
    tree = states.params, states.opt_state, states.step, jax.random.key_data(states.key)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def contents(workdir: Path) -> dict[Path, bytes]:
    """Returns all files of a folder."""
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def make_study(folder: Path, workdir: Path) -> Intact:
    """Trains the first of two runs, and the second up to step 4 of 6."""
    (folder / "model").mkdir()
    intact = Intact(
        config.FinetuneConfig(
            model=str(write_tiny_model(folder / "model")),
            workdir=workdir,
            data=config.DataConfig(
                train_file=write_tsv(folder / "train.tsv", sentences(37)),
                validation_file=write_tsv(folder / "dev.tsv", sentences(20, 41)),
                text_columns=("text",),
                max_length=16,
            ),
            epochs=2,
            seeds=2,
            training=config.TrainingConfig(
                evaluations=1,
                record_every=2,
                norms_every=2,
                cache=False,
                devices=config.DevicesConfig(devices=1, runs_per_program=1),
                checkpoints=config.CheckpointsConfig(
                    resume=True, checkpoint_seconds=0, keep=2
                ),
            ),
        ),
        {},
        {},
    )
    save, train_steps = checkpoints.Checkpoints.save, engine.Programs.train_steps

    def noting_save(self, step, states, *others):
        save(self, step, states, *others)
        intact.states[step] = bits(states)
        intact.records[step] = [(workdir / name).read_bytes() for name in RECORDS]

    def stopping_train_steps(self, group, iteration, steps, *others):
        if group.first.seed == 2 and steps.start == STEPS[-1]:
            raise KeyboardInterrupt
        return train_steps(self, group, iteration, steps, *others)

    # Compiled in haste.
    jax.config.update("jax_disable_most_optimizations", True)
    with (
        mock.patch.object(checkpoints.Checkpoints, "save", noting_save),
        mock.patch.object(engine.Programs, "train_steps", stopping_train_steps),
        contextlib.suppress(KeyboardInterrupt),
    ):
        study.run_study(study.prepare_study(intact.config))
    jax.config.update("jax_disable_most_optimizations", False)
    # A kill leaves records of later steps than its checkpoint's.
    finished, last = (run.name for run in intact.config.runs())
    with records.RecordFile(workdir / "records.jsonl") as file:
        file.append({"kind": "metrics", "run": last, "step": 5, "loss": 0.5})
    # Without these the resume would be of other runs.
    shutil.rmtree(workdir / "checkpoints" / finished.replace("/", ","))
    return intact


def harm(workdir: Path, rng: random.Random) -> tuple[str, str]:
    """Does something to one file or two; returns what, and where."""
    files = sorted(path for path in workdir.rglob("*") if path.is_file())
    # Most files are those of checkpoints: choose the place first.
    places = collections.defaultdict(list)
    for path in files:
        places[path.relative_to(workdir).parts[0]].append(path)
    place = rng.choice(sorted(places))
    path = rng.choice(places[place])
    other = rng.choice([file for file in files if file != path])
    content = path.read_bytes()
    kind = rng.choice(["flip", "truncation", "emptying", "deletion", "swap"])
    if kind == "flip" and content:
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
    elif kind == "truncation" and content:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "emptying":
        path.write_bytes(b"")
    elif kind == "swap":
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        path.unlink()
        kind = "deletion"
    return kind, place


def resumed(intact: Intact) -> str:
    """Says what a resume comes to."""
    workdir = intact.config.workdir
    before = contents(workdir)
    try:
        study.run_study(study.prepare_study(intact.config))
    except (config.UserError, OSError) as error:
        if not str(error).strip():
            return "WRONG: says nothing"
        return "refused" if contents(workdir) == before else "WRONG: wrote"
    except Reached as reached:
        if reached.step not in STEPS:
            return "WRONG: started anew"
        if reached.state != intact.states[reached.step]:
            return "WRONG: another state"
        found = [(workdir / name).read_bytes() for name in RECORDS]
        if found != intact.records[reached.step]:
            return "WRONG: other records"
        return f"went on at step {reached.step}"
    except Exception as error:
        return f"WRONG: {type(error).__name__}: {str(error)[:200]!r}"
    return "WRONG: ended"


@contextlib.contextmanager
def probed(intact: Intact) -> Iterator[None]:
    """Lets resumes stop before their next step, and reads data and weights once."""
    inputs = next(iter(study.prepare_study(intact.config).tasks.values())).inputs
    with (
        mock.patch.object(worker, "Training", Probe),
        mock.patch.object(study_module, "load_inputs", lambda *_: inputs),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def count_outcomes(count: int, seed: int = 0) -> collections.Counter:
    """Damages a study's folder many times.

    Args:
      count: How many times.
      seed: Draws what is done.

    Returns:
      How often each kind of damage to each place came to each outcome.
    """
    rng, outcomes = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        workdir, whole = Path(folder) / "run", Path(folder) / "intact"
        intact = make_study(Path(folder), workdir)
        shutil.copytree(workdir, whole)
        with probed(intact):
            for number in range(count + 1):
                shutil.rmtree(workdir)
                shutil.copytree(whole, workdir)
                if number == 0:
                    assert resumed(intact) == f"went on at step {STEPS[-1]}"
                    continue
                kind, place = harm(workdir, rng)
                outcomes[kind, place, resumed(intact)] += 1
    return outcomes


def main() -> int:
    """Prints the counts; 1 if one of them is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes = count_outcomes(arguments.count, arguments.seed)
    for (kind, place, outcome), number in sorted(outcomes.items()):
        print(f"{kind:12}{place:20}{outcome:24}{number:8}")
    return int(any(outcome.startswith("WRONG") for *_, outcome in outcomes))


if __name__ == "__main__":
    # As in the tests: one CPU.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
