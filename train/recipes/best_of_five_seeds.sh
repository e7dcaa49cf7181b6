#!/usr/bin/env bash
# The best of five seeds on your own texts, chosen on a tenth of the training set.
#
# Usage: best_of_five_seeds.sh MODEL TRAIN_FILE TEXT_COLUMN WORKDIR
# Hardware: any; on a GPU or TPU the five seeds train together.
# Time: five runs of your data (not measured).
# Score: depends on your data; the command prints the spread over the seeds.
set -euo pipefail
cwgnc finetune --model "$1" --train-file "$2" --text-columns "$3" --holdout 0.1 \
    --seeds 5 --workdir "$4" --resume
