"""Clips whose thresholds are learned, in the training step and in runs."""

import dataclasses
import functools
import inspect
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import models
from tests.train.conftest import MODEL, RECIPE, a_batch
from train.__main__ import main
from train.component_statistics import STATISTICS
from train.config import CLIP_NUMBERS, OptimizerConfig, RegularizationConfig
from train.optimizer import CLIPS, hyperparameters
from train.steps import init_run, train_step

pytestmark = pytest.mark.usefixtures("compilation_cache")

# Numbers at which a few steps clip some components and not others.
QUICK = {
    "adagc": {"ratio": 1.01, "warmup_steps": 1.0},
    "aggc": {"low": 0.5, "high": 1.5, "decay": 0.5},
    "olmo": {"ratio": 1.01, "decay": 0.5},
    "autoclip": {"percentile": 40.0},
    "zclip": {"z_threshold": 0.2, "warmup_steps": 1.0, "decay": 0.5},
}


def a_run(recipe, **changes):
    config = OptimizerConfig(learning_rate=1e-2, **changes)
    numbers = hyperparameters(config, RegularizationConfig(dropout=0.0), 10)
    params = models.init_params(MODEL, jax.random.key(0))
    return init_run(recipe, params, jax.random.key(1), numbers)


def stepped(recipe, run, count=4):
    step = jax.jit(functools.partial(train_step, recipe))
    reported = []
    for seed in range(count):
        run, metrics = step(run, a_batch(seed=seed))
        reported.append(metrics)
    return run, reported


@pytest.mark.parametrize("clip", CLIPS)
def test_the_step_reports_what_the_clip_makes_of_its_norms(clip):
    recipe = dataclasses.replace(RECIPE, clip=clip)
    run = a_run(recipe, clip=clip, clip_numbers=QUICK[clip])
    sizes = cwgnc_jax.component_sizes(run.params)
    # These rules know of a gradient nothing but its norm.
    numbers = CLIP_NUMBERS[clip] | QUICK[clip]
    tx = CLIPS[clip](component_fn=cwgnc_jax.by_parameter, **numbers)
    state = tx.init({name: jnp.zeros(1) for name in sizes})
    rates = []
    for metrics in stepped(recipe, run)[1]:
        grads = {name: norm[None] for name, norm in metrics.norms.items()}
        updates, state = tx.update(grads, state)
        expected = {name: updates[name][0] / grads[name][0] for name in sizes}
        for name in sizes:
            coefficient = metrics.coefficients[name]
            assert coefficient == pytest.approx(float(expected[name]), rel=1e-4)
        clipped = [name for name in sizes if metrics.coefficients[name] < 1]
        rates.append(len(clipped) / len(sizes))
        assert metrics.clip_rate_components == pytest.approx(rates[-1])
        elements = sum(sizes[name] for name in clipped) / sum(sizes.values())
        assert metrics.clip_rate_elements == pytest.approx(elements, rel=1e-5)
    assert any(0 < rate < 1 for rate in rates)


