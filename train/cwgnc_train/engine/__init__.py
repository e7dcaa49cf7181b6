"""Training: the step, runs over devices, the loop, evaluation, checkpoints, records."""

from cwgnc_train.engine import hosts, memory
from cwgnc_train.engine.checkpoints import (
    Checkpoints,
    find_checkpoint,
    fingerprint,
    other_fingerprint,
    remove_checkpoints,
)
from cwgnc_train.engine.evaluation import evaluate
from cwgnc_train.engine.group import RunGroup, TaskRuns
from cwgnc_train.engine.inputs import Inputs, load_inputs, load_weights
from cwgnc_train.engine.interruption import Interrupted, Interruption
from cwgnc_train.engine.layout import Layout, choose_mesh, make_mesh
from cwgnc_train.engine.loop import Start, Trained, Training
from cwgnc_train.engine.model_components import list_components
from cwgnc_train.engine.model_folder import save_model
from cwgnc_train.engine.optimizer import Hparams, check_clip, make_hparams
from cwgnc_train.engine.predict import predict
from cwgnc_train.engine.program_cache import keep_programs, seconds_saved
from cwgnc_train.engine.programs import (
    Programs,
    compile_train_steps,
    steps_of_program,
)
from cwgnc_train.engine.progress import Progress
from cwgnc_train.engine.recorder import Recorder
from cwgnc_train.engine.start import start_runs
from cwgnc_train.engine.step import (
    RunState,
    StepConfig,
    example_losses,
    init_run,
    train_step,
)
from cwgnc_train.engine.writers import check_writers

__all__ = (
    "Checkpoints",
    "Hparams",
    "Inputs",
    "Interrupted",
    "Interruption",
    "Layout",
    "Programs",
    "Progress",
    "Recorder",
    "RunGroup",
    "RunState",
    "Start",
    "StepConfig",
    "TaskRuns",
    "Trained",
    "Training",
    "check_clip",
    "check_writers",
    "choose_mesh",
    "compile_train_steps",
    "evaluate",
    "example_losses",
    "find_checkpoint",
    "fingerprint",
    "hosts",
    "init_run",
    "keep_programs",
    "list_components",
    "load_inputs",
    "load_weights",
    "make_hparams",
    "make_mesh",
    "memory",
    "other_fingerprint",
    "predict",
    "remove_checkpoints",
    "save_model",
    "seconds_saved",
    "start_runs",
    "steps_of_program",
    "train_step",
)
