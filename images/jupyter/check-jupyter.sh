#!/bin/sh
# Runs as root in the booted image, after the user-data. Exit status 0: the image is good.
# shellcheck disable=SC2317 # check calls the functions
set -u

failed=0
tries=150 # all waits together: machines without KVM take a minute to start the server
folder=$(mktemp -d)

check() {
    what=$1
    shift
    if "$@" >"$folder/said" 2>&1; then
        echo "ok: $what"
    else
        echo "not ok: $what"
        cat "$folder/said"
        failed=1
    fi
}

wait_for() {
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 1
    done
}

get() {
    curl --silent --max-time 20 "$@"
}

# status PATH [OPTION...]
status() {
    path=$1
    shift
    get --output /dev/null --write-out '%{http_code}' "$@" "http://127.0.0.1:8888$path"
}

has_api() {
    get http://127.0.0.1:8888/api | grep -q '"version"'
}

serves_api() {
    wait_for has_api
}

listens_on() {
    [ "$(ss -ltnH 'sport = :8888' | awk '{ print $4 }')" = "$1:8888" ]
}

keeps_out() {
    [ "$(status /api/contents)" = 403 ]
}

refuses_what_is_no_hash() {
    echo secret | set-jupyter-password
    [ $? -eq 65 ]
}

takes_a_password() {
    salt=$(od -An -N6 -tx1 /dev/urandom | tr -d " ")
    digest=$(printf 'right%s' "$salt" | sha256sum | cut -d ' ' -f 1)
    echo "sha256:$salt:$digest" | set-jupyter-password && wait_for listens_on 0.0.0.0 && serves_api
}

# lets_in PASSWORD
lets_in() {
    rm -f "$folder/jar"
    get --output /dev/null --cookie-jar "$folder/jar" http://127.0.0.1:8888/login
    token=$(awk '$6 == "_xsrf" { print $7 }' "$folder/jar")
    get --output /dev/null --cookie "$folder/jar" --cookie-jar "$folder/jar" \
        --data-urlencode "_xsrf=$token" --data-urlencode "password=$1" http://127.0.0.1:8888/login
    [ "$(status /api/contents --cookie "$folder/jar")" = 200 ]
}

keeps_out_wrong_password() {
    ! lets_in wrong
}

has_a_kernel() {
    runuser -u jupyter -- /opt/jupyter/bin/jupyter kernelspec list | grep -q python3
}

check "the server answers" serves_api
check "without a password it listens on this machine alone" listens_on 127.0.0.1
check "it keeps out who has no token" keeps_out
check "set-jupyter-password refuses what is no hash" refuses_what_is_no_hash
check "with a password it listens on every address" takes_a_password
check "it keeps out who does not know the password" keeps_out_wrong_password
check "it lets in who knows the password" lets_in right
check "notebooks have a kernel" has_a_kernel

rm -rf "$folder"
exit "$failed"
