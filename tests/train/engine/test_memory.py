"""How many runs share a program."""

import dataclasses

import jax
import pytest

from cwgnc_train.engine import Layout, make_mesh, memory
from cwgnc_train.engine.memory import bytes_free, bytes_needed, fewer, fit_layout

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class OnGpu(Layout):
    """A layout over simulated devices, for another platform."""

    @property
    def platform(self):
        return "gpu"


def gib_of(layout):
    # A run's state takes 1 GiB, and what a step of its group needs 2 GiB more.
    local = layout.runs // layout.run_devices
    return (local + 2 * min(local, layout.group)) * GIB


@pytest.fixture
def fit(monkeypatch):
    def fit(count, free, wanted="auto", devices=1, data_devices=1, kind=OnGpu):
        monkeypatch.setattr(memory, "bytes_free", lambda devices: free * GIB)
        layout = kind(make_mesh(jax.devices()[:devices], data_devices))
        found, why = fit_layout(wanted, count, layout, gib_of)
        return found.runs, found.group, why

    return fit


def test_up_to_eight_go_together_on_a_gpu_in_equal_programs(fit):
    assert fit(25, 1000)[:2] == (7, 8)
    assert fit(16, 1000)[:2] == (8, 8)
    assert fit(3, 1000)[:2] == (3, 8)


def test_fewer_go_together_where_memory_is_short(fit):
    runs, group, why = fit(16, 12)
    together = OnGpu(make_mesh(jax.devices()[:1]), runs, group)
    assert gib_of(together) <= 0.9 * 12 * GIB
    assert 1 < runs < 8
    assert f"{3 * runs:.2f} GiB of 12.0 GiB free" in why


def test_a_single_run_is_tried_even_if_it_does_not_seem_to_fit(fit):
    assert fit(16, 1)[0] == 1


def test_a_cpu_takes_one_run_a_device(fit):
    assert fit(16, 1000, kind=Layout)[0] == 1
    assert fit(16, 1000, kind=Layout, devices=8, data_devices=2)[0] == 4


def test_runs_are_a_multiple_of_the_devices(fit):
    assert fit(20, 1000, devices=8)[0] == 24
    assert fit(100, 10, devices=8)[0] in (8, 16, 24)
    assert fewer(24, 8) == 8 and fewer(8, 8) == 8 and fewer(3, 1, 0.9) == 2


def test_what_is_asked_for_is_done(fit):
    assert fit(25, 1, wanted=20)[:2] == (20, 8)
    assert fit(25, 1, wanted=20, devices=8)[0] == 24
    # No more than there are runs.
    assert fit(3, 1, wanted=20)[0] == 3


def test_pmap_trains_one_run_at_a_time(fit):
    layout = OnGpu(make_mesh(jax.devices(), 8), strategy="pmap")
    assert fit_layout("auto", 16, layout, gib_of)[0].runs == 1


def test_the_program_itself_says_what_it_needs():
    x = jax.ShapeDtypeStruct((1024, 1024), "float32")
    kept = jax.jit(lambda x: x + 1).lower(x).compile()
    reused = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert bytes_needed(kept) >= 2 * 4 * 2**20
    assert bytes_needed(reused) == bytes_needed(kept) - 4 * 2**20


def test_free_memory_is_shared_by_the_devices_of_a_cpu():
    one, eight = bytes_free(jax.devices()[:1]), bytes_free(jax.devices())
    assert eight == pytest.approx(one / 8, rel=0.2)
