#!/bin/sh
# Runs as root in the booted image, after the user-data. Exit status 0: the image is good.
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

check "the script has run in the image" test -s /etc/hello-base/greeting
check "the default user-data has greeted" cmp /etc/hello-base/greeting /run/hello-base/greeting
check "the file of the definition is there" grep -q hello-base /etc/motd
check "the machine has an id of its own" grep -Eqx '[0-9a-f]{32}' /etc/machine-id

exit "$failed"
