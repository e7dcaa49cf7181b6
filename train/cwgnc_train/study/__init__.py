"""Studies: which runs, in which programs, by which worker."""

from cwgnc_train.study.finetune import finetune as finetune
from cwgnc_train.study.reproduce import prepare_reproduction as prepare_reproduction
from cwgnc_train.study.study import prepare_study as prepare_study
from cwgnc_train.study.worker import run_study as run_study
