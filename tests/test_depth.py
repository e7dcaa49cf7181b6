import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import cwgnc_jax
from cwgnc_jax import encoder_depth, models, scale_by_layer_decay, thawed
from cwgnc_jax.models.parameters import parameter_shapes


def test_every_parameter_of_bert_has_its_depth():
    config = models.BertConfig(num_hidden_layers=12)
    depths = {path: encoder_depth(path) for path in parameter_shapes(config)}
    counts = {depth: 0 for depth in sorted(set(depths.values()))}
    for depth in depths.values():
        counts[depth] += 1
    # 5 embeddings, 12 layers of 16 parameters, pooler and classifier of 2 each.
    assert counts == {0: 5} | {i: 16 for i in range(1, 13)} | {math.inf: 4}


@pytest.mark.parametrize(
    ("path", "depth"),
    [
        ("encoderblock_3/MlpBlock_0/kernel", 4),
        ("transformer/h/10/attn/kernel", 11),
        ("token_embedder/embedding", 0),
        ("head/kernel", math.inf),
        ("EncoderLayer_2/Dense_0/kernel", 3),
        ("layers/0/weight", 1),
        ("blocks/11/norm/weight", 12),
        ("stages/1/conv/kernel", 2),
        # Linen numbers modules of every kind; only those of layers are depths.
        ("Embed_0/embedding", 0),
        ("Dense_0/kernel", math.inf),
        ("Dense_1/kernel", math.inf),
        ("LayerNorm_0/scale", math.inf),
        ("heads/1/kernel", math.inf),
        ("layers/norm/scale", math.inf),
    ],
)
def test_other_spellings_are_read_too(path, depth):
    assert encoder_depth(path) == depth


def test_the_top_layers_thaw_with_the_heads_and_the_embeddings_with_the_last():
    paths = ["embeddings/kernel", "layer_0/kernel", "layer_1/kernel", "head/kernel"]
    trains = [[thawed(path, 2, n) for path in paths] for n in range(3)]
    assert trains == [
        [False, False, False, True],
        [False, False, True, True],
        [True, True, True, True],
    ]
    assert thawed("head/kernel", 2, 1, lambda path: 2.0)
    assert not thawed("head/kernel", 2, 1, lambda path: 1.0)


@pytest.mark.parametrize("thawed_layers", [-1, 3])
def test_a_number_of_thawed_layers_that_does_not_exist_is_refused(thawed_layers):
    with pytest.raises(ValueError, match=f"and the 2 layers, got {thawed_layers}"):
        thawed("head/kernel", 2, thawed_layers)


def tree():
    names = ("embeddings", "layer_0", "layer_1", "layer_2", "classifier")
    return {name: {"kernel": jnp.full((2, 2), i + 1.0)} for i, name in enumerate(names)}


@pytest.mark.parametrize("decay", [0.95, 0.5, 1.0])
def test_layer_decay_has_its_closed_form(decay):
    tx = scale_by_layer_decay(decay)
    updates, _ = tx.update(tree(), tx.init(tree()))
    for distance, name in enumerate(reversed(tree())):
        expected = tree()[name]["kernel"] * decay**distance
        np.testing.assert_allclose(updates[name]["kernel"], expected, rtol=1e-6)


def test_layer_decay_equals_parameter_groups_of_torch():
    params = {name: np.array(leaf["kernel"]) for name, leaf in tree().items()}
    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params.items()}
    groups = [
        {"params": [p], "lr": 0.1 * 0.9**i}
        for i, p in enumerate(reversed(theirs.values()))
    ]
    optimizer = torch.optim.Adam(groups)
    tx = optax.chain(
        optax.scale_by_adam(), scale_by_layer_decay(0.9), optax.scale(-0.1)
    )
    ours, state = tree(), tx.init(tree())
    for step in range(5):
        grads = {k: np.cos(v + step).astype(np.float32) for k, v in params.items()}
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        optimizer.step()
        updates, state = tx.update({k: {"kernel": g} for k, g in grads.items()}, state)
        ours = optax.apply_updates(ours, updates)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(
            ours[name]["kernel"], parameter.detach().numpy(), rtol=1e-5
        )


def test_dtypes_are_kept():
    updates = {"layer_0": jnp.ones(2, jnp.bfloat16), "head": jnp.ones(2, jnp.float16)}
    tx = scale_by_layer_decay(0.3)
    scaled, _ = tx.update(updates, tx.init(updates))
    assert [scaled[k].dtype for k in updates] == [jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1, math.nan])
def test_bad_decays_are_refused(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \(0, 1\]"):
        scale_by_layer_decay(decay)


@pytest.mark.parametrize("depth", [None, "3", math.nan, True])
def test_a_parameter_without_a_depth_is_named(depth):
    tx = scale_by_layer_decay(0.9, lambda path: depth if "layer_1" in path else 0)
    with pytest.raises(TypeError, match="does not for 'layer_1/kernel'"):
        tx.init(tree())
    with pytest.raises(TypeError, match="depth_fn must be a function"):
        scale_by_layer_decay(0.9, 3)
    assert callable(cwgnc_jax.encoder_depth)
