"""Many runs as one program, and how it is laid out over the devices."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cwgnc_jax import models
from train.optimizer import Hyperparameters
from train.packing import Plan, Shape, TrainingSet, packed_batch
from train.steps import (
    Recipe,
    Run,
    eval_step,
    init_run,
    train_step,
    train_step_alone,
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the runs of one program lie on the devices.

    Everything a run is made of has a leading axis over the runs. It is split over the
    mesh axis ``run``; on each of its devices the runs go through the step in groups
    of ``group``, those of a group together (``jax.vmap``), the groups one after the
    other (``jax.lax.map``). The mesh axis ``data`` splits the rows of a batch.
    """

    runs: int = 1
    group: int = 1
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.runs % self.run_devices:
            raise ValueError(
                f"{self.runs} runs cannot be split evenly over {self.run_devices} "
                f"devices; take a multiple"
            )

    @property
    def run_devices(self) -> int:
        """How many devices share the runs among them."""
        return 1 if self.mesh is None else self.mesh.shape["run"]

    @property
    def data_devices(self) -> int:
        """How many devices share the rows of a run's batch."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    @property
    def description(self) -> int | str:
        """How many devices there are, and how they are used if that matters."""
        return self.run_devices * self.data_devices

    def over_runs(self) -> NamedSharding | None:
        """Where the leading axis of runs lies; None for one device."""
        return self.mesh and NamedSharding(self.mesh, PartitionSpec("run"))

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding | None:
        """Where a part of the runs of this shape lies, the axis of runs leading."""
        return self.over_runs()

    def place_weights(self, params: Any) -> Any:
        """Puts the weights that runs start from where the runs will lie."""
        return params


_STEPS_AT_ONCE = 10

ONE_RUN = Layout()
"""A single run on a single device."""


def device_mesh(devices: Sequence[jax.Device], data_devices: int = 1) -> Mesh | None:
    """Arranges devices along the axes ``run`` and ``data``.

    Args:
      devices: All that are to be used.
      data_devices: How many of them share one run's batch.

    Returns:
      The mesh, or None for a single device.

    Raises:
      ValueError: If the devices cannot be split evenly.
    """
    if data_devices < 1 or len(devices) % data_devices:
        raise ValueError(
            f"--data-devices must divide the {len(devices)} devices in use, got "
            f"{data_devices}"
        )
    if len(devices) == 1:
        return None
    grid = np.array(devices).reshape(-1, data_devices)
    # Under explicit axes an embedding lookup with sharded ids is an error.
    return Mesh(grid, ("run", "data"), axis_types=(AxisType.Auto, AxisType.Auto))


def init_runs(
    recipe: Recipe,
    checkpoint: models.Checkpoint,
    seeds: Sequence[tuple[int, int]],
    numbers: Sequence[Hyperparameters],
    layout: Layout,
    reinit_layers: int = 0,
    part: int = 0,
) -> Run:
    """Starts runs from one checkpoint.

    Args:
      recipe: What is fixed at compilation.
      checkpoint: The pretrained weights.
      seeds: For each run the seed of the parameters that are drawn (the classifier,
        as the checkpoint lacks it) and that of the dropout.
      numbers: Each run's hyperparameters.
      layout: Says how many runs there are and where they lie.
      reinit_layers: How many of the top layers are drawn anew, the pooler with them.
      part: Counts the parts of a run that have dropout of their own.

    Returns:
      The runs, stacked along a leading axis.
    """
    drawn = models.top_parameters(recipe.model, reinit_layers)
    new = {*checkpoint.new_parameters, *drawn}
    trees = [
        models.redraw(recipe.model, checkpoint.params, new, _two_keys(seed)[0])
        for seed, _ in seeds
    ]
    # What the checkpoint holds is the same for all and not copied until the end.
    _, same = models.split_params(checkpoint.params, new.__contains__)
    same = layout.place_weights(same)
    parts = [models.split_params(tree, new.__contains__)[0] for tree in trees]
    keys = [_two_keys(seed)[1] for _, seed in seeds]
    if part:
        keys = [jax.random.fold_in(key, part) for key in keys]
    runs = _start(recipe, layout, same, list(zip(parts, keys, numbers, strict=True)))
    if layout.mesh is None:
        # Bound to its device, as what a checkpoint gives back is: else JAX compiles the
        # steps of a run that goes on anew.
        return jax.device_put(runs, jax.devices()[0])
    return runs


# Programs that do little are few: each is read from the disk before the first step.
def _two_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    return _split(jax.random.key(seed))


@jax.jit
def _split(key):
    first, second = jax.random.split(key)
    return first, second


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(recipe: Recipe, layout: Layout, same, each) -> Run:
    def start(own, key, numbers):
        return init_run(recipe, models.merge_params(same, own), key, numbers)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    runs = jax.vmap(start, axis_size=layout.runs)(*stacked)
    if layout.mesh is None:
        return runs
    shardings = jax.tree.map(lambda leaf: layout.sharding(leaf.shape), runs)
    return jax.lax.with_sharding_constraint(runs, shardings)


def steps_of_program(step: int, end: int) -> tuple[range, range]:
    """Which steps one program takes, beginning with a certain one.

    A GPU or TPU does not wait for the host between ten steps of one program. On a CPU
    calling a program costs nothing beside a step, and so each step has batches of a
    shape of its own.

    Args:
      step: The first one.
      end: None is taken from this one on.

    Returns:
      The steps to take, ten or one, so that there are no programs of other numbers; and
      those whose batches share a shape, which does not depend on ``end``.
    """
    most = 1 if jax.default_backend() == "cpu" else _STEPS_AT_ONCE
    begin = step // most * most
    alike = range(begin, begin + most)
    whole = step == begin and alike.stop <= end
    return (alike if whole else range(step, step + 1)), alike


def compile_train_steps(
    recipe: Recipe, layout: Layout, shape: Shape, measured: bool = False
) -> Callable[..., Any]:
    """``train_step`` of a recipe over the runs of a layout, several steps, jitted.

    Args:
      recipe: What is fixed at compilation.
      layout: How many runs there are and where they lie.
      shape: Rows and length of the batches.
      measured: Whether the steps measure the components.

    Returns:
      A function from runs, the training set (:func:`place_training_set`) and the plans
      of the steps (:func:`place_plans`) to the runs after these steps, whose buffers it
      reuses, and their metrics with axes over runs and steps.
    """

    def scanned(step_fn, run, plans, examples):
        def step(run, plan):
            batch = packed_batch(examples, plan, shape)
            return step_fn(recipe, run, _split_rows(layout, batch), measured)

        return jax.lax.scan(step, run, plans)

    def alone(runs, plans, examples):
        plans = jax.tree.map(lambda leaf: leaf[0], plans)
        runs, metrics = scanned(train_step_alone, runs, plans, examples)
        return runs, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), metrics)

    def steps(runs, examples, plans):
        one = functools.partial(scanned, train_step)
        return _over_runs(one, layout, (runs, plans), (examples,), alone)

    return jax.jit(steps, donate_argnums=0)


def compile_eval_step(recipe: Recipe, layout: Layout = ONE_RUN) -> Callable[..., Any]:
    """``eval_step`` of a recipe over the runs of a layout, jitted.

    Args:
      recipe: What is fixed at compilation.
      layout: How many runs there are and where they lie.

    Returns:
      A function from the parameters of all runs and one batch, the same for all, to
      their logits, ``[runs, batch, num_labels]``.
    """

    def step(params, batch):
        return _over_runs(
            functools.partial(eval_step, recipe), layout, (params,), (batch,)
        )

    if layout.mesh is None or not layout.mesh.is_multi_process:
        return jax.jit(step)
    # Every process reads all logits.
    return jax.jit(step, out_shardings=NamedSharding(layout.mesh, PartitionSpec()))


def place_training_set(layout: Layout, examples: TrainingSet) -> TrainingSet:
    """Puts a training set on every device of a layout."""
    if layout.mesh is None:
        return jax.device_put(examples)
    return place(examples, NamedSharding(layout.mesh, PartitionSpec()))


def place_plans(layout: Layout, plans: Sequence[Sequence[Plan]]) -> Plan:
    """Puts the plans of some steps where their runs are.

    Args:
      layout: Where the runs lie.
      plans: For each run those of its steps.

    Returns:
      All of them, with leading axes over runs and steps.
    """
    each = [Plan(*map(np.stack, zip(*of_run, strict=True))) for of_run in plans]
    stacked = Plan(*map(np.stack, zip(*each, strict=True)))
    if layout.mesh is None:
        return stacked
    return place(stacked, layout.over_runs())


def place_batch(layout: Layout, batch: dict[str, np.ndarray]):
    """Splits the rows of a batch that all runs share; on one device as it came."""
    if layout.mesh is None:
        return batch
    return place(batch, NamedSharding(layout.mesh, PartitionSpec("data")))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays of the host on devices, of which each process places its own.

    Args:
      tree: Arrays, the same in every process.
      sharding: Where they are to lie.

    Returns:
      The arrays.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def own_shards(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: leaf[index]
        )

    return jax.tree.map(own_shards, tree)


def placed(layout: Layout, runs: Run) -> Run:
    """The shapes of runs, from any arrays or shapes, with where they lie."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=layout.sharding(leaf.shape)
        ),
        runs,
    )


