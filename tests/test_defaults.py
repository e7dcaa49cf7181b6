"""The numbers that a transformation takes when it is given none: their sources'."""

import inspect
import math

import pytest

import cwgnc_jax

PUBLISHED = {
    # Yang and Ma 2022, and Adam's of Kingma and Ba.
    "cwgnc_adamw": {"max_norm": 0.05, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "component_clip_by_global_norm": {"eps": 1e-6, "nonfinite": "propagate"},
    "scale_by_adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "bias_correction": True},
    # BertAdam of 2018.
    "bertadam_clip": {"max_norm": 1.0},
    # Brock et al. 2021.
    "relative_to_params": {"min_norm": 1e-3},
    # Wang et al. 2025: the paper, not its code.
    "adagc": {
        **{"ratio": 1.05, "decay": 0.98, "max_global_norm": 1.0},
        **{"warmup_steps": 100, "eps": 0.0},
    },
    # Li et al. 2026: without the caps of the authors' runs.
    "aggc": {
        **{"decay": 0.98, "min_factor": 0.0, "max_factor": math.inf, "floor": 0.0},
        **{"raise_small": True, "eps": 0.0},
    },
    "olmo_clip": {"decay": 0.95, "warmup_steps": 0, "warmup_factor": 5.0, "eps": 1e-6},
    # Seetharaman et al. 2020.
    "autoclip": {"percentile": 10.0, "history_length": 1000, "eps": 1e-6},
    # Kumar et al. 2025: the paper, without the cap of the code.
    "zclip": {
        **{"z_threshold": 2.5, "decay": 0.97, "warmup_steps": 25},
        **{"max_global_norm": math.inf, "eps": 1e-6},
    },
    "spike_skip": {"sigmas": 6.0, "window": 128},
    # Huang et al. 2025.
    "scale_by_spam": {
        **{"b1": 0.9, "b2": 0.999, "eps": 1e-6, "interval": 500},
        **{"threshold": 5000.0, "spared_steps": 20, "warmup_steps": 150},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_those_of_the_source(name):
    parameters = inspect.signature(getattr(cwgnc_jax, name)).parameters
    defaults = {key: parameters[key].default for key in PUBLISHED[name]}
    assert defaults == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_whatever_else_has_a_default_is_off(name):
    parameters = inspect.signature(getattr(cwgnc_jax, name)).parameters
    others = {
        key: parameters[key].default for key in {*parameters} - {*PUBLISHED[name]}
    }
    # Adam corrects its bias unless told otherwise.
    others.pop("bias_correction", None)
    set_to = [
        value for value in others.values() if value is not inspect.Parameter.empty
    ]
    assert not any(set_to)
