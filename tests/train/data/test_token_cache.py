import dataclasses
import os
import shutil

import numpy as np
import pytest
import transformers

from cwgnc_train.config import UserError
from cwgnc_train.data import (
    CachedTokenizer,
    pad_tokens,
    tokens,
)
from cwgnc_train.data.tokens import EncodedTexts, encode_texts

TEXTS = (["the dog sleeps .", "the cats see the dog ."], ["a cat", "dogs"])


@pytest.fixture
def model(tiny_model, tmp_path):
    """A model's folder that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the entries are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cwgnc_jax" / "tokens"


@pytest.fixture
def loaded(monkeypatch):
    """Grows by one whenever a tokenizer is loaded."""
    directories, from_pretrained = [], transformers.AutoTokenizer.from_pretrained

    def load(directory, **options):
        directories.append(directory)
        return from_pretrained(directory, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    return directories


def encode(model, texts=TEXTS, max_length=16, cache=True):
    return CachedTokenizer(model, cache).encode(texts, max_length)


def assert_same(one, other):
    for field in dataclasses.fields(EncodedTexts):
        x, y = getattr(one, field.name), getattr(other, field.name)
        assert x.dtype == y.dtype and np.array_equal(x, y), field.name


def test_texts_are_tokenized_once(model, folder, loaded):
    first, second = encode(model), encode(model)
    assert_same(first, second)
    assert_same(first, encode(model, cache=False))
    # Once for the entry, once without a cache.
    assert len(loaded) == 2
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("cache", [True, False])
def test_without_token_types_all_are_0_and_nothing_else_changes(model, folder, cache):
    tokenizer = CachedTokenizer(model, cache)
    with_types = tokenizer.encode(TEXTS, 16)
    without = tokenizer.encode(TEXTS, 16, token_types=False)
    assert with_types.types.any() and not without.types.any()
    assert_same(dataclasses.replace(without, types=with_types.types), with_types)
    # What is kept serves both.
    assert_same(tokenizer.encode(TEXTS, 16), with_types)


def test_padding_has_type_0_too_without_token_types(model, monkeypatch):
    tokenizer = CachedTokenizer(model, cache=False)
    monkeypatch.setattr(tokenizer.loaded, "_pad_token_type_id", 1)
    assert tokenizer.loaded.pad_token_type_id == 1
    arrays = pad_tokens(tokenizer.encode(TEXTS, 16), None, 16)
    assert arrays.token_type_ids[arrays.attention_mask == 0].all()
    arrays = pad_tokens(tokenizer.encode(TEXTS, 16, token_types=False), None, 16)
    assert not arrays.token_type_ids.any()


def test_kept_tokens_make_the_arrays_of_fresh_ones(model, folder):
    tokenizer = CachedTokenizer(model, cache=False).loaded
    fresh = pad_tokens(encode_texts(tokenizer, TEXTS, 16), None, 16)
    encode(model)
    kept = pad_tokens(encode(model), None, 16)
    assert np.array_equal(fresh.input_ids, kept.input_ids)
    assert np.array_equal(fresh.attention_mask, kept.attention_mask)
    assert np.array_equal(fresh.token_type_ids, kept.token_type_ids)


@pytest.mark.parametrize(
    ("texts", "max_length"),
    [
        ((["the dog sleeps .", "the cats see the cat ."], TEXTS[1]), 16),
        (TEXTS[::-1], 16),
        ((TEXTS[0] + TEXTS[1],), 16),
        ((["the dog sleeps .the cats see the dog .", ""], TEXTS[1]), 16),
        (TEXTS, 15),
    ],
)
def test_other_texts_or_lengths_have_an_entry_of_their_own(
    model, folder, texts, max_length
):
    encode(model)
    assert_same(
        encode(model, texts, max_length), encode(model, texts, max_length, cache=False)
    )
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("vocab.txt", "sleeps\nsleep", "sleep\nsleeps"),
        ("tokenizer_config.json", '"do_lower_case": true', '"do_lower_case": false'),
        ("config.json", '"bert"', '"roberta"'),
    ],
)
def test_another_tokenizer_has_an_entry_of_its_own(model, folder, name, old, new):
    encode(model)
    text = (model / name).read_text()
    assert old in text
    (model / name).write_text(text.replace(old, new))
    assert_same(encode(model), encode(model, cache=False))
    assert len(list(folder.iterdir())) == 2


def test_other_versions_of_the_libraries_have_an_entry_of_their_own(
    model, folder, loaded, monkeypatch
):
    encode(model)
    monkeypatch.setattr(tokens.importlib.metadata, "version", lambda name: "9")
    encode(model)
    monkeypatch.setattr(tokens, "_FORMAT", -1)
    encode(model)
    assert len(loaded) == len(list(folder.iterdir())) == 3


def test_a_damaged_entry_is_made_again(model, folder, loaded):
    whole = encode(model)
    [path] = folder.iterdir()
    content = path.read_bytes()
    middle = len(content) // 2
    damages = [b"", b"x", content[:50], content[:middle], content[:-30], b"x" + content]
    # Wherever a byte changes, it is in the checksum or unimportant.
    for place in range(0, len(content), 7):
        flipped = bytes([content[place] ^ 255])
        damages.append(content[:place] + flipped + content[place + 1 :])
    for damaged in damages:
        path.write_bytes(damaged)
        assert_same(encode(model), whole)
    path.write_bytes(b"")
    encode(model)
    before = len(loaded)
    encode(model)
    assert len(loaded) == before and path.read_bytes() == content


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": np.array([3, 4], np.int32)},
        {"lengths": np.array([19], np.int32)},
        {"types": np.zeros(3, np.uint8)},
        {"more": np.zeros(3)},
        {"ids": np.array([{"a": "pickle"}] * 19)},
    ],
)
def test_an_entry_with_other_contents_is_made_again(model, folder, changes):
    whole = encode(model)
    assert len(whole.ids) == 19
    [path] = folder.iterdir()
    np.savez(path, **dataclasses.asdict(whole) | changes)
    assert_same(encode(model), whole)


def test_without_a_writable_folder_texts_are_tokenized_each_time(
    model, tmp_path, monkeypatch, loaded
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_same(encode(model), encode(model))
    assert len(loaded) == 2


def test_an_entry_that_cannot_be_written_leaves_nothing(
    model, folder, loaded, monkeypatch
):
    def full(*arguments):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        tokens = encode(model)
    assert not list(folder.iterdir())
    assert_same(encode(model), tokens)


def test_the_entries_not_used_for_longest_give_way(model, folder, monkeypatch):
    for i in range(3):
        encode(model, (["the dog"] * (i + 1),))
    paths = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
    for i, path in enumerate(paths):
        os.utime(path, (i, i))
    # The first one is used again, the second one is now the oldest.
    encode(model, (["the dog"],))
    size = sum(path.stat().st_size for path in paths)
    monkeypatch.setattr(tokens, "_MOST_BYTES", size)
    encode(model, (["the cat"],))
    left = set(folder.iterdir())
    assert paths[1] not in left
    assert {paths[0], paths[2]} <= left and len(left) == 3


def test_without_a_cache_nothing_is_written(model, folder):
    encode(model, cache=False)
    assert not folder.exists()


def test_the_tokenizer_is_saved_as_it_was_read(model, tmp_path):
    tokenizer = CachedTokenizer(model, cache=False)
    contents = {name: (model / name).read_bytes() for name in os.listdir(model)}
    # Runs take hours: what happens to the folder meanwhile is of no account.
    shutil.rmtree(model)
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert sorted(saved) == ["tokenizer_config.json", "vocab.txt"]
    assert saved.items() <= contents.items()


def test_a_missing_or_damaged_tokenizer_is_reported_with_a_cache_too(model, folder):
    encode(model)
    (model / "vocab.txt").unlink()
    with pytest.raises(UserError, match="no tokenizer in .*expected"):
        encode(model)
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="^the tokenizer in .* cannot be read: .+$"):
        encode(model)
    assert len(list(folder.iterdir())) == 1
