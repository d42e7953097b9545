#!/usr/bin/env bash
# Train every cell of a grid as one array job of SLURM, PARALLEL of them at a time. PROFILE is a file with the
# cluster's facts. Then `dist-trainer sweep status NAME` shows the cells, and `dist-trainer sweep best NAME` the best.
#
#   PROFILE=slurm/gpu.yaml launch/slurm_sweep.sh configs/mnist_mlp.yaml --grid optimizer.lr=0.1,0.03 --grid seed=0:5
#   PROFILE=slurm/gpu.yaml PARALLEL=4 launch/slurm_sweep.sh configs/mnist_mlp.yaml --grid seed=0:20 --name seeds
set -euo pipefail
: "${PROFILE:?set PROFILE=slurm/gpu.yaml, or whichever file has the facts of your cluster}"
exec dist-trainer sweep "$@" "$PROFILE" ${PARALLEL:+--parallel "$PARALLEL"}
