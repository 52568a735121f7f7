#!/usr/bin/env bash
# A Slurm of one machine under one folder, to try `make paper ENGINE=slurm` on: plain processes of whoever calls, nothing in /etc.
#   tests/slurm/start.sh FOLDER && export SLURM_CONF=FOLDER/slurm.conf      then      tests/slurm/stop.sh FOLDER
# Needs Debian's packages slurm-wlm and munge. The one GPU that it counts is none: it is there to be asked for.
set -euo pipefail
PATH="$PATH:/usr/sbin"
mkdir -p "$1"/state "$1"/spool
chmod 700 "$1"
folder="$(cd "$1" && pwd)"
user="$(id -un)"
memory="$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)"

cat > "$folder/gres.conf" <<END
NodeName=node1 Name=gpu File=/dev/null
END
cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
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
export SLURM_CONF="$folder/slurm.conf"

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
