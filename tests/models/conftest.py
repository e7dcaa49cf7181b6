import jax
import numpy as np
import pytest

from cwgnc_jax import models


@pytest.fixture
def config():
    return models.BertConfig(
        vocab_size=99,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.3,
        num_labels=3,
    )


@pytest.fixture
def params(config):
    return models.init_params(config, jax.random.key(0))


@pytest.fixture
def directory(tmp_path, config, params):
    """A saved classifier of three labels."""
    return models.save_pretrained(tmp_path / "model", config, params)


@pytest.fixture
def batch():
    """Two sequences of unequal length, the first of two segments."""
    rng = np.random.default_rng(0)
    attention_mask = np.array([[1] * 9, [1] * 5 + [0] * 4])
    token_type_ids = np.array([[0] * 4 + [1] * 5, [0] * 9])
    return rng.integers(1, 99, (2, 9)) * attention_mask, attention_mask, token_type_ids
