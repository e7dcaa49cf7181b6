"""Non-finite gradients, in a step and in a run."""

import dataclasses
import functools
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
from cwgnc_train.config import OptimizerConfig, RegularizationConfig
from cwgnc_train.engine.course import NonfiniteSteps
from cwgnc_train.engine.optimizer import make_hparams, scheduled_rate
from cwgnc_train.engine.step import init_run, train_step
from tests.train.conftest import (
    MODEL,
    STEP_CONFIG,
    a_batch,
    padded,
    sentences,
    write_tsv,
)

BAD = a_batch() | {"weights": np.array([1, 1, np.nan, 1, 1, 1], np.float32)}


@functools.cache
def start():
    hparams = make_hparams(
        OptimizerConfig(learning_rate=1e-2), RegularizationConfig(dropout=0.0), 10
    )
    params = models.init_params(MODEL, jax.random.key(0))
    return init_run(STEP_CONFIG, params, jax.random.key(1), hparams)


@functools.cache
def step_of(nonfinite):
    config = dataclasses.replace(STEP_CONFIG, nonfinite=nonfinite)
    return jax.jit(functools.partial(train_step, config))


def test_a_skipped_step_changes_nothing_but_the_count_of_steps():
    before, _ = step_of("skip_step")(start(), a_batch(seed=1))
    after, metrics = step_of("skip_step")(before, BAD)
    chex.assert_trees_all_equal(
        (after.params, after.opt_state), (before.params, before.opt_state)
    )
    assert after.step == before.step + 1
    assert not np.isfinite(metrics.norms).all()
    assert metrics.learning_rate == 0
    again, _ = step_of("skip_step")(after, a_batch(seed=2))
    assert not jnp.array_equal(
        again.params["classifier"]["kernel"], after.params["classifier"]["kernel"]
    )


def test_a_skipped_step_counts_for_the_schedule_and_not_for_adam():
    # A rate of 1 over ten steps: the fifth has .6, and the last, as always, .1.
    hparams = start().hparams._replace(
        learning_rate=np.float32(1), eps=np.float32(1e-3), max_norm=np.float32(0.05)
    )
    run, skipped, rates = start()._replace(hparams=hparams), {1, 2, 3}, []
    by_hand = optax.chain(
        cwgnc_jax.component_clip_by_global_norm(0.05),
        cwgnc_jax.scale_by_adam(eps=1e-3),
        optax.scale(-1.0),
    )
    state = by_hand.init(run.params)

    @jax.jit
    def at_rate_one(params, state, batch):
        def loss_fn(params):
            logits = models.apply(MODEL, params, *padded(batch)).logits
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["labels"]
            ).mean()

        return by_hand.update(jax.grad(loss_fn)(params), state)

    for step in range(10):
        before, batch = run.params, BAD if step in skipped else a_batch(seed=step)
        run, metrics = step_of("skip_step")(run, batch)
        rates.append(float(metrics.learning_rate))
        if step in skipped:
            chex.assert_trees_all_equal(run.params, before)
            continue
        updates, state = at_rate_one(before, state, batch)
        applied = jax.tree.map(jnp.subtract, run.params, before)
        expected = optax.tree.scale(rates[-1], updates)
        chex.assert_trees_all_close(applied, expected, rtol=1e-3, atol=1e-4)
        # The size alone tells one rate from the next.
        size = optax.tree.norm(applied) / optax.tree.norm(updates)
        assert size == pytest.approx(rates[-1], rel=1e-3)
    assert rates == pytest.approx([1, 0, 0, 0, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert scheduled_rate(hparams, run.step) == 0
    assert optax.tree.get(run.opt_state, "count") == 7


@pytest.mark.parametrize("policy", ["propagate", "skip_step"])
def test_a_run_that_diverges_changes_no_bit_of_its_neighbour(policy):
    config = dataclasses.replace(STEP_CONFIG, nonfinite=policy)
    step = jax.jit(jax.vmap(functools.partial(train_step, config), in_axes=(0, None)))

    def two_runs(other_rate):
        states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start())
        rates = np.array([1e-2, other_rate], np.float32)
        states = states._replace(hparams=states.hparams._replace(learning_rate=rates))
        reported = []
        for seed in range(3):
            states, metrics = step(states, a_batch(seed=seed))
            reported.append(metrics)
        states = states._replace(key=jax.random.key_data(states.key))
        return jax.device_get((states, reported))

    calm, spoiled = two_runs(1e-2), two_runs(np.inf)
    assert not np.isfinite(spoiled[0].params["classifier"]["kernel"][1]).all()
    assert not np.isfinite(spoiled[1][-1].norms[1]).all()
    for one, other in zip(jax.tree.leaves(calm), jax.tree.leaves(spoiled), strict=True):
        assert one[0].tobytes() == other[0].tobytes()


def test_nan_propagates_without_a_policy_and_not_with_zero_component():
    lost, _ = step_of("propagate")(start(), BAD)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(lost.params))
    kept, _ = step_of("zero_component")(start(), BAD)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(kept.params))
    # Adam has seen zeros, and so its count has gone on.
    counts = [x for x in jax.tree.leaves(kept.opt_state) if x.dtype == jnp.int32]
    assert counts and all(count == 1 for count in counts)


