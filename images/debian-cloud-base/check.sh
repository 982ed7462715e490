#!/bin/sh
# Runs as root in the booted image, after the user-data. Exit status 0: the image is good.
# shellcheck disable=SC2317 # check calls the functions
set -u

failed=0

check() {
    what=$1
    shift
    if "$@"; then
        echo "ok: $what"
    else
        echo "not ok: $what"
        failed=1
    fi
}

has_run_once() {
    [ "$(wc -l </run/phantom-greeting/runs)" -eq 1 ]
}

has_host_key() {
    for key in /etc/ssh/ssh_host_*_key; do
        [ -s "$key" ] && return 0
    done
    return 1
}

check "the default user-data has run, and once" has_run_once
check "the SSH server has a host key" has_host_key
check "the machine has an id of its own" grep -Eqx '[0-9a-f]{32}' /etc/machine-id

exit "$failed"
