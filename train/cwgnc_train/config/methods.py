"""The methods that a study compares, each with its recipe."""

import dataclasses
import math

from cwgnc_train.config.errors import UserError, suggest
from cwgnc_train.config.finetune import PRESETS
from cwgnc_train.config.recipe import (
    CLIP_NUMBERS,
    ClipName,
    ComponentsName,
    OptimizerConfig,
    RegularizationConfig,
    Unfreezing,
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A recipe: optimizer, regularization and length of training."""

    summary: str
    optimizer: OptimizerConfig
    epochs: int
    regularization: RegularizationConfig = RegularizationConfig()
    swept: bool = False
    """Whether the study's thresholds apply; otherwise the recipe has its own."""
    unfreezing: Unfreezing | None = None
    """Kind of gradual unfreezing; the epochs are those of each iteration."""


_PAPER = PRESETS["paper"].complete(OptimizerConfig())
_CODE = PRESETS["code"].complete(OptimizerConfig())
_FULL = dataclasses.replace(_CODE, max_norm=math.inf)
# Devlin et al. (2019) as Mosbach et al. (2021) state it, with the global clip.
_DEVLIN = OptimizerConfig(
    components="global",
    max_norm=1.0,
    eps=1e-6,
    bias_correction=False,
    warmup_ratio=0.1,
    weight_decay=0.01,
)
_CORRECTED = dataclasses.replace(_DEVLIN, bias_correction=True)
# Zhang et al. (2021): a corrected Adam without weight decay.
_ZHANG = dataclasses.replace(_CORRECTED, eps=1e-8, weight_decay=0.0)


def _as_cwgnc(
    summary: str,
    components: ComponentsName,
    clip: ClipName = "fixed",
    max_norm: float = math.inf,
) -> Method:
    """The recipe of the paper's text with another clip."""
    optimizer = dataclasses.replace(
        _PAPER,
        components=components,
        clip=clip,
        clip_numbers=CLIP_NUMBERS[clip],
        max_norm=max_norm,
    )
    return Method(summary, optimizer, PRESETS["paper"].epochs)


METHODS: dict[str, Method] = {
    "cwgnc": Method(
        "component-wise clip, as the paper's text has it",
        _PAPER,
        PRESETS["paper"].epochs,
        swept=True,
    ),
    "cwgnc_code": Method(
        "component-wise clip, with the values of the paper's code",
        _CODE,
        PRESETS["code"].epochs,
        swept=True,
    ),
    "full": Method(
        "plain fine-tuning: no clip, with the values of the paper's code",
        _FULL,
        PRESETS["code"].epochs,
    ),
    "gu": Method(
        "gradual unfreezing: plain fine-tuning of the top layer, the top two, ...",
        _FULL,
        3,
        unfreezing="carry",
    ),
    "gu_restart": Method(
        "the same, each iteration from the pretrained weights",
        _FULL,
        3,
        unfreezing="restart",
    ),
    "devlin": Method("Adam without bias correction, global clip", _DEVLIN, 3),
    "bias_correction": Method("the same with bias correction", _CORRECTED, 3),
    "mosbach": Method("with bias correction, and long", _CORRECTED, 20),
    "mixout": Method(
        "as devlin without a clip, Mixout in place of dropout (Lee et al.)",
        dataclasses.replace(_DEVLIN, max_norm=math.inf),
        3,
        RegularizationConfig(dropout=0.0, mixout=0.9),
    ),
    "reinit": Method(
        "pooler and top 5 layers drawn anew (Zhang et al.)",
        _ZHANG,
        3,
        RegularizationConfig(reinit_layers=5),
    ),
    "llrd": Method(
        "smaller learning rates for lower layers (Zhang et al.)",
        dataclasses.replace(_ZHANG, layer_decay=0.95),
        3,
    ),
    "prior_decay": Method(
        "weight decay towards the pretrained weights (Zhang et al.)",
        dataclasses.replace(_ZHANG, prior_decay=1e-3),
        3,
    ),
    "none": _as_cwgnc("as cwgnc without a clip", "by_parameter"),
    "global": _as_cwgnc("as cwgnc with a global clip", "global", max_norm=1.0),
    "adagc": _as_cwgnc(
        "as cwgnc; each parameter's threshold from the average of its norms "
        "(Wang et al., 2025)",
        "by_parameter",
        "adagc",
    ),
    "aggc": _as_cwgnc(
        "as cwgnc; each kind of module kept in an interval around its average norm "
        "(Li et al., 2026)",
        "by_module_type",
        "aggc",
    ),
    "olmo": _as_cwgnc(
        "as cwgnc; each parameter's threshold from the average of its norms, without a "
        "warm-up (OLMo's trainer)",
        "by_parameter",
        "olmo",
    ),
    "autoclip": _as_cwgnc(
        "as cwgnc; the global norm clipped to a percentile of its past "
        "(Seetharaman et al., 2020)",
        "global",
        "autoclip",
    ),
    "zclip": _as_cwgnc(
        "as cwgnc; outliers of the global norm reduced (Kumar et al., 2025)",
        "global",
        "zclip",
    ),
}


def find_method(name: str) -> Method:
    """Returns a method by its name; NAME+cwgnc adds the paper's clip to a method.

    Raises:
      UserError: If the method is unknown, or cannot be combined with the clip.
    """
    base, plus, clip = name.partition("+")
    if base not in METHODS:
        raise UserError(
            f"unknown method {name!r}{suggest(base, METHODS) or ':'} "
            f"the methods are {' '.join(METHODS)}, and NAME+cwgnc"
        )
    method = METHODS[base]
    if not plus:
        return method
    if clip != "cwgnc" or method.swept or method.optimizer.clip != "fixed":
        raise UserError(
            f"method {name!r}: only +cwgnc can follow a method, and only one that has "
            f"no component-wise clip of its own"
        )
    return dataclasses.replace(
        method,
        summary=f"{method.summary}, and the component-wise clip",
        optimizer=dataclasses.replace(method.optimizer, components="by_parameter"),
        swept=True,
    )
