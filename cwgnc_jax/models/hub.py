"""The local directory of a model, downloaded from the Hugging Face hub if needed."""

import re
from pathlib import Path

from cwgnc_jax.models.errors import CheckpointError

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
# Names as git allows them; the hub's cache turns them into paths.
_REVISION = re.compile(r"(?!.*\.\.)[\w-][\w./+-]*")
_TIMEOUT_S = 10


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """Finds the local directory of a model, downloading it if needed.

    Only the config, the safetensors weights and the tokenizer's files are downloaded
    from the Hugging Face hub: no pickles and no code. Without a network a model that
    was downloaded before is found in the hub's cache.

    Args:
      model: A local directory, or the id of a model on the hub.
      revision: A branch, tag or commit on the hub; None for the main branch. Local
        directories have no revisions.

    Returns:
      The directory.

    Raises:
      CheckpointError: If ``model`` is neither a directory nor an id, the hub does not
        have it, or the hub cannot be reached and the cache does not hold it; also if a
        local directory is given with a revision, or the revision is not a valid name.

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
            raise CheckpointError(
                f"a revision, {revision!r}, was given for the local directory {model}, "
                f"which has none; leave it out"
            )
        return directory
    if directory.exists():
        raise CheckpointError(
            f"{model} is a file: expected the directory with config.json and "
            f"model.safetensors"
        )
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"no directory {model}: expected a local directory with config.json and "
            f"model.safetensors, or an id on the Hugging Face hub"
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise CheckpointError(
            f"revision {revision!r} is not a valid name of a branch, tag or commit"
        )
    return _snapshot(model, revision)


def _snapshot(model: str, revision: str | None) -> Path:
    # Imported here, since local files need neither the package nor a network.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # from its HTTP library
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # HTTPError comes from the HTTP library of huggingface_hub, which differs between
    # versions. Its failures to connect are not OSErrors.
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
            raise CheckpointError(
                f"the Hugging Face hub has no model {model!r}{at}, or it is private or "
                f"gated: check the name, log in with `hf auth login`, or {offline}"
            ) from error
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        raise CheckpointError(
            f"{model!r} is not a local directory, cannot be fetched{at} from the "
            f"Hugging Face hub ({reason}) and is not in the hub's cache: {offline}"
        ) from error
