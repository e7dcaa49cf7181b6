"""Ways to clip the gradients of a model, each ready to be timed.

JAX's are compiled to write what they return over their first argument, torch's work in
place as they do for their users.
"""

import functools
import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax.typing import ArrayLike

import cwgnc_jax
from benchmarks.torch_device import DEVICE, wait
from benchmarks.torch_step import clip_foreach
from benchmarks.torch_version import clip_each_parameter, clip_with_records
from benchmarks.training import MAX_NORM
from cwgnc_jax import models

OURS = "component_clip_by_global_norm"
PARTITION = "optax.partition of clips"
RECORDS = "torch, clip_grad_norm_ in a loop with its records"


def gradients_of(config: models.BertConfig) -> dict[str, Any]:
    """Random gradients; about half of the components are above the threshold."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))

    def draw(leaf):
        norm = MAX_NORM * rng.lognormal()
        values = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(values * np.float32(norm / np.linalg.norm(values)))

    return jax.tree.map(draw, shapes)


def clips(
    grads: Any, max_norm: ArrayLike = MAX_NORM
) -> dict[str, optax.GradientTransformation]:
    """What JAX's users could put in front of Adam."""
    names = list(cwgnc_jax.component_sizes(grads))
    paths = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), grads
    )
    each: dict[Hashable, optax.GradientTransformation] = {
        name: optax.clip_by_global_norm(max_norm) for name in names
    }
    return {
        OURS: cwgnc_jax.component_clip_by_global_norm(max_norm),
        PARTITION: optax.partition(each, paths),
        "optax.clip_by_block_rms": optax.clip_by_block_rms(max_norm),
        "optax.clip_by_global_norm": optax.clip_by_global_norm(max_norm),
    }


def falling() -> Iterator[float]:
    """Thresholds for clips in place, so that each finds as much to clip as the first.

    Where a norm is not above the threshold, what XLA makes of optax's clips writes
    nothing.
    """
    return (MAX_NORM * 0.999**number for number in itertools.count())


class Program:
    """A compiled function, with what it took to make it and what it holds and moves.

    Args:
      function: It may write what it returns over its first argument.
      arguments: To compile it for.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        start = time.perf_counter()
        traced = jax.jit(function, donate_argnums=0).trace(*arguments)
        traced_at = time.perf_counter()
        lowered = traced.lower()
        lowered_at = time.perf_counter()
        self.call = lowered.compile()
        compiled_at = time.perf_counter()
        memory, cost = self.call.memory_analysis(), self.call.cost_analysis()
        assert memory is not None and cost is not None, "XLA tells nothing"
        self.facts = {
            "trace": traced_at - start,
            "compile": compiled_at - lowered_at,
            "reused_bytes": memory.alias_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "accessed_bytes": cost.get("bytes accessed"),
        }


class Copy:
    """Reads and writes as many bytes as a copy of all gradients does, in place."""

    def __init__(self, grads: Any):
        self.flat = jnp.zeros(sum(leaf.size for leaf in jax.tree.leaves(grads)))
        self.program = Program(jnp.negative, self.flat)

    def __call__(self) -> jax.Array:
        """Copies once."""
        self.flat = self.program.call(self.flat)
        return self.flat


class Alone:
    """A clip on its own, which works in place on gradients of its own."""

    def __init__(self, name: str, grads: Any):
        def clip(grads, max_norm):
            tx = clips(grads, max_norm)[name]
            return tx.update(grads, tx.init(grads))[0]

        self.program = Program(clip, grads, jnp.float32(MAX_NORM))
        self.grads, self.thresholds = jax.tree.map(jnp.copy, grads), falling()

    def __call__(self) -> Any:
        """Clips once."""
        self.grads = self.program.call(self.grads, np.float32(next(self.thresholds)))
        return self.grads


def torch_sides(grads: Any) -> dict[str, Callable[[], Any]]:
    """The torch version's loop, with its records and without, and the foreach form."""
    parameters = _parameters(map(_to_torch, jax.tree.leaves(grads)))
    named = [(str(number), p) for number, p in enumerate(parameters)]
    grads_of = [parameter.grad for parameter in parameters]
    sides = {
        "torch, clip_grad_norm_ in a loop": functools.partial(
            clip_each_parameter, parameters
        ),
        RECORDS: functools.partial(clip_with_records, named),
        "torch, foreach": functools.partial(clip_foreach, grads_of),
    }

    def over(clip, thresholds):
        def call():
            clip(next(thresholds))
            wait()
            return grads_of

        return call

    return {name: over(clip, falling()) for name, clip in sides.items()}


def check_equal(grads: Any, ours: Any, partition: Any) -> None:
    """Raises if JAX's component-wise clips differ from torch's of the same in float64.

    In float32 torch's norms of large tensors are too small on a CPU, by 1.7e-3 for
    BERT-large's word embeddings (pytorch/pytorch#68326).
    """
    sides = map(jax.tree.leaves, (grads, ours, partition))
    for grad, one, other in zip(*sides, strict=True):
        [parameter] = _parameters([_to_torch(grad).double()])
        clip_each_parameter([parameter], MAX_NORM)
        assert parameter.grad is not None
        theirs = parameter.grad.cpu().numpy()
        np.testing.assert_allclose(one, theirs, rtol=1e-6)
        # Optax has no eps, which is 2e-5 of the threshold.
        np.testing.assert_allclose(other, theirs, rtol=3e-5)


def _parameters(grads: Iterable[torch.Tensor]) -> list[torch.nn.Parameter]:
    parameters = []
    for grad in grads:
        parameter = torch.nn.Parameter(torch.zeros_like(grad))
        parameter.grad = grad
        parameters.append(parameter)
    return parameters


def _to_torch(leaf: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(leaf)).to(DEVICE)
