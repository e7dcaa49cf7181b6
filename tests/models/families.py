"""Small models of all types but BERT, whose tests came first."""

from cwgnc_jax import models

_SHAPE = {
    "vocab_size": 99,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "initializer_range": 0.3,
    "num_labels": 3,
}
_RATES = {
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "classifier_dropout": 0.3,
}

CONFIGS: dict[str, models.EncoderConfig] = {
    "roberta": models.RobertaConfig(
        **_SHAPE,
        **_RATES,
        max_position_embeddings=18,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    ),
    # What no published one has: two token types, and another id for the padding.
    "xlm-roberta": models.XLMRobertaConfig(
        **_SHAPE, **_RATES, max_position_embeddings=20, pad_token_id=3
    ),
    "electra": models.ElectraConfig(
        **_SHAPE, **_RATES, max_position_embeddings=16, embedding_size=16
    ),
    "distilbert": models.DistilBertConfig(
        vocab_size=99,
        dim=24,
        n_layers=2,
        n_heads=3,
        hidden_dim=32,
        max_position_embeddings=16,
        initializer_range=0.3,
        num_labels=3,
        dropout=0.1,
        attention_dropout=0.2,
        seq_classif_dropout=0.3,
    ),
}
