#!/usr/bin/env bash
# ray 2.60.0
#
# Guess: a SIGTERM to every process of a Ray node at once, as a service manager sends it to what it stops, ends them all within
# seconds; in which order they get it does not matter.
# Found: the raylet ends at once. The gcs_server does not, though the raylet that was connected to it is gone a second later:
# another SIGTERM changes nothing, and it is there until it is killed, so that whatever stops it waits for all of its grace. Where
# the raylet has ended before the SIGTERM comes, the gcs_server ends within two seconds.
# Output seen on 2026-11-30: `at once: gcs_server is there after 30 s`, `raylet first: gcs_server is gone after 2 s`.
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'pkill -KILL -f "$folder/ray" || true; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "ray==2.60.0"
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
pid() { pgrep -f "/$1 .*$folder/ray" | head -1; }
start() { venv/bin/ray start --head --port 0 --temp-dir "$folder/ray" --num-cpus 1 --include-dashboard false >/dev/null 2>&1; }
wait_for() {  # seconds until a process is gone, 30 at most
    local waited=0
    while [ "$waited" -lt 30 ] && kill -0 "$1" 2>/dev/null; do sleep 1; waited=$((waited + 1)); done
    echo "$waited"
}
said() { echo "$1: gcs_server is $([ "$2" = 30 ] && echo there || echo gone) after $2 s"; }

start
gcs=$(pid gcs_server) raylet=$(pid raylet)
kill -TERM "$gcs" "$raylet"
sleep 5
kill -TERM "$gcs"
together=$(wait_for "$gcs")
said "at once" "$together"
pkill -KILL -f "$folder/ray" || true

start
gcs=$(pid gcs_server) raylet=$(pid raylet)
kill -TERM "$raylet"
wait_for "$raylet" >/dev/null
kill -TERM "$gcs"
after=$(wait_for "$gcs")
said "raylet first" "$after"
[ "$together" = 30 ] && [ "$after" -lt 10 ]
