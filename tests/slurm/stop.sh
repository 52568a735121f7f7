#!/usr/bin/env bash
# Cancel all jobs of the Slurm that start.sh started under FOLDER, and end its processes.
set -uo pipefail
export SLURM_CONF="$1/slurm.conf"
scancel --user="$(id -un)"
for _ in $(seq 40); do
    [ -z "$(squeue --noheader 2> /dev/null)" ] && break
    sleep 0.5
done
for daemon in slurmd slurmctld munged; do
    [ -s "$1/$daemon.pid" ] && kill "$(cat "$1/$daemon.pid")"
done
exit 0
