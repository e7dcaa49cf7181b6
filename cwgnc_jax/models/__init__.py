"""Encoders on Flax NNX, and their safetensors weights.

A model is a config of its type, such as :class:`BertConfig`, a plain nested dict of
parameters, and the pure function :func:`apply`. Callers need no names from NNX.
"""

from cwgnc_jax.models.batch import EncoderOutput
from cwgnc_jax.models.bert import BertConfig
from cwgnc_jax.models.config import EncoderConfig
from cwgnc_jax.models.distilbert import DistilBertConfig
from cwgnc_jax.models.electra import ElectraConfig
from cwgnc_jax.models.errors import CheckpointError
from cwgnc_jax.models.forward import apply
from cwgnc_jax.models.hub import resolve
from cwgnc_jax.models.modern_bert_config import ModernBertConfig
from cwgnc_jax.models.parameters import (
    init_params,
    merge_params,
    redraw,
    split_params,
    top_parameters,
)
from cwgnc_jax.models.roberta import RobertaConfig, XLMRobertaConfig
from cwgnc_jax.models.weights import (
    Checkpoint,
    load_config,
    load_pretrained,
    save_pretrained,
)

__all__ = (
    "BertConfig",
    "Checkpoint",
    "CheckpointError",
    "DistilBertConfig",
    "ElectraConfig",
    "EncoderConfig",
    "EncoderOutput",
    "ModernBertConfig",
    "RobertaConfig",
    "XLMRobertaConfig",
    "apply",
    "init_params",
    "load_config",
    "load_pretrained",
    "merge_params",
    "redraw",
    "resolve",
    "save_pretrained",
    "split_params",
    "top_parameters",
)
