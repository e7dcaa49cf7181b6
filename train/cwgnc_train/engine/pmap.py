"""Training steps by ``jax.pmap``: one run whose devices share its batches."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from cwgnc_train.data import BatchIndices, Shape, TokenTable, packed_batch
from cwgnc_train.engine.layout import Layout
from cwgnc_train.engine.step import RunState, StepConfig, train_step_alone

_AXIS = "data"


def pmap_train_steps(
    config: StepConfig, layout: Layout, shape: Shape, measured: bool = False
) -> Callable[..., Any]:
    """Does what ``programs.compile_train_steps`` does, by ``jax.pmap``.

    ``shape`` is that of each device's part of a batch. The function takes batches in as
    many parts as there are devices, or a multiple of them.
    """
    devices = list(layout.mesh.devices.flat)

    @functools.partial(
        jax.pmap,
        axis_name=_AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )
    def on_devices(state, table, indices):
        def step(state, indices):
            batch = packed_batch(table, indices, shape)
            return train_step_alone(config, state, batch, measured, axis_name=_AXIS)

        state, metrics = jax.lax.scan(step, state, indices)
        return state, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), metrics)

    def steps(state: RunState, table: TokenTable, indices: BatchIndices):
        def by_device(leaf):
            # [1 run, steps, devices * parts, slots] to [devices, steps, (parts,) slots]
            _, count, *parts, slots = leaf.shape
            parts = math.prod(parts)
            each = parts // len(devices)
            leaf = leaf.reshape(count, len(devices), each, slots).swapaxes(0, 1)
            return leaf[:, :, 0] if each == 1 else leaf

        state, metrics = on_devices(state, table, jax.tree.map(by_device, indices))
        return jax.device_put(state, layout.whole()), metrics

    return steps
