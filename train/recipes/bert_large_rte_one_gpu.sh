#!/usr/bin/env bash
# BERT-large on RTE with the paper's settings, on one GPU.
#
# Hardware: one GPU of 16 GB or more.
# Time: about half a minute of training steps on an H100 (estimated: 780 steps of 16.5 ms,
#   from the compiled program's memory traffic and arithmetic; never run on one).
# Score: validation accuracy 73.1 on average, deviation 1.3, best 75.1 (the paper's, 25 seeds).
set -euo pipefail
cwgnc finetune --model google-bert/bert-large-uncased --task rte --preset paper \
    --dtype bfloat16 --seed 1 --workdir "${WORKDIR:-runs/bert-large-rte}" --resume
