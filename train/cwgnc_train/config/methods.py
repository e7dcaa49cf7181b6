"""The methods that a study compares, each with its recipe."""

import dataclasses
import math
from typing import Any

from cwgnc_train.config.errors import UserError, suggest
from cwgnc_train.config.finetune import PRESETS, PresetName
from cwgnc_train.config.recipe import (
    ClipName,
    ComponentsName,
    OptimizerConfig,
    RegularizationConfig,
    Unfreezing,
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A recipe: optimizer, regularization and length of training."""

    optimizer: OptimizerConfig
    epochs: int
    regularization: RegularizationConfig = RegularizationConfig()
    swept: bool = False
    """Whether the study's thresholds apply; otherwise the recipe has its own."""
    unfreezing: Unfreezing | None = None
    """Kind of gradual unfreezing; the epochs are those of each iteration."""


def _preset(name: PresetName, swept: bool = False, **changes: Any) -> Method:
    """The numbers of the paper's text or code, but for some changes."""
    preset = PRESETS[name]
    optimizer = dataclasses.replace(preset.complete(OptimizerConfig()), **changes)
    return Method(optimizer, preset.epochs, swept=swept)


def _learned(clip: ClipName, components: ComponentsName) -> Method:
    """The paper's text with a threshold learned from past norms."""
    return _preset(
        "paper",
        components=components,
        clip=clip,
        max_norm=math.inf,
    )


# Devlin et al. (2019) as Mosbach et al. (2021) state it, with the global clip.
_DEVLIN = OptimizerConfig(
    components="global",
    max_norm=1.0,
    eps=1e-6,
    bias_correction=False,
    warmup_ratio=0.1,
    weight_decay=0.01,
)
_UNCLIPPED = dataclasses.replace(_DEVLIN, max_norm=math.inf)
# The BertAdam of 2018 and 2019 gives each parameter to torch's clip on its own.
_BERTADAM = dataclasses.replace(_DEVLIN, components="by_parameter")
_CORRECTED = dataclasses.replace(_DEVLIN, bias_correction=True)
# Zhang et al. (2021): a corrected Adam without weight decay.
_ZHANG = dataclasses.replace(_CORRECTED, eps=1e-8, weight_decay=0.0)
_FULL = _preset("code", max_norm=math.inf)

METHODS: dict[str, Method] = {
    # The component-wise clip, as the paper's text has it and with its code's values.
    "cwgnc": _preset("paper", swept=True),
    "cwgnc_code": _preset("code", swept=True),
    # Plain fine-tuning: no clip, with the values of the paper's code.
    "full": _FULL,
    # The same of the top layer, the top two, ...; each time going on from the weights
    # before, or from the pretrained ones. The paper does not say whether the optimizer
    # or the schedule begin anew with each iteration.
    "gu": dataclasses.replace(_FULL, unfreezing="carry"),
    "gu_state": dataclasses.replace(_FULL, unfreezing="carry_state"),
    "gu_schedule": dataclasses.replace(_FULL, unfreezing="carry_schedule"),
    "gu_state_schedule": dataclasses.replace(_FULL, unfreezing="carry_state_schedule"),
    "gu_restart": dataclasses.replace(_FULL, unfreezing="restart"),
    "devlin": Method(_DEVLIN, 3),
    "bertadam": Method(_BERTADAM, 3),
    "bias_correction": Method(_CORRECTED, 3),
    "mosbach": Method(_CORRECTED, 20),
    # Lee et al. (2020): Mixout in place of dropout, and no clip.
    "mixout": Method(_UNCLIPPED, 3, RegularizationConfig(dropout=0.0, mixout=0.9)),
    # Zhang et al. (2021): pooler and top layers drawn anew, smaller learning rates for
    # lower layers, weight decay towards the pretrained weights.
    "reinit": Method(_ZHANG, 3, RegularizationConfig(reinit_layers=5)),
    "llrd": Method(dataclasses.replace(_ZHANG, layer_decay=0.95), 3),
    "prior_decay": Method(dataclasses.replace(_ZHANG, prior_decay=1e-3), 3),
    # As cwgnc, with no clip or another one.
    "none": _preset("paper", max_norm=math.inf),
    "global": _preset("paper", components="global", max_norm=1.0),
    "adagc": _learned("adagc", "by_parameter"),  # Wang et al. (2025)
    "aggc": _learned("aggc", "by_module_type"),  # like that of Li et al. (2026)
    "olmo": _learned("olmo", "by_parameter"),  # OLMo's trainer
    "autoclip": _learned("autoclip", "global"),  # Seetharaman et al. (2020)
    "zclip": _learned("zclip", "global"),  # Kumar et al. (2025)
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
    own = method.optimizer
    # By parameter, bertadam and cwgnc would differ in the threshold only.
    by_component = own.components != "global" and own.max_norm < math.inf
    if clip != "cwgnc" or method.swept or own.clip != "fixed" or by_component:
        raise UserError(
            f"method {name!r}: only +cwgnc can follow a method, and only one that has "
            f"no component-wise clip of its own"
        )
    return dataclasses.replace(
        method,
        optimizer=dataclasses.replace(method.optimizer, components="by_parameter"),
        swept=True,
    )
