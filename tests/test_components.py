import dataclasses

import equinox as eqx
import flax.core
import flax.linen
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import cwgnc_jax
from cwgnc_jax import (
    by_layer,
    by_module,
    by_module_type,
    by_rules,
    component_clip_by_global_norm,
    flatten_with_paths,
)
from cwgnc_jax._tree_paths import natural_key

DENSE = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def paths(tree):
    return flatten_with_paths(tree)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dense:
    bias: jax.Array
    kernel: jax.Array


class Network(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 3, rngs=rngs)


def partitioned_dense():
    init = flax.linen.with_partitioning(flax.linen.initializers.ones, ("x", None))
    module = flax.linen.Dense(3, kernel_init=init)
    return {"dense": module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]}


@pytest.mark.parametrize(
    "tree",
    [
        DENSE,
        flax.core.freeze(DENSE),
        {"dense": Dense(**DENSE["dense"])},
        nnx.state(Network(nnx.Rngs(0))),
        Network(nnx.Rngs(0)),
        nnx.to_pure_dict(nnx.state(Network(nnx.Rngs(0)))),
        partitioned_dense(),
    ],
    ids=["dict", "FrozenDict", "dataclass", "State", "Module", "pure", "Partitioned"],
)
def test_paths_are_spelled_alike_in_every_tree(tree):
    assert sorted(paths(tree)) == ["dense/bias", "dense/kernel"]


def test_paths_of_lists_and_equinox_modules_hold_indices_and_fields():
    network = eqx.nn.MLP(2, 2, 3, depth=1, key=jax.random.key(0))
    arrays = eqx.filter(network, eqx.is_array)
    assert paths(arrays) == [
        "layers/0/weight",
        "layers/0/bias",
        "layers/1/weight",
        "layers/1/bias",
    ]
    assert paths([jnp.ones(1), {"w": jnp.ones(1)}]) == ["0", "1/w"]
    assert paths(nnx.List([nnx.Param(jnp.ones(1))])) == ["0"]


def test_field_called_value_is_kept_where_it_is_no_box():
    assert paths({"attention": {"value": jnp.ones(1)}}) == ["attention/value"]


@pytest.mark.parametrize("library", ["nnx", "linen", "equinox"])
def test_clip_keeps_the_tree_of_every_library(library):
    tree = {
        "nnx": lambda: nnx.state(Network(nnx.Rngs(0))),
        "linen": partitioned_dense,
        "equinox": lambda: eqx.nn.Linear(2, 3, key=jax.random.key(0)),
    }[library]()
    tx = component_clip_by_global_norm(1e-3)
    clipped, _ = jax.jit(tx.update)(tree, tx.init(tree))
    assert jax.tree.structure(clipped) == jax.tree.structure(tree)
    for norm in cwgnc_jax.component_norms(clipped).values():
        assert norm <= 1e-3


def test_layer_10_sorts_after_layer_2():
    names = ["layer/10/w", "layer/2/w", "embeddings", "layer/2/b"]
    assert sorted(names, key=natural_key) == [
        "embeddings",
        "layer/2/b",
        "layer/2/w",
        "layer/10/w",
    ]


@pytest.mark.parametrize(
    ("path", "module", "layer"),
    [
        (
            "bert/encoder/layer/10/attention/self/key/bias",
            "bert/encoder/layer/10/attention/self/key",
            "bert/encoder/layer/10",
        ),
        (
            "bert/embeddings/word_embeddings/embedding",
            "bert/embeddings/word_embeddings",
            "bert/embeddings",
        ),
        ("bert/pooler/dense/kernel", "bert/pooler/dense", "bert/pooler"),
        ("classifier/bias", "classifier", "classifier"),
        ("params/Block_2/Dense_0/kernel", "params/Block_2/Dense_0", "params/Block_2"),
        ("w", "w", "w"),
    ],
)
def test_module_and_layer_of_a_path(path, module, layer):
    assert by_module(path) == module
    assert by_layer(path) == layer


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (
            "bert/encoder/layer/10/attention/self/query/bias",
            "bert/encoder/layer/attention/self/query",
        ),
        ("params/Block_2/Dense_1/kernel", "params/Block/Dense_1"),
        ("layers/0/weight", "layers"),
        ("0/weight", "weight"),
        ("classifier/bias", "classifier"),
        ("w", "w"),
    ],
)
def test_type_of_a_module_is_its_path_without_the_layer(path, kind):
    assert by_module_type(path) == kind


def test_sizes_count_elements_of_joint_components():
    assert dict(cwgnc_jax.component_sizes(DENSE, by_module)) == {"dense": 9}
    shapes = jax.eval_shape(lambda: DENSE)
    assert cwgnc_jax.component_sizes(shapes) == {"dense/bias": 3, "dense/kernel": 6}


def test_first_matching_rule_wins_and_names_take_groups():
    component_fn = by_rules(
        [(r"layer/(\d+)/.*", r"\1"), (r".*/bias", "biases"), (".*", "rest")]
    )
    assert component_fn("layer/3/bias") == "3"
    assert component_fn("classifier/bias") == "biases"
    assert component_fn("classifier/kernel") == "rest"


def test_rules_match_the_whole_path():
    with pytest.raises(ValueError, match="No component rule covers 'dense/kernel'"):
        by_rules([("kernel", "kernels")])("dense/kernel")


def test_uncovered_paths_are_listed_at_init_and_update():
    tree = {f"layer_{i}": jnp.ones(1) for i in range(7)} | {"head": jnp.ones(1)}
    tx = component_clip_by_global_norm(0.05, by_rules([("head", "head")]))
    missed = "No component rule covers 'layer_0'.*'layer_4' and 2 more"
    with pytest.raises(ValueError, match=missed):
        tx.init(tree)
    with pytest.raises(ValueError, match=missed):
        tx.update(tree, tx.init({"head": jnp.ones(1)}))


def test_rule_that_matches_nothing_is_refused_with_the_nearest_path():
    tx = component_clip_by_global_norm(
        0.05, by_rules([("dense/kernal", "k"), (".*", "rest")])
    )
    with pytest.raises(ValueError, match="matches no parameter.*'dense/kernel'"):
        tx.init(DENSE)


def test_rule_behind_a_greedier_one_is_refused():
    tx = component_clip_by_global_norm(
        0.05, by_rules([(".*", "all"), ("dense/bias", "biases")])
    )
    with pytest.raises(ValueError, match="an earlier rule matches every path"):
        tx.init(DENSE)


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        ([("(", "a")], ValueError, r"'\(' is not a valid regular expr"),
        ([(".*", r"\1")], ValueError, "refers to a group"),
        ([(r"(a)|b", r"\2")], ValueError, "refers to a group"),
        ([], ValueError, "at least one"),
        ([("a", 1)], TypeError, "pair of strings"),
        (["ab"], TypeError, "pair of strings"),
    ],
)
def test_malformed_rules_are_refused(rules, error, match):
    with pytest.raises(error, match=match):
        by_rules(rules)


def test_component_fn_that_returns_no_string_is_refused_at_init():
    tx = component_clip_by_global_norm(0.05, lambda path: None)
    with pytest.raises(TypeError, match="for 'dense/bias' it returned None"):
        tx.init(DENSE)


def test_component_fn_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="component_fn must be a function"):
        component_clip_by_global_norm(0.05, "by_layer")
