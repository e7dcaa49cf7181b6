"""Programs read from XLA's text, and what their kernels cost."""

import jax
import jax.numpy as jnp
import pytest

from cwgnc_train.plan import ACCELERATORS, estimate, read_program
from cwgnc_train.plan.program import Array

H100, V5E = ACCELERATORS["h100"], ACCELERATORS["v5e"]


def text_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    assert text is not None
    return text


@pytest.mark.parametrize(
    ("product", "left", "right", "flops"),
    [
        ("ij,jk->ik", (8, 16), (16, 32), 2 * 8 * 16 * 32),
        ("ji,jk->ik", (16, 8), (16, 32), 2 * 8 * 16 * 32),
        ("bij,bjk->bik", (4, 8, 16), (4, 16, 32), 2 * 4 * 8 * 16 * 32),
        ("bhqd,bhkd->bhqk", (2, 3, 8, 4), (2, 3, 16, 4), 2 * 2 * 3 * 8 * 16 * 4),
    ],
)
def test_operations_of_products_are_two_for_each_multiplication(
    product, left, right, flops
):
    program = read_program(text_of(lambda x, y: jnp.einsum(product, x, y), left, right))
    assert estimate(program, H100).flops == flops


def test_a_loop_costs_its_body_as_often_as_it_runs():
    def steps(x, y):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ y), None), x, length=7)[0]

    program = read_program(text_of(steps, (8, 8), (8, 8)))
    assert estimate(program, H100).flops == 7 * 2 * 8**3


def test_a_loop_whose_compiler_is_silent_runs_to_its_bound():
    def steps(x, y):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ y), None), x, length=7)[0]

    text = text_of(steps, (8, 8), (8, 8))
    assert "known_trip_count" in text
    program = read_program(text.replace("known_trip_count", "something_else"))
    assert estimate(program, H100).flops == 7 * 2 * 8**3


# As the TPU's compiler writes it: products are convolutions, layouts have tiles.
TPU = """\
HloModule jit_f, is_scheduled=true

%fused (p: bf16[16,12,128,64], q: bf16[16,12,128,64]) -> f32[16,12,128,128] {
  %p = bf16[16,12,128,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[16,12,128,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = f32[16,12,128,128]{3,2,1,0:T(8,128)} convolution(%p, %q), \
window={size=16x12 stride=15x11 lhs_dilate=16x12}, dim_labels=01bf_01oi->01bf
}

ENTRY %main (a: bf16[16,12,128,64], b: bf16[16,12,128,64]) -> f32[16,12,128,128] {
  %a = bf16[16,12,128,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,12,128,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %fusion = f32[16,12,128,128]{3,2,1,0:T(8,128)} fusion(%a, %b), kind=kOutput, \
calls=%fused, metadata={op_name="jit(f)/bhqd,bhkd->bhqk/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"3000"}}
}
"""


def test_a_batch_of_products_on_a_tpu_is_counted_once():
    costs = estimate(read_program(TPU), V5E)
    assert costs.flops == 2 * 16 * 12 * 128 * 128 * 64
    assert costs.cycles == 3000
    assert costs.seconds == pytest.approx(3000 / 1.5e9)
    assert costs.parts() == {"matrix products": (costs.seconds, 1)}


# As the GPU's compiler writes it. The lookup reads two rows of the table; the scatter
# changes two rows of it where it lies; the last kernel is short of a launch.
GPU = """\
HloModule jit_f, is_scheduled=true

%lookup (t: f32[1,1000,256], i: s32[2]) -> f32[2,256] {
  %t = f32[1,1000,256]{2,1,0} parameter(0)
  %i = s32[2]{0} parameter(1)
  %flat = f32[1000,256]{1,0} bitcast(%t)
  ROOT %g = f32[2,256]{1,0} gather(%flat, %i), offset_dims={1}
}

%change (z: f32[1000,256], j: s32[2], u: f32[2,256]) -> f32[1000,256] {
  %z = f32[1000,256]{1,0} parameter(0)
  %j = s32[2]{0} parameter(1)
  %u = f32[2,256]{1,0} parameter(2)
  ROOT %s = f32[1000,256]{1,0} scatter(%z, %j, %u), to_apply=%add
}

%double (x: f32[1048576]) -> f32[1048576] {
  %x = f32[1048576]{0} parameter(0)
  ROOT %m = f32[1048576]{0} add(%x, %x)
}

ENTRY %main (table: f32[1,1000,256], ids: s32[2], big: f32[1048576]) -> f32[1048576] {
  %table = f32[1,1000,256]{2,1,0} parameter(0)
  %ids = s32[2]{0} parameter(1)
  %big = f32[1048576]{0} parameter(2)
  %rows = f32[2,256]{1,0} fusion(%table, %ids), kind=kLoop, calls=%lookup
  %zeros = f32[1000,256]{1,0} bitcast(%table)
  %grad = f32[1000,256]{1,0} fusion(%zeros, %ids, %rows), kind=kInput, calls=%change
  ROOT %out = f32[1048576]{0} fusion(%big), kind=kLoop, calls=%double
}
"""


def test_a_kernel_of_a_gpu_costs_its_bytes_or_a_launch():
    costs = estimate(read_program(GPU), H100)
    moved = {kernel.name: kernel.bytes for kernel in costs.kernels}
    rows, ids = 2 * 256 * 4, 2 * 4
    assert moved == {"rows": 2 * rows + ids, "grad": 3 * rows + ids, "out": 2**23}
    seconds = [kernel.seconds for kernel in costs.kernels]
    assert seconds == [2e-6, 2e-6, pytest.approx(2**23 / (0.9 * 3352e9))]


def test_padding_to_tiles_counts_the_innermost_axes():
    plain = Array("f32", (16, 128, 768), "2,1,0:T(8,128)")
    assert plain.padded_bytes == plain.bytes
    # The axis of 2 is innermost, and takes 128 lanes.
    halves = Array("u32", (16, 128, 2), "2,1,0:T(8,128)")
    assert halves.padded_bytes == 64 * halves.bytes
    # One row for each of many: a tile of 1 x 128 has no empty rows.
    table = Array("f32", (1, 30522, 768), "2,0,1:T(1,128)")
    assert table.padded_bytes == table.bytes


def test_what_is_no_program_is_said():
    with pytest.raises(ValueError, match="no program"):
        read_program("HloModule m")


def test_collectives_are_found_with_their_sizes():
    text = """\
ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  %s = f32[1024]{0} all-reduce-start(%a), replica_groups={{0,1}}, to_apply=%add
  ROOT %d = f32[1024]{0} all-reduce-done(%s)
}
"""
    [collective] = estimate(read_program(text), H100).collectives
    assert (collective.kind, collective.bytes) == ("all-reduce", 4096)
