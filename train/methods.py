"""The methods that a study compares, each with its recipe."""

import dataclasses
import difflib
import math

from train.config import PRESETS, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Method:
    """A recipe: its optimizer and the length of its training."""

    summary: str
    optimizer: OptimizerConfig
    epochs: int
    swept: bool = False
    """Whether the study's thresholds apply; otherwise the recipe has its own."""


# Devlin et al. (2019) as Mosbach et al. (2021) state it, with the global clip.
_DEVLIN = OptimizerConfig(
    components="global",
    max_norm=1.0,
    eps=1e-6,
    bias_correction=False,
    warmup_ratio=0.1,
    weight_decay=0.01,
)

METHODS: dict[str, Method] = {
    "cwgnc": Method(
        "component-wise clip, as the paper's text has it",
        PRESETS["paper"].optimizer,
        PRESETS["paper"].epochs,
        swept=True,
    ),
    "cwgnc_code": Method(
        "component-wise clip, with the values of the paper's code",
        PRESETS["code"].optimizer,
        PRESETS["code"].epochs,
        swept=True,
    ),
    "full": Method(
        "plain fine-tuning: no clip, with the values of the paper's code",
        dataclasses.replace(PRESETS["code"].optimizer, max_norm=math.inf),
        PRESETS["code"].epochs,
    ),
    "devlin": Method("Adam without bias correction, global clip", _DEVLIN, 3),
    "bias_correction": Method(
        "the same with bias correction",
        dataclasses.replace(_DEVLIN, bias_correction=True),
        3,
    ),
    "mosbach": Method(
        "with bias correction, and long",
        dataclasses.replace(_DEVLIN, bias_correction=True),
        20,
    ),
}


def find_method(name: str) -> Method:
    """Returns the method of this name.

    Raises:
      ValueError: If there is none; the nearest name is suggested.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name.lower(), METHODS, n=1)
    raise ValueError(
        f"unknown method {name!r}{f', did you mean {near[0]!r}?' if near else ':'} "
        f"the methods are {' '.join(METHODS)}"
    )
