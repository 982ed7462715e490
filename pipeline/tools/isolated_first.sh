#!/bin/sh
#
# The first process of isolated programs: it holds no file of the host and no environment. It runs a
# command with the environment of /run/environment, and ends with it, or when its standard input does.
#
#   SECRETS COMMAND...
#
# SECRETS has LENGTH:NAME for each file of /run/secrets; their bytes come first on standard input.

set -eu
exec 3<&0 </dev/null
secrets=$1
shift
if [ -n "$secrets" ]; then
    mkdir -m 0700 /run/secrets
    mount -t tmpfs -o mode=0700 secrets /run/secrets
    for secret in $secrets; do
        (umask 0377 && head -c "${secret%%:*}" <&3 >"/run/secrets/${secret#*:}")
    done
    mount -o remount,bind,ro /run/secrets
fi
trap "exit 143" TERM
# shellcheck disable=SC2016  # the inner shell expands these
env -i sh -c '. /run/environment; rm /run/environment; exec "$@"' sh "$@" 3<&- &
command=$!
{
    cat <&3 >/dev/null
    kill -s TERM 1
} &
exec 3<&-
wait "$command"
