#!/usr/bin/env bash
# Train on all GPUs of one machine by plain torchrun, where a cluster's own tools expect that command.
# Everywhere else `dist-trainer train CONFIG` does the same, with a progress bar and a result at the end.
#
#   launch/one_gpu_node.sh configs/mnist_mlp.yaml                      one worker per GPU
#   WORKERS=4 RESTARTS=0 launch/one_gpu_node.sh configs/mnist_mlp.yaml optimizer.lr=0.05
set -euo pipefail
run=$(dist-trainer prepare "$@")
exec torchrun \
    --standalone \
    --nproc-per-node "${WORKERS:-gpu}" \
    --max-restarts "${RESTARTS:-3}" \
    -m dist_trainer.worker "$run"
