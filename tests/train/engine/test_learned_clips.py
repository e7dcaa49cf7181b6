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
from cwgnc_train.commands import run as main
from cwgnc_train.config import CLIP_NUMBERS, OptimizerConfig, RegularizationConfig
from cwgnc_train.engine.component_statistics import STATISTICS
from cwgnc_train.engine.optimizer import LEARNED_CLIPS, make_hparams
from cwgnc_train.engine.step import init_run, train_step, update
from tests.train.conftest import MODEL, STEP_CONFIG, a_batch, by_component, padded

# Numbers at which a few steps clip some components and not others.
QUICK = {
    "adagc": {"ratio": 1.01, "warmup_steps": 1.0},
    "aggc": {"low": 0.5, "high": 1.5, "decay": 0.5},
    "olmo": {"ratio": 1.01, "decay": 0.5},
    "autoclip": {"percentile": 40.0},
    "zclip": {"z_threshold": 0.2, "warmup_steps": 1.0, "decay": 0.5},
}
QUICK["olmo"]["warmup_steps"] = 0.0
QUICK["zclip"]["max_global_norm"] = float("inf")
# What runs take in place of the library's default: the authors' trainers' numbers.
OTHERWISE = {
    ("olmo", "decay"): 0.999,
    ("olmo", "warmup_steps"): 100,
    ("zclip", "max_global_norm"): 1,
}


def a_run(config, **changes):
    optimizer = OptimizerConfig(learning_rate=1e-2, **changes)
    hparams = make_hparams(optimizer, RegularizationConfig(dropout=0.0), 10)
    params = models.init_params(MODEL, jax.random.key(0))
    return init_run(config, params, jax.random.key(1), hparams)


def stepped(config, run, count=4):
    step = jax.jit(functools.partial(train_step, config))
    reported = []
    for seed in range(count):
        run, metrics = step(run, a_batch(seed=seed))
        reported.append(metrics)
    return run, reported


@pytest.mark.parametrize("clip", LEARNED_CLIPS)
def test_the_step_reports_what_the_clip_makes_of_its_norms(clip):
    config = dataclasses.replace(STEP_CONFIG, clip=clip)
    run = a_run(config, clip=clip, clip_numbers=QUICK[clip])
    sizes = cwgnc_jax.component_sizes(run.params)
    # These rules know of a gradient nothing but its norm.
    numbers = CLIP_NUMBERS[clip] | QUICK[clip]
    tx = LEARNED_CLIPS[clip](component_fn=cwgnc_jax.by_parameter, **numbers)
    state = tx.init({name: jnp.zeros(1) for name in sizes})
    rates = []
    for metrics in stepped(config, run)[1]:
        norms = by_component(metrics.norms, run.params)
        coefficients = by_component(metrics.coefficients, run.params)
        grads = {name: norm[None] for name, norm in norms.items()}
        updates, state = tx.update(grads, state)
        expected = {name: updates[name][0] / grads[name][0] for name in sizes}
        for name in sizes:
            coefficient = coefficients[name]
            assert coefficient == pytest.approx(float(expected[name]), rel=1e-4)
        clipped = [name for name in sizes if coefficients[name] < 1]
        rates.append(len(clipped) / len(sizes))
        assert metrics.clip_rate_components == pytest.approx(rates[-1])
        elements = sum(sizes[name] for name in clipped) / sum(sizes.values())
        assert metrics.clip_rate_elements == pytest.approx(elements, rel=1e-5)
    assert any(0 < rate < 1 for rate in rates)


@pytest.mark.parametrize(
    ("clip", "nonfinite"),
    [*((clip, "propagate") for clip in CLIP_NUMBERS), ("fixed", "zero_component")],
)
def test_what_was_clipped_is_counted_as_clip_report_counts_it(clip, nonfinite):
    config = dataclasses.replace(
        STEP_CONFIG, clip=clip, components="by_module", nonfinite=nonfinite
    )
    run = a_run(config, clip=clip, clip_numbers=QUICK.get(clip, {}), max_norm=1.0)
    if clip == "fixed":
        tx = cwgnc_jax.component_clip_by_global_norm(
            1.0,
            cwgnc_jax.by_module,
            nonfinite="zero" if nonfinite == "zero_component" else "propagate",
            keep_report=True,
        )
    else:
        numbers = CLIP_NUMBERS[clip] | QUICK[clip]
        tx = LEARNED_CLIPS[clip](
            component_fn=cwgnc_jax.by_module, keep_report=True, **numbers
        )
    step, clip_step = jax.jit(functools.partial(update, config)), jax.jit(tx.update)
    state, rng, rates = tx.init(run.params), np.random.default_rng(0), []
    for scale in (0.3, 0.1, 0.5, 0.2):
        scales = jax.tree.map(lambda _, s=scale: s * rng.uniform(0.5, 2), run.params)
        grads = jax.tree.map(
            lambda leaf, s: rng.normal(0, s, leaf.shape).astype(np.float32),
            run.params,
            scales,
        )
        if scale == 0.2:
            grads["classifier"]["bias"][0] = np.nan
        _, state = clip_step(grads, state)
        run, metrics = step(run, np.float32(1), grads)
        report = cwgnc_jax.clip_report(state, grads, cwgnc_jax.by_module)
        np.testing.assert_array_equal(metrics.norms, list(report.norm.values()))
        coefficients = list(report.coefficient.values())
        np.testing.assert_allclose(metrics.coefficients, coefficients, rtol=1e-6)
        for name in ("clip_rate_components", "clip_rate_elements"):
            rates.append(getattr(report, name))
            assert getattr(metrics, name) == pytest.approx(rates[-1], rel=1e-6)
    assert any(0 < rate < 1 for rate in rates)


