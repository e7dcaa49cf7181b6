"""The numbers of a preset, in a config that is built in Python."""

from pathlib import Path

import pytest

from cwgnc_train.config import (
    PRESETS,
    FinetuneConfig,
    OptimizerConfig,
    UserError,
    check_study,
)


@pytest.mark.parametrize(
    ("preset", "warmup_ratio", "weight_decay", "epochs"),
    [("paper", 0.1, 0.01, 5), ("code", 0.0, 0.0, 3)],
)
def test_a_config_has_the_numbers_of_the_preset_it_names(
    preset, warmup_ratio, weight_decay, epochs
):
    config = FinetuneConfig(model="m", workdir=Path("w"), task="cola", preset=preset)
    check_study(config)
    assert config.optimizer.warmup_ratio == warmup_ratio
    assert config.optimizer.weight_decay == weight_decay
    assert config.epochs == epochs
    [run] = config.runs()
    assert (run.optimizer, run.epochs) == (config.optimizer, epochs)


def test_an_unknown_preset_is_told_the_known_ones():
    with pytest.raises(UserError, match="--preset: expected .*'paper', 'code'.* 'pap"):
        FinetuneConfig(model="m", workdir=Path("w"), preset="papre")


def test_numbers_that_are_given_stay():
    optimizer = OptimizerConfig(warmup_ratio=0.0, b1=0.8)
    config = FinetuneConfig(
        model="m", workdir=Path("w"), task="cola", optimizer=optimizer, epochs=7
    )
    assert config.optimizer.warmup_ratio == 0.0
    assert config.optimizer.b1 == 0.8
    assert config.optimizer.weight_decay == PRESETS["paper"].weight_decay
    assert config.epochs == 7


def test_seeds_are_runs_that_differ_in_nothing_else():
    config = FinetuneConfig(model="m", workdir=Path("w"), task="cola", seed=5, seeds=3)
    runs = config.runs()
    assert [(run.seed, run.data_seed) for run in runs] == [(5, 5), (6, 6), (7, 7)]
    assert len({run.cell for run in runs}) == 1
