"""The statistics of every component over time, read from ``components.jsonl``."""

import dataclasses
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cwgnc_train.analysis.record_fields import count_field, naming_line
from cwgnc_train.config import UserError
from cwgnc_train.records import parse_lines

# The statistics that are drawn; the records have more.
DRAWN_STATISTICS = ("rmsd", "cosine", "grad_norm", "param_norm")
# In the order of the forward pass; unknown modules come last.
_MODULE_LABELS = {
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
    # DistilBERT
    "attention/q_lin": "query",
    "attention/k_lin": "key",
    "attention/v_lin": "value",
    "attention/out_lin": "attention output",
    "sa_layer_norm": "attention LayerNorm",
    "ffn/lin1": "intermediate",
    "ffn/lin2": "output",
    "output_layer_norm": "output LayerNorm",
    # ModernBERT
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
    """A component and its place in the encoder."""

    name: str
    depth: int
    """0 for the embeddings, 1 and up for the layers, then one more for the heads."""
    module: str
    """The module within its layer, such as attention/self/query."""
    leaf: str
    """kernel, scale, bias or embedding."""

    @property
    def kind(self) -> str:
        """The component type, which is the same in all layers."""
        return f"{self.module}/{self.leaf}"

    @property
    def label(self) -> str:
        """The component type as figures show it."""
        leaf = "" if self.leaf == "embedding" else f" {self.leaf}"
        return module_label(self.module) + leaf

    @property
    def rank(self) -> tuple[int, int, str]:
        """The sort key: kernels, then scales, then biases."""
        modules = list(_MODULE_LABELS)
        place = modules.index(self.module) if self.module in modules else len(modules)
        leaf = _LEAVES.index(self.leaf) if self.leaf in _LEAVES else len(_LEAVES)
        return leaf, place, self.kind

    @property
    def is_key_bias(self) -> bool:
        """Whether this is the bias of the attention keys.

        It adds the same amount to all arguments of a softmax, which changes nothing.
        Its gradient, and so what it learns, is therefore only rounding error.
        """
        return self.kind.endswith(("self/key/bias", "attention/k_lin/bias"))


@dataclasses.dataclass(frozen=True)
class Course:
    """The statistics of one run's components over time."""

    steps: Int[np.ndarray, " steps"]
    """The measured steps, ascending and counted from 1."""
    rmsd: Float[np.ndarray, "steps components"]
    """Root-mean-square difference from the initial weights."""
    cosine: Float[np.ndarray, "steps components"]
    """Cosine similarity to the initial weights."""
    grad_norm: Float[np.ndarray, "steps components"]
    """Norm of the gradient before the clip."""
    param_norm: Float[np.ndarray, "steps components"]
    """Norm of the weights."""


@dataclasses.dataclass(frozen=True)
class ComponentCourses:
    """The statistics of the components of all finished runs."""

    components: list[Component]
    """In the order of the statistics."""
    courses: dict[str, Course]
    """By the name of the run; runs without statistics are missing."""

    @property
    def layers(self) -> int:
        """The number of layers of the encoder."""
        return max(0, max((c.depth for c in self.components), default=1) - 1)

    def places(self, depth: int | None = None, kind: str | None = None) -> list[int]:
        """Returns the indices of the components of a depth, a type, or both.

        They are sorted by depth, and within a depth kernels come first.
        """
        places = [
            i
            for i, component in enumerate(self.components)
            if depth in (None, component.depth) and kind in (None, component.kind)
        ]
        return sorted(
            places, key=lambda i: (self.components[i].depth, self.components[i].rank)
        )


def read_component_courses(workdir: Path, runs: Collection[str]) -> ComponentCourses:
    """Reads ``components.jsonl``.

    Args:
      workdir: The folder of the records; runs may still be writing to it.
      runs: The names of the finished runs; all others are left out.

    Returns:
      Their statistics. Of a step that was recorded twice, the later record counts.

    Raises:
      UserError: If no such statistics were recorded, or a record is damaged.
    """
    path = workdir / "components.jsonl"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: nothing has recorded per-component statistics; run "
            f"the command with --statistics-every 20"
        )
    names: list[str] = []
    rows: dict[str, dict[int, np.ndarray]] = {}
    for number, record in _records(path):
        with naming_line(path, number, record.get("kind")):
            if _names_parameters(record):
                names = _names(record, names)
            elif record["kind"] == "components" and record["run"] in runs:
                step, row = count_field(record, "step"), _row(record, len(names))
                rows.setdefault(record["run"], {})[step] = row
    return ComponentCourses(
        locate(names), {run: _course(by_step) for run, by_step in rows.items()}
    )


def locate(names: list[str]) -> list[Component]:
    """Finds the layer and type of every component.

    Args:
      names: The paths of the parameters, named as in Hugging Face's encoders.

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
    """Returns the name of a module as figures show it."""
    return _MODULE_LABELS.get(module, module.replace("_", " "))


def _records(path) -> Iterator[tuple[int, dict]]:
    # Line by line, since a large study has gigabytes of them.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # It is still being written.
            yield number, _parse_line(path, number, line)


def _parse_line(path, number, line):
    try:
        return parse_lines(path, line)[0]
    except UserError:
        # Behind as many other lines as in the file, so that the message names it.
        return parse_lines(path, b"{}\n" * (number - 1) + line)[-1]


def _names_parameters(record):
    # Norms have names of their own where components are larger than parameters.
    return record["kind"] == "names" and record.get("by") in (None, "by_parameter")


def _names(record, known):
    names = list(map(str, record["components"]))
    if known and names != known:
        raise ValueError("the components differ from those named before")
    return names


def _row(record, size):
    row = np.array([record[name] for name in DRAWN_STATISTICS], np.float64)
    if not size:
        raise ValueError("no line before it names the components")
    if row.shape[1:] != (size,):
        raise ValueError(f"expected {size} numbers of each kind, got {row.shape[-1]}")
    return row


def _course(by_step):
    steps = np.array(sorted(by_step))
    rmsd, cosine, grad_norm, param_norm = np.stack(
        [by_step[step] for step in steps], axis=1
    )
    return Course(
        steps=steps,
        rmsd=rmsd,
        cosine=cosine,
        grad_norm=grad_norm,
        param_norm=param_norm,
    )