def test_a_norm_that_overflows_is_skipped_or_zeroed_and_never_spreads():
    # Gradients of 1e20 are finite numbers, and their squares are not.
    run = start()
    head = run.params["classifier"] | {
        "kernel": 1e20 * run.params["classifier"]["kernel"]
    }
    loud = run._replace(params=run.params | {"classifier": head})
    skipped, metrics = step_of("skip_step")(loud, a_batch())
    norms = np.array(metrics.norms)
    assert np.isinf(norms).any() and not np.isnan(norms).any()
    chex.assert_trees_all_equal(skipped.params, loud.params)
    for policy in ("propagate", "zero_component"):
        stepped, _ = step_of(policy)(loud, a_batch())
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(stepped.params))
        before, after = (x.params["classifier"]["bias"] for x in (loud, stepped))
        assert not jnp.array_equal(before, after)


@pytest.mark.parametrize("policy", ["skip_step", "zero_component"])
def test_a_finite_step_is_the_same_under_every_policy(policy):
    expected, _ = step_of("propagate")(start(), a_batch())
    stepped, _ = step_of(policy)(start(), a_batch())
    chex.assert_trees_all_close(stepped.params, expected.params, rtol=1e-6, atol=1e-7)


def test_steps_in_a_row_are_counted_and_where_they_began():
    seen = NonfiniteSteps()
    good, bad, worse = np.array([[1.0, 2.0], [np.nan, 2.0], [np.inf, np.nan]])
    for step, norms in enumerate([good, bad, worse, good, worse, bad], 1):
        seen.see(step, ["a", "b"], norms)
    assert (seen.steps, seen.first_step, seen.first_components) == (4, 2, ["a"])
    assert (seen.in_a_row, seen.row_step, seen.row_components) == (2, 5, ["a", "b"])
    assert "2 steps in a row were skipped, from step 5 on" in seen.why_given_up()
    assert "first in 'a', 'b'" in seen.why_given_up()
    # So a checkpoint holds it.
    assert NonfiniteSteps(**json.loads(json.dumps(dataclasses.asdict(seen)))) == seen


@pytest.fixture
def finetune(tiny_model, tmp_path):
    """Fine-tunes on labels of which the first are absurd; returns the exit status."""

    def run(absurd, *more):
        rows = [(t, "1e25" if i < absurd else "0.5") for i, (t, _) in enumerate(TEXTS)]
        train = write_tsv(tmp_path / "train.tsv", rows)
        validation = write_tsv(tmp_path / "validation.tsv", rows[absurd:])
        flags = {
            "--model": tiny_model,
            "--train-file": train,
            "--validation-file": validation,
            "--text-columns": "text",
            "--epochs": 3,
            "--batch-size": 4,
            "--warmup-ratio": 0,
            "--max-length": 16,
            "--record-every": 1,
            "--workdir": tmp_path / "run",
        }
        pairs = [str(part) for pair in flags.items() for part in pair]
        return main(["finetune", *pairs, "--regression", "--new-head", *more])

    return run


TEXTS = sentences(24)


def lines(folder, kind):
    text = (folder / "records.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["kind"] == kind]


@pytest.mark.parametrize("policy", ["skip_step", "zero_component"])
def test_a_run_goes_on_and_tells_of_it(finetune, tmp_path, capsys, policy):
    assert finetune(1, "--nonfinite", policy) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    recorded = lines(tmp_path / "run", "nonfinite")
    found = results["nonfinite_steps"]
    assert found["steps"] == len(recorded) == 3  # once an epoch
    assert found["first_step"] == recorded[0]["step"]
    assert results["diverged_at_step"] is None
    assert "classifier/kernel" in found["components"]
    assert recorded[0]["components"] == found["components"]
    rates = {
        line["step"]: line["learning_rate"]
        for line in lines(tmp_path / "run", "metrics")
    }
    skipped = {line["step"] for line in recorded} if policy == "skip_step" else {}
    assert rates == pytest.approx(
        {
            step: 0 if step in skipped else 2e-5 * (19 - step) / 18
            for step in range(1, 19)
        }
    )
    assert np.isfinite(results["scores"]["validation"]["pearson"])
    printed = capsys.readouterr().out
    assert "gradients were not finite in 3 steps, first in step" in printed


def test_a_run_gives_up_after_too_many_in_a_row(finetune, tmp_path, capsys):
    assert finetune(20, "--nonfinite", "skip_step", "--give-up-after", "3") == 1
    captured = capsys.readouterr()
    assert "gave up: 3 steps in a row were skipped" in captured.err
    assert "Traceback" not in captured.err
    assert "no model was saved" in captured.out
    assert not (tmp_path / "run/model").exists()
    [run] = lines(tmp_path / "run", "run")
    assert run["failed"] and run["gave_up_at_step"] == run["nonfinite_steps"]["steps"]
    assert len(lines(tmp_path / "run", "nonfinite")) == 1


def test_by_default_the_run_diverges_and_its_record_says_where(finetune, tmp_path):
    assert finetune(1) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["failed"]
    assert results["nonfinite_steps"]["first_step"] == results["diverged_at_step"]


def test_a_limit_below_one_is_refused(finetune, capsys):
    assert finetune(1, "--give-up-after", "0") == 2
    assert "--give-up-after must be at least 1, got 0" in capsys.readouterr().err
