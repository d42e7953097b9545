#!/usr/bin/env bash
# Train on this machine's processor, over gloo: a laptop, a CPU node, or the first try of a configuration.
# The same command goes on after an interruption.
#
#   launch/cpu.sh configs/quickstart.yaml                              two workers
#   WORKERS=4 launch/cpu.sh configs/quickstart.yaml name=longer train.epochs=60
set -euo pipefail
exec dist-trainer train "$@" --workers "${WORKERS:-2}" launch.device=cpu
