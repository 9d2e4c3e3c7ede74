#!/usr/bin/env bash
# Runs a command as N processes of one run on this machine, as a cluster runs it on N hosts.
#     launch/local.sh 2 anneal train --config=configs/nlp/gpt.py --workdir=runs/gpt
# A signal goes to all of them. The exit code is that of a process that failed; 70 (another one is
# gone) only if no process says more.
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
    if [ "$code" -eq 0 ] || [ "$code" -eq 70 ]; then
        [ "$result" -eq 0 ] || code=$result
    fi
done
exit "$code"
