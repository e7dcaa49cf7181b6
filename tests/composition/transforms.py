"""Every public transform, and what it does to leaves that stand alone.

Leaves that stand alone are a flat dict from path to array. What a clip, a decay or an
unfreezing does to them is stated here in NumPy; the clips that learn and Adam run
plainly, outside of any wrapper or container.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import component_clip_by_global_norm as clip

SHAPES = {
    "classifier/kernel": (2,),
    "embeddings/kernel": (2, 2),
    "layer_0/bias": (2,),
    "layer_0/kernel": (2, 2),
    "layer_1/kernel": (2, 2),
}
SCALES = (1.0, 3.0, 0.3, 2.0)


def _flat(seed, scale):
    rng = np.random.default_rng(seed)
    return {
        path: (scale * rng.normal(size=shape)).astype(np.float32)
        for path, shape in SHAPES.items()
    }


PARAMS, PRETRAINED = _flat(0, 1.0), _flat(1, 1.0)
GRADS = [_flat(2 + i, scale) for i, scale in enumerate(SCALES)]


def nested(flat):
    """The same leaves as a dict of modules."""
    tree: dict[str, dict[str, Any]] = {}
    for path, leaf in flat.items():
        tree.setdefault(module(path), {})[path.split("/")[-1]] = jnp.asarray(leaf)
    return tree


def module(path):
    """What holds the leaf; layers in a tuple are called as those in a dict."""
    return path.rpartition("/")[0].replace("/", "_")


# --- What a transform does to leaves alone: Leaves = dict[str, np.ndarray].


def as_jax(flat):
    return {path: jnp.asarray(leaf) for path, leaf in flat.items()}


def plainly(make):
    """The transform itself, step by step."""
    # One transform for all leaves, so that each set of them is compiled once.
    tx = make()
    update = jax.jit(tx.update)

    def run(params, grads, pretrained=None):
        params = as_jax(params)
        state, history = tx.init(params), []
        for of_step in grads:
            updates, state = update(as_jax(of_step), state, params)
            history.append(updates)
        return history

    return run


def clipped(threshold, component=lambda path: path):
    """The clip; ``threshold(name, gradients, params, step)`` may be infinite."""

    def of_step(params, grads, step):
        groups: dict[str, list[str]] = {}
        for path in grads:
            groups.setdefault(component(path), []).append(path)
        result = {}
        for name, paths in groups.items():
            norm = length(grads[path] for path in paths)
            params_of = {path: params[path] for path in paths}
            limit = threshold(name, {p: grads[p] for p in paths}, params_of, step)
            factor = min(1.0, limit / (norm + 1e-6))
            result |= {path: wide(grads[path]) * factor for path in paths}
        return result

    def run(params, grads, pretrained):
        return [of_step(params, of_one, step) for step, of_one in enumerate(grads)]

    return run


def wide(leaf):
    """The leaf in double precision."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.complex128 if np.iscomplexobj(leaf) else np.float64)


def length(leaves):
    return math.sqrt(sum(float(np.sum(np.abs(wide(leaf)) ** 2)) for leaf in leaves))


def layer_decayed(params, grads, pretrained):
    factors = {"embeddings": 0.125, "layer_0": 0.25, "layer_1": 0.5, "classifier": 1}
    return [
        {path: wide(leaf) * factors[module(path)] for path, leaf in step.items()}
        for step in grads
    ]


def pulled(params, grads, pretrained):
    return [
        {
            path: wide(leaf) + 0.1 * (wide(params[path]) - wide(pretrained[path]))
            for path, leaf in step.items()
        }
        for step in grads
    ]


THAWS = {"classifier": 0, "layer_1": 1, "layer_0": 2, "embeddings": 2}
"""The step at which each module starts to train under ``thaw_steps=[1, 2]``."""


def unfrozen(alone):
    """Each depth by itself, from the step at which it thaws; zeros before."""

    def run(params, grads, pretrained):
        history = [{path: 0 * wide(leaf) for path, leaf in g.items()} for g in grads]
        for name, start in THAWS.items():
            paths = [path for path in params if module(path) == name]
            own = [{path: g[path] for path in paths} for g in grads[start:]]
            of_module = alone({path: params[path] for path in paths}, own)
            for step, updates in enumerate(of_module, start):
                history[step] |= updates
        return history

    return run


# --- The table.


