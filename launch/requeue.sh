#!/usr/bin/env bash
# Runs a training command again for as long as it was preempted (exit code 75: saved, go on later),
# and after a hang or a lost process (70), which three times in a row is more than bad luck.
#     launch/requeue.sh anneal train --config=configs/nlp/gpt.py --workdir=runs/gpt
set -u
hung=0
while :; do
    "$@"
    code=$?
    case "$code" in
        75) hung=0 && echo "preempted and saved; starting again" >&2 ;;
        70) hung=$((hung + 1)) && echo "it hung; starting again from the last checkpoint" >&2 ;;
        *) exit "$code" ;;
    esac
    [ "$hung" -lt 3 ] || exit 70
done
