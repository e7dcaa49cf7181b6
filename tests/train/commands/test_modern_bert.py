"""A tiny ModernBERT through the commands, its tokenizer of the kind of the real one."""

import json

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from cwgnc_jax import models
from cwgnc_train.commands import run
from tests.train.conftest import SPECIAL, WORDS, sentences


@pytest.fixture(scope="module")
def modern_bert(tmp_path_factory):
    """The folder of a random ModernBERT of two layers, as the hub would hold it."""
    directory = tmp_path_factory.mktemp("modern_bert")
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    config = models.ModernBertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        local_attention=4,
        classifier_pooling="mean",
        initializer_range=0.2,
    )
    params = models.init_params(config, jax.random.key(0))
    models.save_pretrained(
        directory, config, params, source_config={"pad_token_id": vocabulary["[PAD]"]}
    )
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = ("pad", "unk", "cls", "sep", "mask")
    entries = {f"{name}_token": f"[{name.upper()}]" for name in names} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(entries))
    return directory


def test_a_modern_bert_is_fine_tuned_and_torch_predicts_the_same(
    modern_bert, tiny_data, tmp_path
):
    train_file, validation_file = tiny_data
    workdir, output = tmp_path / "run", tmp_path / "predictions.tsv"
    data = f"--train-file {train_file} --validation-file {validation_file}"
    recipe = "--preset code --epochs 2 --learning-rate 3e-3 --layer-decay 0.9"
    flags = f"{data} {recipe} --reinit-layers 1 --components by_layer --norms-every 9"
    flags += " --record-every 1"
    arguments = f"finetune --model {modern_bert} --workdir {workdir} {flags}"
    texts = "--text-columns text --max-length 16"
    assert run(f"{arguments} {texts}".split()) == 0

    names = json.loads((workdir / "components.jsonl").read_text().splitlines()[0])
    assert set(names["components"]) == {
        "model/embeddings",
        *(f"model/layers/{i}" for i in range(2)),
        "model/final_norm",
        "head/dense",
        "head/norm",
        "classifier",
    }
    lines = map(json.loads, (workdir / "records.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["kind"] == "metrics"]
    assert losses[-1] < losses[0]

    file = f"--input-file {validation_file} --label-column label --output {output}"
    assert run(f"predict --model {workdir / 'model'} {file} {texts}".split()) == 0
    auto = transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(workdir / "model", output_loading_info=True)
    assert type(model) is transformers.ModernBertForSequenceClassification
    assert not any(info.values()), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "model")
    batch = tokenizer(
        [text for text, _ in sentences(20, 41)], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        probabilities = torch.softmax(model.eval()(**batch).logits, -1).amax(-1)
    predicted = [line.split("\t")[2] for line in output.read_text().splitlines()[1:]]
    np.testing.assert_allclose(
        np.array(predicted, float), probabilities.numpy(), atol=1e-4
    )


def test_the_components_of_a_modern_bert_are_listed(modern_bert, capsys):
    arguments = ["components", "--model", str(modern_bert)]
    assert run([*arguments, "--components", "by_module_type"]) == 0
    printed = capsys.readouterr().out
    # Two of the embeddings, six of the layers, the last norm, two of the head, one.
    assert "12 in all" in printed.splitlines()[-1]
    assert "model/layers/attn/Wqkv" in printed
