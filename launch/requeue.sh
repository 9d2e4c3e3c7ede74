#!/usr/bin/env bash
# Runs a training command again for as long as it was preempted (exit code 75: saved, go on later),
# and after a hang or a lost process (70), which three times in a row is more than bad luck.
#     launch/requeue.sh anneal train --config=configs/nlp/gpt.py --workdir=runs/gpt
# A signal goes on to the command, which saves; the script then ends with its code.
set -u
hung=0 told=
trap 'told=1; kill -TERM "$pid" 2>/dev/null' TERM INT
while :; do
    "$@" &
    pid=$!
    while :; do
        wait "$pid"
        code=$?
        # A trapped signal ends `wait` early; the command itself goes on to save.
        kill -0 "$pid" 2>/dev/null || break
    done
    [ -z "$told" ] || exit "$code"
    case "$code" in
        75) hung=0 && echo "preempted and saved; starting again" >&2 ;;
        70) hung=$((hung + 1)) && echo "it hung; starting again from the last checkpoint" >&2 ;;
        *) exit "$code" ;;
    esac
    [ "$hung" -lt 3 ] || exit 70
done
