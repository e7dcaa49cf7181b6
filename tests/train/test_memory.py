import jax
import pytest

from train.memory import bytes_free, bytes_needed, choose_layout, fewer
from train.parallel import device_mesh

GIB = 2**30


def gib_of(layout):
    # A run's state takes 1 GiB, and what a step of its group needs 2 GiB more.
    local = layout.runs // layout.run_devices
    return (local + 2 * min(local, layout.group)) * GIB


def choose(count, free, wanted="auto", mesh=None, backend="gpu"):
    layout, why = choose_layout(wanted, count, mesh, backend, gib_of, free * GIB)
    return layout.runs, layout.group, why


def test_up_to_eight_go_together_on_a_gpu_in_equal_programs():
    assert choose(25, 1000)[:2] == (7, 8)
    assert choose(16, 1000)[:2] == (8, 8)
    assert choose(3, 1000)[:2] == (3, 8)


def test_fewer_go_together_where_memory_is_short():
    runs, _, why = choose(16, 12)
    assert gib_of(choose_layout(runs, 16, None, "gpu", gib_of, 0)[0]) <= 0.9 * 12 * GIB
    assert 1 < runs < 8
    assert f"{3 * runs:.2f} GiB of 12.0 GiB free" in why


def test_a_single_run_is_tried_even_if_it_does_not_seem_to_fit():
    assert choose(16, 1)[0] == 1


def test_a_cpu_takes_one_run_a_device():
    assert choose(16, 1000, backend="cpu")[0] == 1
    mesh = device_mesh(jax.devices(), 2)
    assert choose(16, 1000, backend="cpu", mesh=mesh)[0] == 4


def test_runs_are_a_multiple_of_the_devices():
    mesh = device_mesh(jax.devices())
    assert choose(20, 1000, mesh=mesh)[0] == 24
    assert choose(100, 10, mesh=mesh)[0] in (8, 16, 24)
    assert fewer(24, 8) == 8 and fewer(8, 8) == 8 and fewer(3, 1, 0.9) == 2


def test_what_is_asked_for_is_done():
    assert choose(25, 1, wanted=20)[:2] == (20, 8)
    with pytest.raises(ValueError, match="20 runs cannot be split evenly over 8"):
        choose(25, 1, wanted=20, mesh=device_mesh(jax.devices()))


def test_the_program_itself_says_what_it_needs():
    x = jax.ShapeDtypeStruct((1024, 1024), "float32")
    kept = jax.jit(lambda x: x + 1).lower(x).compile()
    reused = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert bytes_needed(kept) >= 2 * 4 * 2**20
    assert bytes_needed(reused) == bytes_needed(kept) - 4 * 2**20


def test_free_memory_is_shared_by_the_devices_of_a_cpu():
    one, eight = bytes_free(jax.devices()[:1]), bytes_free(jax.devices())
    assert eight == pytest.approx(one / 8, rel=0.2)
