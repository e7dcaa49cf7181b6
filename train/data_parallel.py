"""One run over several devices, each with its examples of every batch."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from train import hosts
from train.config import DevicesConfig
from train.packing import Plan, Shape, TrainingSet, packed_batch
from train.parallel import (
    ONE_RUN,
    Layout,
    compile_train_steps,
    device_mesh,
    place,
    place_plans,
)
from train.sharing import Sharing
from train.steps import Recipe, Run, train_step_alone

_AXIS = "data"
# Below it a collective costs more than the memory of a copy on every device.
_LEAST_ELEMENTS = 4096


@dataclasses.dataclass(frozen=True)
class SharedLayout(Layout):
    """How one run lies on several devices that share its batches.

    The device function is the same under both strategies: ``jit`` has it in
    ``jax.shard_map`` over the mesh axis ``data``, ``pmap`` in ``jax.pmap``.
    """

    strategy: Literal["jit", "pmap"] = "jit"
    shard_params: bool = False
    """Whether parameters and moments are split over the devices."""

    @property
    def description(self) -> str:
        """How many devices there are, and how they are used."""
        split = " with split parameters" if self.shard_params else ""
        return f"{self.data_devices} by {self.strategy}{split}"

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where a part of the run lies: whole on each device, or split over them."""
        assert self.mesh is not None
        return NamedSharding(self.mesh, self.spec(shape))

    def place_weights(self, params: Any) -> Any:
        """Puts the weights that the run starts from where it will lie."""
        assert self.mesh is not None

        def placed(leaf):
            # Without the axis of runs, which comes later.
            spec = PartitionSpec(*self.spec((1, *leaf.shape))[1:])
            return place(np.asarray(leaf), NamedSharding(self.mesh, spec))

        return jax.tree.map(placed, params)

    def spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        """The same without the devices."""
        axis = self.split_axis(shape[1:])
        if axis is None:
            return PartitionSpec()
        return PartitionSpec(*[None] * (axis + 1), _AXIS)

    def split_axis(self, shape: tuple[int, ...]) -> int | None:
        """Along which axis an array is split: its largest that can be, if it is large.

        Args:
          shape: Without the leading axis of runs.

        Returns:
          The axis; None if the array is whole on every device.
        """
        if not self.shard_params or math.prod(shape) < _LEAST_ELEMENTS:
            return None
        even = [i for i, size in enumerate(shape) if size % self.data_devices == 0]
        return max(even, key=lambda i: shape[i], default=None)


def choose_layout(config: DevicesConfig, examples: int) -> Layout:
    """Decides which devices share the batches of one run.

    Args:
      config: What was asked for.
      examples: The most that devices share at a time.

    Returns:
      The layout.

    Raises:
      ValueError: If there are not so many devices, or they cannot do what is asked for.
    """
    devices = jax.devices()
    if not hosts.alone():
        if config.devices is not None:
            raise ValueError(
                f"--devices {config.devices}: several processes use all of their "
                f"devices; drop --devices"
            )
    elif config.devices is not None:
        if config.devices > len(devices):
            raise ValueError(f"--devices {config.devices}: there are {len(devices)}")
        devices = devices[: config.devices]
    else:
        # Those of a CPU share its cores.
        devices = devices[: 1 if jax.default_backend() == "cpu" else examples]
    return shared_layout(devices, config.strategy, config.shard_params)


def shared_layout(
    devices: Sequence[jax.Device],
    strategy: Literal["jit", "pmap"] = "jit",
    shard_params: bool = False,
) -> Layout:
    """Lets devices share the batches of one run.

    Args:
      devices: All that are to be used.
      strategy: See :class:`SharedLayout`.
      shard_params: Whether parameters and moments are split over the devices.

    Returns:
      The layout; that of a single device is ``ONE_RUN``.

    Raises:
      ValueError: If a strategy cannot do what is asked for.
    """
    mesh = device_mesh(devices, len(devices))
    if strategy == "pmap" and shard_params:
        raise ValueError(
            "--strategy pmap has all parameters on every device: drop --shard-params, "
            "or take --strategy jit"
        )
    if mesh is None:
        return ONE_RUN
    if strategy == "pmap" and mesh.is_multi_process:
        raise ValueError(
            "--strategy pmap is for the devices of one process: take --strategy jit "
            "with several"
        )
    return SharedLayout(1, 1, mesh, strategy, shard_params)


