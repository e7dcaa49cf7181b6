"""The table of bounds, which goes by the names of fields."""

import dataclasses

import pytest

from cwgnc_train import config
from cwgnc_train.config import UserError, check_numbers
from cwgnc_train.config.checks import _BOUND_OF
from tests.train.command_lines import CONFIGS


def fields_of(config_class):
    for field in dataclasses.fields(config_class):
        yield field.name
        if dataclasses.is_dataclass(field.default):
            yield from fields_of(field.default)


def test_every_bound_is_that_of_a_flag():
    flags = {name for each in CONFIGS.values() for name in fields_of(each)}
    assert not _BOUND_OF.keys() - flags


def test_a_number_is_refused_however_deep_it_lies_and_auto_is_none():
    training = config.TrainingConfig(devices=config.DevicesConfig(devices=0))
    with pytest.raises(UserError, match="^--devices must be at least 1, got 0$"):
        check_numbers(training)
    check_numbers(config.TrainingConfig())


def test_a_pair_of_texts_has_two_columns():
    check_numbers(config.DataConfig(text_columns=("one", "two")))
    with pytest.raises(UserError, match="^--text-columns must name one column, or two"):
        check_numbers(config.DataConfig(text_columns=("one", "two", "three")))
