#!/usr/bin/env bash
#SBATCH --array=0-2
#SBATCH --gpus=1
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# A stability study as a SLURM array: a job for each task, 25 seeds of three methods each.
#
# Hardware: one GPU of 40 GB or more for each job of the array.
# Time: a few hours a job on an H100 (estimated from steps of 16.5 ms; never run on one). A job
#   that is ended early goes on when it is queued again.
# Score: Table 1 of the paper (the paper's); each folder gets a report of its own.
set -euo pipefail
tasks=(rte mrpc cola)
task=${tasks[$SLURM_ARRAY_TASK_ID]}
cwgnc stability --model google-bert/bert-large-uncased --tasks "$task" \
    --methods cwgnc bias_correction devlin --max-norms 0.05 1 inf --seeds 25 \
    --holdout 0.1 --dtype bfloat16 --workdir "$STUDIES/$task" --resume &
wait $!
cwgnc report "$STUDIES/$task"
