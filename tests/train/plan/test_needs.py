"""What a command would need, on devices of this machine instead of accelerators."""

import dataclasses
import json

import jax
import pytest

from cwgnc_train.commands.need_lines import need_lines
from cwgnc_train.config import (
    DataConfig,
    DevicesConfig,
    FinetuneConfig,
    StabilityConfig,
    TrainingConfig,
    UserError,
)
from cwgnc_train.engine import Layout
from cwgnc_train.plan import find_needs, find_slice, needs
from cwgnc_train.plan.compiling import DoesNotFit
from tests.train.conftest import sentences, write_tiny_model, write_tsv

TINY = {
    **{"model_type": "bert", "vocab_size": 50, "hidden_size": 8},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    **{"max_position_embeddings": 32},
}
H100 = find_slice("h100")


@pytest.fixture(autouse=True)
def compile_for_this_machine(monkeypatch):
    monkeypatch.setattr(needs, "devices_of", lambda on: jax.devices()[:1])
    monkeypatch.setattr(needs, "compile_for", lambda on, lowered: lowered.compile())


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path)


def study(folder, **changes):
    config = StabilityConfig(
        model=folder,
        workdir="nowhere",
        tasks=("rte",),
        methods=("cwgnc",),
        max_norms=(0.05,),
        seeds=3,
        data=DataConfig(max_length=16),
    )
    return dataclasses.replace(config, **changes)


def test_a_study_is_planned_from_config_json_alone(model):
    [need] = find_needs(study(model), [H100])
    assert (need.runs, need.layout.runs, need.fits) == (3, 1, True)
    # 2,490 examples in batches of 16, five epochs.
    assert need.steps == 5 * 156
    params = 50 * 8 + 32 * 8 + 2 * 8 + 2 * 8  # the embeddings and their LayerNorm
    params += 2 * (4 * (64 + 8) + 2 * 128 + 16 + 8 + 4 * 8) + (64 + 8) + (16 + 2)
    assert need.bytes["parameters"] == 4 * params
    # Two of Adam, a count, and the clip's norms and factors.
    moments = need.bytes["moments"] - 2 * 4 * params
    assert 0 < moments < 1000
    steps = need.seconds - 3 * need.evaluation_seconds
    assert steps == pytest.approx(3 * 780 * need.step_seconds)
    assert need.texts == "all texts taken to be 16 tokens long"


def test_texts_at_hand_count_with_their_lengths(tmp_path):
    (tmp_path / "model").mkdir()
    config = FinetuneConfig(
        model=write_tiny_model(tmp_path / "model"),
        workdir=tmp_path / "run",
        data=DataConfig(
            train_file=write_tsv(tmp_path / "train.tsv", sentences(37)),
            validation_file=write_tsv(tmp_path / "dev.tsv", sentences(20, 41)),
            text_columns=("text",),
            max_length=32,
        ),
        epochs=2,
    )
    [need] = find_needs(config, [H100])
    assert need.texts == "the lengths of the texts are their own"
    assert need.steps == 2 * 3
    assert not config.workdir.exists()


def test_several_accelerators_are_set_side_by_side(model):
    slices = [H100, find_slice("a100")]
    one, other = find_needs(study(model), slices)
    assert (one.on, other.on) == tuple(slices)
    assert one.bytes == other.bytes


def test_what_does_not_fit_names_the_part_and_its_flag(model):
    [need] = find_needs(study(model), [H100])
    small = dataclasses.replace(H100.accelerator, memory=4000)
    need = dataclasses.replace(need, on=dataclasses.replace(H100, accelerator=small))
    lines = "\n".join(need_lines([need]))
    assert "does not fit: most are activations, gradients; try --accumulate" in lines
    assert "total" not in lines


def test_what_a_compiler_refuses_is_halved_and_then_said(model, monkeypatch):
    tried = []

    def refuse(on, lowered):
        tried.append(lowered)
        raise DoesNotFit("RESOURCE_EXHAUSTED: 20.0G of 15.7G")

    monkeypatch.setattr(needs, "compile_for", refuse)
    monkeypatch.setattr(Layout, "platform", "tpu")
    [need] = find_needs(study(model, seeds=4), [find_slice("v5e")])
    # Four runs together, one by one at last.
    assert (len(tried), need.layout.runs, need.fits) == (3, 1, False)
    lines = "\n".join(need_lines([need]))
    assert "parameters" in lines and "try --accumulate 2" in lines
    assert "the compiler says: RESOURCE_EXHAUSTED: 20.0G of 15.7G" in lines


def test_the_lines_say_what_they_rest_on(model):
    lines = "\n".join(need_lines(find_needs(study(model), [H100])))
    for words in (
        "estimates from the compilers' programs; nothing here was measured",
        "NVIDIA H100 80GB HBM3: rte",
        "1 of 3 runs (a CPU gains little from more",
        "780 steps a run",
        "a roofline for each kernel",
    ):
        assert words in lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("rtx",)}, "unknown task 'rtx', did you mean 'rte'"),
        ({"model": "nowhere/at/all"}, "no directory nowhere/at/all"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        (
            {"training": TrainingConfig(devices=DevicesConfig(strategy="pmap"))},
            "--strategy pmap cannot be planned",
        ),
    ],
)
def test_wrong_settings_are_refused(model, changes, message):
    with pytest.raises(UserError, match=message):
        list(find_needs(study(model, **changes), [H100]))
