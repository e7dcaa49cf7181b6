#!/usr/bin/env bash
# BERT-large on MRPC with the eight GPUs of one node: 25 seeds that share the devices, or one
# run whose batches the devices share.
#
# Hardware: eight GPUs of 16 GB or more.
# Time: not measured on GPUs; on simulated devices the numbers are those of one device.
# Score: F1 90.5 on average, deviation 0.6 (the paper's, 25 seeds).
set -euo pipefail
cwgnc finetune --model google-bert/bert-large-uncased --task mrpc --seeds 25 \
    --holdout 0.1 --dtype bfloat16 --workdir "$RUNS/mrpc-25-seeds" --resume
cwgnc finetune --model google-bert/bert-large-uncased --task mrpc --batch-size 64 \
    --data-devices 8 --shard-params --dtype bfloat16 --workdir "$RUNS/mrpc-one-run" --resume
