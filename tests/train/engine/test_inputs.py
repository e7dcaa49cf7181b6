"""What is read before runs start."""

import functools
import json

import pytest

from cwgnc_train.commands import run
from cwgnc_train.config import DataConfig
from cwgnc_train.engine import load_inputs, load_weights

PAIRS = ["the dog sleeps .\tthe dogs sleep .\tyes", "a cat sees .\tdogs see .\tno"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file of pairs of texts."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("\n".join(["one\ttwo\tlabel", *PAIRS * 8]) + "\n")
    return path


@pytest.mark.parametrize("token_types", [True, False])
def test_every_set_has_token_types_or_none_has(tiny_model, pairs, token_types):
    data = DataConfig(
        train_file=pairs,
        validation_file=pairs,
        text_columns=("one", "two"),
        holdout=0.25,
        max_length=16,
        token_types=token_types,
    )
    weights = functools.partial(load_weights, tiny_model)
    inputs = load_inputs(None, data, weights, cache=False)
    assert set(inputs.sets) == {"train", "holdout", "validation"}
    for arrays in inputs.sets.values():
        assert arrays.token_type_ids.any() == token_types
        assert arrays.input_ids.any()


def test_a_model_that_was_trained_without_token_types_says_so(
    tiny_model, pairs, tmp_path
):
    flags = f"--model {tiny_model} --train-file {pairs} --text-columns one two"
    flags += f" --holdout .25 --max-length 16 --workdir {tmp_path / 'run'}"
    flags += " --preset code --epochs 1 --padding max_length --no-token-types"
    assert run(f"finetune {flags}".split()) == 0
    known = json.loads((tmp_path / "run/model/training.json").read_text())
    assert known["token_types"] is False
    settings = json.loads((tmp_path / "run/study.json").read_text())
    assert settings["token_types"] is False
