import json
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cwgnc_jax import models

QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def load(directory, num_labels=3, **options):
    key = jax.random.key(7)
    return models.load_pretrained(directory, num_labels=num_labels, key=key, **options)


def edit_tensors(directory, edit):
    """Rewrites the weights; edit changes the dict or returns a new one."""
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors = edit(tensors) or tensors
    safetensors.numpy.save_file(tensors, file)
    return tensors


def shard(directory):
    """Splits the weights into two files and an index, and returns the index."""
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    file.unlink()
    weight_map = {}
    for index in range(2):
        name = f"model-0000{index + 1}-of-00002.safetensors"
        part = dict(sorted(tensors.items())[index::2])
        safetensors.numpy.save_file(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_what_is_saved_is_loaded_again(directory, config, params):
    checkpoint = load(directory)
    chex.assert_trees_all_equal(checkpoint.params, params)
    assert checkpoint.config == config
    assert checkpoint.directory == directory
    assert checkpoint.new_parameters == ()
    assert checkpoint.source_config["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_shards_are_joined(directory, params):
    shard(directory)
    chex.assert_trees_all_equal(load(directory).params, params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_become_float32(directory, params, dtype):
    edit_tensors(directory, lambda ts: {n: t.astype(dtype) for n, t in ts.items()})
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    chex.assert_trees_all_equal(load(directory).params, rounded)


def test_gamma_and_beta_are_the_old_names_of_layer_norm(directory, params):
    def rename(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta")

    edit_tensors(directory, lambda ts: {rename(n): t for n, t in ts.items()})
    chex.assert_trees_all_equal(load(directory).params, params)


def test_an_encoder_without_prefix_gets_a_fresh_head(directory, config, params):
    edit_tensors(
        directory,
        lambda ts: (
            {
                name.removeprefix("bert."): tensor
                for name, tensor in ts.items()
                if name.startswith("bert.")
            }
            | {"embeddings.position_ids": np.arange(16)}
        ),
    )
    checkpoint = load(directory, num_labels=5)
    assert checkpoint.new_parameters == ("classifier/bias", "classifier/kernel")
    chex.assert_trees_all_equal(checkpoint.params["bert"], params["bert"])
    # The head is the one that a model made from scratch with this key would have.
    scratch = models.init_params(checkpoint.config, jax.random.key(7))
    chex.assert_trees_all_equal(checkpoint.params["classifier"], scratch["classifier"])


def test_a_checkpoint_without_a_pooler_gets_a_fresh_one(directory, params):
    edit_tensors(
        directory,
        lambda ts: (
            {
                name: tensor
                for name, tensor in ts.items()
                if "pooler" not in name and "classifier" not in name
            }
            | {"cls.predictions.bias": np.zeros(99, np.float32)}
        ),
    )
    assert load(directory).new_parameters == (
        "bert/pooler/dense/bias",
        "bert/pooler/dense/kernel",
        "classifier/bias",
        "classifier/kernel",
    )


def test_a_new_head_can_be_asked_for(directory, params):
    for num_labels in (2, 3):
        checkpoint = load(directory, num_labels, new_head=True)
        assert checkpoint.new_parameters == ("classifier/bias", "classifier/kernel")
        assert checkpoint.params["classifier"]["kernel"].shape == (24, num_labels)
        assert (checkpoint.params["classifier"]["bias"] == 0).all()
        chex.assert_trees_all_equal(checkpoint.params["bert"], params["bert"])


def test_another_number_of_labels_is_refused_with_both_shapes_and_a_way_out(directory):
    with pytest.raises(
        models.CheckpointError,
        match=r"classifier.weight: expected \(2, 24\), got \(3, 24\).*"
        r"head has 3 labels but num_labels is 2: pass new_head=True \(--new-head\)",
    ):
        load(directory, num_labels=2)


def test_everything_that_is_wrong_is_in_one_error(directory):
    def edit(tensors):
        del tensors[QUERY]
        tensors["qa_outputs.weight"] = np.zeros((2, 24), np.float32)
        tensors["bert.embeddings.token_type_embeddings.weight"] = np.zeros(
            (1, 24), np.float32
        )
        tensors["bert.pooler.dense.bias"][3] = np.nan
        tensors["classifier.bias"] = np.zeros(3, np.int8)

    edit_tensors(directory, edit)
    with pytest.raises(models.CheckpointError) as caught:
        load(directory)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"missing {QUERY}; ",
        "unexpected qa_outputs.weight; ",
        "other shape bert.embeddings.token_type_embeddings.weight: expected (2, 24), "
        "got (1, 24); ",
        "other dtype classifier.bias: I8, expected one of ('F32', 'F16', 'BF16'); ",
        "NaN or infinite bert.pooler.dense.bias",
    ):
        assert part in message


def test_at_most_five_names_are_listed(directory):
    edit_tensors(
        directory,
        lambda ts: {n: t for n, t in ts.items() if "layer.1." not in n},
    )
    with pytest.raises(models.CheckpointError, match="missing .* and 11 more$"):
        load(directory)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(directory, value):
    def edit(tensors):
        tensors[QUERY][0, 0] = value

    edit_tensors(directory, edit)
    with pytest.raises(models.CheckpointError, match=f"NaN or infinite {QUERY}$"):
        load(directory)


@pytest.mark.parametrize(
    "name", ["bert.pooler.dense.bias", "classifier.bias", "classifier.weight"]
)
def test_half_a_pooler_or_half_a_head_is_damage(directory, name):
    edit_tensors(directory, lambda ts: {n: t for n, t in ts.items() if n != name})
    with pytest.raises(models.CheckpointError, match=f"missing {name}$"):
        load(directory)


def test_a_head_without_its_pooler_is_damage(directory):
    edit_tensors(
        directory, lambda ts: {n: t for n, t in ts.items() if "pooler" not in n}
    )
    with pytest.raises(
        models.CheckpointError, match="missing bert.pooler.dense.bias, bert.poo"
    ):
        load(directory)


def test_two_spellings_of_one_tensor_are_refused(directory):
    def edit(tensors):
        tensors["pooler.dense.bias"] = tensors["bert.pooler.dense.bias"] + 1

    edit_tensors(directory, edit)
    with pytest.raises(models.CheckpointError, match="twice bert.pooler.dense.bias"):
        load(directory)


def test_missing_shards_are_named(directory):
    shard(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        models.CheckpointError, match="model-00002-of-00002.safetensors"
    ):
        load(directory)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/weights.safetensors",
        "../other.safetensors",
        "sub/other.safetensors",
        "sub\\other.safetensors",
        "..",
        "pytorch_model.bin",
        7,
    ],
)
def test_an_index_cannot_point_out_of_its_directory(directory, name):
    index = shard(directory)
    index["weight_map"][QUERY] = name
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        models.CheckpointError, match=f"beside it: {re.escape(str(name))}$"
    ):
        load(directory)


