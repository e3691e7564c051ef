#!/usr/bin/env bash
# Bottlenecks of a large data set in N shares, as an array job of Slurm or as processes here:
#   sbatch --array=1-N examples/parts.sh DATA MODULE N [OPTIONS OF hubretrain cache ...]
#   examples/parts.sh DATA MODULE N [OPTIONS ...]
# then: hubretrain cache merge cache/<data set>/parts/*.h5
set -euo pipefail
data=$1 module=$2 n=$3
shift 3

part() {
  hubretrain cache "$data" --module "$module" --part "$1/$n" "${@:2}"
}

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  part "$SLURM_ARRAY_TASK_ID" "$@"
else
  # The first run keeps digests and whatever loading the module tells, for all others.
  part 1 "$@"
  for i in $(seq 2 "$n"); do
    part "$i" "$@" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid"
  done
fi
