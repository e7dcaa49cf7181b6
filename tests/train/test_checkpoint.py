import errno
import os
import shutil
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train import checkpoint
from train.checkpoint import (
    Checkpoints,
    fingerprint,
    latest,
    other_fingerprint,
    remove_checkpoints,
    restore_runs,
)
from train.optimizer import Hyperparameters
from train.parallel import device_mesh
from train.steps import Run


def runs_of(seed, sharding=None, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    params = {"a": {"0": jnp.array(rng.normal(size=(8, 3)), dtype)}}
    state = optax.adam(1e-3).init(params)
    state = jax.tree.map(lambda x: jnp.zeros((8, *x.shape), x.dtype) + seed, state)
    numbers = Hyperparameters(*[jnp.ones(8)] * 10, None)
    keys = jax.random.split(jax.random.key(seed), 8)
    runs = Run(params, state, keys, jnp.full(8, seed, jnp.int32), numbers)
    return runs if sharding is None else jax.device_put(runs, sharding)


def save(folder, *steps, scores=None, **settings):
    with Checkpoints(folder, **settings) as checkpoints:
        for step in steps:
            score = scores and scores[step]
            checkpoints.save(step, runs_of(step), {"n": step}, score)
        checkpoints.wait()


def newest(folder):
    said = []
    return *latest(folder, said.append), said


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_runs_come_back_bit_for_bit_with_their_notes(tmp_path):
    save(tmp_path / "c", 7)
    path, notes, said = newest(tmp_path / "c")
    assert notes == {"n": 7} and not said
    restored = restore_runs(path, runs_of(2))
    chex.assert_trees_all_equal(restored[:2], runs_of(7)[:2])
    chex.assert_trees_all_equal(restored.step, runs_of(7).step)
    assert (restored.key == runs_of(7).key).all()


def test_runs_come_back_on_other_devices(tmp_path):
    save(tmp_path / "c", 1)
    mesh = device_mesh(jax.devices(), 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("run"))
    restored = restore_runs(newest(tmp_path / "c")[0], runs_of(2, sharding))
    assert restored.params["a"]["0"].sharding == sharding
    chex.assert_trees_all_equal(restored.params, runs_of(1).params)
    assert (restored.key == runs_of(1).key).all()


def test_runs_may_be_changed_in_place_while_they_are_written(tmp_path):
    step = jax.jit(lambda x: jax.tree.map(lambda x: x + 1, x), donate_argnums=0)
    runs = runs_of(0)
    runs = runs._replace(params={"a": jnp.arange(2e6).reshape(8, -1)}, opt_state=())
    before = jax.device_get(runs.params)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, runs, {})
        changed = runs.params
        for _ in range(50):
            changed = step(changed)
        jax.block_until_ready(changed)
        checkpoints.wait()
    like = runs._replace(params=changed)
    restored = restore_runs(newest(tmp_path / "c")[0], like)
    chex.assert_trees_all_equal(restored.params, before)


def test_the_last_ones_are_kept_and_torn_ones_do_not_count(tmp_path):
    folder = tmp_path / "c"
    save(folder, 9, 10, 11, keep=2)
    assert names(folder) == ["00000010", "00000011"]
    (folder / "00000012.part").mkdir()
    assert newest(folder)[1] == {"n": 11}
    save(folder, 13)
    assert names(folder) == ["00000013"]


def test_the_best_is_kept_beside_the_last(tmp_path):
    folder = tmp_path / "c"
    scores = {1: 0.5, 2: 0.9, 3: 0.9, 4: None, 5: 0.1}
    save(folder, *scores, scores=scores, keep_best=True)
    assert names(folder) == ["00000002", "00000005"]
    save(folder, 6, keep_best=True)
    assert names(folder) == ["00000002", "00000006"]


def test_checkpoints_of_runs_that_others_have_followed_go(tmp_path):
    save(tmp_path / "c", 9)
    save(tmp_path / "c", 2, keep=2)
    assert names(tmp_path / "c") == ["00000002"]


