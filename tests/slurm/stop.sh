#!/usr/bin/env bash
# Cancel all jobs of the Slurm that start.sh started under FOLDER, and end its processes.
set -uo pipefail
PATH="$PATH:/usr/sbin"
scancel --user=root
for _ in $(seq 40); do
    [ -z "$(squeue --noheader 2> /dev/null)" ] && break
    sleep 0.5
done
for daemon in slurmd slurmctld munged; do
    [ -s "$1/$daemon.pid" ] && kill "$(cat "$1/$daemon.pid")"
done
for file in slurm.conf gres.conf; do
    [ "$(readlink "/etc/slurm/$file")" = "$(cd "$1" && pwd)/$file" ] && rm "/etc/slurm/$file"
done
exit 0