def _split_rows(layout: Layout, batch):
    """Lets the devices of the axis ``data`` share the rows of a batch."""
    if layout.data_devices == 1:
        return batch
    # Behind an axis of parts, which are taken one after the other.
    parts = batch["weights"].ndim - 1
    spec = PartitionSpec(*[None] * parts, "data")
    # Within shard_map the mesh is the one of that place.
    mesh = layout.mesh if layout.run_devices == 1 else jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, spec))


def _over_runs(function, layout: Layout, values: tuple, shared: tuple = (), alone=None):
    """Calls ``function(*values of one run, *shared)`` for every run of ``values``.

    Where a device has a single one ``alone(*values, *shared)`` does the same, if given.
    """

    def on_one_device(values, shared):
        count = len(jax.tree.leaves(values)[0])
        if count == 1 and alone is not None:
            return alone(*values, *shared)
        if count == 1:
            out = function(*jax.tree.map(lambda leaf: leaf[0], values), *shared)
            return jax.tree.map(lambda leaf: leaf[None], out)
        if count <= layout.group:
            return jax.vmap(lambda values: function(*values, *shared))(values)
        return jax.lax.map(
            lambda values: function(*values, *shared), values, batch_size=layout.group
        )

    if layout.run_devices == 1:
        return on_one_device(values, shared)
    # The axis data stays with the compiler, which inserts its sums.
    return jax.shard_map(
        on_one_device,
        mesh=layout.mesh,
        in_specs=(PartitionSpec("run"), PartitionSpec()),
        out_specs=PartitionSpec("run"),
        axis_names={"run"},
        check_vma=False,
    )(values, shared)
