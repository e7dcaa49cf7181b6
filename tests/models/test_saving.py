import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cwgnc_jax import models


def load(directory):
    key = jax.random.key(0)
    return models.load_pretrained(directory, num_labels=3, key=key).params


def test_label_names_and_other_entries_are_kept(tmp_path, config, params):
    source = {"pad_token_id": 0, "transformers_version": "4.8.2", "dtype": "float16"}
    models.save_pretrained(
        tmp_path,
        config,
        params,
        label_names=["no", "maybe", "yes"],
        source_config=source,
    )
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert saved["label2id"] == {"no": 0, "maybe": 1, "yes": 2}
    assert saved["problem_type"] == "single_label_classification"
    assert saved["pad_token_id"] == 0
    assert saved.keys().isdisjoint({"transformers_version", "dtype", "num_labels"})


def test_saving_twice_replaces_and_leaves_nothing_else(directory, config, params):
    params["classifier"]["bias"] = jnp.arange(3.0)
    models.save_pretrained(directory, config, params)
    loaded = load(directory)
    assert (loaded["classifier"]["bias"] == jnp.arange(3)).all()
    assert {file.name for file in directory.iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_a_failed_save_leaves_the_old_files(directory, config, params, monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        models.save_pretrained(directory, config, jax.tree.map(jnp.zeros_like, params))
    monkeypatch.undo()
    chex.assert_trees_all_equal(load(directory), params)
    assert len(list(directory.iterdir())) == 2


def test_bfloat16_parameters_are_saved_as_float32(tmp_path, config, params):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    models.save_pretrained(tmp_path, config, half)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label_names": ["a", "b"]},
            r"num_labels = 3 different names, got \['a', 'b'",
        ),
        ({"label_names": ["a", "b", "a"]}, "num_labels = 3 different names"),
        ({"regression": True}, "a regression needs num_labels = 1, got 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, config, params, options, message):
    with pytest.raises(ValueError, match=message):
        models.save_pretrained(tmp_path / "new", config, params, **options)
    assert not (tmp_path / "new").exists()


def test_parameters_of_another_config_are_not_saved(tmp_path, config, params):
    del params["classifier"]["bias"]
    with pytest.raises(
        ValueError, match="not those of the config: missing classifier/"
    ):
        models.save_pretrained(tmp_path / "new", config, params)
    assert not (tmp_path / "new").exists()