def test_the_update_is_that_of_the_library_behind_the_clip():
    config = dataclasses.replace(STEP_CONFIG, clip="olmo", components="by_module")
    numbers = {"ratio": 0.5, "decay": 0.5, "warmup_steps": 0}
    # At a tiny eps Adam makes whole steps of the key biases' rounding errors.
    run = a_run(config, clip="olmo", clip_numbers=numbers, eps=1e-3)
    params = run.params
    tx = optax.chain(
        cwgnc_jax.olmo_clip(0.5, cwgnc_jax.by_module, decay=0.5),
        cwgnc_jax.scale_by_adam(eps=1e-3),
        optax.scale_by_schedule(lambda step: -1e-2 * (1 - step / 10)),
    )

    @jax.jit
    def by_hand(params, state, batch):
        def loss_fn(params):
            logits = models.apply(MODEL, params, *padded(batch)).logits
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["labels"]
            ).mean()

        updates, state = tx.update(jax.grad(loss_fn)(params), state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(2):
        params, state = by_hand(params, state, a_batch(seed=seed))
    run, _ = stepped(config, run, 2)
    chex.assert_trees_all_close(run.params, params, atol=1e-6)
    average = run.opt_state[0].inner_state.average
    np.testing.assert_allclose(average, state[0].average, rtol=1e-4)


def test_a_fixed_threshold_learns_nothing_and_reports_its_coefficients():
    run = a_run(STEP_CONFIG, max_norm=0.05)
    assert run.opt_state[0].inner_state == optax.EmptyState()
    assert run.hparams.clip is None
    _, [metrics] = stepped(STEP_CONFIG, run, 1)
    expected = np.minimum(1, 0.05 / (metrics.norms + 1e-6))
    np.testing.assert_allclose(metrics.coefficients, expected, rtol=1e-6)


@pytest.mark.parametrize(("max_norm", "rate"), [(1e-3, 1), (float("inf"), 0)])
def test_one_component_of_everything_is_clipped_or_not(max_norm, rate):
    config = dataclasses.replace(STEP_CONFIG, components="global")
    _, [metrics] = stepped(config, a_run(config, max_norm=max_norm), 1)
    assert metrics.norms.shape == (1,)
    assert metrics.clip_rate_components == metrics.clip_rate_elements == rate


def test_measured_components_are_those_behind_the_learned_clip():
    config = dataclasses.replace(STEP_CONFIG, clip="olmo", statistics=True)
    run = a_run(config, clip="olmo", clip_numbers={"ratio": 0.5})
    step = jax.jit(functools.partial(train_step, config, measured=True))
    run, _ = step(run, a_batch(seed=0))
    _, metrics = step(run, a_batch(seed=1))
    row = metrics.statistics[STATISTICS.index("coefficient")]
    assert min(row) < 1
    # The norms of key biases are rounding errors.
    found = by_component(row, run.params)
    for name, expected in by_component(metrics.coefficients, run.params).items():
        if not name.endswith("key/bias"):
            assert found[name] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("clip", LEARNED_CLIPS)
def test_defaults_are_those_of_the_library_where_it_has_any(clip):
    for name, parameter in inspect.signature(LEARNED_CLIPS[clip]).parameters.items():
        if (clip, name) in OTHERWISE:
            assert CLIP_NUMBERS[clip][name] == OTHERWISE[clip, name]
            assert parameter.default != OTHERWISE[clip, name]
        elif name in CLIP_NUMBERS[clip] and parameter.default is not parameter.empty:
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
        "record-every": 1,
        "workdir": tmp_path / "run",
    }
    pairs = [(f"--{name}", str(value)) for name, value in values.items()]
    return ["finetune", *(part for pair in pairs for part in pair)]


def test_a_run_with_a_learned_clip_records_its_coefficients(flags, tmp_path):
    more = ["--clip", "aggc", "--components", "by_module_type", "--norms-every", "2"]
    assert main([*flags, *more, "--clip-numbers", "high", "1.01", "decay", "0.5"]) == 0
    settings = json.loads((tmp_path / "run/study.json").read_text())
    assert settings["clip_numbers"] == {"high": 1.01, "decay": 0.5}

    def lines(name, kind):
        text = (tmp_path / "run" / name).read_text().splitlines()
        return [line for line in map(json.loads, text) if line["kind"] == kind]

    rates = {
        line["step"]: line["clip_rate_components"]
        for line in lines("records.jsonl", "metrics")
    }
    [names] = lines("components.jsonl", "names")
    assert names["by"] == "by_module_type"
    measured = lines("components.jsonl", "norms")
    assert [line["step"] for line in measured] == [1, 2, 4, 6]
    assert set(measured[0]["coefficients"]) == {1.0}
    for line in measured:
        assert (
            len(line["coefficients"]) == len(line["norms"]) == len(names["components"])
        )
        clipped = [value < 1 for value in line["coefficients"]]
        assert rates[line["step"]] == pytest.approx(np.mean(clipped))
    assert max(rates.values()) > 0


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
        (
            "--clip zclip --nonfinite zero_component",
            "works with --clip fixed only, not",
        ),
    ],
)
def test_numbers_that_a_clip_cannot_take_are_refused(flags, capsys, more, message):
    assert main([*flags, *more.split()]) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1 and message in captured
