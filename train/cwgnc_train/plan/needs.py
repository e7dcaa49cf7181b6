"""What the runs of a command would need on an accelerator."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from cwgnc_jax import models
from cwgnc_train.config import (
    DataConfig,
    FinetuneConfig,
    RunSpec,
    StabilityConfig,
    UserError,
    check_study,
)
from cwgnc_train.data import (
    CachedTokenizer,
    TokenArrays,
    evaluation_batches,
    find_task,
    load_examples,
)
from cwgnc_train.engine import (
    Inputs,
    Layout,
    RunState,
    TaskRuns,
    check_clip,
    choose_mesh,
    load_inputs,
    memory,
)
from cwgnc_train.plan.accelerators import Slice
from cwgnc_train.plan.compiling import DoesNotFit, compile_for, devices_of
from cwgnc_train.plan.costs import Costs, estimate
from cwgnc_train.plan.lowering import (
    abstract_runs,
    lower_evaluation,
    lower_train_steps,
)
from cwgnc_train.plan.program import read_program

# As many as a GPU or TPU takes in one program.
_STEPS = 10
# Examples of GLUE's training and validation sets, for those that are not at hand.
_GLUE_SIZES = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "qqp": (363846, 40430),
    "mnli": (392702, 19647),
    "qnli": (104743, 5463),
    "rte": (2490, 277),
    "wnli": (635, 71),
}


@dataclasses.dataclass(frozen=True)
class Need:
    """What runs of one kind need: all figures are estimates, of each device."""

    on: Slice
    program: str
    runs: int
    """To make, in so many programs one after another as do not fit together."""
    layout: Layout
    why: str
    """Why so many runs are together."""
    bytes: dict[str, int]
    """Memory by part."""
    steps: int
    """Of a run."""
    texts: str
    """What is known of them."""
    costs: Costs = Costs([], [])
    """Of ten steps; nothing if the compiler refused the program."""
    evaluation_seconds: float = 0.0
    """Of all evaluations of a run."""

    @property
    def step_seconds(self) -> float:
        """Of one step of all runs that are together."""
        return self.costs.seconds / _STEPS

    @property
    def seconds(self) -> float:
        """Of all steps and evaluations; reading and compiling come on top."""
        programs = -(-self.runs // self.layout.runs)
        return programs * (self.steps * self.step_seconds + self.evaluation_seconds)

    @property
    def fits(self) -> bool:
        """Whether a device holds the program."""
        held = sum(self.bytes.values()) <= self.on.accelerator.usable
        return held and bool(self.costs.kernels)

    @property
    def bottleneck(self) -> str:
        """What the largest part of a step's time is taken by, and how much."""
        name, (seconds, _) = next(iter(self.costs.parts().items()))
        return f"{name}, {100 * seconds / self.costs.seconds:.0f} %"


def find_needs(
    config: FinetuneConfig | StabilityConfig, slices: Sequence[Slice]
) -> Iterator[Need]:
    """Compiles the programs of a command for accelerators.

    The texts are read if a file or folder with them is named and the model's folder has
    a tokenizer. Otherwise all are taken to be as long as ``--max-length``, and GLUE's
    sets as large as they are. Weights are not read.

    Raises a UserError if a setting or the model's config is wrong, or a compiler is
    missing.
    """
    check_study(config)
    if config.training.devices.strategy == "pmap":
        raise UserError("--strategy pmap cannot be planned: drop it, the step is alike")
    runs, training = config.runs(), config.training
    for run in runs:
        check_clip(run.optimizer)
    devices = [devices_of(each) for each in slices]
    inputs = {task or "own": _inputs(task, config) for task in config.tasks or [None]}
    for on, of_slice in zip(slices, devices, strict=True):
        most = training.batch_size // training.accumulate
        mesh = choose_mesh(training.devices, len(runs), most, of_slice)
        layout = Layout(mesh, shard_params=training.devices.shard_params)
        kinds: dict[Any, list[RunSpec]] = {}
        tasks = {
            name: TaskRuns(
                of_task, training, config.data.max_length, layout.data_devices
            )
            for name, (of_task, _) in inputs.items()
        }
        for run in runs:
            kinds.setdefault(tasks[run.task].kind(run), []).append(run)
        for alike in kinds.values():
            task = alike[0].task
            yield _need(tasks[task], alike, layout, on, inputs[task][1])


