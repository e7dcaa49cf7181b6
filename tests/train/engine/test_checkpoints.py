"""Checkpoints by Orbax, with a manifest in each."""

import errno
import json
import os
import resource
import shutil
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cwgnc_train.config import CheckpointsConfig, UserError
from cwgnc_train.engine import (
    Checkpoints,
    Hparams,
    Layout,
    RunState,
    find_checkpoint,
    fingerprint,
    make_mesh,
    other_fingerprint,
    remove_checkpoints,
)
from cwgnc_train.engine import checkpoints as module
from cwgnc_train.engine.checkpoints import restore
from cwgnc_train.records import verify_manifest, write_manifest


def runs_of(seed, sharding=None, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    params = {"a": {"0": jnp.array(rng.normal(size=(8, 3)), dtype)}}
    state = optax.adam(1e-3).init(params)
    state = jax.tree.map(lambda x: jnp.zeros((8, *x.shape), x.dtype) + seed, state)
    hparams = Hparams(*[jnp.ones(8)] * 10, None)
    keys = jax.random.split(jax.random.key(seed), 8)
    runs = RunState(params, state, keys, jnp.full(8, seed, jnp.int32), hparams)
    return runs if sharding is None else jax.device_put(runs, sharding)


def save(folder, *steps, scores=None, before=0, **config):
    with Checkpoints(folder, CheckpointsConfig(**config), before) as checkpoints:
        for step in steps:
            score = scores and scores[step]
            checkpoints.save(step, runs_of(step), {"step": step, "n": step}, score)
        checkpoints.prune()


def newest(folder, problem=lambda notes: None):
    said = []
    found = find_checkpoint(folder, said.append, problem)
    assert found is not None
    return *found, said


def names(folder):
    return sorted((path.name for path in folder.iterdir()), key=int)


def of_the_state(path):
    return max((path / "state").rglob("*"), key=lambda p: (p.is_file(), len(p.name)))


def test_runs_come_back_bit_for_bit_with_their_notes(tmp_path):
    save(tmp_path / "c", 7)
    path, notes, said = newest(tmp_path / "c")
    assert notes == {"step": 7, "n": 7} and not said
    restored = restore(path, runs_of(2))
    chex.assert_trees_all_equal(restored[:2], runs_of(7)[:2])
    chex.assert_trees_all_equal(restored.step, runs_of(7).step)
    assert (restored.key == runs_of(7).key).all()


def test_runs_come_back_on_other_devices(tmp_path):
    save(tmp_path / "c", 1)
    sharding = Layout(make_mesh(jax.devices(), 2)).over_runs()
    restored = restore(newest(tmp_path / "c")[0], runs_of(2, sharding))
    assert restored.params["a"]["0"].sharding == sharding
    chex.assert_trees_all_equal(restored.params, runs_of(1).params)
    assert (restored.key == runs_of(1).key).all()


def test_runs_may_be_changed_in_place_while_they_are_written(tmp_path):
    step = jax.jit(lambda x: jax.tree.map(lambda x: x + 1, x), donate_argnums=0)
    runs = runs_of(0)
    runs = runs._replace(params={"a": jnp.arange(2e6).reshape(8, -1)}, opt_state=())
    before = jax.device_get(runs.params)
    with Checkpoints(tmp_path / "c", CheckpointsConfig()) as checkpoints:
        checkpoints.save(1, runs, {"step": 1})
        changed = runs.params
        for _ in range(50):
            changed = step(changed)
        jax.block_until_ready(changed)
        checkpoints.wait()
    like = runs._replace(params=changed)
    restored = restore(newest(tmp_path / "c")[0], like)
    chex.assert_trees_all_equal(restored.params, before)


def test_orbax_alone_lists_and_describes_them(tmp_path):
    import orbax.checkpoint.experimental.v1 as ocp

    save(tmp_path / "c", 3)
    with ocp.training.Checkpointer(tmp_path / "c") as checkpointer:
        assert [found.step for found in checkpointer.checkpoints] == [3]
        stored = checkpointer.metadata(3).metadata
    assert stored["0.a.0"].shape == (8, 3) and stored["0.a.0"].dtype == jnp.float32


def test_the_last_ones_are_kept_and_torn_ones_do_not_count(tmp_path):
    folder = tmp_path / "c"
    save(folder, 9, 10, 11, keep=2)
    assert names(folder) == ["10", "11"]
    # As Orbax leaves behind what it was writing.
    torn = folder / "12.orbax-checkpoint-tmp"
    shutil.copytree(folder / "11", torn)
    assert newest(folder) == (folder / "11", {"step": 11, "n": 11}, [])
    save(folder, 13, before=11)
    assert names(folder) == ["13"]


def test_a_checkpoint_without_a_manifest_is_not_used_and_this_is_said(tmp_path):
    folder = tmp_path / "c"
    save(folder, 1, 2, keep=2)
    (folder / "2" / "manifest.json").unlink()
    path, notes, said = newest(folder)
    assert (path, notes["n"]) == (folder / "1", 1)
    assert said == [f"{folder / '2'} was not written to its end: not used"]
    (folder / "1" / "manifest.json").unlink()
    assert find_checkpoint(folder, said.append) is None
    # The next to be written takes their place.
    save(folder, 3, before=2, keep=2)
    assert names(folder) == ["3"]


def test_a_whole_checkpoint_stays_while_the_next_one_is_written(tmp_path, monkeypatch):
    folder, seen = tmp_path / "c", []

    def note(path):
        # Orbax has committed this one, and has been asked what to keep.
        seen.append([name for name in names(folder) if whole(folder / name)])
        write_manifest(path)

    def whole(path):
        return verify_manifest(path) is None

    monkeypatch.setattr(module, "write_manifest", note)
    save(folder, 1, 2, 3, 4)
    assert [found[-1] for found in seen[1:]] == ["1", "2", "3"]
    assert names(folder) == ["4"]


def test_the_best_is_kept_beside_the_last(tmp_path):
    folder = tmp_path / "c"
    # Of equal ones the first.
    scores = {1: 0.5, 2: 0.9, 3: 0.9, 4: None, 5: 0.1}
    save(folder, *scores, scores=scores, keep_best=True)
    assert names(folder) == ["2", "5"]
    # A process that goes on knows the scores.
    save(folder, 6, 7, scores={6: 0.3, 7: None}, before=5, keep_best=True)
    assert names(folder) == ["2", "7"]
    save(folder, 8, 9, scores={8: 0.95, 9: 0.2}, before=7, keep_best=True, keep=2)
    assert names(folder) == ["8", "9"]


def test_checkpoints_of_later_steps_go_when_runs_have_started_before_them(tmp_path):
    save(tmp_path / "c", 9)
    save(tmp_path / "c", 2, keep=2)
    assert names(tmp_path / "c") == ["2"]


def test_without_checkpoints_there_is_none(tmp_path):
    assert find_checkpoint(tmp_path / "none", print) is None
    remove_checkpoints(tmp_path / "none")
    save(tmp_path / "c", 1)
    (tmp_path / "c.gone").mkdir()
    remove_checkpoints(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_due_after_their_time_and_slow_ones_are_far_apart(
    tmp_path, monkeypatch
):
    now = 0.0

    def slow(folder):
        time.sleep(0.3)
        write_manifest(folder)

    monkeypatch.setattr(module, "write_manifest", slow)
    monkeypatch.setattr(module, "_SECONDS", 10.0)
    clock = lambda: now  # noqa: E731
    with Checkpoints(tmp_path / "c", CheckpointsConfig(), clock=clock) as checkpoints:
        assert not checkpoints.due()
        now = 10.0
        assert checkpoints.due()
        checkpoints.save(1, runs_of(1), {"step": 1})
        assert not checkpoints.due()
        checkpoints.wait()
        now = 24.0  # 0.3 s and more are 2 % of 15 s and more
        assert not checkpoints.due()
    config = CheckpointsConfig(checkpoint_seconds=0.0)
    with Checkpoints(tmp_path / "c", config) as checkpoints:
        assert checkpoints.due()


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path, monkeypatch):
    free, order = threading.Event(), []

    def held(folder):
        order.append(f"{folder.name} held")
        free.wait(10)
        write_manifest(folder)
        order.append(f"{folder.name} whole")

    monkeypatch.setattr(module, "write_manifest", held)
    with Checkpoints(tmp_path / "c", CheckpointsConfig()) as checkpoints:
        checkpoints.save(1, runs_of(1), {"step": 1})
        threading.Timer(0.2, free.set).start()
        checkpoints.save(2, runs_of(2), {"step": 2})
        assert order[:2] == ["1 held", "1 whole"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path):
    folder = tmp_path / "c"
    save(folder, 1, 2, keep=2)
    data = of_the_state(folder / "2")
    data.write_bytes(data.read_bytes()[:-1])
    path, notes, said = newest(folder)
    assert notes["n"] == 1 and path.name == "1"
    assert len(said) == 1
    assert "2 is damaged: state/" in said[0] and "has changed" in said[0]


def test_a_checkpoint_whose_records_are_gone_is_not_used(tmp_path):
    folder = tmp_path / "c"
    save(folder, 1, 2, keep=2)
    path, _, said = newest(folder, lambda notes: "no" if notes["n"] == 2 else None)
    assert path.name == "1"
    assert said == [f"{folder / '2'} is damaged: no: not used"]


def test_without_a_whole_checkpoint_nothing_is_used(tmp_path):
    folder = tmp_path / "c"
    save(folder, 1, 2, keep=2)
    [notes] = (folder / "1").glob("_CHECKPOINT_METADATA")
    notes.unlink()
    (folder / "2" / "extra").touch()
    message = (
        "2 is damaged: extra is not in .*; .*1 is damaged: _CHECKPOINT_METADATA is "
        "missing.*remove"
    )
    with pytest.raises(UserError, match=message):
        newest(folder)


def test_checkpoints_that_were_swapped_are_noticed(tmp_path):
    folder = tmp_path / "c"
    save(folder, 1, 2, keep=2)
    (folder / "1").rename(folder / "x")
    (folder / "2").rename(folder / "1")
    (folder / "x").rename(folder / "2")
    with pytest.raises(UserError, match="damaged: it is the one of step 1"):
        newest(folder)


def test_damaged_notes_are_damage(tmp_path):
    save(tmp_path / "c", 1)
    path = tmp_path / "c" / "1" / "_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    assert content["custom_metadata"] == {"step": 1, "n": 1}
    content["custom_metadata"]["n"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="_CHECKPOINT_METADATA has changed"):
        newest(tmp_path / "c")


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
    with pytest.raises(UserError, match=message):
        restore(path, other(runs_of(1)))


def test_a_full_disk_leaves_the_last_checkpoint_as_it_is(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path / "c", 1)
    monkeypatch.setattr(module, "write_manifest", full)
    message = "step 2: .*No space left on device; the last one is .*c/1.*full"
    with pytest.raises(OSError, match=message):
        save(tmp_path / "c", 2, 3, before=1)
    assert newest(tmp_path / "c")[1]["n"] == 1
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(OSError, match="step 2: .*there is none before it"):
        save(tmp_path / "c", 2)


def test_a_failure_of_orbax_is_told_as_one_error(tmp_path):
    """It raises what went wrong in the background, and once more when it is closed."""
    save(tmp_path / "c", 1)
    rng = np.random.default_rng(0)
    params = {"a": jnp.array(rng.normal(size=(8, 20_000)), jnp.float32)}
    large = runs_of(2)._replace(params=params)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = "cannot write the checkpoint of step 2: .*the last one is .*c/1"
    with (
        pytest.raises(OSError, match=message),
        Checkpoints(tmp_path / "c", CheckpointsConfig(), 1) as checkpoints,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            checkpoints.save(2, large, {"step": 2})
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest(tmp_path / "c")[1]["n"] == 1


def test_the_cores_that_may_be_used_are_part_of_the_fingerprint(monkeypatch):
    layout = Layout(make_mesh(jax.devices()[:1]))
    here = fingerprint(layout)
    assert here["cores"] == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(96))
    said = other_fingerprint(here, fingerprint(layout))
    assert f"cores was {here['cores']} and is 96" in said
    # What the runs lie on decides, not what the host has.
    monkeypatch.setattr(Layout, "platform", "gpu")
    assert fingerprint(layout)["cores"] is None


def test_fingerprints_that_differ_say_how():
    here = fingerprint(Layout(make_mesh(jax.devices()[:2])))
    assert other_fingerprint(here, here) is None
    said = other_fingerprint(here | {"device": "abacus", "XLA_FLAGS": "--x"}, here)
    assert "device was 'abacus' and is" in said and "XLA_FLAGS was '--x'" in said
    assert "not to the same bits" in said and "\n" not in said
