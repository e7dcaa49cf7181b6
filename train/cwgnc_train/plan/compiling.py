"""Compiling for accelerators that this machine doesn't have."""

import functools
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from cwgnc_train.config import UserError
from cwgnc_train.plan.accelerators import Accelerator, Slice

_EXTRAS = {"cuda": "cuda13", "tpu": "tpu"}
_PACKAGES = {"cuda": "jax_plugins.xla_cuda13", "tpu": "libtpu"}
# What XLA reads of every NVIDIA GPU alike.
_ALL_GPUS = """
threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
registers_per_core_limit: 65536 registers_per_block_limit: 65536
"""


class DoesNotFit(Exception):
    """The compiler says that a program is too large for the device's memory."""


def without_devices() -> None:
    """Keeps JAX from looking for the accelerators whose compilers are installed."""
    jax.config.update("jax_platforms", "cpu")


def devices_of(wanted: Slice) -> list[Any]:
    """Returns devices that programs can be compiled for, and that cannot run them.

    Raises a UserError if the package with their compiler is missing, or the compiler
    doesn't know this topology.
    """
    accelerator = wanted.accelerator
    _check_compiler(accelerator)
    try:
        if accelerator.platform == "cuda":
            _let_cuda_be_known()
            topology = topologies.get_topology_desc(
                wanted.accelerator.name,
                platform="cuda",
                topology=wanted.topology,
                target_config=_description(accelerator),
            )
        else:
            # libtpu would ask the metadata server of a TPU machine, and let only one
            # process have the TPUs that are not there.
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
            os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
            os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
            os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
            topology = topologies.get_topology_desc(
                f"{accelerator.name}:{wanted.topology}", platform="tpu"
            )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"{accelerator.title} has no topology {wanted.topology}: {error}; take "
            f"another, such as {accelerator.smallest or '1'}"
        ) from error
    return list(topology.devices[: wanted.devices])


def compile_for(wanted: Slice, lowered: Any) -> Any:
    """Compiles what was lowered for devices of :func:`devices_of`.

    Raises :class:`DoesNotFit` where the compiler refuses a program for its size, as a
    TPU's does.
    """
    options = {}
    if wanted.accelerator.platform == "cuda":
        # Autotuning would run kernels.
        options["xla_gpu_autotune_level"] = 0
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(str(error).partition("\n")[0]) from error


def _check_compiler(accelerator: Accelerator) -> None:
    package, extra = _PACKAGES[accelerator.platform], _EXTRAS[accelerator.platform]
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise UserError(
            f"no compiler for {accelerator.title} here: "
            f"pip install 'jax[{extra}]=={jax.__version__}'"
        )


@functools.cache
def _let_cuda_be_known() -> None:
    # jax-ml/jax#23971: without a GPU JAX doesn't take "cuda" for a platform.
    from jax._src import xla_bridge

    known = xla_bridge.canonicalize_platform

    def canonicalize(name: str) -> str:
        return "cuda" if name in ("gpu", "cuda") else known(name)

    xla_bridge.canonicalize_platform = canonicalize


def _description(accelerator: Accelerator) -> str:
    """Describes a GPU to XLA, as openxla/xla#25919 has it."""
    own = dict(accelerator.description)
    capability = f"major: {own.pop('major')} minor: {own.pop('minor', 0)}"
    fields = " ".join(f"{name}: {value}" for name, value in own.items())
    return f"""
    gpu_device_info {{ {_ALL_GPUS} {fields}
      memory_bandwidth: {accelerator.bandwidth:.0f}
      clock_rate_ghz: {accelerator.clock / 1e9}
      device_memory_size: {accelerator.memory}
      cuda_compute_capability {{ {capability} }} }}
    platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 28 }}
    runtime_version {{ major: 13 }} device_description_str: "{accelerator.title}"
    """
