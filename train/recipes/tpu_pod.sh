#!/usr/bin/env bash
# BERT-large on CoLA on all hosts of a TPU pod.
#
# Usage: tpu_pod.sh POD ZONE WORKDIR (a folder that all hosts share)
# Hardware: a TPU pod slice, with pip install 'cwgnc-jax[train]' 'jax[tpu]' on each host.
# Time: not measured on TPUs.
# Score: Matthews correlation 62.2 on average, deviation 1.7 (the paper's, 25 seeds).
set -euo pipefail
gcloud compute tpus tpu-vm ssh "$1" --zone "$2" --worker=all --command \
    "cwgnc finetune --coordinator auto --model google-bert/bert-large-uncased --task cola --batch-size 32 --dtype bfloat16 --workdir $3 --resume"
