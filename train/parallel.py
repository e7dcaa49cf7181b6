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
from train.steps import Recipe, Run, eval_step, init_run, train_step


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

    def over_runs(self) -> NamedSharding | None:
        """Where the leading axis of runs lies; None for one device."""
        return self.mesh and NamedSharding(self.mesh, PartitionSpec("run"))


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
        models.redraw(
            *(recipe.model, checkpoint.params, new),
            jax.random.split(jax.random.key(seed))[0],
        )
        for seed, _ in seeds
    ]
    # What the checkpoint holds is the same for all and not copied until the end.
    _, same = models.split_params(checkpoint.params, new.__contains__)
    parts = [models.split_params(tree, new.__contains__)[0] for tree in trees]
    own = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    keys = [jax.random.split(jax.random.key(seed))[1] for _, seed in seeds]
    if part:
        keys = [jax.random.fold_in(key, part) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *numbers)
    return _start(recipe, layout, same, own, jnp.stack(keys), stacked)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(recipe: Recipe, layout: Layout, same, own, keys, numbers) -> Run:
    def start(own, key, numbers):
        return init_run(recipe, models.merge_params(same, own), key, numbers)

    runs = jax.vmap(start, axis_size=layout.runs)(own, keys, numbers)
    if layout.mesh is None:
        return runs
    return jax.lax.with_sharding_constraint(runs, layout.over_runs())


def compile_train_step(
    recipe: Recipe, layout: Layout = ONE_RUN, measured: bool = False
) -> Callable[..., Any]:
    """``train_step`` of a recipe over the runs of a layout, jitted.

    Args:
      recipe: What is fixed at compilation.
      layout: How many runs there are and where they lie.
      measured: Whether the step measures the components.

    Returns:
      A function from runs and their batches (:func:`place_batch`), both with a leading
      axis of runs, to the runs one step on, whose buffers it reuses, and their metrics.
    """

    def step(runs, batch):
        step_of_one = functools.partial(train_step, recipe, measured=measured)
        return _over_runs(step_of_one, layout, (runs, batch))

    return jax.jit(step, donate_argnums=0)


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

    return jax.jit(step)


def place_batch(layout: Layout, batch: dict[str, np.ndarray], shared: bool = False):
    """Puts a batch where its runs and rows belong.

    Args:
      layout: Where the runs lie.
      batch: Arrays ``[runs, batch, ...]``, or ``[batch, ...]`` if shared by all runs.
      shared: Whether it is.

    Returns:
      The batch, on the devices; on a single device as it came.
    """
    if layout.mesh is None:
        return batch
    axes = ("data",) if shared else ("run", "data")
    return jax.device_put(batch, NamedSharding(layout.mesh, PartitionSpec(*axes)))


def placed(layout: Layout, runs: Run) -> Run:
    """The shapes of runs, from any arrays or shapes, with where they lie."""
    sharding = layout.over_runs()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        runs,
    )


def _over_runs(function, layout: Layout, values: tuple, shared: tuple = ()):
    """Calls ``function(*values of one run, *shared)`` for every run of ``values``."""

    def on_one_device(values, shared):
        count = len(jax.tree.leaves(values)[0])
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
