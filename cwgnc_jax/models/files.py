"""The files of a checkpoint in Hugging Face's layout, read with distrust.

They come from elsewhere: a name in one may point anywhere, a size may be any number. A
pickle runs code when it is read, so none ever is.
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

from cwgnc_jax.models.names import first_five

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_PICKLES = (
    *("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle"),
    *("*.ckpt", "*.ckpt.index", "*.msgpack", "*.h5"),
)
# Of a file of JSON; the index of a model of a hundred shards has a thousandth.
_MOST_BYTES = 2**26


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of JSON that must hold one object.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: expected a model in Hugging Face's "
            f"layout, config.json beside model.safetensors"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"{path} has more than {_MOST_BYTES:,} bytes, which no file of its name has"
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except RecursionError:
        raise ValueError(
            f"{path} is not valid JSON: brackets are nested too deeply"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a JSON object, got {type(content).__name__}"
        )
    return content


def weight_files(directory: Path) -> list[Path]:
    """Finds the safetensors files of a checkpoint.

    Raises:
      FileNotFoundError: If there are none, or one is missing.
      ValueError: If there are pickles only, or the index is damaged, points out of the
        directory or does not fit its shards.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / _INDEX).is_file():
        weight_map = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{directory / _INDEX} has no weight_map")
        shards = sorted(set(map(str, weight_map.values())))
        # The index comes with the download: it must not point out of its directory.
        strange = [name for name in shards if not _SHARD.fullmatch(name)]
        if strange:
            raise ValueError(
                f"{directory / _INDEX} names shards that are not plain .safetensors "
                f"files beside it: {first_five(strange)}"
            )
        missing = [name for name in shards if not (directory / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"shards missing in {directory}: {first_five(missing)}; download them "
                f"again"
            )
        _check_shards(directory, weight_map)
        return [directory / name for name in shards]
    pickles = sorted({p.name for kind in _PICKLES for p in directory.glob(kind)})
    if pickles:
        raise ValueError(
            f"{directory} holds no safetensors but {first_five(pickles)}, which is not "
            f"read because a pickle can run code; convert it with torch where you "
            f'trust the file: python -c "from transformers import '
            f"AutoModelForSequenceClassification as M; "
            f"M.from_pretrained('DIR').save_pretrained('NEW_DIR')\""
        )
    raise FileNotFoundError(f"neither {WEIGHTS} nor {_INDEX} in {directory}")


def stored_tensors(
    files: Sequence[Path],
) -> Iterator[tuple[str, str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """The name, dtype, shape and reader of each tensor."""
    for file in files:
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                for name in opened.keys():
                    view = opened.get_slice(name)
                    read = functools.partial(opened.get_tensor, name)
                    yield name, view.get_dtype(), tuple(view.get_shape()), read
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{file} is not a readable safetensors file ({error}): perhaps the "
                f"download was cut short, or it is a Git LFS pointer"
            ) from error


def _check_shards(directory: Path, weight_map: dict[str, str]) -> None:
    """Raises if a shard lacks a tensor that the index says it has."""
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
        raise ValueError(
            f"{directory / _INDEX} names tensors that are not in their shards: "
            f"{first_five(lacking)}; download the model again"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        [(name, _)] = counts.most_common(1)
        raise ValueError(f"{name!r:.60} is there more than once")
    return content
