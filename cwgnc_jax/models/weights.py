"""Checkpoints in Hugging Face's layout: config.json and safetensors."""

import dataclasses
import json
import os
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float, PRNGKeyArray

from cwgnc_jax._messages import listed
from cwgnc_jax.models.config import EncoderConfig
from cwgnc_jax.models.encoders import Encoder, encoder_of, read_config
from cwgnc_jax.models.errors import CheckpointError
from cwgnc_jax.models.files import (
    CONFIG,
    WEIGHTS,
    read_json,
    stored_tensors,
    weight_files,
)
from cwgnc_jax.models.forward import Params, flat_params, nested_params
from cwgnc_jax.models.hub import resolve
from cwgnc_jax.models.names import (
    canonical_name,
    describe_differences,
    to_checkpoint,
)
from cwgnc_jax.models.parameters import initial_value, is_below, parameter_shapes

_DTYPES = ("F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model.

    Args:
      config: The model's config.
      params: The parameters in float32, laid out as by
        :func:`cwgnc_jax.models.init_params`.
      directory: The local directory that holds the model and its tokenizer.
      new_parameters: The paths of the parameters that are not from the checkpoint but
        newly drawn.
      source_config: The decoded config.json.
    """

    config: EncoderConfig
    params: dict[str, Any]
    directory: Path
    new_parameters: tuple[str, ...]
    source_config: dict[str, Any]

    @property
    def commit(self) -> str | None:
        """The commit of the files on the Hugging Face hub; None for other files."""
        # The hub's cache has a directory for each commit.
        name, parent = self.directory.name, self.directory.parent.name
        hub = parent == "snapshots" and re.fullmatch("[0-9a-f]{40}", name)
        return name if hub else None


def load_config(
    model: str | Path, *, num_labels: int, revision: str | None = None
) -> EncoderConfig:
    """Reads the config of a sequence classifier; its weights need not be there.

    Args:
      model: A local directory with config.json, or the id of a model on the Hugging
        Face hub.
      num_labels: Width of the classifier.
      revision: A branch, tag or commit on the hub.

    Returns:
      The config.

    Raises:
      CheckpointError: If the file cannot be found or read, or the type of model is not
        supported.

    Examples:
      >>> import json, pathlib, tempfile
      >>> from cwgnc_jax import models
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     file = pathlib.Path(directory, "config.json")
      ...     _ = file.write_text(json.dumps({"model_type": "bert"}))
      ...     models.load_config(directory, num_labels=3).num_hidden_layers
      12
    """
    directory = resolve(model, revision)
    return _read_config(directory, read_json(directory / CONFIG), num_labels)


def load_pretrained(
    model: str | Path,
    *,
    num_labels: int,
    key: PRNGKeyArray,
    new_head: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """Reads a checkpoint into a sequence classifier.

    ``model_type`` in config.json determines the type of the model. The checkpoint may
    be an encoder alone, a masked language model or a classifier, in one safetensors
    file or in shards, in float32, float16 or bfloat16. A missing head, and a missing
    pooler if the head is missing too, is drawn as :func:`cwgnc_jax.models.init_params`
    draws it from the same key.

    Args:
      model: A local directory, or the id of a model on the Hugging Face hub.
      num_labels: Width of the classifier.
      key: A random key for the parameters that the checkpoint lacks.
      new_head: Whether to draw a new head even if the checkpoint has one.
      revision: A branch, tag or commit on the hub.

    Returns:
      The :class:`Checkpoint`.

    Raises:
      CheckpointError: If the files cannot be found (see :func:`resolve`), the type of
        model is not supported, the checkpoint holds pickles only, or any tensor is
        missing, unexpected, of another shape or dtype, NaN or infinite. One error names
        all such tensors.

    Examples:
      >>> import tempfile, jax
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
      ...                            num_attention_heads=2, intermediate_size=16)
      >>> params = models.init_params(config, jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     _ = models.save_pretrained(directory, config, params)
      ...     checkpoint = models.load_pretrained(
      ...         directory, num_labels=3, key=jax.random.key(1), new_head=True)
      >>> checkpoint.new_parameters
      ('classifier/bias', 'classifier/kernel')
    """
    directory = resolve(model, revision)
    source_config = read_json(directory / CONFIG)
    config = _read_config(directory, source_config, num_labels)
    encoder = encoder_of(config)
    tensors, unusable = _read_tensors(weight_files(directory), encoder, new_head)
    if config.num_hidden_layers > len(tensors):
        raise CheckpointError(
            f"the weights in {directory} do not fit their config: num_hidden_layers is "
            f"{config.num_hidden_layers}, and there are {len(tensors)} tensors in all"
        )
    shapes = parameter_shapes(config)
    head = [path for path in shapes if is_below(path, encoder.head)]
    pooler = [path for path in shapes if is_below(path, encoder.pooler)]
    new = _new_parameters(tensors.keys(), head, pooler)
    paths = {to_checkpoint(path): path for path in shapes if path not in new}
    expected = {
        name: shapes[path][::-1] if path.endswith("/kernel") else shapes[path]
        for name, path in paths.items()
    }
    found = {name: tensor.shape for name, tensor in tensors.items()}
    problems = [describe_differences(expected, found), *unusable]
    output = found.get(to_checkpoint(f"{encoder.output}/kernel"), ())
    if len(output) == 2 and output[0] != num_labels:
        problems.append(
            f"the checkpoint's head has {output[0]} labels but num_labels is "
            f"{num_labels}: pass new_head=True (--new-head) for a new head"
        )
    if any(problems):
        raise CheckpointError(
            f"the weights in {directory} do not fit their config: "
            + "; ".join(filter(None, problems))
        )

    leaves = {path: initial_value(config, path, key) for path in new}
    for name, path in paths.items():
        tensor = tensors.pop(name)
        if path.endswith("/kernel"):
            tensor = np.ascontiguousarray(tensor.T)
        leaves[path] = jax.device_put(tensor)
    return Checkpoint(
        config=config,
        params=nested_params(leaves),
        directory=directory,
        new_parameters=new,
        source_config=source_config,
    )


def _read_config(
    directory: Path, source_config: dict[str, Any], num_labels: int
) -> EncoderConfig:
    try:
        return read_config(source_config, num_labels)
    except ValueError as error:
        raise CheckpointError(f"{directory / CONFIG}: {error}") from error


def save_pretrained(
    directory: str | Path,
    config: EncoderConfig,
    params: Params,
    *,
    label_names: Sequence[str] | None = None,
    regression: bool = False,
    source_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a classifier that Hugging Face's transformers can load.

    Each file is written under a temporary name and then renamed, so that no reader ever
    sees half a file. The tokenizer's files are not written.

    Args:
      directory: The directory to write to, which is created if it does not exist.
      config: The model's config.
      params: The parameters.
      label_names: A name for each label, in the order of the logits; by default
        ``LABEL_0``, ``LABEL_1``, …
      regression: Whether the model predicts a number, with its only logit.
      source_config: The config.json that the model was loaded from, whose other
        entries (such as the padding token) are kept.

    Returns:
      The directory.

    Raises:
      ValueError: If the parameters are not those of the config, ``label_names`` is not
        ``num_labels`` different names, or a regression has several logits.

    Examples:
      >>> import json, pathlib, tempfile, jax
      >>> from cwgnc_jax import models
      >>> config = models.BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
      ...                            num_attention_heads=2, intermediate_size=16)
      >>> params = models.init_params(config, jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = models.save_pretrained(
      ...         directory, config, params, label_names=["no", "yes"])
      ...     print(json.loads((path / "config.json").read_text())["label2id"])
      {'no': 0, 'yes': 1}
    """
    directory = Path(directory)
    labels = [f"LABEL_{index}" for index in range(config.num_labels)]
    if label_names is not None:
        labels = list(label_names)
    if len(labels) != config.num_labels or len(set(labels)) != len(labels):
        raise ValueError(
            f"label_names must be num_labels = {config.num_labels} different names, "
            f"got {labels}"
        )
    if regression and config.num_labels != 1:
        raise ValueError(
            f"a regression needs num_labels = 1, got {config.num_labels}; leave out "
            f"regression=True for classes"
        )
    leaves = flat_params(params)
    differences = describe_differences(
        parameter_shapes(config),
        {path: leaf.shape for path, leaf in leaves.items()},
    )
    if differences:
        raise ValueError(f"params are not those of the config: {differences}")

    tensors: dict[str, np.ndarray] = {}
    for path, leaf in leaves.items():
        array = np.asarray(leaf, np.float32)
        array = array.T if path.endswith("/kernel") else array
        # safetensors writes the buffer as it is and ignores the strides.
        tensors[to_checkpoint(path)] = np.ascontiguousarray(array)
    entries = dict(source_config or {})
    for stale in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        entries.pop(stale, None)
    entries |= config.to_dict() | {
        "architectures": [encoder_of(config).architecture],
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "regression" if regression else "single_label_classification",
    }

    directory.mkdir(parents=True, exist_ok=True)
    _replace(
        directory / WEIGHTS,
        lambda path: safetensors.numpy.save_file(
            tensors, path, metadata={"format": "pt"}
        ),
    )
    text = json.dumps(entries, indent=2, sort_keys=True) + "\n"
    _replace(directory / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    return directory


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a temporary file and then renames it to its path, in one step."""
    # In the same directory, since a rename across file systems would be a copy.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _new_parameters(
    names: Collection[str], head: list[str], pooler: list[str]
) -> tuple[str, ...]:
    """Finds the paths to draw; half a head or half a pooler is damage instead."""
    without_head, without_pooler = (
        not any(to_checkpoint(path) in names for path in group)
        for group in (head, pooler)
    )
    # A head was trained with its pooler, so a missing pooler is damage too.
    if not without_head:
        return ()
    return (*pooler, *head) if without_pooler else tuple(head)


def _read_tensors(
    files: Sequence[Path], encoder: Encoder, skip_head: bool
) -> tuple[dict[str, Float[np.ndarray, "..."]], list[str]]:
    """Reads all tensors in float32 by canonical name, and describes unusable ones."""
    head = tuple(f"{module}." for module in encoder.head)
    tensors: dict[str, np.ndarray] = {}
    kinds: dict[str, list[str]] = {
        "twice": [],
        "empty": [],
        "other dtype": [],
        "NaN or infinite": [],
    }
    for stored, dtype, shape, read in stored_tensors(files):
        name = canonical_name(stored, encoder)
        if name is None or (skip_head and name.startswith(head)):
            continue
        if name in tensors:
            kinds["twice"].append(name)
        if 0 in shape:
            # No model has one, and its other dimensions may be too large for an array.
            tensors[name] = np.zeros(0, np.float32)
            kinds["empty"].append(name)
        elif dtype in _DTYPES:
            tensors[name] = read().astype(np.float32)
            if not np.isfinite(tensors[name]).all():
                kinds["NaN or infinite"].append(name)
        else:
            tensors[name] = np.broadcast_to(np.float32(0), shape)
            kinds["other dtype"].append(f"{name}: {dtype}, expected one of {_DTYPES}")
    return tensors, [f"{kind} {listed(n, spell=str)}" for kind, n in kinds.items() if n]
