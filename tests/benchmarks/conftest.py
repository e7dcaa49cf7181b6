"""Shared by the tests of benchmarks: a BERT that is quick to make."""

from cwgnc_jax import models

CONFIG = models.BertConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
)