def test_without_checkpoints_there_is_none(tmp_path):
    assert latest(tmp_path / "none", print) is None
    remove_checkpoints(tmp_path / "none")
    save(tmp_path / "c", 1)
    (tmp_path / "c.gone").mkdir()
    remove_checkpoints(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_due_after_their_time_and_slow_ones_are_far_apart(
    tmp_path, monkeypatch
):
    now = 0.0
    real = checkpoint.seal

    def slow(folder):
        time.sleep(0.3)
        real(folder)

    monkeypatch.setattr(checkpoint, "seal", slow)
    monkeypatch.setattr(checkpoint, "_SECONDS", 10.0)
    with Checkpoints(tmp_path / "c", clock=lambda: now) as checkpoints:
        assert not checkpoints.due()
        now = 10.0
        assert checkpoints.due()
        checkpoints.save(1, runs_of(1), {})
        checkpoints.wait()
        now = 24.0  # 0.3 s and more are 2 % of 15 s and more
        assert not checkpoints.due()
    with Checkpoints(tmp_path / "c", seconds=0.0) as checkpoints:
        assert checkpoints.due()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path):
    folder = tmp_path / "c"
    save(folder, 1, 2, keep=2)
    data = max((folder / "00000002" / "state").rglob("*"), key=lambda p: len(p.name))
    data.write_bytes(data.read_bytes()[:-1])
    path, notes, said = newest(folder)
    assert notes == {"n": 1} and path.name == "00000001"
    assert len(said) == 1
    assert "00000002 is damaged: state/" in said[0] and "has changed" in said[0]


def test_without_a_whole_checkpoint_nothing_is_used(tmp_path):
    folder = tmp_path / "c"
    save(folder, 1, 2, keep=2)
    (folder / "00000001" / "notes.json").unlink()
    (folder / "00000002" / "extra").touch()
    message = "00000002 is damaged: extra is not in .*; .*notes.json is missing.*remove"
    with pytest.raises(ValueError, match=message):
        newest(folder)


def test_checkpoints_that_were_swapped_are_noticed(tmp_path):
    folder = tmp_path / "c"
    save(folder, 1, 2, keep=2)
    (folder / "00000001").rename(folder / "x")
    (folder / "00000002").rename(folder / "00000001")
    (folder / "x").rename(folder / "00000002")
    with pytest.raises(ValueError, match="damaged: it is the one of step 1"):
        newest(folder)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda runs: runs._replace(params={"a": runs.params["a"]["0"]}), "got none"),
        (
            lambda runs: runs_of(1, dtype=jnp.bfloat16),
            r"0.a.0: expected bfloat16\[8, 3\], got float32\[8, 3\]",
        ),
        (
            lambda runs: jax.tree.map(lambda x: x[:4], runs),
            r"0.a.0: expected float32\[4, 3\], got float32\[8, 3\]",
        ),
    ],
)
def test_arrays_of_other_names_dtypes_or_shapes_are_refused(tmp_path, other, message):
    save(tmp_path / "c", 1)
    path = newest(tmp_path / "c")[0]
    with pytest.raises(ValueError, match=message):
        restore_runs(path, other(runs_of(1)))


def test_a_full_disk_leaves_the_last_checkpoint_as_it_is(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path / "c", 1)
    monkeypatch.setattr(checkpoint, "seal", full)
    message = "step 2: .*No space left on device; the last one is .*00000001.*full"
    with pytest.raises(OSError, match=message):
        save(tmp_path / "c", 2, 3)
    assert names(tmp_path / "c") == ["00000001"]
    assert newest(tmp_path / "c")[1] == {"n": 1}
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(OSError, match="step 2: .*there is none before it"):
        save(tmp_path / "c", 2)


def test_the_cores_that_may_be_used_are_part_of_the_fingerprint(monkeypatch):
    here = fingerprint(devices=1)
    assert here["cores"] == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(96))
    said = other_fingerprint(here, fingerprint(devices=1))
    assert f"cores was {here['cores']} and is 96" in said
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fingerprint(devices=1)["cores"] is None


def test_fingerprints_that_differ_say_how():
    here = fingerprint(devices=2)
    assert other_fingerprint(here, here) is None
    said = other_fingerprint(here | {"device": "abacus", "XLA_FLAGS": "--x"}, here)
    assert "device was 'abacus' and is" in said and "XLA_FLAGS was '--x'" in said
    assert "not to the same bits" in said and "\n" not in said
