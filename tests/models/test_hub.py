import time

import huggingface_hub
import pytest
from huggingface_hub import errors

from cwgnc_jax import models


def test_a_local_directory_is_taken_as_it_is(tmp_path):
    assert models.resolve(tmp_path) == tmp_path
    assert models.resolve(str(tmp_path)) == tmp_path


def test_a_revision_of_a_local_directory_is_refused(tmp_path):
    with pytest.raises(
        models.CheckpointError, match="a revision, 'main', was given for the local"
    ):
        models.resolve(tmp_path, revision="main")


def test_a_file_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(
        models.CheckpointError, match="is a file: expected the directory"
    ):
        models.resolve(file)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(tmp_path, kind):
    with pytest.raises(
        models.CheckpointError, match="no directory .*missing: expected a lo"
    ):
        models.resolve(kind(tmp_path / "missing"))


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers as told and records what it is asked."""

    class Hub:
        failure = None
        asked = None

        def model_info(self, model, *, revision, timeout):
            if self.failure is not None:
                raise self.failure

        def snapshot_download(self, model, **options):
            self.asked = options
            if self.failure is not None:
                raise errors.LocalEntryNotFoundError("not cached")
            return "snapshot"

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_only_config_weights_and_tokenizer_are_fetched(hub):
    assert str(models.resolve("someone/model", revision="v1")) == "snapshot"
    assert hub.asked["revision"] == "v1"
    assert not hub.asked["local_files_only"]
    patterns = hub.asked["allow_patterns"]
    assert {"config.json", "model.safetensors", "vocab.txt"} <= set(patterns)
    assert not any(name.endswith((".bin", ".py", ".h5")) for name in patterns)


@pytest.mark.parametrize("kind", ["RepositoryNotFoundError", "RevisionNotFoundError"])
def test_a_model_that_the_hub_lacks_is_a_file_not_found(hub, kind):
    failure = getattr(errors, kind)
    hub.failure = failure.__new__(failure)
    with pytest.raises(
        models.CheckpointError, match="hub has no model 'x/y' at revision v2"
    ):
        models.resolve("x/y", revision="v2")
    assert hub.asked["local_files_only"]


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("no route\nto host"),
        # Of the HTTP library below huggingface_hub, which is not always the same.
        errors.HTTPError("no route"),  # pyright: ignore[reportPrivateImportUsage]
    ],
)
def test_without_the_hub_the_error_is_one_line_with_the_ways_out(hub, failure):
    hub.failure = failure
    with pytest.raises(
        models.CheckpointError, match=r"\(no route\) and .* `hf download`"
    ) as caught:
        models.resolve("bert-base-uncased")
    assert "\n" not in str(caught.value)
    assert "HF_HUB_OFFLINE" in str(caught.value)


@pytest.mark.parametrize(
    "revision", ["../x", "a/../../b", "", "/etc", "a\0b", "-\n", "~"]
)
def test_a_revision_that_is_no_name_of_one_is_refused(hub, revision):
    with pytest.raises(
        models.CheckpointError, match="is not a valid name of a branch, tag or c"
    ):
        models.resolve("someone/model", revision=revision)
    assert hub.asked is None


def test_a_cached_snapshot_serves_when_the_hub_is_unreachable(hub, monkeypatch):
    hub.failure = ConnectionError("no route")
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda model, **options: "cached"
    )
    assert str(models.resolve("bert-base-uncased")) == "cached"


def test_the_real_client_fails_quickly_when_it_is_offline():
    start = time.monotonic()
    with pytest.raises(
        models.CheckpointError, match="is not in the hub's cache: give a local direct"
    ):
        models.resolve("nobody/no-such-model-here")
    assert time.monotonic() - start < 20