def test_an_index_without_a_map_is_refused(directory):
    shard(directory)
    (directory / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(models.CheckpointError, match="index.json has no weight_map"):
        load(directory)


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "model.pt", "model.pkl", "model.pickle"),
        *("bert_model.ckpt.index", "flax_model.msgpack", "tf_model.h5"),
    ],
)
def test_a_pickle_is_not_opened_but_named_with_a_way_out(directory, name):
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(b"not a pickle: reading it would raise otherwise")
    with pytest.raises(
        models.CheckpointError, match=f"holds no safetensors but {name}.*convert it"
    ):
        load(directory)


def test_a_pickle_beside_safetensors_does_no_harm(directory, params):
    (directory / "pytorch_model.bin").write_bytes(b"")
    chex.assert_trees_all_equal(load(directory).params, params)


def test_the_commit_is_that_of_the_hubs_cache(tmp_path, config, params):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = models.save_pretrained(
        tmp_path / "models--x--y" / "snapshots" / commit, config, params
    )
    assert load(folder).commit == commit
    copied = shutil.copytree(folder, tmp_path / commit)
    assert load(copied).commit is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ' + b"[" * 100_000, "brackets are nested too deeply"),
        (b'{"a": {"x": 1, "x": 2}}', "'x' is there more than once"),
        (b"\xff{}", "is not valid JSON: 'utf-8' codec"),
        (b" " * (2**26 + 1), "has more than 67,108,864 bytes"),
    ],
    ids=["deep", "twice", "no UTF-8", "huge"],
)
def test_hostile_json_is_refused(directory, content, message):
    (directory / "config.json").write_bytes(content)
    with pytest.raises(models.CheckpointError, match=f"config.json .*{message}"):
        load(directory)


