"""Fine-tuning models whose tokens, padding or names are not those of BERT."""

import json

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from cwgnc_jax import models
from cwgnc_train.commands import run
from cwgnc_train.data import (
    CachedTokenizer,
    evaluation_batches,
    make_packing,
    packed_batch,
    pad_tokens,
    token_table,
)
from cwgnc_train.engine import StepConfig
from tests.train.conftest import SPECIAL, WORDS, sentences

MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CLS, PAD, SEP = range(3)


def flags_of(model, tiny_data, workdir, **changes):
    values = {
        "model": model,
        "train-file": tiny_data[0],
        "validation-file": tiny_data[1],
        "text-columns": "text",
        "preset": "code",
        "epochs": 2,
        "learning-rate": 3e-3,
        "max-length": 16,
        # One shape, one program.
        "padding": "max_length",
        "workdir": workdir,
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    pairs = [(f"--{name}", str(value)) for name, value in values.items()]
    return ["finetune", *(part for pair in pairs for part in pair)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a random RoBERTa of two layers with byte pairs of its own."""
    directory = tmp_path_factory.mktemp("roberta")
    pairs = tokenizers.ByteLevelBPETokenizer()
    texts = [text for text, _ in sentences(64)]
    pairs.train_from_iterator(texts, vocab_size=290, special_tokens=MARKS)
    pairs.save_model(str(directory))
    config = models.RobertaConfig(
        vocab_size=290,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=34,
        type_vocab_size=1,
        initializer_range=0.3,
    )
    params = models.init_params(config, jax.random.key(0))
    return models.save_pretrained(directory, config, params)


def encode(model, *texts, max_length=32):
    return CachedTokenizer(model, cache=False).encode(texts, max_length)


def test_a_pair_of_texts_has_two_separators_and_no_types(model):
    tokens = encode(model, ["the dog", "a"], ["the cat sleeps", "dogs"])
    arrays = pad_tokens(tokens, None, 32)
    theirs = transformers.RobertaTokenizer.from_pretrained(model)(
        ["the dog", "a"], ["the cat sleeps", "dogs"], padding=True
    )
    length = len(theirs["input_ids"][0])
    np.testing.assert_array_equal(arrays.input_ids[:, :length], theirs["input_ids"])
    np.testing.assert_array_equal(
        arrays.attention_mask[:, :length], theirs["attention_mask"]
    )
    assert not arrays.token_type_ids.any()
    first = arrays.input_ids[0].tolist()
    assert first[0] == CLS and first.count(SEP) == 3
    assert first[first.index(SEP) + 1] == SEP
    assert set(arrays.input_ids[arrays.attention_mask == 0].tolist()) == {PAD}


def test_packed_rows_have_the_logits_of_padded_ones(model):
    """Though what fills them up is not the padding's id, but that of a first token."""
    texts = [text for text, _ in sentences(12)]
    arrays = pad_tokens(encode(model, texts), np.arange(12) % 2, 32)
    checkpoint = models.load_pretrained(model, num_labels=2, key=jax.random.key(0))
    apply = jax.jit(models.apply, static_argnums=0)

    def logits(batch):
        names = ("attention_mask", "token_type_ids", "segment_ids", "cls_positions")
        given = {name: batch[name] for name in names if name in batch}
        return apply(
            checkpoint.config, checkpoint.params, batch["input_ids"], **given
        ).logits

    expected = logits(vars(arrays))
    packing = make_packing(arrays, "packed", 12, 32)
    shape = packing.shape([0], [0])
    indices = packing.batch_indices(0, 0, shape)
    found = logits(packed_batch(token_table(arrays), indices, shape))
    np.testing.assert_allclose(found, expected[indices.examples], atol=1e-5)
    shape, [indices] = evaluation_batches([arrays.lengths], 32, 12)
    found = logits(packed_batch(token_table(arrays), indices, shape))
    np.testing.assert_allclose(found, expected[indices.examples], atol=1e-5)


def test_finetune_and_predict_agree_with_torch(model, tiny_data, tmp_path, capsys):
    assert run(flags_of(model, tiny_data, tmp_path / "run")) == 0
    assert "initialised anew" not in capsys.readouterr().err
    saved, output = tmp_path / "run" / "model", tmp_path / "predictions.tsv"
    flags = ["--model", saved, "--input-file", tiny_data[1], "--output", output]
    flags += ["--text-columns", "text", "--label-column", "label"]
    assert run(["predict", *map(str, flags), "--max-length", "16"]) == 0
    theirs, loading = transformers.RobertaForSequenceClassification.from_pretrained(
        saved, output_loading_info=True
    )  # pyright: ignore[reportGeneralTypeIssues]  # a pair, if asked for
    assert not any(loading.values()), loading
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    texts = [text for text, _ in sentences(20, 41)]
    with torch.no_grad():
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        probabilities = theirs.eval()(**inputs).logits.softmax(-1)
    lines = [line.split("\t") for line in output.read_text().splitlines()[1:]]
    best = probabilities.max(-1)
    names = [theirs.config.id2label[i] for i in best.indices.tolist()]
    assert [line[1] for line in lines] == names
    ours = [float(line[2]) for line in lines]
    np.testing.assert_allclose(ours, best.values.numpy(), atol=1e-4)
    before = models.load_pretrained(model, num_labels=2, key=jax.random.key(0)).params
    after = models.load_pretrained(saved, num_labels=2, key=jax.random.key(0)).params
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(moved))


def test_components_are_listed_by_the_names_of_the_model(model, capsys):
    arguments = ["components", "--model", str(model), "--components", "by_layer"]
    assert run([*arguments, "--num-labels", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("roberta/encoder/layer/1" in line for line in lines)
    assert any("classifier/out_proj/kernel" in x and "(16, 3)" in x for x in lines)


def test_a_length_beyond_the_positions_behind_the_padding_is_refused(
    model, tiny_data, tmp_path, capsys
):
    assert run(flags_of(model, tiny_data, tmp_path / "run", max_length=33)) == 2
    assert "beyond the model's 32 positions" in capsys.readouterr().err


def test_an_unsupported_type_of_model_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "robrta"}))
    assert run(["components", "--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "'robrta' is not supported, did you mean 'roberta'?" in error
    assert "distilbert, electra" in error and error.count("\n") == 1


@pytest.mark.slow
def test_layers_of_a_distilbert_are_drawn_anew_and_decayed(tiny_data, tmp_path):
    config = models.DistilBertConfig(
        vocab_size=len(SPECIAL + WORDS),
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    start = models.init_params(config, jax.random.key(0))
    directory = models.save_pretrained(tmp_path / "distilbert", config, start)
    (directory / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))
    workdir = tmp_path / "run"
    changes = {"reinit_layers": 1, "layer_decay": 0.5, "mixout": 0.5, "dropout": 0.0}
    # Too slow to be seen beside what is drawn anew.
    changes |= {"epochs": 1, "learning_rate": 1e-6}
    assert run(flags_of(directory, tiny_data, workdir, **changes)) == 0
    saved = models.load_pretrained(
        workdir / "model", num_labels=2, key=jax.random.key(0)
    )
    assert saved.config == config
    layers = [
        [
            tree["distilbert"]["transformer"]["layer"][n]["ffn"]["lin1"]["kernel"]
            for n in "01"
        ]
        for tree in (start, saved.params)
    ]
    first, second = (np.abs(b - a).max() for a, b in zip(*layers, strict=True))
    assert 0 < first < 1e-4 and second > 0.3
    head = np.abs(saved.params["classifier"]["kernel"] - start["classifier"]["kernel"])
    assert 0 < head.max() < 1e-4


def test_the_top_layers_of_a_distilbert_train_alone():
    config = models.DistilBertConfig(n_layers=6)
    step_config = StepConfig(
        model=config,
        regression=False,
        components="by_layer",
        b1=0.9,
        b2=0.999,
        dtype="float32",
        trained_layers=2,
    )
    layer = "distilbert/transformer/layer/{}/ffn/lin1/kernel"
    paths = [layer.format(number) for number in range(6)]
    paths += ["distilbert/embeddings/LayerNorm/bias", "pre_classifier/kernel"]
    trained = [step_config.trains(path) for path in paths]
    assert trained == [False] * 4 + [True, True, False, True]