def compile_shared_steps(
    recipe: Recipe, layout: Layout, shape: Shape
) -> Callable[..., Any]:
    """``compile_train_steps`` of one run, on one device or several that share it.

    Args:
      recipe: What is fixed at compilation.
      layout: See :func:`shared_layout`.
      shape: Rows and length of each part of a batch.

    Returns:
      A function from the run, the training set and plans (:func:`place_shared_plans`)
      to the run after these steps and their metrics.
    """
    if not isinstance(layout, SharedLayout):
        return compile_train_steps(recipe, layout, shape)
    assert layout.mesh is not None
    if layout.strategy == "pmap":
        return jax.pmap(
            functools.partial(_steps, recipe, Sharing(_AXIS, {}), shape),
            axis_name=_AXIS,
            in_axes=(None, None, 1),
            out_axes=None,
            devices=layout.mesh.devices.flat,
            donate_argnums=0,
        )

    def steps(run, examples, plans):
        specs = jax.tree.map(lambda leaf: layout.spec(leaf.shape), run)
        sharing = Sharing(_AXIS, _split(layout, run.params))

        def on_one_device(run, examples, plans):
            plans = jax.tree.map(lambda leaf: leaf[:, 0], plans)
            return _steps(recipe, sharing, shape, run, examples, plans)

        return jax.shard_map(
            on_one_device,
            mesh=layout.mesh,
            in_specs=(specs, PartitionSpec(), PartitionSpec(None, _AXIS)),
            out_specs=(specs, PartitionSpec()),
        )(run, examples, plans)

    return jax.jit(steps, donate_argnums=0)


def place_shared_plans(layout: Layout, plans: Sequence[Plan]) -> Plan:
    """Gives each device its parts of some steps.

    Args:
      layout: See :func:`shared_layout`.
      plans: Those of the steps, in as many parts for each device.

    Returns:
      All of them, with leading axes over steps and devices; for one device see
      ``place_plans``.
    """
    if not isinstance(layout, SharedLayout):
        return place_plans(layout, [plans])

    def of_devices(*leaves):
        leaf = np.stack(leaves)
        steps, parts, slots = leaf.shape
        each = parts // layout.data_devices
        own = (each, slots) if each > 1 else (slots,)
        return leaf.reshape(steps, layout.data_devices, *own)

    assert layout.mesh is not None
    sharding = NamedSharding(layout.mesh, PartitionSpec(None, _AXIS))
    return place(jax.tree.map(of_devices, *plans), sharding)


def on_host(params: Any) -> Any:
    """The parameters of the only run as arrays of the host, whole in each process."""

    def fetched(leaf):
        if leaf.is_fully_addressable:
            return jax.device_get(leaf)[0]
        return multihost_utils.process_allgather(leaf, tiled=True)[0]

    return jax.tree.map(fetched, params)


def _split(layout: SharedLayout, params: Any) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    axes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): layout.split_axis(
            leaf.shape[1:]
        )
        for path, leaf in leaves
    }
    return {path: axis for path, axis in axes.items() if axis is not None}


def _steps(
    recipe: Recipe,
    sharing: Sharing,
    shape: Shape,
    runs: Run,
    examples: TrainingSet,
    plans: Plan,
):
    """Takes steps as one of several devices."""

    def step(runs, plan):
        batch = packed_batch(examples, plan, shape)
        return train_step_alone(recipe, runs, batch, sharing=sharing)

    runs, metrics = jax.lax.scan(step, runs, plans)
    return runs, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), metrics)
