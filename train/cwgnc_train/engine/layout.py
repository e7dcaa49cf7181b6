"""Where runs lie on the devices: a mesh over ``run`` and ``data``."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cwgnc_train.config import DevicesConfig, StrategyName, UserError
from cwgnc_train.data import BatchIndices, TokenTable
from cwgnc_train.engine import hosts

# Below it, gathering a split array costs more than keeping a copy on every device.
_LEAST_SPLIT_ELEMENTS = 4096


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the runs of one program lie on the devices.

    The mesh axis ``run`` splits the leading axis, over runs, of every array of their
    state; the mesh axis ``data`` splits the rows of a batch. The runs of a device take
    the step ``group`` at a time (``jax.vmap``), one group after another
    (``jax.lax.map``).
    """

    mesh: Mesh
    runs: int = 1
    group: int = 1
    shard_params: bool = False
    """Whether parameters and moments are split over the axis ``data`` too."""
    strategy: StrategyName = "jit"

    @property
    def run_devices(self) -> int:
        """How many devices share the runs."""
        return self.mesh.shape["run"]

    @property
    def data_devices(self) -> int:
        """How many devices share the rows of a run's batch."""
        return self.mesh.shape["data"]

    @property
    def platform(self) -> str:
        """The platform that programs are written for: cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    @property
    def description(self) -> str:
        """How many devices there are, and how they are used."""
        split = ", split parameters" if self.shard_params else ""
        return f"{self.run_devices} x {self.data_devices} by {self.strategy}{split}"

    def whole(self) -> NamedSharding:
        """The sharding of an array that every device has whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def over_runs(self) -> NamedSharding:
        """The sharding of an array whose leading axis counts runs."""
        return NamedSharding(self.mesh, PartitionSpec("run"))

    def of_state(self, shape: Sequence[int]) -> NamedSharding:
        """The sharding of an array of a run's state, whose leading axis counts runs.

        With ``shard_params`` the largest axis that the devices divide is split as well,
        if the array is large.
        """
        axes: list[str | None] = ["run"] + [None] * (len(shape) - 1)
        if self._splits_params and math.prod(shape[1:]) >= _LEAST_SPLIT_ELEMENTS:
            sizes = dict(enumerate(shape[1:], 1))
            even = [i for i, size in sizes.items() if size % self.data_devices == 0]
            if even:
                axes[max(even, key=lambda i: shape[i])] = "data"
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def abstract(self, state: Any) -> Any:
        """The shapes of runs, from arrays or shapes, with where they lie."""

        def shape(leaf):
            sharding = self.of_state(leaf.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, state)

    def constrain(self, state: Any) -> Any:
        """Keeps runs where they lie, inside ``jax.jit``."""
        if self.mesh.size == 1:
            return state
        shardings = jax.tree.map(lambda leaf: self.of_state(leaf.shape), state)
        return jax.lax.with_sharding_constraint(state, shardings)

    def split_rows(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Lets the devices of the axis ``data`` share the rows of a batch."""
        if self.data_devices == 1:
            return batch
        # A leading axis of parts, taken one after the other, stays whole.
        parts = batch["weights"].ndim - 1
        return self._constrained(batch, PartitionSpec(*[None] * parts, "data"))

    @property
    def _splits_params(self) -> bool:
        return self.shard_params and self.data_devices > 1

    def gather(self, params: Any) -> Any:
        """Gives every device the whole parameters of one run, to compute gradients."""
        if not self._splits_params:
            return params
        # Otherwise the compiler would split matrix products along the axes of their
        # kernels, and exchange activations.
        return self._constrained(params, PartitionSpec())

    def _constrained(self, of_run: Any, spec: PartitionSpec) -> Any:
        # Inside shard_map the mesh is the one of that place.
        inside = jax.sharding.get_abstract_mesh()
        sharding = NamedSharding(self.mesh if inside.empty else inside, spec)
        return jax.lax.with_sharding_constraint(of_run, sharding)

    def place_table(self, table: TokenTable) -> TokenTable:
        """Puts a table of tokens on every device."""
        return place(table, self.whole())

    def place_indices(self, of_runs: Sequence[Sequence[BatchIndices]]) -> BatchIndices:
        """Puts the batches of each run's steps where the run is.

        They get leading axes over runs and steps.
        """
        stacked = _stack([_stack(of_steps) for of_steps in of_runs])
        # pmap takes them from the host.
        return stacked if self.strategy == "pmap" else place(stacked, self.over_runs())


def choose_mesh(
    config: DevicesConfig, runs: int, examples: int, devices: Any = None
) -> Mesh:
    """Arranges devices along the axes ``run`` and ``data``.

    By default as many devices as can share the runs evenly do, and all that this leaves
    over share the batches, whose ``examples`` are the most that they can share. Devices
    that are not there, or cannot be split as asked for, are a UserError. ``devices``
    are those of this machine unless others are given.
    """
    devices, wanted = devices or jax.devices(), config.devices
    if wanted is not None:
        if not hosts.alone():
            raise UserError(
                f"--devices {wanted}: several processes use all of theirs; drop it"
            )
        if wanted > len(devices):
            raise UserError(
                f"--devices {wanted}: there are {len(devices)}; give at most that many"
            )
        devices = devices[:wanted]
    elif runs == 1 and config.data_devices is None and hosts.alone():
        # The devices of a CPU share its cores.
        devices = devices[: 1 if devices[0].platform == "cpu" else examples]
    data_devices = config.data_devices
    if config.strategy == "pmap":
        data_devices = len(devices)
        if not hosts.alone():
            raise UserError(
                "--strategy pmap is for one process; several need --strategy jit"
            )
    if data_devices is None:
        shares = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        data_devices = len(devices) // max(n for n in shares if n <= runs)
    if len(devices) % data_devices:
        raise UserError(
            f"--data-devices must divide the {len(devices)} devices in use, "
            f"got {data_devices}"
        )
    return make_mesh(devices, data_devices)


def make_mesh(
    devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]  # no types
    data_devices: int = 1,
) -> Mesh:
    """Arranges devices, of which ``data_devices`` share one run's batch."""
    grid = np.array(devices).reshape(-1, data_devices)
    # Under explicit axes an embedding lookup with sharded ids is an error.
    return Mesh(grid, ("run", "data"), axis_types=(AxisType.Auto, AxisType.Auto))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays, the same in every process, on devices; each places its own part."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def own_shards(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    return jax.tree.map(own_shards, tree)


def over_runs(function, layout: Layout, values: tuple, shared: tuple = (), alone=None):
    """Calls ``function(*values of one run, *shared)`` for every run of ``values``.

    On a device with a single run, ``alone(*values, *shared)`` does it, if given.
    """

    def on_one_device(values, shared):
        count = len(jax.tree.leaves(values)[0])
        if count == 1 and alone is not None:
            return alone(*values, *shared)

        def of_run(values):
            return function(*values, *shared)

        if count == 1:
            return jax.tree.map(lambda leaf: leaf[None], of_run(first_run(values)))
        if count <= layout.group:
            return jax.vmap(of_run)(values)
        return jax.lax.map(of_run, values, batch_size=layout.group)

    if layout.run_devices == 1:
        return on_one_device(values, shared)
    # The axis data stays with the compiler, which inserts its sums. Nothing is summed
    # over runs and no result is shared by them, so that there is nothing to check;
    # and in JAX 0.12 the check stops the gradient of erf, which GELU takes.
    return jax.shard_map(
        on_one_device,
        mesh=layout.mesh,
        in_specs=(PartitionSpec("run"), PartitionSpec()),
        out_specs=PartitionSpec("run"),
        axis_names={"run"},
        check_vma=False,
    )(values, shared)


def first_run(values: Any) -> Any:
    """Takes the first run of values whose leading axis counts runs."""
    return jax.tree.map(lambda leaf: leaf[0], values)


def _stack(items: Sequence[BatchIndices]) -> BatchIndices:
    return BatchIndices(*map(np.stack, zip(*items, strict=True)))
