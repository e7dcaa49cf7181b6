"""From a model's name to a local folder with its files."""

import re
from pathlib import Path

_FILES = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_TIMEOUT_S = 10


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """Finds the local folder of a model, and downloads it where it must.

    From the Hugging Face hub only the config, safetensors weights and the tokenizer's
    files are fetched: no pickle and no code. A model that has been fetched once is
    found in the hub's cache when there is no network.

    Args:
      model: A local directory, or a model's id on the hub.
      revision: A branch, tag or commit on the hub; None for its main branch. A local
        directory has none.

    Returns:
      The directory.

    Raises:
      FileNotFoundError: If ``model`` is neither a directory nor a hub's id, or the hub
        does not have it.
      NotADirectoryError: If ``model`` is a file.
      OSError: If the hub cannot be reached and the cache does not hold the model.
      ValueError: If a revision of a local directory is asked for.

    Examples:
      >>> import tempfile
      >>> from cwgnc_jax import models
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     models.resolve(directory) == models.resolve(models.resolve(directory))
      True
    """
    directory = Path(model)
    if directory.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision {revision!r} means nothing for the local directory {model}; "
                f"leave it out"
            )
        return directory
    if directory.exists():
        raise NotADirectoryError(
            f"{model} is a file: expected the directory with config.json and "
            f"model.safetensors"
        )
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        raise FileNotFoundError(
            f"no directory {model}: expected a local directory with config.json and "
            f"model.safetensors, or an id on the Hugging Face hub"
        )
    return _snapshot(model, revision)


def _snapshot(model, revision):
    # Imported here: whoever has the files locally needs neither the package nor a net.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # HTTPError is that of the hub's HTTP library, which differs between its versions;
    # its failures to connect are no OSError.

    at = "" if revision is None else f" at revision {revision}"
    failure = None
    try:
        # snapshot_download has no timeout of its own for this first request.
        HfApi().model_info(model, revision=revision, timeout=_TIMEOUT_S)
    except (OSError, HTTPError) as error:
        failure = error
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(_FILES),
                local_files_only=failure is not None,
            )
        )
    except (OSError, HTTPError) as error:
        offline = (
            "give a local directory, or run `hf download` on a connected machine and "
            "copy its cache (HF_HOME; with HF_HUB_OFFLINE=1 the hub is not asked)"
        )
        cause = failure or error
        if isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError):
            raise FileNotFoundError(
                f"the Hugging Face hub has no model {model!r}{at}, or it is private or "
                f"gated: check the name, log in with `hf auth login`, or {offline}"
            ) from error
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        raise OSError(
            f"{model!r} is no local directory, cannot be fetched{at} from the Hugging "
            f"Face hub ({reason}) and is not in the hub's cache: {offline}"
        ) from error
