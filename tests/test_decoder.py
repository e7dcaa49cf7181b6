"""The example of a decoder whose layers share their leaves."""

import jax
import numpy as np

import cwgnc_jax
from examples import decoder


def test_the_decoder_learns_with_a_component_for_each_block():
    losses, report = decoder.train(blocks=2, steps=25)
    assert losses[-1] < 0.8 * losses[0]
    blocks = {name.split("/")[2] for name in report.norm if "/blocks/" in name}
    assert blocks == {"0", "1"}
    assert 0 < report.clip_rate_components <= 1


def test_blocks_in_one_leaf_are_clipped_as_blocks_of_their_own():
    count, tokens = 2, decoder.read_tokens(decoder.TEXT)
    structure, params = decoder.make_decoder(count, stacked=True)
    alone, expected = decoder.make_decoder(count, stacked=False)
    apart = {}
    for name, value in params.items():
        if "/blocks/" not in name:
            apart[name] = value
            continue
        for block in range(count):
            own = name.replace("/blocks/", f"/block_{block}/")
            apart[own] = value[{"blocks": block}]
    assert apart.keys() == expected.keys()

    grad = jax.jit(jax.grad(decoder.loss_fn, argnums=1), static_argnums=())
    clip = cwgnc_jax.component_clip_by_global_norm
    stacked = clip(0.1, stacked_axes=decoder.STACKED_AXES)
    grads = [grad(structure, params, tokens), grad(alone, apart, tokens)]
    clipped, _ = stacked.update(grads[0], stacked.init(params))
    own, _ = clip(0.1).update(grads[1], clip(0.1).init(apart))
    norms = cwgnc_jax.component_norms(grads[1])
    # Some are clipped and some are not, and no two blocks have the same norm.
    assert min(norms.values()) < 0.1 < max(norms.values())
    for name, value in clipped.items():
        for block in range(count if "/blocks/" in name else 1):
            if "/blocks/" in name:
                found = value[{"blocks": block}]
                wanted = own[name.replace("/blocks/", f"/block_{block}/")]
            else:
                found, wanted = value, own[name]
            axes = tuple(wanted.named_shape)
            np.testing.assert_allclose(
                found.unwrap(*axes), wanted.unwrap(*axes), rtol=1e-4, atol=1e-7
            )
