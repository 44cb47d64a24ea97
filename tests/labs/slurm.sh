#!/bin/bash
# tests/labs/slurm.sh - a whole Slurm on this host: slurmctld and three slurmd, without systemd,
# cgroups or munge, all on 127.0.0.1.
#   slurm.sh up DIR           starts it; then SLURM_CONF=DIR/slurm.conf is all its commands need
#   slurm.sh up DIR HOSTS     the same on h0, h1 and h2, which hosts.sh made in the folder HOSTS
#   slurm.sh down DIR         ends what `up` started, by the pids that it wrote
set -eu
dir=$2 hosts=${3:-} nodes=3 cpus=4
base=${SLURM_LAB_PORT:-26817}         # of slurmctld; the slurmds have the next ones
host=$(hostname -s)

down() {
    local file pid pids=''
    for file in "$dir"/run/*.pid; do
        [ -s "$file" ] || continue
        pid=$(cat "$file")
        # A pid may be somebody else's by now.
        grep -qa slurm "/proc/$pid/cmdline" 2> /dev/null || continue
        kill "$pid"
        pids="$pids $pid"
    done
    for _ in $(seq 50); do
        ls "$dir"/run/*.pid > /dev/null 2>&1 || break
        sleep 0.1
    done
    for pid in $pids; do              # a slurmd that still ends a job takes no notice
        if grep -qa slurm "/proc/$pid/cmdline" 2> /dev/null; then kill -9 "$pid" || true; fi
    done
}

write_conf() {
    local control=$1 nodes_line=$2
    mkdir -p "$dir"/{state,spool,log,run,tmp}
    # TmpFS of their own: the pmix plugins of two slurmds would meet in /tmp.
    cat > "$dir/slurm.conf" << EOF
ClusterName=lab
SlurmctldHost=$control
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=10
SlurmctldPort=$base
SlurmdPort=$((base + 1))
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmdSpoolDir=$dir/spool/%n
StateSaveLocation=$dir/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
MpiDefault=none
ReturnToService=2
TmpFS=$dir/tmp/%n
KillWait=5
MessageTimeout=30
SlurmdTimeout=15
JobRequeue=1
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
$nodes_line CPUs=$cpus RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
EOF
    export SLURM_CONF=$dir/slurm.conf
}

# Runs a command on a host; all are this one when there are none of their own.
on() {
    local where=$1
    shift
    if [ -z "$hosts" ]; then "$@"; else "$(dirname "$0")/hosts.sh" exec "$hosts" "$where" "$@"; fi
}

up() {
    local first=n1 i node
    if [ -n "$hosts" ]; then
        first=h0
        write_conf h0 "NodeName=h[0-$((nodes - 1))]"
    else
        write_conf "$host(127.0.0.1)" "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
NodeName=n[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((base + 1))-$((base + nodes))]"
    fi
    on "$first" slurmctld -c -f "$SLURM_CONF"
    for i in $(seq $nodes); do
        node=n$i
        if [ -n "$hosts" ]; then node=h$((i - 1)); fi
        mkdir -p "$dir/spool/$node" "$dir/tmp/$node"
        on "$node" slurmd -N "$node" -f "$SLURM_CONF"
    done
    for _ in $(seq 100); do
        [ "$(on "$first" sinfo -h -N -t idle 2> /dev/null | wc -l)" = $nodes ] && return 0
        sleep 0.1
    done
    echo "the nodes are not idle after 10 s; see $dir/log" >&2
    return 1
}

case $1 in
    up) up ;;
    down) down ;;
    *) echo "slurm.sh up|down DIR [HOSTS]" >&2; exit 1 ;;
esac
