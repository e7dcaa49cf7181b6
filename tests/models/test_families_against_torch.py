"""RoBERTa, XLM-RoBERTa, ELECTRA and DistilBERT against torch's transformers."""

import dataclasses
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import traverse_util

from cwgnc_jax import models
from cwgnc_jax.models import attention, distilbert, electra, encoders, layers, roberta
from cwgnc_jax.models.names import to_checkpoint
from cwgnc_jax.models.parameters import parameter_shapes

from .families import CONFIGS

LENGTHS = [9, 5, 7, 2]
LABELS = np.array([0, 1, 2, 0])
ROWS_OF_14 = [0, 9, 14, 21]
"""Where the examples begin in two packed rows."""

every_type = pytest.mark.parametrize("name", CONFIGS)
# What is packed alike is compiled once.
every_layout = pytest.mark.parametrize(
    ("name", "layout"),
    [
        # The one that is not packed below is padded in the default run.
        pytest.param(
            name, "padded", marks=() if name == "xlm-roberta" else pytest.mark.slow
        )
        for name in CONFIGS
    ]
    + [(name, "packed") for name in ("roberta", "electra", "distilbert")],
)


@functools.cache
def params_of(name):
    """Random parameters, biases and scales too."""
    params = models.init_params(CONFIGS[name], jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def padded(name):
    """Ids, mask and types of four examples, a row each."""
    rng = np.random.default_rng(0)
    mask = (np.arange(9) < np.array(LENGTHS)[:, None]).astype(int)
    config = CONFIGS[name]
    padding = getattr(config, "pad_token_id", 0)
    ids = np.where(mask == 1, rng.integers(5, 99, mask.shape), padding)
    types = getattr(config, "type_vocab_size", 1)
    return ids, mask, rng.integers(0, types, mask.shape) * mask


def packed(name):
    """The same examples in two rows, and where each begins."""
    ids, mask, types = padded(name)
    rows = np.zeros((3, 28), int)
    for example, (first, length) in enumerate(zip(ROWS_OF_14, LENGTHS, strict=True)):
        values = ids[example], mask[example] * (example % 2 + 1), types[example]
        for target, source in zip(rows, values, strict=True):
            target[first : first + length] = source[:length]
    return rows.reshape(3, 2, 14)


@functools.cache
def opened(name):
    """What transformers makes of the parameters as they are saved here."""
    with tempfile.TemporaryDirectory() as directory:
        models.save_pretrained(directory, CONFIGS[name], params_of(name))
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            directory,
            output_loading_info=True,
            attn_implementation="eager",
            dtype=torch.float64,
        )


def torch_arguments(name):
    ids, mask, types = map(torch.tensor, padded(name))
    kinds = {} if name == "distilbert" else {"token_type_ids": types}
    return {"input_ids": ids, "attention_mask": mask} | kinds


@functools.cache
def reference(name):
    """Torch's hidden states, logits and gradients, in double precision."""
    model = opened(name)[0].eval()
    output = model(
        **torch_arguments(name), labels=torch.tensor(LABELS), output_hidden_states=True
    )
    model.zero_grad()
    output.loss.backward()
    return {
        "hidden_states": [h.detach().numpy() for h in output.hidden_states],
        "logits": output.logits.detach().numpy(),
        "grads": {name: p.grad.numpy() for name, p in model.named_parameters()},
    }


@functools.cache
def computed(name, layout):
    """Our output and gradients for the same examples."""

    def loss(params):
        if layout == "packed":
            ids, segment_ids, types = packed(name)
            output = models.apply(
                CONFIGS[name],
                params,
                ids,
                token_type_ids=types,
                segment_ids=segment_ids,
                cls_positions=np.array(ROWS_OF_14),
            )
        else:
            output = models.apply(CONFIGS[name], params, *padded(name))
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, LABELS)
        return losses.mean(), output

    grads, output = jax.jit(jax.grad(loss, has_aux=True))(params_of(name))
    return output, {
        to_checkpoint(path): np.asarray(grad.T if path.endswith("/kernel") else grad)
        for path, grad in traverse_util.flatten_dict(grads, sep="/").items()
    }


