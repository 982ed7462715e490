#!/bin/sh
# Runs as root on the head of a whole cluster: jobs are queued, Slurm has Phantom start workers, the
# jobs run on them, a worker that is killed is replaced, and idle ones are let go.
# shellcheck disable=SC2317,SC2016 # wait_for calls the functions; jobs expand on workers
set -eu

cd /home/batch
started=$(date +%s)

say() {
    echo "$(($(date +%s) - started)) s: $*"
}

# wait_for WHAT COMMAND...
wait_for() {
    what=$1
    shift
    tries=600
    until "$@"; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ]; then
            say "not ok: $what"
            sinfo --Node --long
            squeue
            phantom-ctl list
            journalctl --no-pager --lines 40 --unit slurmctld --unit batch-cluster-tend
            exit 1
        fi
        sleep 1
    done
    say "ok: $what"
}

queue() {
    runuser --user batch -- "$@"
}

has() {
    grep -qsx "$2" "$1"
}

machines() {
    phantom-ctl list | wc -l
}

machines_are() {
    [ "$(machines)" -eq "$1" ]
}

runs() {
    [ "$(squeue --noheader --jobs "$1" --format %T)" = RUNNING ]
}

cat >torque.sh <<'JOB'
#!/bin/sh
#PBS -N torque
echo "$((6 * 7)) on $(hostname)"
JOB
chown batch: torque.sh
queue qsub torque.sh >torque.id
queue sbatch --parsable --output slurm.out --wrap 'echo "$((7 * 8)) on $(hostname)"; sleep 5' >slurm.id
say "queued: $(cat torque.id) by qsub, $(cat slurm.id) by sbatch"
qstat -a | grep -q torque
wait_for "Phantom has a machine for each job" machines_are 2
wait_for "the job of qsub has run" has "torque.sh.o$(cat torque.id)" '42 on .*-[12]'
wait_for "the job of sbatch has run" has slurm.out '56 on .*-[12]'
wait_for "idle workers are let go" machines_are 0

job=$(queue sbatch --parsable --open-mode append --output again.out --wrap 'hostname; sleep 30; echo done')
wait_for "a longer job runs" runs "$job"
python3 - <<'KILL'
from phantom_client import Phantom, read_settings

phantom = Phantom(read_settings())
(domain,) = phantom.list_domains()
print(f"killing {domain.machines[0].id} of {domain.name}")
killed = {"InstanceId": domain.machines[0].id, "ShouldDecrementDesiredCapacity": "false"}
phantom.call("TerminateInstanceInAutoScalingGroup", killed)
KILL
wait_for "the job of the killed worker has run again" has again.out 'done'
scontrol show job "$job" | grep -q 'Restarts=[1-9]'
[ "$(grep -cx 'done' again.out)" -eq 1 ]
wait_for "all workers are let go" machines_are 0

journalctl --unit batch-cluster-tend | grep -o '[^,]* memory peak.*' | sort -V | tail -n 1
