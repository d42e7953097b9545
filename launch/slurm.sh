#!/usr/bin/env bash
# Give a run to SLURM, from a login node: it is checked, sent, and the command returns. PROFILE is a file with the
# cluster's facts, such as slurm/gpu.yaml. Under SLURM a run that is preempted or out of time goes on by itself.
#
#   PROFILE=slurm/gpu.yaml launch/slurm.sh configs/mnist_mlp.yaml
#   PROFILE=slurm/gpu.yaml NODES=4 launch/slurm.sh configs/mnist_mlp.yaml name=wide --dry-run
set -euo pipefail
: "${PROFILE:?set PROFILE=slurm/gpu.yaml, or whichever file has the facts of your cluster}"
exec dist-trainer submit "$@" "$PROFILE" ${NODES:+--nodes "$NODES"}
