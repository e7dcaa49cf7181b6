"""The programs on the page of ``benchmarks.compiled``."""

import dataclasses
import json
from typing import Any

from benchmarks.training import NAMES, SIZES
from cwgnc_jax import models

MODELS = SIZES | {"modernbert": models.ModernBertConfig()}
TITLES = NAMES | {"modernbert": "ModernBERT-base"}
STEPS = 10
"""Those of one program, as training takes them on an accelerator."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One program for one kind of accelerator."""

    on: str
    model: str = "base"
    precision: str = "bfloat16"
    program: str = "step"
    """step, evaluation, clip, adam, or clip and adam."""
    runs: int = 1
    batch: int = 16
    data_devices: int = 1
    shard_params: bool = False
    layers: int | None = None
    """Fewer than the model has, to be compiled sooner."""

    @property
    def config(self) -> models.EncoderConfig:
        """The model's config."""
        config = MODELS[self.model]
        if self.layers is None:
            return config
        return dataclasses.replace(config, num_hidden_layers=self.layers)

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Row":
        """The row whose figures were found."""
        return cls(
            **{field.name: found[field.name] for field in dataclasses.fields(cls)}
        )

    @property
    def key(self) -> str:
        """What tells rows apart."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def all_rows(accelerators: list[str], names: list[str]) -> list[Row]:
    """The programs of the page."""
    rows = []
    for on in accelerators:
        rows += [Row(on, name) for name in names]
        rows += [Row(on, "base", program=each) for each in ("evaluation", *_ALONE)]
    for on in ("h100", "v5e"):
        rows += [
            *(Row(on, "base", precision) for precision in ("tf32", "float32")),
            Row(on, "large", batch=64),
            *(Row(on, "minilm", runs=runs) for runs in (4, 8)),
        ]
    for on in ("h100:8", "v5e:2x4"):
        rows += [
            Row(on, "base", batch=64, data_devices=8),
            Row(on, "base", batch=64, data_devices=8, shard_params=True),
            Row(on, "minilm", runs=8),
            Row(on, "minilm", runs=8, data_devices=2),
        ]
    return [row for row in rows if row.on in accelerators or ":" in row.on]


_ALONE = ("clip", "adam", "clip and adam")
