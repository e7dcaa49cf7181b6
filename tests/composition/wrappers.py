"""Every wrapper, and what it makes of the updates of leaves that stand alone.

A wrapper is given a transform of the table. It says what its optimizer is, which
parameters and gradients that takes in each step, and the right updates: those of
``Transform.alone`` on the leaves that the transform may see, with the wrapper's own
meaning applied by hand.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import optax.contrib

import cwgnc_jax
from tests.composition.transforms import GRADS, PARAMS, PRETRAINED, Transform, nested

Flat = dict[str, Any]
PLAIN = nested(PARAMS)
PULL = nested(PRETRAINED)


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """How to wrap a transform, and the right updates."""

    wrap: Callable[[optax.GradientTransformation], Any]
    expected: Callable[[Transform], list[Any]]
    grads: list[Any] = dataclasses.field(default_factory=lambda: GRADS[:3])
    params: Any = dataclasses.field(default_factory=lambda: PLAIN)

    def optimizer(self, transform, **more):
        return self.wrap(transform.make(PULL, **more))

    def nested_grads(self):
        return [nested(flat) for flat in self.grads]


def sees(*modules):
    """Picks the leaves of these modules, or a single leaf by its path."""
    return [path for path in PARAMS if path in modules or path.split("/")[0] in modules]


def only(flat, paths):
    return {path: flat[path] for path in paths}


def alone(transform, paths=tuple(PARAMS), grads=None):
    grads = GRADS[:3] if grads is None else grads
    return transform.alone(only(PARAMS, paths), [only(flat, paths) for flat in grads])


def labels(**groups):
    """The tree of labels with which ``optax.partition`` finds these groups."""
    return nested_labels(
        {path: label for label, paths in groups.items() for path in paths}
    )


def nested_labels(of_path):
    tree: dict[str, dict[str, Any]] = {}
    for path, label in of_path.items():
        module, name = path.split("/")
        tree.setdefault(module, {})[name] = label
    return tree


def zeros_like(flat):
    return {path: np.zeros_like(leaf) for path, leaf in flat.items()}


def scaled(flat, factor):
    return {path: np.asarray(leaf) * factor for path, leaf in flat.items()}


# --- masked and partition: the transform sees some of the leaves.

UNMASKED = sees("embeddings", "layer_0/kernel", "layer_1")
MASK = nested_labels({path: path in UNMASKED for path in PARAMS})
LOWER, UPPER = sees("embeddings", "layer_0"), sees("layer_1", "classifier")


def masked(transform):
    """The others pass as they are."""
    seen = alone(transform, UNMASKED)
    return [flat | updates for flat, updates in zip(GRADS, seen, strict=False)]


def one_group(transform):
    """The others belong to a transform that turns their signs."""
    seen = alone(transform, LOWER)
    return [scaled(f, -1.0) | u for f, u in zip(GRADS, seen, strict=False)]


def all_groups(transform):
    """Each group is alone."""
    pairs = zip(alone(transform, LOWER), alone(transform, UPPER), strict=True)
    return [lower | upper for lower, upper in pairs]


# --- Wrappers that leave steps out.

NANS = {path: np.full_like(leaf, np.nan) for path, leaf in GRADS[1].items()}
MEANS = [
    {path: (one[path] + other[path]) / 2 for path in one}
    for one, other in (GRADS[:2], GRADS[2:])
]


def accumulated(transform):
    first, second = alone(transform, grads=MEANS)
    return [zeros_like(PARAMS), first, zeros_like(PARAMS), second]


def finite(transform):
    first, third = alone(transform, grads=[GRADS[0], GRADS[2]])
    return [first, zeros_like(PARAMS), third]


def even_steps(transform):
    first, third = alone(transform, grads=[GRADS[0], GRADS[2]])
    return [first, zeros_like(PARAMS), third]


# --- Wrappers of optimizers: here the transform was applied before, by hand.

BOTH = optax.LookaheadParams(fast=PLAIN, slow=PULL)


def looking_ahead(tx):
    return optax.lookahead(tx, sync_period=2, slow_step_size=0.5, reset_state=True)


def looked_ahead(transform):
    """Each period starts with a fresh state."""
    updates = [u for g in (GRADS[:2], GRADS[2:]) for u in alone(transform, grads=g)]
    return run_by_hand(looking_ahead(optax.identity()), updates, BOTH)


def free(tx):
    return optax.contrib.schedule_free(optax.chain(tx, optax.scale(-0.1)), 0.1)


def freed(transform):
    return run_by_hand(free(optax.identity()), alone(transform), PLAIN)


def run_by_hand(tx, history, params):
    state, results = tx.init(params), []
    for updates in history:
        result, state = tx.update(nested(updates), state, params)
        results.append(result)
    return results


# --- gradual_unfreezing as a wrapper: each depth is alone from its step on.


STARTS = {"classifier": 0, "layer_1": 0, "layer_0": 1, "embeddings": 1}


def unfrozen(transform):
    history = [zeros_like(PARAMS) for _ in range(3)]
    for module, start in STARTS.items():
        updates = alone(transform, sees(module), GRADS[start:3])
        for step, of_step in enumerate(updates, start):
            history[step] |= scaled(of_step, -1.0)
    return history


WRAPPERS = {
    "chain": Wrapper(
        lambda tx: optax.chain(optax.scale(2.0), tx, optax.scale(-1.0)),
        lambda transform: [
            scaled(updates, -1.0)
            for updates in alone(transform, grads=[scaled(g, 2.0) for g in GRADS[:3]])
        ],
    ),
    "masked": Wrapper(lambda tx: optax.masked(tx, MASK), masked),
    "partition, one group": Wrapper(
        lambda tx: optax.partition(
            {"seen": tx, "rest": optax.scale(-1.0)}, labels(seen=LOWER, rest=UPPER)
        ),
        one_group,
    ),
    "partition, all groups": Wrapper(
        lambda tx: optax.partition(
            {"lower": tx, "upper": tx}, labels(lower=LOWER, upper=UPPER)
        ),
        all_groups,
    ),
    "MultiSteps": Wrapper(
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        accumulated,
        GRADS,
    ),
    "apply_if_finite": Wrapper(
        lambda tx: optax.apply_if_finite(tx, 3), finite, [GRADS[0], NANS, GRADS[2]]
    ),
    "conditionally_mask": Wrapper(
        lambda tx: optax.conditionally_mask(tx, lambda step: step % 2 == 0), even_steps
    ),
    "schedule_free": Wrapper(free, freed),
    "lookahead": Wrapper(looking_ahead, looked_ahead, GRADS, BOTH),
    "gradual_unfreezing": Wrapper(
        lambda tx: cwgnc_jax.gradual_unfreezing(
            optax.chain(tx, optax.scale(-1.0)), thaw_steps=[0, 1]
        ),
        unfrozen,
    ),
}


class Injected(Wrapper):
    """``inject_hyperparams`` wraps the factory instead of what it makes."""

    def optimizer(self, transform, **more):
        factory = optax.inject_hyperparams(transform.factory, transform.static)
        return factory(**transform.arguments_with(PULL), **more)


WRAPPERS["inject_hyperparams"] = Injected(lambda tx: tx, alone)