def tokens_of(hidden, layout):
    """The hidden states of all tokens but the padding, (tokens, hidden)."""
    firsts = ROWS_OF_14 if layout == "packed" else range(0, 36, 9)
    flat = np.asarray(hidden).reshape(-1, hidden.shape[-1])
    return np.concatenate(
        [flat[a : a + n] for a, n in zip(firsts, LENGTHS, strict=True)]
    )


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


@every_type
def test_transformers_opens_what_is_saved_as_its_own(name):
    model, loading = opened(name)
    assert not any(loading.values()), loading
    encoder = encoders.encoder_of(CONFIGS[name])
    assert type(model).__name__ == encoder.architecture
    assert model.config.model_type == CONFIGS[name].model_type
    assert model.config.num_labels == 3


@every_layout
def test_hidden_states_and_logits_equal_torchs(name, layout):
    output, _ = computed(name, layout)
    expected = reference(name)
    *hidden, last = expected["hidden_states"]
    assert len(output.hidden_states) == len(hidden) == 2
    for ours, theirs in zip(output.hidden_states, hidden, strict=True):
        ours, theirs = tokens_of(ours, layout), tokens_of(theirs, "padded")
        assert relative_error(ours, theirs) < 1e-5
    assert relative_error(output.cls_hidden, last[:, 0]) < 1e-5
    assert relative_error(output.logits, expected["logits"]) < 1e-5


@every_layout
def test_the_gradient_of_every_parameter_equals_torchs(name, layout):
    _, grads = computed(name, layout)
    expected = reference(name)["grads"]
    assert grads.keys() == expected.keys()
    for parameter, theirs in expected.items():
        if parameter.endswith(("key.bias", "k_lin.bias")):
            # Zero but for rounding, which has no scale but that of the query's.
            query = parameter.replace("key", "query").replace("k_lin", "q_lin")
            scale = np.abs(expected[query]).max()
            assert np.abs(grads[parameter]).max() < 1e-5 * scale, parameter
        else:
            assert relative_error(grads[parameter], theirs) < 1e-4, parameter


@every_type
def test_dropout_acts_where_torch_has_it_with_a_key_for_each_place(name, monkeypatch):
    """Compares the rate and the width of each place, in order."""
    ours, keys, theirs = [], [], []

    def record(key, x, rate):
        ours.append((rate, x.shape[-1]))
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return x

    def record_torchs(x, p=0.5, training=True, inplace=False):
        theirs.append((p, x.shape[-1]))
        return x

    for room in (attention, layers, roberta, electra, distilbert):
        monkeypatch.setattr(room, "dropout", record)
    monkeypatch.setattr(torch.nn.functional, "dropout", record_torchs)
    # Traced, all layers are one.
    with jax.disable_jit():
        models.apply(
            CONFIGS[name], params_of(name), *padded(name), key=jax.random.key(0)
        )
    model = opened(name)[0].train()
    model(**torch_arguments(name))
    assert ours == theirs
    assert {rate for rate, _ in ours} == {0.1, 0.2, 0.3}
    assert len(set(keys)) == len(keys)


def torchs_config(name):
    """The config of transformers for the same shape."""
    config = CONFIGS[name]
    return transformers.AutoConfig.for_model(
        config.model_type, **dataclasses.asdict(config)
    )


def load(directory, **options):
    key = jax.random.key(7)
    return models.load_pretrained(directory, num_labels=3, key=key, **options)


def assert_same_weights(checkpoint, model, prefix=""):
    """Compares all parameters but those drawn anew with a model of torch."""
    theirs = {prefix + n: t.numpy() for n, t in model.state_dict().items()}
    leaves = traverse_util.flatten_dict(checkpoint.params, sep="/")
    assert leaves.keys() > set(checkpoint.new_parameters)
    for path in leaves.keys() - set(checkpoint.new_parameters):
        leaf = leaves[path].T if path.endswith("/kernel") else leaves[path]
        np.testing.assert_array_equal(leaf, theirs[to_checkpoint(path)])


HEADS = {
    "roberta": ["classifier/dense", "classifier/out_proj"],
    "xlm-roberta": ["classifier/dense", "classifier/out_proj"],
    "electra": ["classifier/dense", "classifier/out_proj"],
    "distilbert": ["classifier", "pre_classifier"],
}
new_of = lambda name: tuple(f"{m}/{x}" for m in HEADS[name] for x in ("bias", "kernel"))


