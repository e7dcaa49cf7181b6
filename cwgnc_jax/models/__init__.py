"""Encoders to fine-tune, and their pretrained weights."""

from cwgnc_jax.models.bert import (
    BertConfig,
    BertOutput,
    abstract_params,
    apply,
    init_params,
)

__all__ = ("BertConfig", "BertOutput", "abstract_params", "apply", "init_params")
