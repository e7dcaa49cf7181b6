"""The statistics of every component over time, read back from ``components.jsonl``."""

import dataclasses
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.records import parse_line

# The statistics that are drawn; the records hold more.
STATISTICS = ("rmsd", "cosine", "grad_norm", "param_norm")
# In the order of the forward pass; modules not named here come last.
_MODULES = {
    "word_embeddings": "words",
    "position_embeddings": "positions",
    "token_type_embeddings": "token types",
    "LayerNorm": "LayerNorm",
    "embeddings_project": "projection",
    "attention/self/query": "query",
    "attention/self/key": "key",
    "attention/self/value": "value",
    "attention/output/dense": "attention output",
    "attention/output/LayerNorm": "attention LayerNorm",
    "intermediate/dense": "intermediate",
    "output/dense": "output",
    "output/LayerNorm": "output LayerNorm",
    # DistilBERT's
    "attention/q_lin": "query",
    "attention/k_lin": "key",
    "attention/v_lin": "value",
    "attention/out_lin": "attention output",
    "sa_layer_norm": "attention LayerNorm",
    "ffn/lin1": "intermediate",
    "ffn/lin2": "output",
    "output_layer_norm": "output LayerNorm",
    # ModernBERT's
    "tok_embeddings": "words",
    "norm": "LayerNorm",
    "attn_norm": "attention LayerNorm",
    "attn/Wqkv": "query, key and value",
    "attn/Wo": "attention output",
    "mlp_norm": "feed-forward LayerNorm",
    "mlp/Wi": "intermediate",
    "mlp/Wo": "output",
    "model/final_norm": "last LayerNorm",
    "head/dense": "head dense",
    "head/norm": "head LayerNorm",
    "pooler/dense": "pooler",
    "pre_classifier": "head dense",
    "classifier/dense": "head dense",
    "classifier/out_proj": "classifier",
    "classifier": "classifier",
}
_LEAVES = ("embedding", "kernel", "scale", "bias")


class Component(NamedTuple):
    """Where a component belongs."""

    name: str
    depth: int
    """0 for the embeddings, then the layers from 1, and behind them the heads."""
    module: str
    """The module within its layer: attention/self/query"""
    leaf: str
    """kernel, scale, bias or embedding"""

    @property
    def kind(self) -> str:
        """The component type, which layers have in common."""
        return f"{self.module}/{self.leaf}"

    @property
    def label(self) -> str:
        """The component type as figures call it."""
        leaf = "" if self.leaf == "embedding" else f" {self.leaf}"
        return module_label(self.module) + leaf

    @property
    def rank(self) -> tuple[int, int, str]:
        """What component types are sorted by: kernels, scales, biases."""
        modules = list(_MODULES)
        place = modules.index(self.module) if self.module in modules else len(modules)
        leaf = _LEAVES.index(self.leaf) if self.leaf in _LEAVES else len(_LEAVES)
        return leaf, place, self.kind

    @property
    def is_key_bias(self) -> bool:
        """Whether it is the bias of the attention's keys.

        A softmax does not change if the same is added to all its arguments, so the
        gradient of this bias is zero but for rounding, and so is what it learns.
        """
        return self.kind.endswith(("self/key/bias", "attention/k_lin/bias"))


@dataclasses.dataclass(frozen=True)
class Course:
    """The statistics of one run."""

    steps: np.ndarray
    """The measured steps, ascending and counted from 1: ``[steps]``."""
    rmsd: np.ndarray
    """Root-mean-square difference to the weights at the start, as all that follow
    ``[steps, components]``."""
    cosine: np.ndarray
    """Cosine similarity to the weights at the start."""
    grad_norm: np.ndarray
    """Norm of the gradient before the clip."""
    param_norm: np.ndarray
    """Norm of the weights."""


@dataclasses.dataclass(frozen=True)
class Components:
    """The statistics of the finished runs of a study."""

    components: list[Component]
    """In the order of the statistics."""
    courses: dict[str, Course]
    """By the name of the run; a run without statistics is missing."""

    @property
    def layers(self) -> int:
        """The number of layers of the encoder."""
        return max((c.depth for c in self.components), default=1) - 1

    def places(self, depth: int | None = None, kind: str | None = None) -> list[int]:
        """Finds the components of a depth or of a type, kernels first."""
        places = [
            i
            for i, component in enumerate(self.components)
            if depth in (None, component.depth) and kind in (None, component.kind)
        ]
        return sorted(
            places, key=lambda i: (self.components[i].depth, self.components[i].rank)
        )


def read_components(workdir: Path, runs: Collection[str]) -> Components:
    """Reads ``components.jsonl``.

    Args:
      workdir: The study's folder; it may still be written to.
      runs: The names of the finished runs; all others are left out.

    Returns:
      Their statistics; of a step that was written twice the later ones.

    Raises:
      FileNotFoundError: If the study has recorded no such statistics.
      ValueError: If a record is damaged.
    """
    path = Path(workdir) / "components.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the study has no per-component statistics: run it "
            f"with --statistics-every 20"
        )
    names: list[str] = []
    rows: dict[str, dict[int, np.ndarray]] = {}
    for number, record in _records(path):
        try:
            if record["kind"] == "names":
                names = _names(record, names)
            elif record["kind"] == "components" and record["run"] in runs:
                row = _row(record, len(names))
                rows.setdefault(record["run"], {})[int(record["step"])] = row
        except (KeyError, TypeError, ValueError) as error:
            what = "lacks" if isinstance(error, KeyError) else "is wrong:"
            raise ValueError(
                f"{path}, line {number}: the record {what} {error}; restore the line"
            ) from None
    return Components(
        locate(names), {run: _course(by_step) for run, by_step in rows.items()}
    )


def locate(names: list[str]) -> list[Component]:
    """Says of every component in which layer it is and of what type.

    Args:
      names: The paths of the parameters, as Hugging Face's encoders name them.

    Returns:
      The components, in the same order.
    """
    inside = [re.search(r"(?:^|/)layers?/(\d+)/(.+)", name) for name in names]
    heads = 2 + max((int(match[1]) for match in inside if match), default=-1)
    components = []
    for name, match in zip(names, inside, strict=True):
        if match:
            depth, kind = int(match[1]) + 1, match[2]
        elif below := re.search(
            r"(?:^|/)(?:embeddings/|(?=embeddings_project/))(.+)", name
        ):
            depth, kind = 0, below[1]
        else:
            depth, kind = heads, name[max(0, name.find("pooler/")) :]
        module, _, leaf = kind.rpartition("/")
        components.append(Component(name, depth, module, leaf))
    return components


def module_label(module: str) -> str:
    """Returns the name of a module as figures call it."""
    return _MODULES.get(module, module.replace("_", " "))


def _records(path) -> Iterator[tuple[int, dict]]:
    # Line by line: of a large study there are gigabytes.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # It is being written just now.
            yield number, parse_line(path, number, line)


def _names(record, known):
    names = list(map(str, record["components"]))
    if known and names != known:
        raise ValueError("the components are not those that were named before")
    return names


def _row(record, size):
    row = np.array([record[name] for name in STATISTICS], np.float64)
    if not size:
        raise ValueError("no line before it names the components")
    if row.shape[1:] != (size,):
        raise ValueError(f"expected {size} numbers of each kind, got {row.shape[-1]}")
    return row


def _course(by_step):
    steps = np.array(sorted(by_step))
    values = np.stack([by_step[step] for step in steps], axis=1)
    return Course(steps, *values)
