#!/bin/sh
# Runs as root in the booted image, after the user-data. Exit status 0: the image is good.
# shellcheck disable=SC2317 # check calls the functions
set -u

failed=0

check() {
    what=$1
    shift
    if "$@" >/tmp/said 2>&1; then
        echo "ok: $what"
    else
        echo "not ok: $what"
        cat /tmp/said
        failed=1
    fi
}

waits() {
    ! systemctl is-active --quiet slurmctld.service slurmd.service nfs-server.service
}

refuses() {
    echo 'secret = short' | batch-cluster worker
    [ $? -eq 78 ]
}

becomes_head() {
    # Nobody answers there: the head waits for its Phantom.
    phantom-ctl configure <<END || return 1
url = http://127.0.0.1:9
access_key = AK
secret_key = SK
END
    batch-cluster head <<END || return 1
[cluster]
secret = $(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
address = 127.0.0.1
share = 127.0.0.0/8
[hotel]
image = batch-cluster.gz
instance_type = m1.small
nodes = 2
END
}

encodes() {
    munge --no-input | unmunge | grep -q 'STATUS: *Success'
}

knows_workers() {
    tries=60
    until sinfo --noheader --partition hotel --format '%D %t' | grep -qx '2 idle~'; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 1
    done
}

knows_torque() {
    pbsnodes -a | grep -qx hotel-2
}

shares_home() {
    exportfs -s | grep -q '^/home *127.0.0.0/8('
}

keeps_credentials() {
    [ "$(stat -c '%a %U' /etc/phantom/settings)" = '600 root' ] &&
        [ "$(stat -c '%a %U' /etc/batch-cluster/settings)" = '600 root' ] &&
        [ "$(stat -c '%a %U' /etc/munge/munge.key)" = '400 munge' ]
}

tends() {
    batch-cluster tend
    [ $? -eq 75 ]
}

check "without a cluster the machine waits" waits
check "a wrong secret is refused" refuses
check "user-data makes it a head" becomes_head
check "munge encodes and decodes" encodes
check "Slurm has the workers of the settings" knows_workers
check "TORQUE's commands work" knows_torque
check "/home is shared" shares_home
check "secrets are root's and munge's" keeps_credentials
check "a look without Phantom is repeated" tends

exit "$failed"