def test_the_update_is_that_of_the_library_behind_the_clip():
    recipe = dataclasses.replace(RECIPE, clip="olmo", components="by_module")
    numbers = {"ratio": 0.5, "decay": 0.5}
    # At a tiny eps Adam makes whole steps of the key biases' rounding errors.
    run = a_run(recipe, clip="olmo", clip_numbers=numbers, eps=1e-3)
    params = run.params
    tx = optax.chain(
        cwgnc_jax.olmo_clip(0.5, cwgnc_jax.by_module, decay=0.5),
        cwgnc_jax.scale_by_adam(eps=1e-3),
        optax.scale_by_schedule(lambda step: -1e-2 * (1 - step / 10)),
    )

    @jax.jit
    def by_hand(params, state, batch):
        def loss_fn(params):
            names = ("input_ids", "attention_mask", "token_type_ids")
            logits = models.apply(MODEL, params, *(batch[k] for k in names)).logits
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["labels"]
            ).mean()

        updates, state = tx.update(jax.grad(loss_fn)(params), state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(2):
        params, state = by_hand(params, state, a_batch(seed=seed))
    run, _ = stepped(recipe, run, 2)
    chex.assert_trees_all_close(run.params, params, atol=1e-6)
    average = run.opt_state[0].inner_state.average
    np.testing.assert_allclose(average, state[0].average, rtol=1e-4)


def test_a_fixed_threshold_has_no_state_and_no_coefficients():
    run = a_run(RECIPE)
    assert run.opt_state[0] == optax.EmptyState()
    assert run.numbers.clip is None
    _, [metrics] = stepped(RECIPE, run, 1)
    assert metrics.coefficients is None


@pytest.mark.parametrize(("max_norm", "rate"), [(1e-3, 1), (float("inf"), 0)])
def test_one_component_of_everything_is_clipped_or_not(max_norm, rate):
    recipe = dataclasses.replace(RECIPE, components="global")
    _, [metrics] = stepped(recipe, a_run(recipe, max_norm=max_norm), 1)
    assert list(metrics.norms) == ["all"]
    assert metrics.clip_rate_components == metrics.clip_rate_elements == rate


def test_measured_components_are_those_behind_the_learned_clip():
    recipe = dataclasses.replace(RECIPE, clip="olmo", statistics=True)
    run = a_run(recipe, clip="olmo", clip_numbers={"ratio": 0.5})
    run, _ = stepped(recipe, run, 1)
    _, metrics = jax.jit(functools.partial(train_step, recipe, measured=True))(
        run, a_batch(seed=1)
    )
    row = metrics.statistics[STATISTICS.index("coefficient")]
    assert min(row) < 1
    # The norms of key biases are rounding errors.
    names = [name for name in metrics.norms if not name.endswith("key/bias")]
    row = dict(zip(cwgnc_jax.component_sizes(run.params), row, strict=True))
    for name in names:
        expected = float(metrics.coefficients[name])
        assert row[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("clip", CLIPS)
def test_defaults_are_those_of_the_library_where_it_has_any(clip):
    for name, parameter in inspect.signature(CLIPS[clip]).parameters.items():
        if name in CLIP_NUMBERS[clip] and parameter.default is not parameter.empty:
            assert CLIP_NUMBERS[clip][name] == parameter.default


@pytest.fixture
def flags(tiny_model, tiny_data, tmp_path):
    train_file, validation_file = tiny_data
    values = {
        "model": tiny_model,
        "train-file": train_file,
        "validation-file": validation_file,
        "text-columns": "text",
        "epochs": 2,
        "max-length": 16,
        "padding": "max_length",
        "workdir": tmp_path / "run",
    }
    pairs = [(f"--{name}", str(value)) for name, value in values.items()]
    return ["finetune", *(part for pair in pairs for part in pair)]


def test_a_run_with_a_learned_clip_records_its_coefficients(flags, tmp_path):
    more = ["--clip", "aggc", "--components", "by_module_type", "--norms-every", "2"]
    assert main([*flags, *more, "--clip-numbers", "high", "1.01", "decay", "0.5"]) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["optimizer"]["clip_numbers"] == {"high": 1.01, "decay": 0.5}
    text = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in text]
    measured = [line for line in lines if "norms" in line]
    assert [line["step"] for line in measured] == [1, 2, 4, 6]
    assert set(measured[0]["coefficients"].values()) == {1.0}
    for line in measured:
        assert list(line["coefficients"]) == list(line["norms"])
        clipped = [value < 1 for value in line["coefficients"].values()]
        assert line["clip_rate_components"] == pytest.approx(np.mean(clipped))
    assert max(line["clip_rate_components"] for line in lines) > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "--clip adagc --clip-numbers ration 1",
            "no such number, did you mean 'ratio'",
        ),
        ("--clip-numbers ratio 1", "--clip fixed has no such number. It has none, but"),
        (
            "--clip olmo --clip-numbers ratio -1",
            "--clip-numbers: ratio must be positiv",
        ),
        ("--clip aggc --clip-numbers low 3", "low must not exceed high, got 3.0 and 2"),
        ("--clip zclip --nonfinite zero_component", "goes with --clip fixed only, not"),
    ],
)
def test_numbers_that_a_clip_cannot_take_are_refused(flags, capsys, more, message):
    assert main([*flags, *more.split()]) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1 and message in captured
