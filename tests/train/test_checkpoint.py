import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.checkpoint import latest, remove_checkpoints, restore_runs, save_runs
from train.optimizer import Hyperparameters
from train.parallel import device_mesh
from train.steps import Run


def runs_of(seed, sharding=None):
    rng = np.random.default_rng(seed)
    params = {"a": {"0": jnp.array(rng.normal(size=(8, 3)), jnp.float32)}}
    state = optax.adam(1e-3).init(params)
    state = jax.tree.map(lambda x: jnp.zeros((8, *x.shape), x.dtype) + seed, state)
    numbers = Hyperparameters(*[jnp.ones(8)] * 10, None)
    keys = jax.random.split(jax.random.key(seed), 8)
    runs = Run(params, state, keys, jnp.full(8, seed, jnp.int32), numbers)
    return runs if sharding is None else jax.device_put(runs, sharding)


def test_runs_come_back_bit_for_bit_with_their_notes(tmp_path):
    save_runs(tmp_path / "c", 7, runs_of(1), {"runs": ["x"], "state": {"step": 7}})
    path, notes = latest(tmp_path / "c")
    assert notes == {"runs": ["x"], "state": {"step": 7}}
    restored = restore_runs(path, runs_of(2))
    chex.assert_trees_all_equal(restored[:2], runs_of(1)[:2])
    chex.assert_trees_all_equal(restored.step, runs_of(1).step)
    # Keys and hyperparameters follow from the config.
    assert (restored.key == runs_of(2).key).all()


def test_runs_come_back_on_other_devices(tmp_path):
    save_runs(tmp_path / "c", 1, runs_of(1), {"runs": []} | {"n": 1})
    mesh = device_mesh(jax.devices(), 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("run"))
    restored = restore_runs(latest(tmp_path / "c")[0], runs_of(2, sharding))
    assert restored.params["a"]["0"].sharding == sharding
    chex.assert_trees_all_equal(restored.params, runs_of(1).params)


def test_only_the_newest_is_kept_and_torn_ones_do_not_count(tmp_path):
    folder = tmp_path / "c"
    for step in (9, 10, 11):
        save_runs(folder, step, runs_of(step), {"step": step})
    assert [path.name for path in folder.iterdir()] == ["00000011"]
    (folder / "00000012.orbax-checkpoint-tmp").mkdir()
    assert latest(folder)[1] == {"step": 11}


def test_without_checkpoints_there_is_none(tmp_path):
    assert latest(tmp_path / "none") is None
    remove_checkpoints(tmp_path / "none")
    save_runs(tmp_path / "c", 1, runs_of(1), {"step": 1})
    (tmp_path / "c.gone").mkdir()
    remove_checkpoints(tmp_path / "c")
    assert not list(tmp_path.iterdir())
