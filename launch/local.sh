#!/usr/bin/env bash
# Runs a command as N processes of one run on this machine, as a cluster runs it on N hosts.
#     launch/local.sh 2 anneal train --config=configs/nlp/gpt.py --workdir=runs/gpt
# A signal goes to all of them; the exit code is that of the first one that failed.
set -u
count=$1
shift
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:$((20000 + $$ % 20000))}
export JAX_NUM_PROCESSES=$count
pids=()
for ((index = 0; index < count; index++)); do
    JAX_PROCESS_ID=$index "$@" &
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
code=0
for pid in "${pids[@]}"; do
    while :; do
        wait "$pid"
        result=$?
        # A trapped signal ends `wait` early; the process itself goes on to save.
        kill -0 "$pid" 2>/dev/null || break
    done
    [ "$code" -ne 0 ] || code=$result
done
exit "$code"
