"""Processes that train together: how they join, agree, and which one writes."""

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cwgnc_train.config import HostsConfig, UserError


def join(config: HostsConfig) -> None:
    """Joins this process with the others, before anything asks JAX for a device."""
    if config.coordinator is None:
        return
    # It would catch SIGTERM, on which the processes agree together with the steps.
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
            raise UserError(
                "--coordinator auto: expected the environment of SLURM, Open MPI, "
                "Kubernetes or a TPU pod, found none; give --coordinator HOST:PORT "
                "with --num-processes and --process-id"
            ) from None
        raise UserError(
            f"--coordinator {config.coordinator}: the processes could not join: {error}"
        ) from error


def alone() -> bool:
    """Whether this process trains without others."""
    return jax.process_count() == 1


def is_primary() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Lets all processes pass a block, or none: a UserError says whose failed."""
    try:
        yield
    except Exception:
        multihost_utils.process_allgather(np.array(True))
        raise
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(False)))
    if failed.size:
        raise UserError(f"process {failed[0]} could not {what}; it says why itself")


def check_same(described: str) -> None:
    """Raises a UserError if processes describe their runs differently."""
    digest = np.frombuffer(hashlib.sha256(described.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    others = [i for i, other in enumerate(digests) if (other != digests[0]).any()]
    if others:
        raise UserError(
            f"process {others[0]} was asked for other runs than process 0: give all "
            f"the same flags, data and weights, and a --workdir that they share"
        )


def largest(*numbers: float) -> tuple[float, ...]:
    """Returns the largest that any process has, of each number."""
    if alone():
        return numbers
    each = multihost_utils.process_allgather(np.array(numbers, np.float32))
    return tuple(each.max(axis=0).tolist())


def on_host(tree: Any, index: int) -> Any:
    """Brings one run of a tree of arrays to the host, whole in each process."""

    def fetched(leaf):
        if leaf.is_fully_addressable:
            return jax.device_get(leaf[index])
        return multihost_utils.process_allgather(leaf, tiled=True)[index]

    return jax.tree.map(fetched, tree)


class Agreement:
    """Lets all processes act on what one of them has seen, at the same step.

    What a call returns was seen at the call before, so that no process waits for the
    steps it has just dispatched; a process that is alone gets its own numbers at once.
    """

    def __init__(self):
        self._before: jax.Array | None = None

    def __call__(self, *seen: int) -> tuple[int, ...]:
        """Takes what this process sees; returns the largest that any saw of each."""
        if alone():
            return seen
        each, largest = _programs()
        own = np.array([seen], np.int32)
        numbers = jax.make_array_from_callback(
            (each.mesh.size, len(seen)), each, lambda index: own
        )
        before, self._before = self._before, largest(numbers)
        if before is None:
            return (0,) * len(seen)
        return tuple(int(number) for number in np.asarray(before))


@functools.cache
def _programs():
    mesh = Mesh(np.array(jax.devices()), ("all",))
    whole = NamedSharding(mesh, PartitionSpec())
    each = NamedSharding(mesh, PartitionSpec("all"))
    return each, jax.jit(lambda x: x.max(axis=0), out_shardings=whole)