def test_layers_that_the_weights_cannot_hold_are_refused_at_once(directory):
    file = directory / "config.json"
    source = json.loads(file.read_text())
    file.write_text(json.dumps(source | {"num_hidden_layers": 1000}))
    with pytest.raises(
        models.CheckpointError, match="num_hidden_layers is 1000, and there are 41 t"
    ):
        load(directory)


def test_a_tensor_of_no_numbers_is_refused(directory):
    def edit(tensors):
        tensors["bert.pooler.dense.bias"] = np.zeros((0, 2**40), np.float32)

    edit_tensors(directory, edit)
    with pytest.raises(models.CheckpointError, match="empty bert.pooler.dense.bias"):
        load(directory)


def test_an_index_that_does_not_fit_its_shards_is_refused(directory):
    index = shard(directory)
    index["weight_map"]["extra"] = index["weight_map"][QUERY]
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        models.CheckpointError, match="not in their shards: extra in model-0000"
    ):
        load(directory)


def test_a_directory_without_weights_or_config_is_refused(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(
        models.CheckpointError, match="neither model.safetensors nor model"
    ):
        load(directory)
    (directory / "config.json").unlink()
    with pytest.raises(
        models.CheckpointError, match=r"no config\.json in .* expected a mod"
    ):
        load(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON"), ("[]", "must hold a JSON object, got list")],
)
def test_a_damaged_config_is_refused(directory, content, message):
    (directory / "config.json").write_text(content)
    with pytest.raises(models.CheckpointError, match=f"config.json {message}"):
        load(directory)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("albert", "'albert' is not supported: expected one of .*bert.*; choose a ch"),
        ("Bert", "'Bert' is not supported, did you mean 'bert'. expected one of"),
        (None, "None is not supported: expected one of"),
        (["bert"], "'bert'. is not supported: expected one of"),
    ],
)
def test_another_type_of_model_is_refused_by_name(directory, model_type, message):
    file = directory / "config.json"
    entries = json.loads(file.read_text()) | {"model_type": model_type}
    file.write_text(json.dumps(entries))
    with pytest.raises(models.CheckpointError, match=message):
        load(directory)


@pytest.mark.parametrize("size", [5, 1000])
def test_a_truncated_file_is_refused(directory, size):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(models.CheckpointError, match="not a readable safetensors file"):
        load(directory)


def test_the_real_weights_are_read_as_they_lie_in_the_file(minilm, tmp_path):
    checkpoint = load(minilm, num_labels=2)
    tensors = safetensors.numpy.load_file(minilm / "model.safetensors")
    layer = checkpoint.params["bert"]["encoder"]["layer"]["5"]
    np.testing.assert_array_equal(
        layer["intermediate"]["dense"]["kernel"].T,
        tensors["encoder.layer.5.intermediate.dense.weight"],
    )
    np.testing.assert_array_equal(
        checkpoint.params["bert"]["embeddings"]["LayerNorm"]["scale"],
        tensors["embeddings.LayerNorm.weight"],
    )
    assert checkpoint.new_parameters == ("classifier/bias", "classifier/kernel")
    copied = tmp_path / "copied"
    shutil.copytree(minilm, copied)
    assert load(copied, num_labels=2).directory == copied
