"""The trees that hold the same leaves, and leaves of other kinds.

Each tree holds leaves whose paths are spelled here by hand, so what a transform does to
them alone is known. A kind is two functions: one makes the leaves from those of
``SHAPES``, the other puts them into a container.
"""

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.core
import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import optax
from flax import nnx

from tests.composition.transforms import SHAPES, nested

Flat = dict[str, Any]


def same(flat):
    return flat


@dataclasses.dataclass(frozen=True)
class Tree:
    """A kind of tree."""

    build: Callable[[Flat], Any] = nested
    """Puts leaves into the container."""

    leaves: Callable[[Flat], Flat] = same
    """Makes the leaves, or picks them."""

    rtol: float = 2e-5
    wide: bool = False
    """Whether leaves have 64 bits."""

    def precision(self):
        return jax.enable_x64(True) if self.wide else contextlib.nullcontext()


# --- Containers of the same leaves.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Encoder:
    embeddings: Layer
    layer_0: Layer
    layer_1: Layer
    classifier: Layer


class EncoderTuple(NamedTuple):
    embeddings: dict[str, Any]
    layer_0: dict[str, Any]
    layer_1: dict[str, Any]
    classifier: dict[str, Any]


class EqxLayer(eqx.Module):
    kernel: Any
    bias: Any = None
    name: str = eqx.field(default="a layer", static=True)


class EqxEncoder(eqx.Module):
    embeddings: EqxLayer
    layer_0: EqxLayer
    layer_1: EqxLayer
    classifier: EqxLayer


class NnxLayer(nnx.Module):
    def __init__(self, kernel, bias=None):
        self.kernel = nnx.Param(kernel)
        if bias is not None:
            self.bias = nnx.Param(bias)


class NnxEncoder(nnx.Module):
    def __init__(self, **layers):
        for name, layer in layers.items():
            setattr(self, name, layer)


def made_of(whole, layer):
    """A container with these classes for the whole and for each layer."""

    def build(flat):
        return whole(**{name: layer(**own) for name, own in nested(flat).items()})

    return build


def boxed(flat):
    """Linen's boxes around the kernels, as ``with_partitioning`` makes them."""

    class Module(nn.Module):
        own: Any

        @nn.compact
        def __call__(self):
            for name, leaf in self.own.items():
                init = lambda key, leaf=leaf: leaf
                if name == "kernel":
                    init = nn.with_partitioning(
                        init, ("x",) + (None,) * (leaf.ndim - 1)
                    )
                self.param(name, init)

    return {
        name: Module(own).init(jax.random.key(0))["params"]
        for name, own in nested(flat).items()
    }


def in_a_tuple(flat):
    """The layers are a tuple."""
    tree = nested(flat)
    return {"layer": (tree.pop("layer_0"), tree.pop("layer_1")), **tree}


def numbered(flat):
    return {path.replace("layer_", "layer/"): leaf for path, leaf in flat.items()}


def without(path, hole):
    """The tree with a hole where this leaf was, and the leaves without it."""

    def build(flat):
        tree = nested(flat)
        module, name = path.split("/")
        tree.setdefault(module, {})[name] = hole
        return tree

    return Tree(build, lambda flat: {p: leaf for p, leaf in flat.items() if p != path})


# --- Leaves of other kinds.


def cast(dtype, *paths):
    """These leaves in another dtype, or all."""
    return lambda flat: {
        path: np.asarray(leaf, dtype) if not paths or path in paths else leaf
        for path, leaf in flat.items()
    }


def with_complex(flat):
    turned = flat["layer_1/kernel"] * np.exp(1j * np.arange(4.0).reshape(2, 2))
    return flat | {"layer_1/kernel": turned.astype(np.complex64)}


def with_empty(flat):
    return flat | {"layer_0/bias": np.zeros((0, 2), np.float32)}


def with_scalar(flat):
    return flat | {"layer_0/bias": flat["layer_0/bias"][1]}


TREES = {
    "dict": Tree(),
    "FrozenDict": Tree(lambda flat: flax.core.freeze(nested(flat))),
    "OrderedDict": Tree(lambda flat: OrderedDict(reversed(nested(flat).items()))),
    "tuple": Tree(in_a_tuple, numbered),
    "NamedTuple": Tree(lambda flat: EncoderTuple(**nested(flat))),
    "dataclass": Tree(made_of(Encoder, Layer)),
    "NNX State": Tree(lambda flat: nnx.state(made_of(NnxEncoder, NnxLayer)(flat))),
    "NNX Module": Tree(made_of(NnxEncoder, NnxLayer)),
    "Linen boxes": Tree(boxed),
    "Equinox Module": Tree(made_of(EqxEncoder, EqxLayer)),
    "None": without("layer_0/bias", None),
    "MaskedNode": without("layer_0/bias", optax.MaskedNode()),
    "MaskedNode, whole layer": without("layer_1/kernel", optax.MaskedNode()),
    "bfloat16": Tree(leaves=cast(ml_dtypes.bfloat16), rtol=2e-2),
    "bfloat16 among others": Tree(
        leaves=cast(ml_dtypes.bfloat16, "layer_0/kernel"), rtol=2e-2
    ),
    "float64": Tree(leaves=cast(np.float64), wide=True),
    "float64 among others": Tree(leaves=cast(np.float64, "layer_0/kernel"), wide=True),
    "complex": Tree(leaves=with_complex),
    "empty leaf": Tree(leaves=with_empty),
    "scalar leaf": Tree(leaves=with_scalar),
}
assert {path.split("/")[0] for path in SHAPES} == set(Encoder.__annotations__)
