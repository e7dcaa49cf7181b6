"""What the library does with the parameters of each type of model."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_jax.models.parameters import parameter_shapes

from .families import CONFIGS

every_type = pytest.mark.parametrize("name", CONFIGS)

EMBEDDINGS = {
    "roberta": 5,
    "xlm-roberta": 5,
    "electra": 7,
    "distilbert": 4,
}
LAYERS = {
    "roberta": "roberta/encoder/layer",
    "xlm-roberta": "roberta/encoder/layer",
    "electra": "electra/encoder/layer",
    "distilbert": "distilbert/transformer/layer",
}
BEHIND_LAYERS = {
    "roberta": {"classifier/dense", "classifier/out_proj"},
    "xlm-roberta": {"classifier/dense", "classifier/out_proj"},
    "electra": {"classifier/dense", "classifier/out_proj"},
    "distilbert": {"pre_classifier", "classifier"},
}


def tree_of(name, make=lambda path: jnp.ones(1)):
    """A tree with the paths of a model."""
    leaves = {path: make(path) for path in parameter_shapes(CONFIGS[name])}
    return traverse_util.unflatten_dict(leaves, sep="/")


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@every_type
def test_every_parameter_has_its_depth(name):
    depths = map(cwgnc_jax.encoder_depth, parameter_shapes(CONFIGS[name]))
    counts = collections.Counter(depths)
    assert counts == {0: EMBEDDINGS[name], 1: 16, 2: 16, math.inf: 4}


@every_type
def test_a_layer_is_a_component(name):
    sizes = cwgnc_jax.component_sizes(tree_of(name), cwgnc_jax.by_layer)
    layers = {f"{LAYERS[name]}/{number}": 16 for number in range(2)}
    base = LAYERS[name].partition("/")[0]
    of_embeddings = {c: n for c, n in sizes.items() if c.startswith(f"{base}/embedd")}
    assert sum(of_embeddings.values()) == EMBEDDINGS[name]
    heads = dict.fromkeys(BEHIND_LAYERS[name], 2)
    assert sizes == layers | of_embeddings | heads


@every_type
def test_a_module_of_all_layers_is_a_component(name):
    sizes = cwgnc_jax.component_sizes(tree_of(name), cwgnc_jax.by_module_type)
    in_layers = [n for c, n in sizes.items() if c.startswith(LAYERS[name])]
    # Six dense layers and two LayerNorms of a kernel or scale and a bias, twice each.
    assert in_layers == [4] * 8
    modules = cwgnc_jax.component_sizes(tree_of(name), cwgnc_jax.by_module)
    assert len(modules) == len(sizes) + 8


@every_type
def test_the_top_layers_can_be_drawn_anew(name):
    config = CONFIGS[name]
    paths = parameter_shapes(config)
    top = models.top_parameters(config, 1)
    assert set(top) == {p for p in paths if p.startswith(f"{LAYERS[name]}/1/")}
    assert models.top_parameters(config, 0) == ()
    with pytest.raises(ValueError, match="between 0 and the model's 2, got 3"):
        models.top_parameters(config, 3)
    params = {path: np.zeros(shape, np.float32) for path, shape in paths.items()}
    other = flat(
        models.redraw(
            config,
            traverse_util.unflatten_dict(params, sep="/"),
            top,
            jax.random.key(1),
        )
    )
    changed = {path for path in paths if (params[path] != other[path]).any()}
    assert changed == {path for path in top if not path.endswith("/bias")}


@every_type
def test_layers_thaw_from_the_top(name):
    tx = cwgnc_jax.gradual_unfreezing(optax.sgd(1.0), thaw_steps=[0, 1])
    params = tree_of(name)
    state = tx.init(params)
    for lowest in (2, 0):
        updates, state = tx.update(params, state, params)
        moved = {path for path, update in flat(updates).items() if update[0] != 0}
        depth = cwgnc_jax.encoder_depth
        assert moved == {path for path in flat(params) if depth(path) >= lowest}


@every_type
def test_lower_layers_learn_more_slowly(name):
    tx = cwgnc_jax.scale_by_layer_decay(0.5)
    params = tree_of(name)
    updates, _ = tx.update(params, tx.init(params))
    factors = {math.inf: 1.0, 2: 0.5, 1: 0.25, 0: 0.125}
    for path, update in flat(updates).items():
        assert update[0] == factors[cwgnc_jax.encoder_depth(path)], path


@every_type
def test_all_kernels_and_nothing_else_are_mixed_and_decayed(name):
    def make(path):
        return jnp.ones((20, 2) if path.endswith(("kernel", "embedding")) else 2)

    params = tree_of(name, make)
    pretrained = jax.tree.map(jnp.zeros_like, params)
    mixed = cwgnc_jax.mixout(params, pretrained, 0.5, jax.random.key(0))
    changed = {path for path, leaf in flat(mixed).items() if (leaf != 1).any()}
    assert changed == {path for path in flat(params) if path.endswith("/kernel")}
    decayed = flat(cwgnc_jax.decay_mask(params))
    assert {path for path in decayed if decayed[path]} == {
        path for path in flat(params) if path.endswith(("/kernel", "/embedding"))
    }


@every_type
def test_a_config_is_hashable_and_read_again(name, tmp_path):
    config = CONFIGS[name]
    assert {config: 1}[dataclasses.replace(config)] == 1
    params = models.init_params(config, jax.random.key(0))
    models.save_pretrained(tmp_path, config, params)
    checkpoint = models.load_pretrained(tmp_path, num_labels=3, key=jax.random.key(1))
    assert checkpoint.config == config
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, params)


@every_type
@pytest.mark.parametrize("remat", [False, True])
def test_half_precision_ends_at_the_logits_and_the_gradients(name, remat):
    params = models.init_params(CONFIGS[name], jax.random.key(0))
    ids = jnp.ones((2, 8), int)

    def loss(params):
        output = models.apply(
            CONFIGS[name],
            params,
            *(ids, ids, 0 * ids),
            key=jax.random.key(0),
            dtype=jnp.bfloat16,
            remat=remat,
        )
        return output.logits.sum(), output

    grads, output = jax.eval_shape(jax.grad(loss, has_aux=True), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.float32.dtype}
    assert output.logits.dtype == jnp.float32
    hidden = (*output.hidden_states, output.cls_hidden, output.pooled)
    assert {x.dtype for x in hidden} == {jnp.bfloat16.dtype}


def test_types_of_the_same_numbers_differ():
    roberta = CONFIGS["roberta"]
    other = models.XLMRobertaConfig(**dataclasses.asdict(roberta))
    assert other != roberta


@pytest.mark.parametrize(
    ("config", "entries", "message"),
    [
        (models.RobertaConfig, {"pad_token_id": None}, "pad_token_id must be an int"),
        (models.RobertaConfig, {"pad_token_id": -1}, "of at least 0, got -1"),
        (
            models.RobertaConfig,
            {"max_position_embeddings": 2},
            r"max_position_embeddings must be at least pad_token_id \+ 2 = 3, got 2",
        ),
        (models.RobertaConfig, {"hidden_act": "relu"}, "expected 'gelu'.*roberta enc"),
        (models.ElectraConfig, {"embedding_size": 0}, "embedding_size must be an int"),
        (models.DistilBertConfig, {"activation": "relu"}, "activation 'relu' is not"),
        (
            models.DistilBertConfig,
            {"n_heads": 7},
            "n_heads must divide dim, got 7 head",
        ),
        (
            models.DistilBertConfig,
            {"dropout": 1.0},
            r"dropout must be a rate in \[0, 1",
        ),
        (
            models.DistilBertConfig,
            {"sinusoidal_pos_embds": 1},
            "sinusoidal_pos_embds must be true or false, got 1",
        ),
    ],
)
def test_what_is_not_computed_or_makes_no_sense_is_refused(config, entries, message):
    source = {"model_type": config.model_type} | entries
    with pytest.raises(ValueError, match=message):
        config.from_dict(source, num_labels=2)


@pytest.mark.parametrize(
    ("name", "longest"), [("roberta", 16), ("xlm-roberta", 16), ("distilbert", 16)]
)
def test_the_longest_example_leaves_room_for_the_positions_before_it(name, longest):
    config = CONFIGS[name]
    assert config.max_length == longest
    ids = np.ones((1, longest + 1), int)
    params = models.init_params(config, jax.random.key(0))
    with pytest.raises(ValueError, match=f"max_length = {longest} long, got 17"):
        models.apply(config, params, ids, ids, 0 * ids)