@pytest.mark.parametrize("name", HEADS)
def test_a_classifier_of_transformers_is_read_with_its_head(name, tmp_path):
    config = torchs_config(name)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    assert checkpoint.new_parameters == ()
    assert checkpoint.config == CONFIGS[name]
    assert_same_weights(checkpoint, model)
    # A new head does not mind that the old one had other labels.
    again = models.load_pretrained(
        tmp_path, num_labels=5, key=jax.random.key(7), new_head=True
    )
    assert again.new_parameters == new_of(name)
    with pytest.raises(ValueError, match="head has 3 labels but num_labels is 5"):
        models.load_pretrained(tmp_path, num_labels=5, key=jax.random.key(7))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    "kind", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForPreTraining"]
)
def test_a_pretrained_encoder_of_transformers_gets_a_new_head(name, kind, tmp_path):
    model = getattr(transformers, kind).from_config(torchs_config(name))
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    base = encoders.encoder_of(CONFIGS[name]).base
    assert checkpoint.new_parameters == new_of(name)
    assert_same_weights(checkpoint, model, f"{base}." if kind == "AutoModel" else "")


PUBLISHED = {
    "roberta-base": {"model_type": "roberta"},
    "roberta-large": {"model_type": "roberta", "large": True},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "vocab_size": 250002},
    "xlm-roberta-large": {
        "model_type": "xlm-roberta",
        "vocab_size": 250002,
        "large": True,
    },
    "electra-small": {"model_type": "electra"},
    "electra-base": {"model_type": "electra", "base": True, "embedding_size": 768},
    "electra-large": {"model_type": "electra", "large": True, "embedding_size": 1024},
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "distilbert-base-multilingual-cased": {
        "model_type": "distilbert",
        "vocab_size": 119547,
    },
}
QUICK = ("roberta-base", "electra-small", "electra-base", "distilbert-base-uncased")
_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_POSITIONS = {"max_position_embeddings": 514, "type_vocab_size": 1}


@pytest.mark.parametrize(
    "published",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in PUBLISHED
    ],
)
def test_full_size_models_have_the_parameters_of_torchs(published):
    entries = dict(PUBLISHED[published])
    if entries.pop("large", False):
        entries |= _LARGE
    if entries.pop("base", False):
        entries |= _BASE
    if "roberta" in published:
        entries |= _POSITIONS
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model(**entries, num_labels=2)
        )
    shapes = parameter_shapes(encoders.read_config(entries, num_labels=2))
    ours = {
        to_checkpoint(path): shape[::-1] if path.endswith("/kernel") else shape
        for path, shape in shapes.items()
    }
    assert ours == {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "xlm-roberta", "electra", "distilbert"]
)
def test_a_missing_entry_means_what_it_means_in_transformers(model_type):
    ours = encoders.read_config({"model_type": model_type}, num_labels=2)
    theirs = transformers.AutoConfig.for_model(model_type)
    for field in dataclasses.fields(ours):
        assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_sinusoidal_positions_are_torchs():
    config = dataclasses.replace(CONFIGS["distilbert"], sinusoidal_pos_embds=True)
    params = models.init_params(config, jax.random.key(0))
    model = transformers.DistilBertModel(
        transformers.DistilBertConfig(**dataclasses.asdict(config))
    )
    np.testing.assert_allclose(
        params["distilbert"]["embeddings"]["position_embeddings"]["embedding"],
        model.embeddings.position_embeddings.weight.detach().numpy(),
        atol=1e-7,
    )


def test_one_token_type_serves_both_texts_of_a_pair():
    ids, mask, types = padded("roberta")

    @jax.jit
    @jax.grad
    def grads(params, types):
        output = models.apply(CONFIGS["roberta"], params, ids, mask, types)
        return jnp.sum(output.hidden_states[0][..., 0])

    one, two = (grads(params_of("roberta"), types + kind) for kind in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    table = one["roberta"]["embeddings"]["token_type_embeddings"]["embedding"]
    assert table.shape == (1, 24) and jnp.abs(table).max() > 0
