#!/usr/bin/env bash
# Runs a training command again for as long as it was preempted (exit code 75: saved, go on later).
#     launch/requeue.sh anneal train --config=configs/nlp/gpt.py --workdir=runs/gpt
set -u
while :; do
    "$@"
    code=$?
    [ "$code" -eq 75 ] || exit "$code"
    echo "preempted and saved; starting again" >&2
done
