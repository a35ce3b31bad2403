#!/usr/bin/env bash
# `make test-slurm`: the smoke profile through a Slurm cluster of one node, this machine, on the loopback.
#
# Installs Debian's Slurm and MUNGE, starts their daemons without systemd, runs `make figures EXECUTOR=slurm` in a
# copy of the checkout, kills one training run and sees it go on, and compares the headline numbers with those of
# a local run. In the end, however it ends, all is stopped and removed but the two packages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() { echo "make test-slurm: $1" >&2; exit 1; }
[[ $(id -u) == 0 ]] || refuse "it installs and starts Slurm and has to be run by root."
command -v apt-get >/dev/null || refuse "it installs Debian's Slurm and needs apt-get."
[[ ! -e /etc/slurm/slurm.conf ]] || refuse "there is a Slurm here: /etc/slurm/slurm.conf is left as it is."
! pgrep -x 'slurm(ctl)?d' >/dev/null || refuse "there is a Slurm here: its daemons run."

folder=$(mktemp -d)
chmod 755 "$folder"
mkdir "$folder"/{local,cluster,state,spool}
daemons=()
run=""

stop() {
    set +e
    trap '' INT TERM
    [[ -z $run ]] || kill -- "-$run"
    if ((${#daemons[@]})); then
        timeout 20 scancel --quiet --user root
        timeout 60 bash -c 'while [[ -n $(squeue --noheader) ]]; do sleep 1; done'
        kill "${daemons[@]}"
        wait "${daemons[@]}"
    fi
    rm -rf /etc/slurm/slurm.conf "$folder"
} 2>/dev/null
trap stop EXIT
trap 'exit 130' INT TERM

if ! type slurmctld slurmd squeue munged &>/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
fi

# The plugin clears SLURM_CONF, so that the configuration has to lie where Slurm looks for it.
host=$(hostname -s)
cat >/etc/slurm/slurm.conf <<EOF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=86400
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/^Mem:/ { print $2 }')
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
EOF

dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
chmod 600 "$folder/munge.key"
munged --foreground --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
    --seed-file "$folder/munged.seed" --log-file "$folder/munged.log" 2>/dev/null &
daemons+=($!)
slurmctld -D &>"$folder/slurmctld.log" &
daemons+=($!)
slurmd -D &>"$folder/slurmd.log" &
daemons+=($!)
ready() { [[ $(sinfo --noheader --format %t 2>/dev/null) == idle ]]; }
for _ in {1..60}; do ready && break || sleep 1; done
ready || { tail -n 20 "$folder"/*.log; refuse "Slurm did not start within a minute."; }

# Copies, each with an empty store; times of last change are kept, so that .venv counts as ready.
for copy in local cluster; do
    git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --create |
        tar --extract --directory "$folder/$copy"
    ln -sfn "$(realpath .venv)" "$folder/$copy/.venv"
done
figures() { make --no-print-directory -C "$folder/$1" figures PROFILE=smoke OUT=made "${@:2}"; }
through_slurm() {
    figures cluster EXECUTOR=slurm CLUSTER="--default-resources slurm_account=nobody \
        --slurm-init-seconds-before-status-checks 3 --seconds-between-status-checks 3"
}

echo "-- A local run"
figures local
echo "-- The same through Slurm; one training run is killed in the middle"
set -m  # a process group of its own, to stop it by
through_slurm &>"$folder/run.log" &
run=$!
set +m
job=""
until [[ -n $job && -s $folder/cluster/build/smoke/logs/editor-pair-white-box-or-0.log ]]; do
    kill -0 "$run" 2>/dev/null || { cat "$folder/run.log"; refuse "no training run was seen running."; }
    job=$(squeue --noheader --states=RUNNING --format '%i %k' | awk '/editor-pair-white-box-or-0$/ { print $1 }')
    sleep 0.5
done
scancel "$job"
wait "$run" || { cat "$folder/run.log"; refuse "the run through Slurm failed."; }
run=""
cat "$folder/run.log"

echo "-- The jobs that Slurm saw"
squeue --states=all --format '%.6i %.12T %.4C %.8m %.10l %k'
jobs=$(squeue --noheader --states=all --format '%T %m %k')
count=$(find "$folder"/local/build/smoke/{runs,notebooks} -type f | wc -l)
[[ $(grep -c '^COMPLETED' <<<"$jobs") == "$count" ]] || refuse "$count jobs should have been completed, as here."
grep -q '^CANCELLED 2000M .*editor-pair-white-box-or-0$' <<<"$jobs" || refuse "the killed run is not among the jobs."
grep -q '^COMPLETED 4000M .*editor-pair-white-box-or-0$' <<<"$jobs" || refuse "the killed run was not run again with more memory."
cmp "$folder"/{local,cluster}/made/headline.csv || refuse "the headline numbers differ from those of a local run."
through_slurm 2>&1 | tee "$folder/again.log"
grep -q "Nothing to be done" "$folder/again.log" || refuse "a second run should have found nothing to do."
echo "Slurm ran $count jobs and one of them twice; the numbers are those of a local run."
