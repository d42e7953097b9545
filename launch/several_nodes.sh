#!/usr/bin/env bash
# Train on several machines without a scheduler, by plain torchrun: give this command on each of them, in the
# same folder of a file system that all of them see. HEAD is the first machine's address, with a free port.
#
#   NODES=2 HEAD=10.0.0.1:29500 launch/several_nodes.sh configs/mnist_mlp.yaml
set -euo pipefail
: "${NODES:?how many machines}" "${HEAD:?address:port of the first machine}"
run=$(dist-trainer prepare "$@")
exec torchrun \
    --nnodes "$NODES" \
    --nproc-per-node "${WORKERS:-gpu}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD" \
    --rdzv-id "$(basename "$run")" \
    --max-restarts "${RESTARTS:-3}" \
    -m dist_trainer.worker "$run"
