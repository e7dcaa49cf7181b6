"""A tiny model with a tokenizer and a task it can learn; a smaller one for steps."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.data import TokenArrays
from cwgnc_train.engine import StepConfig

WORDS = "the a dog cat dogs cats sleeps sleep sees see not often . ?".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


MODEL = models.BertConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
    initializer_range=0.3,
)
STEP_CONFIG = StepConfig(MODEL, False, "by_parameter", 0.9, 0.999, "float32")


def a_batch(rows=6, seed=0):
    """Random tokens for MODEL, an example a row, padded to 8."""
    rng = np.random.default_rng(seed)
    mask = np.arange(8)[None] < rng.integers(3, 9, (rows, 1))
    return {
        "input_ids": rng.integers(5, 20, (rows, 8)).astype(np.int32),
        "segment_ids": mask.astype(np.int32),
        "cls_positions": np.arange(rows, dtype=np.int32) * 8,
        "token_type_ids": rng.integers(0, 2, (rows, 8)).astype(np.int32),
        "labels": rng.integers(0, 2, rows).astype(np.int32),
        "weights": np.ones(rows, np.float32),
    }


def padded(batch):
    """What ``models.apply`` takes of a batch with an example a row."""
    return batch["input_ids"], batch["segment_ids"], batch["token_type_ids"]


def by_component(values, params, component_fn=cwgnc_jax.by_parameter):
    """A metric's values by the names of the components."""
    names = cwgnc_jax.component_sizes(params, component_fn)
    return dict(zip(names, values, strict=True))


def tokens_of(model, count, seed=0):
    """A training set of random tokens, of examples of 3 to 8 tokens."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(8) < rng.integers(3, 9, (count, 1))).astype(np.int32)
    ids = rng.integers(5, model.vocab_size, mask.shape, np.int32)
    types = rng.integers(0, 2, mask.shape, np.int32)
    labels = rng.integers(0, 2, count, np.int32)
    return TokenArrays(ids * mask, mask, types * mask, labels)


def labels_of(examples) -> np.ndarray:
    """The labels of examples that have some."""
    assert examples.labels is not None
    return examples.labels


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The folder of a random BERT of one layer, as the hub would hold it."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny_model"))


def write_tiny_model(directory: Path, layers: int = 1) -> Path:
    """Writes a random BERT with its tokenizer."""
    config = models.BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=2,
        initializer_range=0.3,
    )
    params = models.init_params(config, jax.random.key(0))
    models.save_pretrained(directory, config, params)
    (directory / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return directory


def sentences(count: int, start: int = 0) -> list[tuple[str, str]]:
    """Sentences whose verb agrees with its subject, or does not."""
    rows = []
    for i in range(start, start + count):
        noun = ("dog", "cat", "dogs", "cats")[i % 4]
        verb = ("sleeps", "sees", "sleep", "see")[(i // 4) % 4]
        agrees = (noun[-1] == "s") != (verb[-1] == "s")
        end = (".", "?", "often .", "not often .")[(i // 16) % 4]
        rows.append((f"the {noun} {verb} {end}", "good" if agrees else "bad"))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Writes rows of a text and a label under their header."""
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> tuple[Path, Path]:
    """A training file of 37 examples and a validation file of 20."""
    directory = tmp_path_factory.mktemp("tiny_data")
    return (
        write_tsv(directory / "train.tsv", sentences(37)),
        write_tsv(directory / "validation.tsv", sentences(20, 41)),
    )
