"""Runs that train together, and everything about them that is not their state."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cwgnc_jax import models
from cwgnc_train.config import RunSpec, TrainingConfig
from cwgnc_train.data import BatchIndices, Packing, Shape, make_packing, steps_per_epoch
from cwgnc_train.engine.inputs import Inputs
from cwgnc_train.engine.layout import Layout, place
from cwgnc_train.engine.optimizer import Hparams, make_hparams
from cwgnc_train.engine.step import RunState, StepConfig, init_run


@dataclasses.dataclass(frozen=True, eq=False)
class TaskRuns:
    """What all runs of a task have in common."""

    inputs: Inputs
    training: TrainingConfig
    max_length: int
    data_devices: int = 1  # How many share a batch.
    token_types: bool = True  # Whether pairs have them; see ``DataConfig``.

    @functools.cached_property
    def packing(self) -> Packing:
        """How batches of the training set lie in rows."""
        # Under pmap each device packs rows of its own.
        pmap = self.training.devices.strategy == "pmap"
        return make_packing(
            self.inputs.train,
            self.training.padding,
            self.training.batch_size,
            self.max_length,
            multiple=1 if pmap else self.data_devices,
            parts=self.training.accumulate * (self.data_devices if pmap else 1),
        )

    def iterations(self, run: RunSpec) -> int:
        """Returns the number of iterations of gradual unfreezing; 1 without."""
        if run.unfreezing is None:
            return 1
        return run.iterations or self.inputs.layers

    def iteration_steps(self, run: RunSpec) -> int:
        """Returns the length of each iteration of a run."""
        batch_size = self.training.batch_size
        return run.epochs * steps_per_epoch(len(self.inputs.train), batch_size)

    def total_steps(self, run: RunSpec) -> int:
        """Returns the length of a run."""
        return self.iterations(run) * self.iteration_steps(run)

    def scored_at(self, run: RunSpec) -> set[int]:
        """Returns the evenly spaced numbers of steps after which a run is evaluated.

        The end of each iteration is among them.
        """
        total, iterations = self.total_steps(run), self.iterations(run)
        usual = run.epochs if run.unfreezing is None else iterations
        counts = {self.training.evaluations or usual, iterations}
        return {-(-total * (i + 1) // count) for count in counts for i in range(count)}

    def is_measured(self, run: RunSpec, step: int) -> bool:
        """Says whether the components are measured in a step, counted from 0."""
        if not run.statistics_every:
            return False
        steps = self.iteration_steps(run)
        in_iteration = step % steps
        return in_iteration == steps - 1 or in_iteration % run.statistics_every == 0

    def step_config(self, run: RunSpec, iteration: int | None = None) -> StepConfig:
        """Returns what is fixed when a run's step is compiled.

        The iteration of gradual unfreezing counts from 0; by default it is the last.
        """
        layers = self.iterations(run) if iteration is None else iteration + 1
        frozen = run.unfreezing is not None and layers < self.inputs.layers
        optimizer = run.optimizer
        return StepConfig(
            model=self.inputs.checkpoint.config,
            regression=self.inputs.task.regression,
            components=optimizer.components,
            b1=optimizer.b1,
            b2=optimizer.b2,
            dtype=self.training.dtype,
            mixout=run.regularization.mixout > 0,
            prior_decay=optimizer.prior_decay > 0,
            layer_decay=optimizer.layer_decay < 1,
            trained_layers=layers if frozen else None,
            statistics=run.statistics_every > 0,
            remat=self.training.remat,
            nonfinite=optimizer.nonfinite,
            clip=optimizer.clip,
            adam_by_thaw=run.keeps_moments,
            # All of them, as in AutoClip's paper.
            history_length=self.iteration_steps(run)
            if optimizer.clip == "autoclip"
            else None,
        )

    def kind(self, run: RunSpec) -> tuple[object, ...]:
        """Returns what runs must share to go through a program together."""
        return (
            run.task,
            self.total_steps(run),
            run.unfreezing,
            self.step_config(run),
            run.regularization.reinit_layers,
            run.regularization.dropout is None,
        )

    def program_name(self, run: RunSpec) -> str:
        """Returns the name of a run's program in the records."""
        config = self.step_config(run)
        traits = {
            config.clip: config.clip != "fixed",
            "mixout": config.mixout,
            "prior decay": config.prior_decay,
            "layer decay": config.layer_decay,
            "unfreezing": run.unfreezing,
            "statistics": config.statistics,
        }
        tokens = self.inputs.train.input_ids.shape[1]
        parts = [f"{run.task}, {tokens} tokens, clip {config.components}"]
        return ", ".join(parts + [name for name, on in traits.items() if on])


