import jax
import jax.numpy as jnp
import pytest

from cwgnc_jax import by_layer, by_rules, component_sizes, explain

PARAMS = {
    "layers": {"kernel": jnp.ones((12, 3, 2)), "bias": jnp.ones((12, 2))},
    "head": {"kernel": jnp.ones((2, 500))},
}
STACKED = {"layers": 0}


def test_rows_hold_the_leaves_of_each_component_in_natural_order():
    table = explain(jax.eval_shape(lambda: PARAMS), by_layer, stacked_axes=STACKED)
    assert [row.name for row in table][:4] == [
        "head",
        "layers/0",
        "layers/1",
        "layers/2",
    ]
    assert table[-1].name == "layers/11"
    assert table[-1].paths == ("layers/bias", "layers/kernel")
    assert table[-1].shapes == ((2,), (3, 2))
    sizes = component_sizes(PARAMS, by_layer, stacked_axes=STACKED)
    assert {row.name: row.size for row in table} == sizes


def test_table_is_aligned_and_ends_with_the_total():
    params = {"head": PARAMS["head"], "bias": jnp.ones(2)}
    assert str(explain(params)).splitlines() == [
        "component     size  parameter    shape",
        "bias             2  bias         (2,)",
        "head/kernel  1,000  head/kernel  (2, 500)",
        "2 in all     1,002",
    ]


def test_empty_tree_has_no_components():
    assert explain({}) == ()
    assert str(explain({})).endswith("0 in all      0")


def test_rules_without_effect_are_refused():
    with pytest.raises(ValueError, match="matches no parameter"):
        explain(PARAMS, by_rules([("haed/.*", "head"), (".*", "rest")]))
