"""The runs that the flags of ``stability`` stand for, and what they refuse."""

import dataclasses
import math
from pathlib import Path

import pytest

from cwgnc_train.config import (
    CLIP_NUMBERS,
    METHODS,
    DataConfig,
    StabilityConfig,
    UserError,
    check_study,
    find_method,
)
from tests.train.configs import replaced


def study(**changes) -> StabilityConfig:
    config = StabilityConfig(model="m", workdir=Path("w"), tasks=("cola",), seeds=2)
    return replaced(config, **changes)


def test_a_study_is_the_product_of_its_axes():
    runs = study(
        tasks=("rte", "cola"),
        methods=("cwgnc", "devlin"),
        max_norms=(0.05, math.inf),
        learning_rates=(1e-5, 2e-5),
        seeds=3,
    ).runs()
    # The thresholds are for the component-wise clip only.
    assert len(runs) == 2 * (2 * 2 + 2) * 3
    assert len({run.name for run in runs}) == len(runs)
    assert len({run.cell for run in runs}) == len(runs) / 3
    assert {r.optimizer.max_norm for r in runs if r.method == "devlin"} == {1.0}


def test_names_say_all_that_differs():
    first, second = study(seed_list=("7", "11")).runs()
    assert first.name == "cola/cwgnc/lr=2e-05/max_norm=0.05/seed=7"
    assert second.name == "cola/cwgnc/lr=2e-05/max_norm=0.05/seed=11"


def test_initialisation_and_data_can_have_seeds_of_their_own():
    runs = study(data_seeds=3).runs()
    pairs = [(run.seed, run.data_seed) for run in runs]
    assert pairs == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert runs[1].name.endswith("seed=1/data_seed=2")
    assert all(run.seed == run.data_seed for run in study().runs())


def test_the_seeds_of_the_code_are_thirty():
    runs = study(seed_list=("code",)).runs()
    seeds = [run.seed for run in runs]
    assert len(set(seeds)) == 30 and (seeds[0], seeds[-1]) == (1, 1021)


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
            paper.optimizer,
            components=components,
            clip=clip,
            max_norm=max_norm,
        )
        assert METHODS[name].optimizer == expected
        assert (METHODS[name].epochs, METHODS[name].swept) == (paper.epochs, False)


def test_flags_replace_what_the_methods_say():
    [run] = study(seeds=1, epochs=7, warmup_ratio=0.0, weight_decay=0.3).runs()
    assert run.epochs == 7
    assert (run.optimizer.warmup_ratio, run.optimizer.weight_decay) == (0.0, 0.3)


EVERY_NUMBER = {
    "warmup_ratio": 0.5,
    "components": "by_layer",
    "nonfinite": "skip_step",
    "b1": 0.8,
    "b2": 0.99,
    "eps": 1e-3,
    "bias_correction": False,
    "weight_decay": 0.3,
    "prior_decay": 0.2,
    "layer_decay": 0.9,
    "dropout": 0.0,
    "mixout": 0.4,
    "reinit_layers": 1,
}


@pytest.mark.parametrize("name", [*METHODS, "llrd+cwgnc"])
def test_every_number_of_a_recipe_can_be_replaced_in_every_method(name):
    [run] = study(methods=(name,), seeds=1, **EVERY_NUMBER).runs()
    for number, value in EVERY_NUMBER.items():
        part = run.optimizer if hasattr(run.optimizer, number) else run.regularization
        assert getattr(part, number) == value
    # Nothing else changes, and without flags nothing at all.
    method = find_method(name)
    [plain] = study(methods=(name,), seeds=1).runs()
    max_norm = 0.05 if method.swept else method.optimizer.max_norm
    expected = dataclasses.replace(method.optimizer, max_norm=max_norm)
    assert plain.optimizer == expected
    assert plain.regularization == method.regularization
    assert run.optimizer.clip_numbers == plain.optimizer.clip_numbers


def test_numbers_of_a_clip_go_to_the_methods_that_have_them():
    config = study(
        methods=("cwgnc", "adagc", "zclip"),
        seeds=1,
        clip_numbers={"decay": 0.5, "z_threshold": 3.0},
    )
    check_study(config)
    numbers = {run.method: run.optimizer.all_clip_numbers for run in config.runs()}
    assert numbers == {
        "cwgnc": {},
        "adagc": CLIP_NUMBERS["adagc"] | {"decay": 0.5},
        "zclip": CLIP_NUMBERS["zclip"] | {"decay": 0.5, "z_threshold": 3.0},
    }
    with pytest.raises(UserError, match="--clip-numbers deca.*did you mean 'decay'"):
        check_study(study(methods=("olmo",), clip_numbers={"deca": 0.5}))


