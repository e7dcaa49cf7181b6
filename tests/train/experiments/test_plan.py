import dataclasses
import math
from pathlib import Path

import pytest

from train.config import CLIP_NUMBERS
from train.experiments.plan import (
    CODE_SEEDS,
    StabilityConfig,
    check_stability,
    planned_runs,
    protocol,
)
from train.methods import METHODS


def study(**changes) -> StabilityConfig:
    config = StabilityConfig(model="m", workdir=Path("w"), tasks=("cola",), seeds=2)
    return dataclasses.replace(config, **changes)


def test_a_study_is_the_product_of_its_axes():
    runs = planned_runs(
        study(
            tasks=("rte", "cola"),
            methods=("cwgnc", "devlin"),
            max_norms=(0.05, math.inf),
            learning_rates=(1e-5, 2e-5),
            seeds=3,
        )
    )
    # The thresholds are for the component-wise clip only.
    assert len(runs) == 2 * (2 * 2 + 2) * 3
    assert len({run.name for run in runs}) == len(runs)
    assert len({run.cell for run in runs}) == len(runs) / 3
    assert {r.optimizer.max_norm for r in runs if r.method == "devlin"} == {1.0}


def test_names_say_all_that_differs():
    first, second = planned_runs(study(seed_list=("7", "11")))
    assert first.name == "cola/cwgnc/lr=2e-05/max_norm=0.05/seed=7"
    assert second.name == "cola/cwgnc/lr=2e-05/max_norm=0.05/seed=11"


def test_initialisation_and_data_can_have_seeds_of_their_own():
    runs = planned_runs(study(data_seeds=3))
    pairs = [(run.seed, run.data_seed) for run in runs]
    assert pairs == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert runs[1].name.endswith("seed=1/data_seed=2")
    assert all(run.seed == run.data_seed for run in planned_runs(study()))


def test_the_seeds_of_the_code_are_thirty():
    runs = planned_runs(study(seed_list=("code",)))
    assert tuple(run.seed for run in runs) == CODE_SEEDS
    assert len(CODE_SEEDS) == 30 and CODE_SEEDS[-1] == 1021


def test_methods_follow_their_papers():
    paper, code = METHODS["cwgnc"], METHODS["cwgnc_code"]
    assert (paper.epochs, code.epochs) == (5, 3)
    assert (paper.optimizer.warmup_ratio, paper.optimizer.weight_decay) == (0.1, 0.01)
    assert (code.optimizer.warmup_ratio, code.optimizer.weight_decay) == (0.0, 0.0)
    devlin = METHODS["devlin"].optimizer
    assert (devlin.components, devlin.max_norm, devlin.eps) == ("global", 1.0, 1e-6)
    assert not devlin.bias_correction
    corrected = dataclasses.replace(devlin, bias_correction=True)
    assert METHODS["bias_correction"].optimizer == corrected
    assert METHODS["mosbach"].optimizer == corrected
    assert (METHODS["bias_correction"].epochs, METHODS["mosbach"].epochs) == (3, 20)
    full = dataclasses.replace(code.optimizer, max_norm=math.inf)
    assert METHODS["full"].optimizer == full


def test_the_family_of_clips_differs_in_nothing_else():
    paper = METHODS["cwgnc"]
    family = {
        "none": ("by_parameter", "fixed", math.inf),
        "global": ("global", "fixed", 1.0),
        "adagc": ("by_parameter", "adagc", math.inf),
        "aggc": ("by_module_type", "aggc", math.inf),
        "olmo": ("by_parameter", "olmo", math.inf),
        "autoclip": ("global", "autoclip", math.inf),
        "zclip": ("global", "zclip", math.inf),
    }
    for name, (components, clip, max_norm) in family.items():
        expected = dataclasses.replace(
            *(paper.optimizer,),
            components=components,
            clip=clip,
            clip_numbers=CLIP_NUMBERS[clip],
            max_norm=max_norm,
        )
        assert METHODS[name].optimizer == expected
        assert (METHODS[name].epochs, METHODS[name].swept) == (paper.epochs, False)


