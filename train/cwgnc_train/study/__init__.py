"""Studies: which runs, in which programs, by which worker."""

from cwgnc_train.study.finetune import finetune
from cwgnc_train.study.reproduce import prepare_reproduction
from cwgnc_train.study.study import Study, prepare_finetune, prepare_stability
from cwgnc_train.study.worker import run_study

__all__ = (
    "Study",
    "finetune",
    "prepare_finetune",
    "prepare_reproduction",
    "prepare_stability",
    "run_study",
)