def _need(
    of_task: TaskRuns, runs: list[RunSpec], layout: Layout, on: Slice, texts: str
) -> Need:
    run, training = runs[0], of_task.training
    config, packing = of_task.step_config(run), of_task.packing

    def shapes(layout: Layout) -> RunState:
        return abstract_runs(config, layout, run.optimizer, run.regularization)

    @functools.cache
    def compiled(layout: Layout) -> Any:
        lowered = lower_train_steps(
            config,
            layout,
            shapes(layout),
            shape=packing.usual,
            slots=packing.shapes[-1][0],
            steps=_STEPS,
            examples=len(of_task.inputs.train),
            parts=packing.parts,
        )
        return compile_for(on, lowered)

    def needed(layout: Layout) -> int:
        try:
            return memory.bytes_needed(compiled(layout))
        except DoesNotFit:
            # The compiler doesn't say how much: half as many runs are tried next.
            return 2 * on.accelerator.usable

    layout, why = memory.fit_layout(
        training.devices.runs_per_program,
        len(runs),
        layout,
        needed,
        on.accelerator.usable,
    )
    need = Need(
        on=on,
        program=of_task.program_name(run),
        runs=len(runs),
        layout=layout,
        why=why,
        bytes=_state_bytes(shapes(layout)),
        steps=of_task.total_steps(run),
        texts=texts,
    )
    try:
        program = compiled(layout)
    except DoesNotFit as error:
        return dataclasses.replace(need, why=str(error))
    return dataclasses.replace(
        need,
        bytes=need.bytes | _other_bytes(need.bytes, program.memory_analysis()),
        costs=estimate(read_program(program.as_text()), on.accelerator),
        evaluation_seconds=len(of_task.scored_at(run))
        * _evaluation_seconds(of_task, run, layout, on),
    )


def _evaluation_seconds(
    of_task: TaskRuns, run: RunSpec, layout: Layout, on: Slice
) -> float:
    """Estimates one evaluation of all runs of a layout."""
    sets, config = of_task.inputs.scored.values(), of_task.step_config(run)
    shape, batches = evaluation_batches(
        [arrays.lengths for arrays in sets],
        row_length=max(arrays.input_ids.shape[1] for arrays in sets),
        batch_size=of_task.training.eval_batch_size,
        multiple=layout.data_devices,
    )
    lowered = lower_evaluation(
        config,
        layout,
        abstract_runs(config, layout, run.optimizer, run.regularization),
        shape=shape,
        slots=len(batches[0].weights),
        examples=sum(map(len, sets)),
    )
    text = compile_for(on, lowered).as_text()
    return len(batches) * estimate(read_program(text), on.accelerator).seconds


def _state_bytes(runs: RunState) -> dict[str, int]:
    """Returns what the state of runs takes on each device, by part."""

    def on_device(tree: Any) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    parts = {
        "parameters": on_device(runs.params),
        "moments": on_device(runs.opt_state),
        "initial parameters": on_device(runs.init_params),
    }
    return {name: size for name, size in parts.items() if size}


def _other_bytes(state: dict[str, int], analysis: Any) -> dict[str, int]:
    """Returns what a program takes on each device besides."""
    rest = analysis.argument_size_in_bytes - sum(state.values())
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {
        "training set, batches": max(rest, 0),
        "activations, gradients": analysis.temp_size_in_bytes + new,
    }


def _inputs(
    task_name: str | None, config: FinetuneConfig | StabilityConfig
) -> tuple[Inputs, str]:
    """Reads or assumes a task's inputs, and says which."""
    data, revision = config.data, config.training.revision
    try:
        folder = models.resolve(config.model, revision)

        def checkpoint(num_labels: int) -> models.Checkpoint:
            known = models.load_config(folder, num_labels=num_labels)
            return models.Checkpoint(known, {}, folder, (), {})

        checkpoint(2)
    except models.CheckpointError as error:
        raise UserError(str(error)) from error
    at_hand = data.train_file is not None or data.data_dir is not None
    if at_hand and _has_tokenizer(folder):
        texts = "the lengths of the texts are their own"
        return load_inputs(task_name, data, checkpoint, config.training.cache), texts
    if at_hand:
        task, examples = load_examples(task_name, data)
        counts = {name: len(part) for name, part in examples.items()}
    else:
        assert task_name is not None
        task, counts = find_task(task_name), _glue_counts(task_name, data)
    sets = {name: _full(count, data.max_length) for name, count in counts.items()}
    texts = f"all texts taken to be {data.max_length} tokens long"
    # Nothing of what is planned reads a text.
    tokenizer = cast(CachedTokenizer, None)
    return Inputs(task, sets, tokenizer, checkpoint(task.num_labels)), texts


def _has_tokenizer(folder: Path) -> bool:
    try:
        CachedTokenizer(folder, cache=False)
    except UserError:
        return False
    return True


def _glue_counts(task: str, data: DataConfig) -> dict[str, int]:
    train, validation = _GLUE_SIZES[task]
    kept = round(data.holdout * train) if data.holdout else 0
    counts = {"train": min(train - kept, data.train_examples or train)}
    counts |= {"holdout": kept} if kept else {}
    return counts | {"validation": validation}


def _full(count: int, length: int) -> TokenArrays:
    """Returns examples of full length, in no memory."""

    def constant(value: int, *sizes: int) -> Any:
        return np.broadcast_to(np.int32(value), sizes)

    tokens = constant(1, count, length)
    return TokenArrays(tokens, tokens, constant(0, count, length), constant(0, count))