@dataclasses.dataclass(frozen=True)
class Transform:
    """A factory, its arguments for a tree of parameters, and the right values."""

    factory: Callable[..., optax.GradientTransformation]
    arguments: dict[str, Any]
    stated: Callable[..., list[dict[str, Any]]] | None = None
    """What it does to leaves alone; None runs it plainly."""

    towards: bool = False
    """Whether it takes ``pretrained``, a tree like the parameters."""

    static: tuple[str, ...] = ()
    """Arguments that are no numbers, though ``inject_hyperparams`` takes them so."""

    def make(self, pretrained=None, **more):
        return self.factory(**self.arguments_with(pretrained), **more)

    def arguments_with(self, pretrained):
        return self.arguments | ({"pretrained": pretrained} if self.towards else {})

    @property
    def for_shards(self):
        """What the factory needs to know where devices hold parts of leaves."""
        has_axis = "axis_name" in inspect.signature(self.factory).parameters
        return {"axis_name": "x"} if has_axis else {}

    @functools.cached_property
    def _alone(self):
        return self.stated or plainly(self.make)

    def alone(self, params, grads, pretrained=PRETRAINED):
        """The updates of each step; all are flat."""
        return self._alone(params, grads, pretrained)


COMPONENTS = cwgnc_jax.by_rules(
    [("classifier/.*", "head"), (r"layer[_/](\d)/.*", r"layer \1"), ("(.*)/.*", r"\1")]
)
THRESHOLDS = [
    ("head", None),
    ("layer 0", optax.linear_schedule(1.0, 0.1, 3)),
    ("layer 1", cwgnc_jax.relative_to_params(0.1)),
    ("embeddings", cwgnc_jax.per_element(0.1)),
]


def by_the_rules(name, grads, params, step):
    """The limits that THRESHOLDS set."""
    if name == "head":
        return math.inf
    if name == "layer 0":
        return max(1.0 - 0.3 * step, 0.1)
    if name == "layer 1":
        return 0.1 * max(length(params.values()), 1e-3)
    return 0.1 * math.sqrt(sum(np.size(leaf) for leaf in grads.values()))


# That of Optax loses the moments of a leaf whose gradient is None.
ADAM = optax.chain(cwgnc_jax.scale_by_adam(), optax.scale(-0.1))

TRANSFORMS = {
    "clip": Transform(clip, {"max_norm": 0.5}, clipped(lambda *_: 0.5)),
    "clip by rules": Transform(
        clip,
        {"max_norm": THRESHOLDS, "component_fn": COMPONENTS},
        clipped(by_the_rules, COMPONENTS),
        static=("component_fn",),
    ),
    "clip by module, reporting": Transform(
        clip,
        {
            "max_norm": 0.5,
            "component_fn": cwgnc_jax.by_module,
            "nonfinite": "zero",
            "keep_report": True,
        },
        clipped(lambda *_: 0.5, module),
        static=("component_fn",),
    ),
    "bertadam_clip": Transform(cwgnc_jax.bertadam_clip, {}, clipped(lambda *_: 1.0)),
    "adagc": Transform(cwgnc_jax.adagc, {"warmup_steps": 1}),
    "aggc": Transform(cwgnc_jax.aggc, {"low": 0.5, "high": 1.5, "keep_report": True}),
    "olmo_clip": Transform(cwgnc_jax.olmo_clip, {"ratio": 1.1}),
    "autoclip": Transform(
        cwgnc_jax.autoclip,
        {"percentile": 30.0, "history_length": 3},
        static=("history_length",),
    ),
    "zclip": Transform(cwgnc_jax.zclip, {"z_threshold": 0.1, "warmup_steps": 1}),
    "scale_by_adam": Transform(cwgnc_jax.scale_by_adam, {}),
    "scale_by_spam": Transform(
        cwgnc_jax.scale_by_spam,
        {"interval": 2, "spared_steps": 0, "warmup_steps": 1, "threshold": 0.5},
    ),
    "cwgnc_adamw": Transform(
        cwgnc_jax.cwgnc_adamw,
        {"learning_rate": 0.1, "max_norm": 0.5, "weight_decay": 0.1},
    ),
    "scale_by_layer_decay": Transform(
        cwgnc_jax.scale_by_layer_decay, {"decay": 0.5}, layer_decayed
    ),
    "add_decayed_weights_towards": Transform(
        cwgnc_jax.add_decayed_weights_towards, {"rate": 0.1}, pulled, towards=True
    ),
    "gradual_unfreezing": Transform(
        cwgnc_jax.gradual_unfreezing,
        {"tx": ADAM, "thaw_steps": [1, 2]},
        unfrozen(plainly(lambda: ADAM)),
    ),
    "spike_skip": Transform(
        cwgnc_jax.spike_skip,
        {"inner": ADAM, "sigmas": 0.1, "window": 4},
        static=("window",),
    ),
}

LIKE_OTHERS = {
    *("bertadam_clip", "aggc", "olmo_clip", "autoclip", "zclip"),
    *("scale_by_spam", "cwgnc_adamw"),
}
"""Those that share all but a rule with others, or are made of others."""


def pairs(others, usual):
    """Every transform with each of the others; those that are not usual are slow."""
    return [
        pytest.param(name, other, marks=() if usual(name, other) else pytest.mark.slow)
        for name in TRANSFORMS
        for other in others
    ]