def test_a_clip_can_be_replaced_with_its_numbers():
    config = study(methods=("olmo",), seeds=1, clip="adagc", clip_numbers={"ratio": 2})
    check_study(config)
    [run] = config.runs()
    assert (run.optimizer.clip, run.optimizer.clip_numbers) == ("adagc", {"ratio": 2})
    expected = CLIP_NUMBERS["adagc"] | {"ratio": 2}
    assert run.optimizer.all_clip_numbers == expected


@pytest.mark.parametrize(
    ("changes", "decay"),
    [
        ({}, 0.999),
        ({"b2": 0.95}, 0.95),
        ({"b1": 0.98, "b2": 0.95}, 0.98),
        ({"b2": 0.95, "clip_numbers": {"decay": 0.5}}, 0.5),
    ],
)
def test_olmos_average_decays_by_the_larger_of_adams(changes, decay):
    [run] = study(methods=("olmo",), seeds=1, **changes).runs()
    assert run.optimizer.all_clip_numbers["decay"] == decay


def test_learned_clips_have_their_authors_numbers():
    """Those of the papers' or the authors' own code, written down once more."""
    numbers = {name: METHODS[name].optimizer.all_clip_numbers for name in METHODS}
    assert numbers["zclip"] == {
        "z_threshold": 2.5,
        "decay": 0.97,
        "warmup_steps": 25,
        "max_global_norm": 1.0,
    }
    assert numbers["autoclip"] == {"percentile": 10}
    assert numbers["adagc"] == {
        "ratio": 1.05,
        "decay": 0.98,
        "max_global_norm": 1.0,
        "warmup_steps": 100,
    }
    assert numbers["olmo"]["warmup_factor"] == 5
    assert numbers["cwgnc"] == numbers["devlin"] == {}


def test_bertadam_is_devlins_recipe_with_another_clip():
    devlin, bertadam = METHODS["devlin"], METHODS["bertadam"]
    assert bertadam.epochs == devlin.epochs == 3 and not bertadam.swept
    differing = {
        name: value
        for name, value in vars(bertadam.optimizer).items()
        if value != getattr(devlin.optimizer, name)
    }
    assert differing == {"components": "by_parameter"}
    assert bertadam.optimizer.max_norm == 1.0


def test_own_data_make_one_task():
    own = DataConfig(train_file=Path("t"), text_columns=("text",), holdout=0.1)
    config = study(tasks=(), seeds=1, data=own)
    check_study(config)
    [run] = config.runs()
    assert run.task == "own" and run.name.startswith("own/cwgnc/")
    without = dataclasses.replace(own, holdout=0.0)
    message = "give --validation-file FILE, or --holdout .1 to keep a tenth"
    with pytest.raises(UserError, match=message):
        check_study(study(tasks=(), data=without))
    with pytest.raises(UserError, match="the task cola and --train-file contradict"):
        check_study(study(data=own))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": ()},
            "no data: expected a GLUE task, or --train-file and --text-col",
        ),
        ({"methods": ()}, "--methods names nothing, so there is no run"),
        ({"tasks": ("cola", "cola")}, "--tasks names cola twice"),
        ({"methods": ("cwgn",)}, "did you mean 'cwgnc'"),
        (
            {"methods": ("presets",)},
            "the methods are cwgnc cwgnc_code full gu gu_state .* NAME.cwgnc",
        ),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"data_seeds": -1}, "--data-seeds must be at least 0, got -1"),
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
        ({"checkpoint_seconds": -1.0}, "--checkpoint-seconds must be at least 0"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check_study(study(**changes))


def test_good_settings_pass():
    check_study(study(methods=tuple(METHODS), max_norms=(0.01, math.inf)))


def test_methods_of_zhang_and_lee_follow_their_papers():
    runs = {
        name: study(methods=(name,), seeds=1).runs()[0]
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
    runs = study(methods=("llrd", "llrd+cwgnc"), seeds=1, max_norms=(0.05, 1.0)).runs()
    assert [run.optimizer.components for run in runs] == ["global"] + 2 * [
        "by_parameter"
    ]
    assert [run.optimizer.max_norm for run in runs] == [1.0, 0.05, 1.0]
    assert {run.optimizer.layer_decay for run in runs} == {0.95}


@pytest.mark.parametrize(
    "name",
    [
        *("llrd+mixout", "cwgnc+cwgnc", "llrd+", "cwgnc+llrd", "adagc+cwgnc"),
        "bertadam+cwgnc",
    ],
)
def test_methods_that_exclude_each_other_are_refused(name):
    with pytest.raises(UserError, match="only .cwgnc can follow a method"):
        check_study(study(methods=(name,)))
