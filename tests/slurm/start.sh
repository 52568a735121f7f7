#!/usr/bin/env bash
# A Slurm of one machine under one folder, to try `make paper ENGINE=slurm` on: tests/slurm/start.sh FOLDER, then stop.sh FOLDER.
# Needs root and Debian's packages slurm-wlm and munge. Three plain processes, and two links in /etc/slurm, where the commands in a job
# look for their configuration whatever its environment says. The GPU that it counts is none: it is there to be asked for.
set -euo pipefail
PATH="$PATH:/usr/sbin"
[ "$(id -u)" = 0 ] || { echo "only root can start Slurm" >&2; exit 1; }
for file in slurm.conf gres.conf; do
    [ ! -e "/etc/slurm/$file" ] || { echo "/etc/slurm/$file is there: this machine has a Slurm of its own" >&2; exit 1; }
done
mkdir -p "$1"/state "$1"/spool
chmod 700 "$1"
folder="$(cd "$1" && pwd)"
memory="$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)"

cat > "$folder/gres.conf" <<END
NodeName=node1 Name=gpu File=/dev/null
END
cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdTimeout=20
KillWait=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE State=UP
END
mkdir -p /etc/slurm
ln -sf "$folder/slurm.conf" "$folder/gres.conf" /etc/slurm/

[ -s "$folder/munge.key" ] || { head -c 128 /dev/urandom > "$folder/munge.key" && chmod 600 "$folder/munge.key"; }
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
slurmd -N node1
for _ in $(seq 60); do
    if [ "$(sinfo --noheader --format=%t 2> /dev/null)" = idle ]; then exit 0; fi
    sleep 0.5
done
echo "Slurm did not come up: see $folder/slurmctld.log and $folder/slurmd.log" >&2
exit 1
