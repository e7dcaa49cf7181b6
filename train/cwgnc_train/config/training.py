"""How runs are carried out, whatever they are."""

import dataclasses
from typing import Literal

import tyro

WriterName = Literal["tensorboard", "wandb"]
DtypeName = Literal["float32", "bfloat16"]
PaddingName = Literal["packed", "longest", "max_length"]
StrategyName = Literal["jit", "pmap"]


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """Devices, and how runs share them."""

    devices: int | None = None
    """How many devices to use. Default: all, but one CPU device for a single run."""
    data_devices: int | None = None
    """How many devices share each batch of a run; the others share the runs. Default:
    as many as the runs leave over."""
    strategy: StrategyName = "jit"
    """Share batches by jax.jit over a mesh, or by jax.pmap (one run at a time); the
    step is the same."""
    shard_params: bool = False
    """Split parameters and moments of a large model over the devices of a batch."""
    runs_per_program: Literal["auto"] | int = "auto"
    """Runs that train together in a program; auto chooses by the device's memory."""


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """Processes that train together."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes train together; auto takes
    everything from SLURM, Open MPI, Kubernetes or a TPU pod."""
    num_processes: int | None = None  # Their number, beside --coordinator HOST:PORT.
    process_id: int | None = None  # This process's index from 0, beside --coordinator.


@dataclasses.dataclass(frozen=True)
class CheckpointsConfig:
    """Checkpoints, and going on from them."""

    resume: bool = False
    """Go on with what --workdir holds, to the same bits; start if it holds nothing."""
    checkpoint_seconds: float | None = None
    """Time between checkpoints. Default: 60, or more if they take over 2 % of it."""
    keep: int | None = None
    """Keep the last N checkpoints, also when all is done. Default: one, until then."""
    keep_best: bool = False  # Also keep the checkpoint with the best score.


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Batches, precision, evaluation and records."""

    batch_size: int = 16  # Examples per step; an epoch's smaller last batch is kept.
    accumulate: int = 1
    """Take batches in this many parts, in the memory of one; the step is the same."""
    eval_batch_size: int = 64  # Examples per evaluation batch.
    padding: PaddingName = "packed"
    """How examples fill the rows of a batch: several per row (packed), or one per row,
    as long as the batch's longest example or as --max-length."""
    dtype: DtypeName = "float32"
    """Dtype of the computation; parameters are always float32."""
    remat: bool = False
    """Recompute layers in the backward pass to save memory; on a CPU XLA undoes it."""
    new_head: bool = False  # Initialise the classifier anew even if there is one.
    revision: str | None = None  # Revision of a hub model: a branch, tag or commit.
    evaluations: int | None = None
    """Evaluations, evenly spaced, the last at a run's end. Default: one an epoch."""
    record_every: int = 10  # Steps averaged in one line of losses and clip rates.
    norms_every: int = 20
    """Steps between records of every component's gradient norm; 0 for none."""
    statistics_every: int = 0
    """Steps between measurements of every component (norms, distance from the initial
    weights and more); 0 for none."""
    give_up_after: int = 10
    """Give a run up when --nonfinite skip_step skipped this many steps in a row."""
    writers: tuple[WriterName, ...] = ()
    """Also write records to tensorboard (a folder of that name in --workdir) or wandb
    (as its environment variables say)."""
    cache: bool = True
    """Keep tokens and compiled programs in $XDG_CACHE_HOME/cwgnc_jax, or
    ~/.cache/cwgnc_jax, so that the next command starts sooner."""
    devices: tyro.conf.OmitArgPrefixes[DevicesConfig] = DevicesConfig()
    hosts: tyro.conf.OmitArgPrefixes[HostsConfig] = HostsConfig()
    checkpoints: tyro.conf.OmitArgPrefixes[CheckpointsConfig] = CheckpointsConfig()