@dataclasses.dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs of one kind in one program; nothing is recorded of copies that fill it."""

    of_task: TaskRuns
    runs: tuple[RunSpec, ...]
    layout: Layout

    @property
    def first(self) -> RunSpec:
        """A run that stands for all in what they share."""
        return self.runs[0]

    @property
    def filled(self) -> list[RunSpec]:
        """The runs, and copies of the last one until they fill the layout."""
        return [*self.runs, *[self.runs[-1]] * (self.layout.runs - len(self.runs))]

    @property
    def iteration_steps(self) -> int:
        """The length of each iteration."""
        return self.of_task.iteration_steps(self.first)

    @property
    def total_steps(self) -> int:
        """The length of each run."""
        return self.of_task.total_steps(self.first)

    def start(self, iteration: int = 0) -> RunState:
        """Starts the runs of an iteration from the checkpoint."""
        first = self.first
        length = self.total_steps if first.one_schedule else self.iteration_steps
        hparams = [
            make_hparams(run.optimizer, run.regularization, length)
            for run in self.filled
        ]
        return start_runs(
            self.of_task.step_config(self.first, iteration),
            self.of_task.inputs.checkpoint,
            [(run.seed, run.data_seed) for run in self.filled],
            hparams,
            self.layout,
            first.regularization.reinit_layers,
            part=iteration if first.carries else 0,
        )

    def start_after(self, before: RunState, iteration: int) -> RunState:
        """Starts the runs of an iteration after the end of the one before it.

        What newly trains has no moments yet. A clip learns its thresholds anew.
        """
        started, first = self.start(iteration), self.first
        if first.carries:
            started = started._replace(params=before.params)
        if first.one_schedule:
            started = started._replace(step=before.step)
        if first.keeps_moments:
            clip, adam, *rest = started.opt_state
            known = dict(jax.tree.leaves_with_path(before.opt_state[1]))
            adam = jax.tree.map_with_path(lambda path, x: known.get(path, x), adam)
            started = started._replace(opt_state=(clip, adam, *rest))
        return started

    def abstract_state(self, iteration: int = 0) -> RunState:
        """Returns the shapes of the runs, and where they lie."""
        return self.layout.abstract(jax.eval_shape(lambda: self.start(iteration)))

    def batch_shape(self, steps: Sequence[int]) -> Shape:
        """Returns rows and length of the batches of one program."""
        seeds = [run.data_seed for run in self.filled]
        return self.of_task.packing.shape(seeds, [self._order(s) for s in steps])

    def batch_indices(
        self, steps: Sequence[int], shape: Shape
    ) -> list[list[BatchIndices]]:
        """Returns which examples each run takes in each step."""
        packing = self.of_task.packing
        return [
            [packing.batch_indices(run.data_seed, self._order(s), shape) for s in steps]
            for run in self.filled
        ]

    def _order(self, step: int) -> int:
        """The step of a plain run that has the batch of this one."""
        # Each iteration is a whole fine-tuning, the last one that of all layers.
        restarts = self.first.unfreezing == "restart"
        return step % self.iteration_steps if restarts else step


def start_runs(
    config: StepConfig,
    checkpoint: models.Checkpoint,
    seeds: Sequence[tuple[int, int]],
    hparams: Sequence[Hparams],
    layout: Layout,
    reinit_layers: int = 0,
    part: int = 0,
) -> RunState:
    """Starts runs from one checkpoint, stacked along a leading axis.

    ``seeds`` are for each run that of its new parameters and that of its dropout.
    ``reinit_layers`` top layers are drawn anew, with the pooler. ``part`` counts the
    parts of a run that have dropout of their own.
    """
    drawn = models.top_parameters(config.model, reinit_layers)
    new = {*checkpoint.new_parameters, *drawn}
    # The checkpoint's own weights are the same for all; they are copied last.
    _, same = models.split_params(checkpoint.params, new.__contains__)
    each = []
    for (seed, data_seed), numbers in zip(seeds, hparams, strict=True):
        key, _ = _two_keys(jax.random.key(seed))
        tree = models.redraw(config.model, checkpoint.params, new, key)
        own, _ = models.split_params(tree, new.__contains__)
        _, key = _two_keys(jax.random.key(data_seed))
        each.append((own, jax.random.fold_in(key, part) if part else key, numbers))
    if layout.mesh.size == 1:
        # Bound to its device, as a restored checkpoint is: otherwise JAX compiles the
        # steps of a resumed run anew.
        return jax.device_put(_start(config, layout, same, each), layout.over_runs())

    def placed(leaf):
        # As it will lie, without the axis of runs that it does not have yet.
        spec = PartitionSpec(*layout.of_state((1, *leaf.shape)).spec[1:])
        return place(np.asarray(leaf), NamedSharding(layout.mesh, spec))

    return _start(config, layout, jax.tree.map(placed, same), each)


# One small program: each is read from the disk before the first step.
@jax.jit
def _two_keys(key):
    return tuple(jax.random.split(key))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(config: StepConfig, layout: Layout, same, each) -> RunState:
    def start(own, key, hparams):
        return init_run(config, models.merge_params(same, own), key, hparams)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return layout.constrain(jax.vmap(start, axis_size=layout.runs)(*stacked))
