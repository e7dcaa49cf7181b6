"""Several processes that make one run: how they join, agree, and who writes."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import HostsConfig


def join(config: HostsConfig) -> None:
    """Joins this process with the others of its run, if it is to have any.

    Must come before anything that asks JAX for a device.

    Args:
      config: Where the others are.

    Raises:
      ValueError: If they cannot be found or reached.
    """
    if config.coordinator is None:
        return
    # It would take SIGTERM, which is agreed on with the steps that are under way.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        if config.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(
                config.coordinator, config.num_processes, config.process_id
            )
    except (ValueError, RuntimeError) as error:
        if config.coordinator == "auto" and "should be defined" in str(error):
            raise ValueError(
                "--coordinator auto: expected the environment of SLURM, Open MPI, "
                "Kubernetes or a TPU pod, found none; give --coordinator HOST:PORT "
                "with --num-processes and --process-id"
            ) from None
        raise ValueError(
            f"--coordinator {config.coordinator}: the processes could not join: {error}"
        ) from error


def alone() -> bool:
    """Whether this process makes its run without others."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has called this with the same name."""
    if not alone():
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Lets all processes get past a block, or none.

    Raises:
      ValueError: If another process did not get to the end of the block.
    """
    try:
        yield
    except Exception:
        _failures(True)
        raise
    failed = _failures(False)
    if failed:
        raise ValueError(f"process {failed[0]} could not {what}; it says why itself")


def check_same(told: Callable[[], str]) -> None:
    """Raises a ValueError if processes were told to make different runs.

    Args:
      told: Describes the run; called only if there are others.
    """
    if alone():
        return
    digest = np.frombuffer(hashlib.sha256(told().encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    others = [i for i, other in enumerate(digests) if (other != digests[0]).any()]
    if others:
        raise ValueError(
            f"process {others[0]} was told to make another run than process 0: give "
            f"all the same flags, data, weights and a --workdir that they share"
        )


class Agreement:
    """Lets all processes act on what one of them has seen, at the same step.

    Numbers that any process saw at one call are returned by the next call, in all of
    them: no process waits for the steps that it has just dispatched. A process that is
    alone has its own numbers back at once.
    """

    def __init__(self):
        self._before: jax.Array | None = None

    def __call__(self, *seen: int) -> tuple[int, ...]:
        """Takes what this process sees.

        Args:
          seen: Numbers, 0 for nothing.

        Returns:
          The largest that any process saw, of each number.
        """
        if alone():
            return seen
        before, self._before = self._before, _largest(seen)
        if before is None:
            return (0,) * len(seen)
        return tuple(int(number) for number in np.asarray(before))


def _failures(failed: bool) -> list[int]:
    """Which processes failed."""
    if alone():
        return []
    return np.flatnonzero(multihost_utils.process_allgather(np.array(failed))).tolist()


def _largest(numbers: tuple[int, ...]) -> jax.Array:
    each, largest = _programs()
    shape = each.mesh.size, len(numbers)
    own = np.array([numbers], np.int32)
    return largest(jax.make_array_from_callback(shape, each, lambda index: own))


@functools.cache
def _programs():
    mesh = Mesh(np.array(jax.devices()), ("all",))
    whole = NamedSharding(mesh, PartitionSpec())
    each = NamedSharding(mesh, PartitionSpec("all"))
    return each, jax.jit(lambda x: x.max(axis=0), out_shardings=whole)
