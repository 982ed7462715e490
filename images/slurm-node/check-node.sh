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

encodes() {
    munge --no-input | unmunge | grep -q 'STATUS: *Success'
}

knows_hardware() {
    slurmd -C | grep -q "^NodeName=$(uname -n) .*CPUs="
}

waits() {
    ! systemctl is-active --quiet slurmd.service
}

refuses_key() {
    echo 'c2hvcnQ=' | join-cluster head
    [ $? -eq 65 ]
}

joins() {
    head -c 64 /dev/urandom | base64 | join-cluster 127.0.0.1 || return 1
    grep -qx 'SLURMD_OPTIONS="--conf-server 127.0.0.1"' /etc/default/slurmd || return 1
    encodes || return 1
    tries=60
    # Nobody serves a configuration here; slurmd says that it asks for one.
    until journalctl --unit slurmd.service --no-pager | grep -qiE 'configless|conf(ig)?.server|fetch'; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 1
    done
    systemctl stop slurmd.service
    systemctl reset-failed slurmd.service || :
}

check "munge encodes and decodes" encodes
check "slurmd knows the machine's hardware" knows_hardware
check "without a cluster slurmd waits" waits
check "join-cluster refuses what is no key" refuses_key
check "join-cluster has slurmd ask the head" joins

exit "$failed"