def test_flags_replace_what_the_methods_say():
    [run] = planned_runs(study(seeds=1, epochs=7, warmup_ratio=0.0, weight_decay=0.3))
    assert run.epochs == 7
    assert (run.optimizer.warmup_ratio, run.optimizer.weight_decay) == (0.0, 0.3)


def test_the_protocol_is_all_but_the_axes_and_the_execution():
    names = set(protocol(study()))
    assert {"model", "batch_size", "holdout", "epochs", "record_every"} <= names
    assert not {"workdir", "tasks", "seeds", "max_norms", "runs_per_program"} & names
    assert "cache" not in names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "--tasks names nothing, so there is no run"),
        ({"tasks": ("cola", "cola")}, "--tasks names cola twice"),
        ({"methods": ("cwgn",)}, "did you mean 'cwgnc'"),
        (
            {"methods": ("presets",)},
            "the methods are cwgnc cwgnc_code full gu gu_restart .* NAME.cwgnc",
        ),
        ({"seeds": 0}, "--seeds must be at least 1 .* no run to make"),
        ({"data_seeds": -1}, "--data-seeds at least 0"),
        ({"seed_list": ("1", "2", "1")}, "--seed-list names 1 twice"),
        ({"seed_list": ("1", "x")}, "--seed-list takes whole numbers .* got 'x'"),
        ({"seed_list": ("-1",)}, "--seed-list takes whole numbers"),
        ({"max_norms": (0.05, 0.05)}, "--max-norms names 0.05 twice"),
        ({"max_norms": (0.0,)}, "--max-norm must be a positive number"),
        ({"max_norms": (math.nan,)}, "--max-norm must be a positive number"),
        ({"learning_rates": (-1.0,)}, "--learning-rate must be 0 or a positive"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"evaluations": 0}, "--evaluations must be at least 1"),
        ({"runs_per_program": 0}, "--runs-per-program must be at least 1"),
        ({"dropout": 1.0}, r"--dropout must lie in \[0, 1\)"),
        ({"holdout": 1.0}, r"--holdout must lie in \[0, 1\)"),
        ({"train_examples": 0}, "--train-examples must be at least 1"),
        ({"checkpoint_seconds": -1.0}, "--checkpoint-seconds must be 0 or more"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_stability(study(**changes))


def test_good_settings_pass():
    check_stability(study(methods=tuple(METHODS), max_norms=(0.01, math.inf)))


def test_methods_of_zhang_and_lee_follow_their_papers():
    runs = {
        name: planned_runs(study(methods=(name,), seeds=1))[0]
        for name in ("mixout", "reinit", "llrd", "prior_decay")
    }
    mixout = runs["mixout"]
    assert (mixout.regularization.mixout, mixout.regularization.dropout) == (0.9, 0.0)
    assert not mixout.optimizer.bias_correction
    assert mixout.optimizer.max_norm == math.inf
    assert runs["reinit"].regularization.reinit_layers == 5
    assert runs["llrd"].optimizer.layer_decay == 0.95
    assert runs["prior_decay"].optimizer.prior_decay == 1e-3
    for name in ("reinit", "llrd", "prior_decay"):
        optimizer = runs[name].optimizer
        assert (optimizer.weight_decay, optimizer.bias_correction) == (0.0, True)


def test_any_method_takes_the_clip_as_well():
    runs = planned_runs(
        study(methods=("llrd", "llrd+cwgnc"), seeds=1, max_norms=(0.05, 1.0))
    )
    assert [run.optimizer.components for run in runs] == ["global"] + 2 * [
        "by_parameter"
    ]
    assert [run.optimizer.max_norm for run in runs] == [1.0, 0.05, 1.0]
    assert {run.optimizer.layer_decay for run in runs} == {0.95}


@pytest.mark.parametrize(
    "name", ["llrd+mixout", "cwgnc+cwgnc", "llrd+", "cwgnc+llrd", "adagc+cwgnc"]
)
def test_methods_that_exclude_each_other_are_refused(name):
    with pytest.raises(ValueError, match="only .cwgnc can follow a method"):
        check_stability(study(methods=(name,)))
