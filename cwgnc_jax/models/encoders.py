"""The supported types of models, by their names in config.json."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from cwgnc_jax._messages import nearest
from cwgnc_jax.models.bert import BertConfig, BertForSequenceClassification
from cwgnc_jax.models.config import EncoderConfig
from cwgnc_jax.models.distilbert import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from cwgnc_jax.models.electra import ElectraConfig, ElectraForSequenceClassification
from cwgnc_jax.models.modern_bert import ModernBertForSequenceClassification
from cwgnc_jax.models.modern_bert_config import ModernBertConfig
from cwgnc_jax.models.roberta import (
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The properties of one type of model.

    Paths are "/"-joined and name modules, which stand for all parameters below them.
    """

    config: type[EncoderConfig]
    module: Callable[..., nnx.Module]
    architecture: str
    """The class of Hugging Face that has the same parameters."""
    base: str
    """The encoder in the classifier."""
    parts: tuple[str, ...]
    """The parts of the encoder, as a checkpoint of the encoder alone names them."""
    layers: str
    """The module that holds the numbered layers."""
    unused: str
    """A pattern for the tensors in checkpoints that a classifier does not use."""
    head: tuple[str, ...] = ("classifier",)
    """The modules that fine-tuning adds to the encoder."""
    output: str = "classifier"
    """The layer that computes the logits."""
    pooler: tuple[str, ...] = ()
    """The modules between layers and head, which not every checkpoint has."""


# Published checkpoints have a pooler, which the classifier does not use.
_ROBERTA = Encoder(
    config=RobertaConfig,
    module=RobertaForSequenceClassification,
    architecture="RobertaForSequenceClassification",
    base="roberta",
    parts=("embeddings", "encoder", "pooler"),
    layers="roberta/encoder/layer",
    unused=r"(roberta\.pooler|lm_head)\..*",
    output="classifier/out_proj",
)

ENCODERS: dict[str, Encoder] = {
    encoder.config.model_type: encoder
    for encoder in (
        Encoder(
            config=BertConfig,
            module=BertForSequenceClassification,
            architecture="BertForSequenceClassification",
            base="bert",
            parts=("embeddings", "encoder", "pooler"),
            layers="bert/encoder/layer",
            unused=r"cls\..*",
            pooler=("bert/pooler",),
        ),
        _ROBERTA,
        dataclasses.replace(
            _ROBERTA,
            config=XLMRobertaConfig,
            architecture="XLMRobertaForSequenceClassification",
        ),
        Encoder(
            config=ElectraConfig,
            module=ElectraForSequenceClassification,
            architecture="ElectraForSequenceClassification",
            base="electra",
            parts=("embeddings", "embeddings_project", "encoder"),
            layers="electra/encoder/layer",
            unused=r"(discriminator_predictions|generator_predictions"
            r"|generator_lm_head)\..*",
            output="classifier/out_proj",
        ),
        Encoder(
            config=DistilBertConfig,
            module=DistilBertForSequenceClassification,
            architecture="DistilBertForSequenceClassification",
            base="distilbert",
            parts=("embeddings", "transformer"),
            layers="distilbert/transformer/layer",
            unused=r"vocab_(transform|layer_norm|projector)\..*",
            head=("pre_classifier", "classifier"),
        ),
        Encoder(
            config=ModernBertConfig,
            module=ModernBertForSequenceClassification,
            architecture="ModernBertForSequenceClassification",
            base="model",
            parts=("embeddings", "layers", "final_norm"),
            layers="model/layers",
            unused=r"decoder\..*",
            pooler=("head",),
        ),
    )
}


def encoder_of(config: EncoderConfig) -> Encoder:
    """Finds the type of model that a config belongs to."""
    return ENCODERS[config.model_type]


def read_config(source: Mapping[str, Any], num_labels: int) -> EncoderConfig:
    """Reads the content of a config.json of any supported type.

    Args:
      source: The decoded config.json.
      num_labels: Width of the classifier.

    Returns:
      The config, of the class for its ``model_type``.

    Raises:
      ValueError: If the type is not supported, or as
        :meth:`cwgnc_jax.models.EncoderConfig.from_dict` does.

    Examples:
      >>> from cwgnc_jax.models.encoders import read_config
      >>> type(read_config({"model_type": "bert"}, num_labels=2)).__name__
      'BertConfig'
    """
    model_type = source.get("model_type")
    if isinstance(model_type, str) and model_type in ENCODERS:
        return ENCODERS[model_type].config.from_dict(source, num_labels)
    # A high cutoff, since albert is not a misspelt bert.
    near = nearest(str(model_type).lower(), ENCODERS, cutoff=0.9)
    raise ValueError(
        f"model_type {model_type!r} is not supported"
        f"{f', did you mean {near!r}?' if near else ':'} expected one of "
        f"{', '.join(sorted(ENCODERS))}; choose a checkpoint of such a model"
    )
