"""The files of a checkpoint in Hugging Face's layout.

The files are not trusted: a name in them may point anywhere, and a size may be any
number. Pickles are never read, since reading one can run code.
"""

import collections
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from cwgnc_jax._messages import listed
from cwgnc_jax.models.config import is_object
from cwgnc_jax.models.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_PICKLES = (
    *("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle"),
    *("*.ckpt", "*.ckpt.index", "*.msgpack", "*.h5"),
)
# The limit for a JSON file. The index of a hundred shards has a thousandth of it.
_MOST_BYTES = 2**26


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Args:
      path: The file.

    Returns:
      The object.

    Raises:
      CheckpointError: If the file does not exist or does not hold a JSON object.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no {path.name} in {path.parent}: expected a model in Hugging Face's "
            f"layout, config.json beside model.safetensors"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise CheckpointError(
            f"{path} has more than {_MOST_BYTES:,} bytes, which no valid file of this "
            f"name has"
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    except RecursionError:
        raise CheckpointError(
            f"{path} is not valid JSON: brackets are nested too deeply"
        ) from None
    if not is_object(content):
        raise CheckpointError(
            f"{path} must hold a JSON object, got {type(content).__name__}"
        )
    return content


def weight_files(directory: Path) -> list[Path]:
    """Finds the safetensors files of a checkpoint.

    Args:
      directory: The checkpoint's directory.

    Returns:
      The files.

    Raises:
      CheckpointError: If there are no such files, only pickles, or a shard is missing,
        or the index is damaged, names files outside the directory or does not fit the
        shards.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / _INDEX).is_file():
        weight_map = read_json(directory / _INDEX).get("weight_map")
        if not is_object(weight_map) or not weight_map:
            raise CheckpointError(
                f"{directory / _INDEX} has no weight_map, which says where each tensor "
                f"is; download it again"
            )
        shards = sorted(set(map(str, weight_map.values())))
        # The index is part of the download and must not name files elsewhere.
        strange = [name for name in shards if not _SHARD.fullmatch(name)]
        if strange:
            raise CheckpointError(
                f"{directory / _INDEX} names shards that are not plain .safetensors "
                f"files beside it: {listed(strange, spell=str)}"
            )
        missing = [name for name in shards if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"shards missing in {directory}: {listed(missing, spell=str)}; "
                f"download them again"
            )
        _check_shards(directory, weight_map)
        return [directory / name for name in shards]
    pickles = sorted({p.name for kind in _PICKLES for p in directory.glob(kind)})
    if pickles:
        raise CheckpointError(
            f"{directory} holds no safetensors but {listed(pickles, spell=str)}; "
            f"pickles are never read, since they can run code. If you trust the file, "
            f'convert it with torch: python -c "from transformers import '
            f"AutoModelForSequenceClassification as M; "
            f"M.from_pretrained('DIR').save_pretrained('NEW_DIR')\""
        )
    raise CheckpointError(
        f"neither {WEIGHTS} nor {_INDEX} in {directory}: expected the weights beside "
        f"{CONFIG}; download them"
    )


def stored_tensors(
    files: Sequence[Path],
) -> Iterator[tuple[str, str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Yields the name, dtype, shape and reader of each tensor."""
    for file in files:
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                for name in opened.keys():
                    view = opened.get_slice(name)
                    read = functools.partial(opened.get_tensor, name)
                    yield name, view.get_dtype(), (*view.get_shape(),), read
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f"{file} is not a readable safetensors file ({error}): perhaps the "
                f"download was cut short, or the file is a Git LFS pointer"
            ) from error


def _check_shards(directory: Path, weight_map: dict[str, str]) -> None:
    """Raises if a shard lacks a tensor that the index places in it."""
    held = {
        file: {stored for stored, *_ in stored_tensors([directory / file])}
        for file in set(weight_map.values())
    }
    lacking = [
        f"{name} in {file}"
        for name, file in weight_map.items()
        if name not in held[file]
    ]
    if lacking:
        raise CheckpointError(
            f"{directory / _INDEX} names tensors that are not in their shards: "
            f"{listed(lacking, spell=str)}; download the model again"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        [(name, _)] = counts.most_common(1)
        raise ValueError(f"{name!r:.60} is there more than once")
    return content
